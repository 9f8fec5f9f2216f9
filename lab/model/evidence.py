# SPDX-License-Identifier: GPL-2.0-or-later
"""What the witnesses of one trial saw. The judge reads this and nothing else.

Two clocks appear and are never mixed: ``*_ns`` is the host's CLOCK_MONOTONIC, ``*_tsc`` a raw TSC count, the host's
in what the observer wrote and the guest's in what the patched kernel wrote.
"""

import enum

import msgspec

from lab.model.phase import Phase
from lab.model.plan import Plan
from lab.model.scenario import Scenario

#: Raised whenever a field changes its meaning; a folder of another version is not judged.
SCHEMA_VERSION = 2


class EventKind(enum.Enum):
    """What one record of the observer's ring reports."""

    LOAD_BEGIN = "load-begin"
    LOAD_END = "load-end"
    CALL_IN = "call-in"
    RELEASE = "release"
    SELF_NMI = "self-nmi"
    WAIT_LOOP = "wait-loop"
    NMI_ENTRY = "nmi-entry"
    #: The first WRMSR 0x79 of a core in this load is about to execute.
    WINDOW_OPEN = "window-open"
    #: The next block of the vCPU that opened it.
    WINDOW_CLOSE = "window-close"
    #: What a sibling was executing when its core's window opened; ``pc`` is its block, 0 when it was halted.
    IN_FLIGHT = "in-flight"
    #: First sight, in this window, of a block outside the mechanism's wait region.
    OUTSIDE = "outside"
    #: First sight, in this window, of an instruction of a hazard class.
    HAZARD = "hazard"
    #: A later WRMSR 0x79 of a core in the same load.
    RETRY = "retry"
    #: A WRMSR 0x79 outside any late load.
    EARLY = "early"
    #: The vCPU is about to send NMIs to others.
    IPI_NMI = "ipi-nmi"
    #: The vCPU is held where the plan says; the detail is which hold.
    HELD = "held"
    #: It goes on, told to by the lab.
    LET_GO = "let-go"
    #: It goes on since the hold's bound ended.
    HOLD_OVERRUN = "hold-overrun"
    #: The first block that it begins after a hold.
    RESUMED = "resumed"
    #: The vCPU is about to send NMIs to CPUs that shall print a backtrace; which ones is not known, itself is not among
    #: them (lib/nmi_backtrace.c).
    BACKTRACE = "backtrace"
    #: QEMU itself has the vCPU enter an NMI; ``pc`` is where it goes on, the detail which instruction was put off.
    #: A second account of each ``NMI_ENTRY``, where the plugin interface has it.
    NMI_TAKEN = "nmi-taken"
    #: In an NMI, the vCPU is about to call one of the kernel's chains of handlers: those of NMIs of its own CPU's
    #: first, and if none of them claims it those of other sources (``default_do_nmi()``).
    NMI_HANDLER = "nmi-handler"
    #: What a WRMSR 0x79 named was read, as late as the instruction itself; the detail is the number that ties the
    #: record to its :class:`UpdateSeen`.
    UPDATE = "update"


class Sees(enum.Enum):
    """What the observer sees beyond what every QEMU shows it (``enum observer_sees``)."""

    #: The register that each WRMSR writes, so that an update needs no landmark.
    REGISTERS = "registers"
    #: Which block a vCPU is in, stored by QEMU's translated code.
    INLINE = "inline"
    #: Where each interrupt is taken.
    INTERRUPTS = "interrupts"
    #: The update that each WRMSR 0x79 names, in the guest's memory.
    UPDATES = "updates"
    #: The observer answers for the engine: updates take effect, whatever the kernel is.
    ENGINE = "engine"


class Taken(enum.Enum):
    """What became of an update (``enum observer_taken``)."""

    #: The observer is no engine: the update was looked at only.
    UNASKED = "unasked"
    DONE = "done"
    #: The core has another revision than the header's, as the scenario asks for.
    OTHER = "other"
    #: Refused, as the scenario asks for.
    REFUSED = "refused"
    #: The WRMSR faulted, as the scenario asks for.
    FAULT = "fault"
    UNREADABLE = "unreadable"
    MALFORMED = "malformed"
    CHECKSUM = "checksum"
    SIGNATURE = "signature"
    PLATFORM = "platform"
    OLDER = "older"


class Hazard(enum.Enum):
    """Classes of instructions that an update may be patching (design section 1)."""

    NONE = "none"
    MSR = "msr"
    IRET = "iret"
    MWAIT = "mwait"
    CPUID = "cpuid"
    SWAPGS = "swapgs"
    GSBASE = "gsbase"
    DR_CR = "dr-cr"
    OTHER = "other"


#: The classes that break ``harmless``; the others are shown apart.
NASTY = (Hazard.MSR, Hazard.IRET, Hazard.MWAIT, Hazard.CPUID, Hazard.SWAPGS)


class ObserverEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the ring.

    :param load: number of the late load since the guest started, 0 outside any
    :param pc: guest address of the block or instruction
    :param detail: of a hold's records, its index in the plan; of an NMI that was taken, the address of the instruction
        put off; of a WRMSR 0x79, its length in bytes, 0 for 2
    :param symbol: ``symbol+0x..`` of that address, empty when it is none of the kernel's
    """

    seq: int
    mono_ns: int
    tsc: int
    kind: EventKind
    vcpu: int
    load: int
    pc: int
    symbol: str
    hazard: Hazard = Hazard.NONE
    detail: int = 0


class BlockCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often one vCPU began one block in one window; sequence numbers are the ring's at that moment."""

    pc: int
    symbol: str
    count: int
    first_seq: int
    last_seq: int
    in_region: bool


class SiblingView(msgspec.Struct, frozen=True, kw_only=True):
    """What one sibling did in one window.

    :param in_flight_pc: the block it was in when the window opened, 0 when it was halted
    :param in_flight_region: that block belongs to the wait region
    :param region_blocks: blocks of the wait region it began in the window
    :param first_ns: when it began its first block in the window, 0 when there was none
    :param last_ns: when it began its last block of the wait region in the window, 0 when there was none
    :param halted_at_close: it was halted when the window closed: it executed nothing after its last block
    :param blocks_lost: blocks that found no place in the table; not 0 makes the window unfit for ``quiet``
    :param stalled_ns: when it got to the block at which the observer held it, 0 when it never did; that block is not
        executed in the window, and not counted
    :param stall_overrun: the observer's bound let it go while the window was still open
    """

    vcpu: int
    in_flight_pc: int
    in_flight_symbol: str
    in_flight_region: bool
    region_blocks: int
    outside_blocks: int
    first_ns: int
    last_ns: int
    halted_at_close: bool
    blocks_lost: int
    blocks: tuple[BlockCount, ...]
    stalled_ns: int = 0
    stall_overrun: bool = False


class WindowSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One window, from the core's first WRMSR 0x79 of the load to that vCPU's next block.

    :param close_seq: 0 when it never closed
    :param asked_ns: the stretch the plan asked for
    :param extended_ns: how much longer it was held until every sibling had shown itself alive
    :param stalled: the observer held each sibling at its next block, in place of letting it run on
    """

    core: int
    primary: int
    load: int
    pc: int
    open_seq: int
    open_ns: int
    open_tsc: int
    close_seq: int
    close_ns: int
    close_tsc: int
    asked_ns: int
    extended_ns: int
    siblings: tuple[SiblingView, ...]
    stalled: bool = False


class UpdateSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What one WRMSR 0x79 named, as it was in the guest's memory when the instruction was executed.

    :param seq: of its record
    :param operand: what EDX:EAX held: the address of the update's data, which its header is in front of
    :param digest: over header and data, as :func:`lab.microcode.update.digest_words` computes it; 0 where not all of
        it could be read
    :param revision: of the header, as are signature, platforms and total_size
    :param before: the core's revision, 0 where the observer is no engine
    :param after: the same behind the update
    """

    seq: int
    vcpu: int
    operand: int
    digest: int
    revision: int
    signature: int
    platforms: int
    total_size: int
    taken: Taken
    before: int = 0
    after: int = 0


class Resting(msgspec.Struct, frozen=True, kw_only=True):
    """Where one vCPU was found after the load; ``pc`` is the last block that it began."""

    vcpu: int
    halted: bool
    pc: int
    symbol: str


class Covered(msgspec.Struct, frozen=True, kw_only=True):
    """How often one vCPU began one block in one phase of the load, seen from its core.

    :param phase: ``after`` also where it has enabled interrupts behind its core's window: it has left the load by then
    :param masked: it was in an NMI handler, where no further NMI can enter; what it began there is counted apart
    """

    vcpu: int
    phase: Phase
    pc: int
    symbol: str
    count: int
    masked: bool = False


class Cover(msgspec.Struct, frozen=True, kw_only=True):
    """Every block that the load's vCPUs began; kept only where it was asked for.

    :param lost: blocks that found no place, so that the list is not whole
    """

    blocks: tuple[Covered, ...]
    lost: int


class ObserverEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the TCG plugin saw between arming and disarming.

    :param records_lost: records that the ring no longer held when it was read
    :param gaps_ns: per vCPU, its longest time between two callbacks in the load while it was neither halted nor held
    :param windows_lost: windows for which no place was left
    :param resting: every vCPU's place once the guest had come to rest, while offline siblings were still offline; empty
        when nobody looked
    :param arrivals: per hold of the plan, how often its vCPU came to its place
    :param cover: None where it was not asked for
    :param points_wrong: WRMSR 0x79 of the landmarks that the guest has another instruction at, or that write another
        MSR, since it was booted
    :param interface: version of QEMU's plugin interface, 0 where that was not kept
    :param sees: what more than every QEMU this one showed
    :param wait_region: functions in which the mechanism's waiting threads may be, by name
    :param handlers_watched: where the kernel calls ordinary NMI handlers is among the landmarks
    :param updates: what each WRMSR 0x79 named, where the observer sees that
    :param cpuid_missed: CPUIDs since the guest's boot whose changed bit the observer's engine could not show
    """

    events: tuple[ObserverEvent, ...]
    windows: tuple[WindowSeen, ...]
    records_lost: int
    windows_lost: int
    gaps_ns: tuple[int, ...]
    resting: tuple[Resting, ...] = ()
    arrivals: tuple[int, ...] = ()
    cover: Cover | None = None
    points_wrong: int = 0
    interface: int = 0
    sees: tuple[Sees, ...] = ()
    wait_region: tuple[str, ...] = ()
    handlers_watched: bool = False
    updates: tuple[UpdateSeen, ...] = ()
    cpuid_missed: int = 0


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """One NMI that the lab sent.

    :param index: which injection of the plan it is
    :param vcpu: whom, or -1 for all
    :param send_ns: before the command was written
    :param reply_ns: after its reply was read, 0 when none came
    """

    index: int
    vcpu: int
    send_ns: int
    reply_ns: int


class InjectionLog(msgspec.Struct, frozen=True, kw_only=True):
    """The lab's own account of what it injected.

    :param begin_ns: when the lab learned that the load had begun, 0 when it never did
    :param span_ns: how long the load was thought to take; where in it the plan's ppm lie, see lab/trial/injection.py
    :param problem: why injections of the plan were not sent, empty when all were
    :param sentinels: one NMI to each vCPU after the load, with index -1: what was still pending shows itself by then
    """

    begin_ns: int
    span_ns: int
    sent: tuple[Sent, ...]
    problem: str
    sentinels: tuple[Sent, ...] = ()


class CpuState(msgspec.Struct, frozen=True, kw_only=True):
    """The patched kernel's own record of one CPU in the last load (``microcode_lab/state``), guest TSC."""

    cpu: int
    role: str
    arrival_tsc: int
    wait_begin_tsc: int
    wait_end_tsc: int
    update_begin_tsc: int
    update_end_tsc: int
    result: int
    revision: int


class RendezvousState(msgspec.Struct, frozen=True, kw_only=True):
    """``microcode_lab/state`` after the load.

    :param callers_left: what the mechanism's counters still hold: 0 when they settled
    """

    load: int
    mechanism: str
    tsc_khz: int
    callers_left: int
    cpus: tuple[CpuState, ...]


class CpuLedger(msgspec.Struct, frozen=True, kw_only=True):
    """NMIs of one CPU since boot (``microcode_lab/ledger``).

    :param ordinary: taken by the ledger as NMIs of unknown source, the lab's
    :param consumed: taken by the mechanism
    :param self_sent: sent by the mechanism to this CPU
    :param dropped: entered while the CPU was offline, as on its way down or up: exc_nmi() returns at once, and counts
        them nowhere else
    """

    cpu: int
    ordinary: int
    consumed: int
    self_sent: int
    dropped: int = 0

    @property
    def total(self) -> int:
        """All NMIs that the CPU entered."""
        return self.ordinary + self.consumed + self.dropped


class Returned(msgspec.Struct, frozen=True, kw_only=True):
    """What came of bringing the offline siblings back after the load.

    :param failed: the write that was to bring them back failed
    :param online: the CPUs that are online now
    :param revisions: per CPU, from sysfs; -1 where it shows none
    """

    failed: bool
    online: tuple[int, ...]
    revisions: tuple[int, ...]


class GuestEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the inside of the guest told over SSH.

    :param load_errno: what the write to ``reload`` returned, 0 for success, -1 when it did not return
    :param repeat_errno: the same for a second write with nothing newer to load
    :param online: the CPUs that were online at the load
    :param revisions_before: per CPU, from ``microcode/version`` in sysfs; -1 where it shows none, as of offline CPUs
    :param nmis_before: per CPU, from ``/proc/interrupts``; -1 where it shows none, as of offline CPUs
    :param returned: None when no sibling was to be brought back
    :param target_digest: of the update that the guest was given, None where that was not kept
    :param dmesg: of this trial alone, control characters stripped
    :param dmesg_before: what came between the last trial's and this one's
    """

    target_revision: int
    load_errno: int
    repeat_errno: int
    online: tuple[int, ...]
    state: RendezvousState | None
    ledger_before: tuple[CpuLedger, ...]
    ledger_after: tuple[CpuLedger, ...]
    revisions_before: tuple[int, ...]
    revisions_after: tuple[int, ...]
    nmis_before: tuple[int, ...]
    nmis_after: tuple[int, ...]
    dmesg: tuple[str, ...]
    dmesg_before: tuple[str, ...] = ()
    returned: Returned | None = None
    target_digest: int | None = None


class Ending(enum.Enum):
    """How the trial ended, as the lab saw it."""

    COMPLETE = "complete"
    #: The console showed a panic, or QEMU reported one.
    PANIC = "panic"
    #: The guest reset or QEMU ended without a panic.
    GONE = "gone"
    #: The deadline passed with the guest still there.
    DEADLINE = "deadline"
    #: The lab or the host failed; the reason says how.
    LAB = "lab"


class VcpuRunning(msgspec.Struct, frozen=True, kw_only=True):
    """What the host gave one vCPU thread during the trial (/proc/PID/task/TID/schedstat)."""

    vcpu: int
    ran_ns: int
    waited_ns: int


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """The lab's clock readings around the load, CLOCK_MONOTONIC.

    :param steal_ppm: the host's stolen share of CPU time during the trial
    """

    command_ns: int
    returned_ns: int
    deadline_ns: int
    vcpus: tuple[VcpuRunning, ...]
    steal_ppm: int


class StalledVcpu(msgspec.Struct, frozen=True, kw_only=True):
    """Where one vCPU of a guest that stopped answering was found.

    :param symbol: ``symbol+0x..``, empty when the address is none of the kernel's
    :param halted: it slept
    :param interrupts: it would have taken them; None where only the observer could be asked
    """

    vcpu: int
    pc: int
    symbol: str
    halted: bool
    interrupts: bool | None = None


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest that stopped answering was asked before it was ended.

    :param vcpus: by QEMU's registers, or by the last blocks that the observer saw where QEMU did not answer either
    :param problem: why QEMU's registers are missing, empty when they are there
    :param memory: what became of the dump of its memory, empty where none was asked for
    """

    vcpus: tuple[StalledVcpu, ...]
    problem: str = ""
    memory: str = ""


class Match(enum.Enum):
    """How the booted kernel and the vmlinux that its landmarks come from are known to belong together."""

    #: One build of the lab's made both.
    BUILT = "built together"
    BUILD_ID = "build id"
    #: Build ids again, but the kernel's as it shows it while it runs: of several builds of one version only one has it.
    GUEST = "build id read in the guest"
    #: Release, builder, number and time of the build are the same, and nothing else could be compared.
    VERSION = "version only"


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """What was booted, by content: SHA-256 in hex; QEMU and kernel by version.

    :param match: how kernel and vmlinux were known to belong together before the boot
    :param build_id: of the vmlinux that the landmarks come from, in hex; empty where it has none
    :param guest_build_id: what the running kernel says of itself, empty where nobody asked or it does not say
    :param qemu_sha256: of QEMU's program; empty where that was not looked at
    :param plugin_interface: of QEMU, for which the observer was built
    """

    kernel_sha256: str
    vmlinux_sha256: str
    initramfs_sha256: str
    observer_sha256: str = msgspec.field(name="oracle_sha256")
    qemu_version: str
    kernel_release: str
    match: Match = Match.BUILT
    qemu_sha256: str = ""
    plugin_interface: int = 1
    build_id: str = ""
    guest_build_id: str = ""

    @property
    def best_match(self) -> Match:
        """How kernel and vmlinux are known to belong together, by the best that there is."""
        return Match.GUEST if self.build_id and self.build_id == self.guest_build_id else self.match


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one trial left behind.

    :param reason: what the lab saw last, where the ending is not COMPLETE
    :param console_report: where the ending is not COMPLETE, the console's lines from the first complaint on, which its
        tail may no longer hold
    :param stall: None unless the guest stopped answering
    """

    schema_version: int
    lab_version: str
    scenario: Scenario
    plan: Plan
    images: Images | None
    ending: Ending
    reason: str
    observer: ObserverEvidence | None
    injections: InjectionLog | None
    guest: GuestEvidence | None
    timings: Timings | None
    console_tail: tuple[str, ...]
    console_report: tuple[str, ...] = ()
    stall: Stall | None = None
