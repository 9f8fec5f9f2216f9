# SPDX-License-Identifier: GPL-2.0-or-later
"""Synthetic evidence for the judge's tests: a clean late load of ``nmi-self``, to which a test adds one defect.

Times are in nanoseconds since the load's begin. Records are numbered when the evidence is built, so a defect that adds
or leaves out records gives evidence as a sound observer would have written it. A defect of a witness itself is made on
the built evidence with ``change``.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from lab.mechanisms.base import Base, Loader, find_base
from lab.mechanisms.mechanism import Expectation
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import (
    SCHEMA_VERSION,
    BlockCount,
    CpuLedger,
    CpuState,
    Ending,
    EventKind,
    Evidence,
    GuestEvidence,
    Hazard,
    Images,
    InjectionLog,
    ObserverEvent,
    ObserverEvidence,
    RendezvousState,
    Resting,
    Returned,
    Sent,
    SiblingView,
    Timings,
    VcpuRunning,
    WindowSeen,
)
from lab.model.plan import Injection, Plan
from lab.model.scenario import Aim, Parking, Scenario, Siblings
from lab.model.topology import Topology

MS = 1_000_000
#: CLOCK_MONOTONIC at the load's begin.
ORIGIN_NS = 5_000 * MS
#: The host's TSC runs at 2 GHz; the guest's is this much behind.
TSC_OFFSET = -1_000_000_000
FIRST_SEQ = 100
FIRST_LOAD = 1

WINDOW_AT_NS = 2 * MS
WINDOW_NS = 10 * MS
#: A window closes somewhat later than asked: the observer looks for signs of life first.
ASKED_NS = WINDOW_NS - MS
#: When a primary comes to the exit rendezvous, where there is one.
CALL_OUT_AT_NS = 13 * MS
RELEASE_AT_NS = 14 * MS
END_AT_NS = 16 * MS
SENTINEL_AT_NS = 17 * MS
REPEAT_AT_NS = 25 * MS
#: Whom, -1 for all, when sent, and when acknowledged.
BROADCASTS = ((-1, 4 * MS, 5 * MS), (-1, 7 * MS, 8 * MS))
#: Nobody waits for offline threads to leave: theirs may lie behind the load's end.
OFFLINE_RELEASE_AT_NS = END_AT_NS + 100_000

WAIT_SYMBOL = "mclab_nmi_wait_for_primary+0x10"
SYMBOLS = {
    EventKind.NMI_ENTRY: "asm_exc_nmi+0x0",
    EventKind.CALL_IN: "mclab_nmi_call_in+0x0",
    EventKind.RELEASE: "mclab_record_release+0x0",
    EventKind.WINDOW_OPEN: "apply_microcode_intel+0x80",
}

#: Where the kernel's one WRMSR 0x79 is, and where it leads.
WRMSR_PC = 0xFFFFFFFF81000200
AFTER_WRMSR_PC = WRMSR_PC + 2

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

#: What a kernel without witnesses of ours says first and last, with the engine and without.
_PLAIN_WORDS = {
    (Loader.SINCE_6_7, True): (
        "Late microcode loading without minimal revision check.",
        "load: updated on {} primary CPUs with {} siblings",
        "revision: 0x1 -> 0x2",
    ),
    (Loader.SINCE_6_7, False): (
        "Late microcode loading without minimal revision check.",
        "update failed: {} CPUs failed 0 CPUs timed out",
    ),
    (Loader.BEFORE_6_7, False): (
        "Attempting late microcode loading - it is dangerous and taints the kernel.",
        "CPU0 update to revision 0x2 failed",
        "Reload failed, current microcode revision: 0x1",
    ),
}


def host_tsc(at_ns: int) -> int:
    """Return the host's TSC at a time since the load's begin."""
    return 2 * (ORIGIN_NS + at_ns)


def guest_tsc(at_ns: int) -> int:
    """Return what the guest would have read then."""
    return host_tsc(at_ns) + TSC_OFFSET


def change(root: _Struct, path: str, value: Any) -> _Struct:
    """Return a copy with one field, such as ``observer.windows.0.close_seq``, replaced, or put through a callable."""
    head, _, rest = path.partition(".")
    old = getattr(root, head)
    return msgspec.structs.replace(root, **{head: _changed(old, rest, value)})


def _changed(old: Any, path: str, value: Any) -> Any:
    if not path:
        return value(old) if callable(value) else value
    if isinstance(old, tuple):
        index, _, rest = path.partition(".")
        number = int(index)
        return (*old[:number], _changed(old[number], rest, value), *old[number + 1 :])
    return change(old, path, value)


@dataclass
class Step:
    """One record to be."""

    at_ns: int
    kind: EventKind
    vcpu: int
    symbol: str = ""
    hazard: Hazard = Hazard.NONE
    in_load: bool = True
    load: int = FIRST_LOAD
    pc: int = 0


@dataclass
class Load:
    """A late load to be told of: by default clean, without sentinels, with two NMIs in both cores' windows.

    They are broadcasts, but for where an NMI gets to siblings in a window: there they go to primaries.
    """

    mechanism: str = "nmi-self"
    topology: Topology = field(default_factory=lambda: Topology(1, 2, 2))
    sends: list[tuple[int, int, int]] = field(default_factory=lambda: [*BROADCASTS])
    steps: list[Step] = field(default_factory=list)
    ending: Ending = Ending.COMPLETE
    sentinels: list[tuple[int, int, int]] = field(default_factory=list)
    #: How many NMIs the scenario asks for, 0 for as many as are sent.
    asked: int = 0
    siblings: Siblings = Siblings.ONLINE
    parking: Parking = Parking.HLT
    #: Where the kernel calls its NMI handlers is watched.
    handlers: bool = False

    def __post_init__(self) -> None:
        lets_in = find_mechanism(self.mechanism).expectation is Expectation.CAUGHT
        if lets_in and self.sends == [*BROADCASTS]:
            primaries = (*self.topology.primaries, *self.topology.primaries)
            self.sends = [(vcpu, send, reply) for vcpu, (_, send, reply) in zip(primaries, BROADCASTS, strict=False)]
        if not self.steps:
            self._tell_clean_load()

    @property
    def base(self) -> Base:
        """The kernel of the load's mechanism."""
        return find_base(find_mechanism(self.mechanism).base)

    @property
    def scenario(self) -> Scenario:
        """What the load was asked to be."""
        return Scenario(
            mechanism=self.mechanism,
            topology=self.topology,
            nmis=self.asked or len(self.sends),
            siblings=self.siblings,
            parking=self.parking,
        )

    @property
    def offline(self) -> tuple[int, ...]:
        """The vCPUs that are offline at the load."""
        return self.scenario.offline_threads

    def add(self, at_ns: int, kind: EventKind, vcpu: int, **fields: Any) -> "Load":
        """Add a record."""
        self.steps.append(Step(at_ns, kind, vcpu, **fields))
        return self

    def drop(self, kind: EventKind, vcpu: int | None = None) -> "Load":
        """Leave out the records of a kind, of one vCPU or of all, as if they had never been."""
        self.steps = [step for step in self.steps if step.kind is not kind or vcpu not in (None, step.vcpu)]
        return self

    def move(self, kind: EventKind, vcpu: int, at_ns: int) -> "Load":
        """Let a vCPU's records of a kind come at another time."""
        for step in self.steps:
            if step.kind is kind and step.vcpu == vcpu:
                step.at_ns = at_ns
        return self

    def watch(self, *deaf: int) -> "Load":
        """Send each vCPU a sentinel after the load, which all enter but the deaf ones."""
        for vcpu in range(self.topology.vcpus):
            at_ns = SENTINEL_AT_NS + 200_000 * vcpu
            self.sentinels.append((vcpu, at_ns, at_ns + 100_000))
            if vcpu not in deaf:
                self.add(at_ns + 50_000, EventKind.NMI_ENTRY, vcpu)
        return self

    def handle(self) -> "Load":
        """Let all entries so far but the mechanism's own lead to the kernel's handlers, and the observer see that."""
        self.handlers = True
        own = find_mechanism(self.mechanism).landmarks.takes_nmis
        # The ledger is in the first chain that is called; without it nobody in that one takes the lab's NMIs.
        calls = 1 if self.base.witnesses else 2
        for step in [each for each in self.steps if each.kind is EventKind.NMI_ENTRY]:
            for number in range(0 if own and step.at_ns < WINDOW_AT_NS else calls):
                self.add(step.at_ns + 10 + number, EventKind.NMI_HANDLER, step.vcpu, symbol="nmi_handle+0x0")
        return self

    def repeat(self) -> "Load":
        """Tell of a second load; what its WRMSR does shows only in ``windows_lost``."""
        fields = {"load": FIRST_LOAD + 1}
        self.add(REPEAT_AT_NS, EventKind.LOAD_BEGIN, 0, **fields)
        for vcpu in range(self.topology.vcpus):
            at_ns = REPEAT_AT_NS + 100_000 + 1_000 * vcpu
            self.add(at_ns, EventKind.SELF_NMI, vcpu, **fields)
            self.add(at_ns + 200, EventKind.NMI_ENTRY, vcpu, **fields)
            self.add(at_ns + 400, EventKind.CALL_IN, vcpu, **fields)
            self.add(at_ns + 500, EventKind.WAIT_LOOP, vcpu, **fields)
            self.add(at_ns + MS, EventKind.RELEASE, vcpu, **fields)
        self.add(REPEAT_AT_NS + 2 * MS, EventKind.LOAD_END, 0, **fields)
        return self

    def build(self) -> Evidence:
        """Number the records and let the other witnesses tell what fits them."""
        events = tuple(_event(FIRST_SEQ + number, step) for number, step in enumerate(self._ordered()))
        return Evidence(
            schema_version=SCHEMA_VERSION,
            lab_version="0",
            scenario=self.scenario,
            plan=Plan(
                seed=1,
                stretch_us=(ASKED_NS // 1_000,) * self.topology.total_cores,
                injections=tuple(
                    Injection(at_ppm=0, aim=Aim.BROADCAST if vcpu < 0 else Aim.SIBLING, vcpu=vcpu)
                    for vcpu, _, _ in self.sends
                ),
            ),
            images=Images(
                kernel_sha256="0" * 64,
                vmlinux_sha256="0" * 64,
                initramfs_sha256="0" * 64,
                observer_sha256="0" * 64,
                qemu_version="7.2",
                kernel_release=self.base.version or "6.9.0-mine",
            ),
            ending=self.ending,
            reason=""
            if self.ending is Ending.COMPLETE
            else "Kernel panic - not syncing: Timeout during microcode update!",
            observer=ObserverEvidence(
                events=events,
                windows=tuple(
                    self._window(core, events)
                    for core in range(self.topology.total_cores)
                    if any(event.kind is EventKind.WINDOW_OPEN and event.vcpu == 2 * core for event in events)
                ),
                records_lost=0,
                windows_lost=self.topology.total_cores if self._count(EventKind.LOAD_BEGIN, 0) > 1 else 0,
                gaps_ns=(MS,) * self.topology.vcpus,
                handlers_watched=self.handlers,
                resting=tuple(self._rest(vcpu) for vcpu in range(self.topology.vcpus)) if self.offline else (),
            ),
            injections=InjectionLog(
                begin_ns=ORIGIN_NS,
                span_ns=15 * MS,
                sent=tuple(
                    Sent(index=index, vcpu=vcpu, send_ns=ORIGIN_NS + send, reply_ns=ORIGIN_NS + reply)
                    for index, (vcpu, send, reply) in enumerate(self.sends)
                ),
                problem="",
                sentinels=tuple(
                    Sent(index=-1, vcpu=vcpu, send_ns=ORIGIN_NS + send, reply_ns=ORIGIN_NS + reply)
                    for vcpu, send, reply in self.sentinels
                ),
            ),
            guest=self._guest() if self.ending is Ending.COMPLETE else None,
            timings=Timings(
                command_ns=ORIGIN_NS - MS,
                returned_ns=ORIGIN_NS + 20 * MS if self.ending is Ending.COMPLETE else 0,
                deadline_ns=ORIGIN_NS + 30_000 * MS,
                vcpus=tuple(
                    VcpuRunning(vcpu=vcpu, ran_ns=10 * MS, waited_ns=10 * MS) for vcpu in range(self.topology.vcpus)
                ),
                steal_ppm=0,
            ),
            console_tail=("[   12.000000] microcode: the console's last line",),
        )

    def _tell_clean_load(self) -> None:
        self.add(0, EventKind.LOAD_BEGIN, 0)
        for vcpu in range(self.topology.vcpus):
            if vcpu in self.offline:
                self._tell_offline(vcpu)
                continue
            at_ns = 100_000 + 1_000 * vcpu
            self.add(at_ns, EventKind.SELF_NMI, vcpu)
            self.add(at_ns + 200, EventKind.NMI_ENTRY, vcpu)
            self.add(at_ns + 400, EventKind.CALL_IN, vcpu)
            self.add(at_ns + 500, EventKind.WAIT_LOOP, vcpu)
            self.add(RELEASE_AT_NS + 1_000 * vcpu, EventKind.RELEASE, vcpu)
            if any(whom in (-1, vcpu) for whom, _, _ in self.sends):
                # Held back, and merged: one entry after it.
                self.add(self._entered_at_ns(vcpu), EventKind.NMI_ENTRY, vcpu)
        for core in range(self.topology.total_cores):
            primary, sibling = self.topology.threads_of(core)
            open_ns = self.open_ns(core)
            self.add(open_ns, EventKind.WINDOW_OPEN, primary)
            self.add(open_ns, EventKind.IN_FLIGHT, sibling, symbol="" if self._left_alone(sibling) else WAIT_SYMBOL)
            self.add(open_ns + WINDOW_NS, EventKind.WINDOW_CLOSE, primary)
        self.add(END_AT_NS, EventKind.LOAD_END, 0)

    def _entered_at_ns(self, vcpu: int) -> int:
        """Return when a vCPU can enter what came in its core's window: behind its handler, its WRMSR or its stall."""
        mechanism = find_mechanism(self.mechanism)
        core = self.topology.core_of(vcpu)
        primary = vcpu == self.topology.primary_of(core)
        if mechanism.stalled or (primary and mechanism.landmarks.wait_loop == mechanism.landmarks.call_in):
            return self.open_ns(core) + WINDOW_NS + 10_000 + 100 * vcpu
        return RELEASE_AT_NS + 100_000 + 1_000 * vcpu

    def _left_alone(self, vcpu: int) -> bool:
        return vcpu in self.offline and not find_mechanism(self.mechanism).landmarks.offline_call_in

    def _tell_offline(self, vcpu: int) -> None:
        """Let CPU 0 kick an offline thread before it calls in itself; a mechanism may leave it halted instead."""
        if self._left_alone(vcpu):
            return
        self.add(100_210 + vcpu, EventKind.IPI_NMI, 0)
        self.add(100_250 + vcpu, EventKind.NMI_ENTRY, vcpu)
        self.add(100_300 + vcpu, EventKind.CALL_IN, vcpu)
        self.add(100_330 + vcpu, EventKind.WAIT_LOOP, vcpu)
        self.add(OFFLINE_RELEASE_AT_NS + vcpu, EventKind.RELEASE, vcpu)
        if any(whom == vcpu for whom, _, _ in self.sends):
            self.add(OFFLINE_RELEASE_AT_NS + 100_000 + vcpu, EventKind.NMI_ENTRY, vcpu)

    def _rest(self, vcpu: int) -> Resting:
        if vcpu not in self.offline:
            return Resting(vcpu=vcpu, halted=True, pc=0xFFFFFFFF81002000, symbol="default_idle+0xf")
        halts = self.parking is Parking.HLT
        symbol = "hlt_play_dead+0x12" if halts else "mwait_play_dead+0x9a"
        return Resting(vcpu=vcpu, halted=halts, pc=0xFFFFFFFF81003000, symbol=symbol)

    def open_ns(self, core: int) -> int:
        """Return when a core's window opens."""
        return WINDOW_AT_NS + 1_000 * core

    def _ordered(self) -> list[Step]:
        return sorted(self.steps, key=lambda step: step.at_ns)

    def _window(self, core: int, events: tuple[ObserverEvent, ...]) -> WindowSeen:
        primary, sibling = self.topology.threads_of(core)
        opened = next(event for event in events if event.kind is EventKind.WINDOW_OPEN and event.vcpu == primary)
        closed = next((one for one in events if one.kind is EventKind.WINDOW_CLOSE and one.vcpu == primary), None)
        return WindowSeen(
            core=core,
            primary=primary,
            load=FIRST_LOAD,
            pc=opened.pc,
            open_seq=opened.seq,
            open_ns=opened.mono_ns,
            open_tsc=opened.tsc,
            close_seq=closed.seq if closed else 0,
            close_ns=closed.mono_ns if closed else 0,
            close_tsc=closed.tsc if closed else 0,
            asked_ns=ASKED_NS,
            extended_ns=0,
            siblings=(
                _halted_sibling(sibling)
                if self._left_alone(sibling)
                else _live_sibling(sibling, opened, closed.mono_ns if closed else 0),
            ),
        )

    def _count(self, kind: EventKind, vcpu: int) -> int:
        return sum(step.kind is kind and step.vcpu == vcpu for step in self.steps)

    def _guest(self) -> GuestEvidence:
        vcpus = range(self.topology.vcpus)
        # Of an offline CPU's no counter tells but the ledger's of those dropped: exc_nmi() returns before any other.
        entries = [0 if vcpu in self.offline else self._count(EventKind.NMI_ENTRY, vcpu) for vcpu in vcpus]
        self_sent = [self._count(EventKind.SELF_NMI, vcpu) for vcpu in vcpus]
        if not self.base.witnesses:
            return self._plain_guest(entries)
        return GuestEvidence(
            target_revision=2,
            load_errno=0,
            repeat_errno=0,
            online=self._online(),
            state=RendezvousState(
                load=FIRST_LOAD,
                mechanism=self.mechanism,
                tsc_khz=2_000_000,
                callers_left=0,
                cpus=tuple(self._state(vcpu) for vcpu in vcpus),
            ),
            ledger_before=tuple(CpuLedger(cpu=cpu, ordinary=7, consumed=3, self_sent=3) for cpu in vcpus),
            ledger_after=tuple(
                CpuLedger(
                    cpu=cpu,
                    ordinary=7 + entries[cpu] - min(entries[cpu], self_sent[cpu]),
                    consumed=3 + min(entries[cpu], self_sent[cpu]),
                    self_sent=3 + self_sent[cpu],
                    dropped=self._count(EventKind.NMI_ENTRY, cpu) if cpu in self.offline else 0,
                )
                for cpu in vcpus
            ),
            revisions_before=self._shown([1] * len(vcpus)),
            revisions_after=self._shown([2] * len(vcpus)),
            nmis_before=self._shown([10] * len(vcpus)),
            nmis_after=self._shown([10 + count for count in entries]),
            returned=self._returned(),
            dmesg=(
                "[   12.100000] microcode: Attempting late microcode loading - it is dangerous and taints the kernel.",
                "[   12.100001] microcode: You should switch to early loading, if possible.",
                "[   12.130000] microcode: Reload succeeded, microcode revision: 0x1 -> 0x2",
            ),
        )

    def _plain_guest(self, entries: list[int]) -> GuestEvidence:
        """Tell what a kernel without witnesses of ours does: of each NMI that is not its own it complains."""
        count, cores = len(entries), self.topology.total_cores
        siblings = len(self._online()) - cores
        own = 1 if find_mechanism(self.mechanism).landmarks.takes_nmis else 0
        strange = [cpu for cpu, entered in enumerate(entries) for _ in range(max(0, entered - own))]
        begin, *end = _PLAIN_WORDS[self.base.loader, self.base.engine]
        return GuestEvidence(
            target_revision=2,
            load_errno=0 if self.base.engine else 5,
            repeat_errno=self.base.repeat_errno if self.base.engine else -1,
            online=self._online(),
            state=None,
            ledger_before=(),
            ledger_after=(),
            revisions_before=self._shown([1] * count),
            revisions_after=self._shown([2 if self.base.engine else 1] * count),
            nmis_before=self._shown([10] * count),
            nmis_after=self._shown([10 + entered for entered in entries]),
            returned=self._returned(),
            dmesg=(
                f"[   12.100000] microcode: {begin}",
                "[   12.100001] microcode: You should switch to early loading, if possible.",
                *(f"[   12.12{cpu:04}] Uhhuh. NMI received for unknown reason 2c on CPU {cpu}." for cpu in strange),
                *(f"[   12.12{cpu:04}] Dazed and confused, but trying to continue" for cpu in strange),
                *(f"[   12.130000] microcode: {line.format(cores, siblings)}" for line in end),
            ),
        )

    def _online(self) -> tuple[int, ...]:
        return tuple(vcpu for vcpu in range(self.topology.vcpus) if vcpu not in self.offline)

    def _shown(self, values: list[int]) -> tuple[int, ...]:
        """Return what sysfs and /proc/interrupts show: nothing of offline CPUs."""
        return tuple(-1 if cpu in self.offline else value for cpu, value in enumerate(values))

    def _returned(self) -> Returned | None:
        if self.siblings is not Siblings.RETURNING:
            return None
        count = self.topology.vcpus
        return Returned(failed=False, online=tuple(range(count)), revisions=(2 if self.base.engine else 1,) * count)

    def _state(self, vcpu: int) -> CpuState:
        if vcpu in self.offline:
            # Cleared by the load's begin (mclab_load_begin()), and not written since.
            stamps = ("arrival_tsc", "wait_begin_tsc", "wait_end_tsc", "update_begin_tsc", "update_end_tsc")
            return CpuState(cpu=vcpu, role="none", result=0, revision=1, **dict.fromkeys(stamps, 0))
        core = self.topology.core_of(vcpu)
        is_primary = vcpu == self.topology.primary_of(core)
        open_ns = self.open_ns(core)
        at_ns = 100_000 + 1_000 * vcpu
        return CpuState(
            cpu=vcpu,
            role="primary" if is_primary else "sibling",
            arrival_tsc=guest_tsc(at_ns + 300),
            wait_begin_tsc=guest_tsc(at_ns + 350),
            wait_end_tsc=guest_tsc(RELEASE_AT_NS + 1_000 * vcpu + 50),
            update_begin_tsc=guest_tsc(open_ns - 1_000) if is_primary else 0,
            update_end_tsc=guest_tsc(open_ns + WINDOW_NS + 1_000) if is_primary else 0,
            result=0,
            revision=2,
        )


def load_of_stock(mechanism: str, **fields: Any) -> Load:
    """Tell of a load of a kernel with nothing of ours inside."""
    load = Load(mechanism=mechanism, **fields)
    if mechanism == "stock-rendezvous":
        # It sends no NMI: those that wait are the lab's, and enter behind the windows.
        load.drop(EventKind.SELF_NMI)
        load.steps = [step for step in load.steps if step.kind is not EventKind.NMI_ENTRY or step.at_ns > WINDOW_AT_NS]
        # It calls in a second time, to leave: siblings at once, primaries behind their window.
        for vcpu in range(load.topology.vcpus):
            if vcpu not in load.offline:
                load.add(CALL_OUT_AT_NS if vcpu % 2 == 0 else 500_000, EventKind.CALL_IN, vcpu)
    return load


def _event(seq: int, step: Step) -> ObserverEvent:
    return ObserverEvent(
        seq=seq,
        mono_ns=ORIGIN_NS + step.at_ns,
        tsc=host_tsc(step.at_ns),
        kind=step.kind,
        vcpu=step.vcpu,
        load=step.load if step.in_load else 0,
        pc=step.pc or _pc(step.kind),
        symbol=step.symbol or SYMBOLS.get(step.kind, ""),
        hazard=step.hazard,
    )


def _pc(kind: EventKind) -> int:
    if kind is EventKind.WINDOW_CLOSE:
        return AFTER_WRMSR_PC
    updates = (EventKind.WINDOW_OPEN, EventKind.RETRY, EventKind.EARLY)
    return WRMSR_PC if kind in updates else 0xFFFFFFFF81000000 + 16 * list(EventKind).index(kind)


def _halted_sibling(vcpu: int) -> SiblingView:
    return SiblingView(
        vcpu=vcpu,
        in_flight_pc=0,
        in_flight_symbol="",
        in_flight_region=False,
        region_blocks=0,
        outside_blocks=0,
        first_ns=0,
        last_ns=0,
        halted_at_close=True,
        blocks_lost=0,
        blocks=(),
    )


def _live_sibling(vcpu: int, opened: ObserverEvent, close_ns: int) -> SiblingView:
    return SiblingView(
        vcpu=vcpu,
        in_flight_pc=0xFFFFFFFF81001010,
        in_flight_symbol=WAIT_SYMBOL,
        in_flight_region=True,
        region_blocks=1_000,
        outside_blocks=0,
        first_ns=opened.mono_ns + 100,
        last_ns=close_ns - 100 if close_ns else opened.mono_ns + 200,
        halted_at_close=False,
        blocks_lost=0,
        blocks=(
            BlockCount(
                pc=0xFFFFFFFF81001010,
                symbol=WAIT_SYMBOL,
                count=1_000,
                first_seq=opened.seq + 1,
                last_seq=opened.seq + 1,
                in_region=True,
            ),
        ),
    )
