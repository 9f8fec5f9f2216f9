# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's end of the observer: arm it, hear from it, collect what it saw."""

import collections
import contextlib
import ctypes
import mmap
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from lab.errors import DeadlineError, GuestGone, HostError, UsageError
from lab.host.deadline import Deadline
from lab.kernelimage.hold_places import FoundHold
from lab.model.engine import Engine
from lab.model.evidence import EventKind, ObserverEvidence, Resting
from lab.model.topology import Topology
from lab.observer.file import ObserverFile
from lab.observer.layout import (
    ENGINE_NUMBERS,
    HEADER_SIZE,
    HOLDS,
    KIND_NUMBERS,
    KINDS,
    MAX_CORES,
    MAX_MECHANISMS,
    MAX_VCPUS,
    MODE_RUN,
    MODE_STALL,
    PHASE_NUMBERS,
    Header,
    Hold,
    Message,
    Places,
    lay_out,
    make_header,
    pc_of,
)
from lab.observer.reader import Symbolise, TrialReader

#: Wait-region blocks, begun after the stretch that was asked for, that show a sibling to be alive in a window. The wait
#: loops are two or three blocks long, so with four it has gone round at least once.
LIVE_BLOCKS: Final = 4
#: How much longer than asked a window may be held until its siblings show themselves. With four vCPUs to a host core
#: and slices of some 10 ms each has its turn in 40 ms; three times that, and the 6.1 kernel's one second is still far.
EXTEND_BOUND_NS: Final = 150_000_000
#: How much longer than its stretch a window may stall its siblings: past its longest extension, and time for a primary
#: that the host took off its CPU to get back to it. The longest stretch still ends under a second (STALL_CAP_NS).
STALL_BOUND_NS: Final = 250_000_000
#: What images/observer/window.h caps a stretch at: 6.1 panics when a rendezvous takes a second.
MAX_STRETCH_US: Final = 800_000
#: Places for blocks per sibling and window; the most seen in one window was 80.
TABLE_BLOCKS: Final = 1024
#: Places for blocks per vCPU and phase of a load; a whole load of the largest mechanism has some 1,500.
COVER_BLOCKS: Final = 8192
MAX_TRIAL: Final = 2**32 - 1
#: How long a record may take from its number to its last word. A vCPU's thread that the host takes off its core in
#: between comes back within some slices; a dead QEMU's never does.
MAX_WRITING_S: Final = 1.0

_FILE_NAME: Final = "observer.shm"
_NS_PER_US: Final = 1_000
_WRITING_POLL_S: Final = 0.002


class LinkMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the observer told at once: a late load's begin or end, a window's edge, or that a vCPU is held.

    :param detail: which hold, where it is one
    :param mono_ns: when it happened, CLOCK_MONOTONIC
    """

    kind: EventKind
    vcpu: int
    core: int
    detail: int
    seq: int
    mono_ns: int
    load: int


class Processor(msgspec.Struct, frozen=True, kw_only=True):
    """The CPU whose engine the observer answers for.

    :param signature: CPUID.1 EAX
    :param platforms: bit n stands for platform id n of MSR 0x17
    :param revision: at reset
    """

    signature: int
    platforms: int
    revision: int


class ObserverLink:
    """The shared file and the socket of one guest's observer. To be used by one thread at a time.

    Make it with :meth:`create` and use it as a context manager, which closes both; the file stays in the run folder.
    """

    def __init__(self, path: Path, places: Places, topology: Topology, descriptor: int) -> None:
        self._path = path
        self._topology = topology
        self._descriptor = descriptor
        self._file = ObserverFile(descriptor, places)
        self._page = mmap.mmap(descriptor, HEADER_SIZE)
        self._header = Header.from_buffer(self._page)
        self._socket, self._child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._heard: collections.deque[LinkMessage] = collections.deque()
        self._trial = 0
        self._first_seq = 1
        self._entries_before = 0
        self._lost_before = 0
        self._covers_lost_before = 0
        self._resting: tuple[tuple[bool, int], ...] = ()

    @classmethod
    def create(
        cls,
        run_dir: Path,
        topology: Topology,
        ring_records: int = 65536,
        table_blocks: int = TABLE_BLOCKS,
        cover_blocks: int = COVER_BLOCKS,
    ) -> "ObserverLink":
        """Make the file in a folder that is the lab's alone, and the socket.

        :param ring_records: how many of the last events are kept
        :param table_blocks: how many blocks are told apart per sibling and window, a power of two
        :param cover_blocks: the same per vCPU and phase of a load
        :raise UsageError: the topology is too large for the observer
        :raise HostError: there is no space, or the file is there already
        """
        if topology.vcpus > MAX_VCPUS or topology.total_cores > MAX_CORES:
            raise UsageError(
                f"topology '{topology}' has {topology.vcpus} vCPUs on {topology.total_cores} cores:"
                f" the observer takes up to {MAX_VCPUS} on {MAX_CORES}"
            )
        places = lay_out(
            vcpus=topology.vcpus,
            threads=topology.threads,
            ring_records=ring_records,
            table_blocks=table_blocks,
            cover_blocks=cover_blocks,
        )
        path = run_dir / _FILE_NAME
        with contextlib.ExitStack() as undo:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                undo.callback(os.close, descriptor)
                os.posix_fallocate(descriptor, 0, places.total_size)
                os.pwrite(descriptor, bytes(make_header(places)), 0)
                link = cls(path, places, topology, descriptor)
            except OSError as error:
                raise HostError(f"observer file '{path}' could not be made: {error.strerror or error}") from error
            undo.pop_all()
        return link

    def __enter__(self) -> "ObserverLink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._child.close()
        del self._header  # it lives in the page
        self._page.close()
        os.close(self._descriptor)

    @property
    def pass_fd(self) -> int:
        """The descriptor that QEMU must inherit under its number."""
        return self._child.fileno()

    @property
    def path(self) -> Path:
        """The shared file, which QEMU must be able to write."""
        return self._path

    def plugin_arguments(
        self, plugin: Path, landmarks: Path, shm: Path | None = None, engine: Processor | None = None
    ) -> str:
        """Return the value of QEMU's ``-plugin`` option.

        :param shm: by what path QEMU finds the shared file, where that is another than the lab's
        :param engine: have the observer answer for the engine of this processor
        """
        options: dict[str, object] = {
            "file": plugin,
            "landmarks": landmarks,
            "shm": shm or self._path,
            "link": self.pass_fd,
            "threads": self._topology.threads,
        }
        if engine is not None:
            words = {"signature": engine.signature, "platforms": engine.platforms, "revision": engine.revision}
            options |= {"engine": "on", **{name: f"{word:x}" for name, word in words.items()}}
        return ",".join(f"{name}={str(value).replace(',', ',,')}" for name, value in options.items())

    def close_child_end(self) -> None:
        """Leave the socket's other end to QEMU alone, so that QEMU's end is heard; call once it is started."""
        self._child.close()

    def arm(
        self,
        trial: int,
        mechanism_bit: int,
        stretch_us: tuple[int, ...],
        *,
        stalled: bool = False,
        holds: tuple[FoundHold, ...] = (),
        cover: bool = False,
        engine: Engine = Engine.TAKES,
    ) -> None:
        """Begin a trial: from now on everything is recorded.

        :param trial: its number, never one used in this guest before
        :param mechanism_bit: whose wait region and points count
        :param stretch_us: how long to hold each core's window open
        :param stalled: hold each sibling at its next block meanwhile, as hardware that pulls it in by itself
        :param holds: where vCPUs are held until :meth:`let_go`
        :param cover: count every block of the load
        :param engine: how the observer's engine, where it is one, treats an update
        :raise UsageError: a value the observer cannot take
        """
        if not 1 <= trial <= MAX_TRIAL or trial == self._trial:
            raise UsageError(f"trial is {trial}: allowed is 1 to {MAX_TRIAL}, and none twice in one guest")
        if not 0 <= mechanism_bit < MAX_MECHANISMS:
            raise UsageError(f"mechanism bit is {mechanism_bit}: allowed is 0 to {MAX_MECHANISMS - 1}")
        if len(stretch_us) != self._topology.total_cores:
            raise UsageError(f"stretch has {len(stretch_us)} values: the guest has {self._topology.total_cores} cores")
        for stretch in stretch_us:
            if not 0 <= stretch <= MAX_STRETCH_US:
                raise UsageError(f"stretch is {stretch} us: allowed is 0 to {MAX_STRETCH_US}")
        if len(holds) > HOLDS:
            raise UsageError(f"{len(holds)} holds are too many: allowed are {HOLDS}")
        for index, found in enumerate(holds):
            if not 0 <= found.hold.vcpu < self._topology.vcpus:
                allowed = f"0 to {self._topology.vcpus - 1}"
                raise UsageError(f"hold {index} is of vCPU {found.hold.vcpu}: allowed is {allowed}")
        self.disarm()
        control = self._header.control
        control.mechanism = mechanism_bit
        control.mode = MODE_STALL if stalled else MODE_RUN
        control.live_blocks = LIVE_BLOCKS
        control.extend_bound_ns = EXTEND_BOUND_NS
        control.stall_bound_ns = STALL_BOUND_NS
        for core, stretch in enumerate(stretch_us):
            control.stretch_ns[core] = stretch * _NS_PER_US
        control.nmis_sent = control.nmis_acked = 0
        control.holds = len(holds)
        control.cover = int(cover)
        control.engine = ENGINE_NUMBERS[engine]
        for index, found in enumerate(holds):
            self._header.holds[index] = _make_hold(found)
        self._first_seq = self._header.next_seq
        self._entries_before = self._header.status.nmi_entries
        self._lost_before = self._header.status.windows_lost
        self._covers_lost_before = self._header.status.covers_lost
        self._trial = trial
        self._resting = ()
        self.drain()
        # One aligned store, after all it makes valid: x86 keeps stores in order, and so does this interpreter.
        control.armed_trial = trial

    def disarm(self) -> None:
        """End the trial: only a window still open is followed to its end."""
        self._header.control.armed_trial = 0

    def drain(self) -> None:
        """Forget what was heard so far."""
        self._heard.clear()
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):
            while self._socket.recv(ctypes.sizeof(Message)):
                pass

    def wait_for(self, kind: EventKind, deadline: Deadline) -> LinkMessage:
        """Wait for the armed trial's next message of a kind; those of other kinds stay to be waited for.

        :raise DeadlineError: none came in time
        :raise GuestGone: QEMU ended
        """
        while True:
            for message in self._heard:
                if message.kind is kind:
                    self._heard.remove(message)
                    return message
            self._hear(kind.value, deadline)

    def announce(self, nmis: int) -> None:
        """Tell the observer that so many NMIs are still to be sent: no window closes before, but for its bound."""
        self._header.control.nmis_sent += nmis

    @contextlib.contextmanager
    def sending(self, *, announced: bool = False) -> Iterator[None]:
        """Tell the observer, around the sending of one NMI, that it is under way: no window closes meanwhile.

        One that ends without an acknowledgement leaves windows to their bound.

        :param announced: it has been told already
        """
        control = self._header.control
        control.nmis_sent += not announced
        yield
        control.nmis_acked += 1

    def let_go(self, hold: int) -> None:
        """Have the vCPU of a hold go on, now or when it comes to its place."""
        self._header.holds[hold].let_go = self._trial

    def hear(self, deadline: Deadline) -> LinkMessage:
        """Return the armed trial's next message, of any kind.

        :raise DeadlineError: none came in time
        :raise GuestGone: QEMU ended
        """
        while not self._heard:
            self._hear("message", deadline)
        return self._heard.popleft()

    def entries(self) -> int:
        """Return how many NMI entries were recorded in this trial, over all vCPUs."""
        return int(self._header.status.nmi_entries) - self._entries_before

    def look_at_rest(self) -> tuple[tuple[bool, int], ...]:
        """Note, as part of the trial, where each vCPU is now: whether it is halted, and the last block it began."""
        self._resting = self.look()
        return self._resting

    def look(self) -> tuple[tuple[bool, int], ...]:
        """Return of each vCPU whether it is halted, and the last block it began; also once QEMU is stopped or dead."""
        return tuple((bool(vcpu.halts & 1), pc_of(vcpu.block)) for vcpu in self._file.read_vcpus())

    def collect(self, symbolise: Symbolise) -> ObserverEvidence:
        """Return what the observer saw of the trial armed last, also once QEMU is dead."""
        self._settle()
        reader = TrialReader(
            self._file,
            trial=self._trial,
            first_seq=self._first_seq,
            lost_before=self._lost_before,
            covers_lost_before=self._covers_lost_before,
            symbolise=symbolise,
        )
        resting = tuple(
            Resting(vcpu=vcpu, halted=halted, pc=pc, symbol=symbolise(pc) if pc else "")
            for vcpu, (halted, pc) in enumerate(self._resting)
        )
        return msgspec.structs.replace(reader.read(), resting=resting)

    def _settle(self) -> None:
        """Wait for records that vCPUs are just writing, one each at most: the host may have taken one off its core."""
        until_s = time.monotonic() + MAX_WRITING_S
        end_seq = self._file.read_header().next_seq  # a mapping of a file cut short is SIGBUS
        while 0 < self._file.count_unwritten(self._first_seq, end_seq) <= self._topology.vcpus:
            if time.monotonic() >= until_s:
                return
            time.sleep(_WRITING_POLL_S)

    def _hear(self, what: str, deadline: Deadline) -> None:
        deadline.check(f"the observer's {what}")
        self._socket.settimeout(max(deadline.remaining_s, 0.001))  # 0 would mean not to wait at all
        try:
            data = self._socket.recv(ctypes.sizeof(Message))
        except TimeoutError:
            raise DeadlineError(f"deadline reached while waiting for the observer's {what}") from None
        except ConnectionError:
            data = b""
        if not data:
            raise GuestGone(f"QEMU ended while the lab waited for the observer's {what}")
        if len(data) != ctypes.sizeof(Message):
            return
        message = Message.from_buffer_copy(data)
        # A callback that was under way when the last trial ended may still have sent one.
        fits = message.kind in KINDS and message.vcpu < self._topology.vcpus
        if fits and message.seq >= self._first_seq:
            self._heard.append(
                LinkMessage(
                    kind=KINDS[message.kind],
                    vcpu=message.vcpu,
                    core=self._topology.core_of(message.vcpu),
                    detail=message.detail,
                    seq=message.seq,
                    mono_ns=message.mono_ns,
                    load=message.load,
                )
            )


def _make_hold(found: FoundHold) -> Hold:
    hold = found.hold
    return Hold(
        address=found.address,
        bound_ns=hold.bound_us * _NS_PER_US,
        kind=KIND_NUMBERS[found.kind] if found.kind is not None else 0,
        vcpu=hold.vcpu,
        phase=PHASE_NUMBERS[hold.phase] if hold.phase is not None else 0,
        arrival=hold.arrival,
        early=int(hold.early),
    )
