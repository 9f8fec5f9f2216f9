# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest from start to end."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec

from lab.errors import DeadlineError, GuestError, GuestGone, GuestUnfit, HostError
from lab.guest.command import InheritedFds, command_line
from lab.guest.config import GuestKeys, GuestSpec
from lab.guest.console import Console
from lab.guest.ending import EndLatch, GuestEnd
from lab.guest.exit import ExitWatch, read_messages
from lab.guest.memory import GuestMemory
from lab.guest.nmi import AimedInjector, BroadcastInjector, Injector
from lab.guest.qmp import QmpChannel
from lab.guest.registers import is_halted
from lab.guest.ssh import Login, find_port, open_login
from lab.guest.text import quote_tail
from lab.guest.user import choose_user
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.files import write_whole
from lab.host.handing import HandedFiles
from lab.model.evidence import Ending, VcpuRunning

CONSOLE_LOG = "console.log"
QEMU_LOG = "qemu.log"
INITRD = "initrd"

#: images/initramfs/init prints this line once its SSH server listens. To wait for the line is faster than to try to
#: connect: a connection that comes before the guest's network card works is retried only after a second.
READY = r"mclab: ready"
#: An initramfs from elsewhere may not print this line. After this time the lab tries to connect.
READY_S = 20.0
#: Interval between two checks whether the guest has halted for good.
LOOK_S = 2.0

#: An error quotes this many lines of the console and of QEMU's messages.
QUOTED_LINES = 12


#: The QEMU processes of this lab, whatever their programs are called.
_guests: set[proc.Process] = set()
_guests_lock = threading.Lock()


class Machine:
    """A guest that runs. start_guest() makes it."""

    def __init__(
        self,
        *,
        process: proc.Process,
        qmp: QmpChannel,
        broadcast: Injector,
        aimed: AimedInjector,
        console: Console,
        login: Login,
        latch: EndLatch,
        run_dir: Path,
    ) -> None:
        self.shell = login.shell
        self.agent = login.agent
        self.qmp = qmp
        self.broadcast: Injector = broadcast
        self.aimed = aimed
        self.memory = GuestMemory(aimed.qtest)
        self.console = console
        self.latch = latch
        self.run_dir = run_dir
        self.pid = process.pid
        self.qemu_version = qmp.qemu_version
        self._process = process

    @property
    def ending(self) -> GuestEnd | None:
        """How the guest ended; None while it runs."""
        return self.latch.seen

    def wait_settled(self, deadline: Deadline) -> None:
        """After an end, wait until QEMU exits and the console is read, so that evidence is complete.

        Stop at the deadline.
        """
        self.console.wait_closed(deadline)

    def vcpu_threads(self, deadline: Deadline) -> tuple[int, ...]:
        """Return the host's thread id of each vCPU, in order of vCPUs.

        :raise GuestGone: the guest ended
        :raise DeadlineError: QEMU did not answer
        """
        listed = cast(list[dict[str, int]], self.qmp.execute("query-cpus-fast", deadline=deadline))
        return tuple(cpu["thread-id"] for cpu in sorted(listed, key=lambda cpu: cpu["cpu-index"]))

    def read_schedstat(self, threads: tuple[int, ...]) -> tuple[VcpuRunning, ...]:
        """Return the CPU time of each vCPU thread so far: ns that it ran, and ns that it waited for a CPU.

        :param threads: from vcpu_threads()
        :raise GuestGone: QEMU ended
        :raise HostError: the host's kernel does not report these times
        """
        return tuple(
            read_schedstat(Path("/proc", str(self.pid), "task", str(thread), "schedstat"), vcpu)
            for vcpu, thread in enumerate(threads)
        )


def read_schedstat(path: Path, vcpu: int) -> VcpuRunning:
    """Read ``<ns run> <ns waited> <timeslices>``; raises the same errors as Machine.read_schedstat()."""
    try:
        ran, waited, _ = path.read_text().split()
        return VcpuRunning(vcpu=vcpu, ran_ns=int(ran), waited_ns=int(waited))
    except (FileNotFoundError, ProcessLookupError) as error:
        if path.parents[2].exists() and not path.exists() and path.parent.exists():
            raise HostError(f"'{path}' is missing: the host's kernel lacks CONFIG_SCHED_INFO") from error
        raise GuestGone(f"vCPU {vcpu}'s thread is gone: QEMU ended") from error
    except ValueError as error:
        raise HostError(f"'{path}' is not of the form 'RAN WAITED SLICES'") from error
    except OSError as error:
        raise HostError(f"'{path}' could not be read: {error.strerror or error}") from error


@contextlib.contextmanager
def start_guest(
    spec: GuestSpec,
    keys: GuestKeys,
    run_dir: Path,
    deadline: Deadline,
    observer_fd: int | None = None,
    handed: HandedFiles | None = None,
) -> Iterator[Machine]:
    """Start a guest, and yield it once a shell answers. On leaving, remove all that the guest left.

    :param run_dir: private to this guest; receives console.log, qemu.log and the initrd
    :param observer_fd: a descriptor that QEMU inherits under the same number, for the plugin
    :param handed: the files that ``spec.plugin`` names, if there are any
    :raise HostError: QEMU did not start, or run_dir is not writable
    :raise GuestGone: the guest ended during boot; the text quotes its console and QEMU's messages
    :raise GuestUnfit: QEMU was ended by a signal during boot; the text quotes the same
    :raise DeadlineError: the guest did not boot before the deadline; the text quotes the same
    """
    if not os.access(spec.qemu.path, os.X_OK):
        raise HostError(f"QEMU '{spec.qemu.path}' is not there, or not executable")
    initrd = run_dir / INITRD
    try:
        write_whole(initrd, spec.initrd.read_bytes() + keys.archive)
    except OSError as error:
        raise HostError(f"'{spec.initrd}' could not be read: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        latch = stack.enter_context(EndLatch())
        ours, theirs = _make_channels(stack)
        fds = InheritedFds(**{name: end.fileno() for name, end in theirs.items()})
        console = stack.enter_context(Console(ours["console"], run_dir / CONSOLE_LOG, latch))
        qmp = stack.enter_context(QmpChannel(ours["monitor"], latch))
        # Entered after the readers of QEMU's channels, so QEMU ends before them. Then each reader meets the end of its
        # stream.
        with handed or HandedFiles(choose_user(spec.accelerator)) as files:
            started = msgspec.structs.replace(spec, kernel=files.hand(spec.kernel), initrd=files.hand(initrd))
            process = stack.enter_context(_start_qemu(started, fds, observer_fd, files, run_dir / QEMU_LOG))
        for end in theirs.values():
            end.close()
        stack.enter_context(ExitWatch(process, run_dir / QEMU_LOG, latch))
        stack.callback(latch.seal)
        broadcast = BroadcastInjector(ours["nmi_monitor"], latch)
        try:
            qmp.connect(deadline)
            broadcast.connect(deadline)
            _wait_ready(console, qmp, spec.topology.vcpus, deadline.within(READY_S))
            login = stack.enter_context(open_login(find_port(qmp, deadline), keys, latch, deadline))
        except GuestError as error:
            if latch.seen is not None:
                console.wait_closed(deadline.within(1.0))
            told = _describe(error, console, run_dir / QEMU_LOG)
            if latch.seen is not None and latch.seen.kind is Ending.LAB:
                # No guest ends QEMU by a signal: a defect of QEMU does, or the host.
                raise GuestUnfit(str(told)) from error
            raise told from error
        yield Machine(
            process=process,
            qmp=qmp,
            broadcast=broadcast,
            aimed=AimedInjector(ours["qtest"], spec.topology, latch),
            console=console,
            login=login,
            latch=latch,
            run_dir=run_dir,
        )


def _wait_ready(console: Console, qmp: QmpChannel, vcpus: int, bound: Deadline) -> None:
    """Wait until the guest says that it is ready, or until the bound.

    :raise GuestGone: the guest ended, or has halted for good
    """
    while not bound.expired:
        with contextlib.suppress(DeadlineError):
            console.wait_for(READY, bound.within(LOOK_S))
            return
        with contextlib.suppress(DeadlineError):
            if is_halted(qmp, vcpus, bound):
                raise GuestGone(f"the guest halted all of its {vcpus} vCPUs with interrupts off while it booted")


def _make_channels(stack: contextlib.ExitStack) -> tuple[dict[str, socket.socket], dict[str, socket.socket]]:
    ours, theirs = {}, {}
    for name in InheritedFds.__struct_fields__:
        pair = socket.socketpair()
        ours[name], theirs[name] = (stack.enter_context(end) for end in pair)
    return ours, theirs


@contextlib.contextmanager
def _start_qemu(
    spec: GuestSpec, fds: InheritedFds, observer_fd: int | None, files: HandedFiles, log: Path
) -> Iterator[proc.Process]:
    words = command_line(spec, fds)
    inherited = (*msgspec.structs.astuple(fds), *(() if observer_fd is None else (observer_fd,)), *files.descriptors)
    privileges = files.user.words if files.user is not None else ()
    with (
        open(log, "xb") as sink,
        proc.start_process(words, pass_fds=inherited, stderr=sink, privileges=privileges) as process,
    ):
        with _guests_lock:
            _guests.add(process)
        try:
            yield process
        finally:
            with _guests_lock:
                _guests.discard(process)
            # The guest has no disk, so there is nothing to save. SIGKILL also ends a stopped QEMU.
            process.kill()


def kill_guests() -> None:
    """End all guests of this process now. Any thread may call this; the guests' owners see that the guests are gone."""
    with _guests_lock:
        for process in _guests:
            process.kill()


def _describe(error: GuestError, console: Console, qemu_log: Path) -> GuestError:
    text = f"{error}{quote_tail('console', console.tail(QUOTED_LINES), QUOTED_LINES)}"
    text += quote_tail("QEMU", read_messages(qemu_log), QUOTED_LINES)
    return type(error)(text) if isinstance(error, GuestGone | DeadlineError) else GuestError(text)
