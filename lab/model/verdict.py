# SPDX-License-Identifier: GPL-2.0-or-later
"""What the judge concludes, and the compact record of a trial that outlives its evidence."""

import enum
from typing import Final

import msgspec

from lab.model.evidence import Match
from lab.model.phase import Phase, Role


class Finding(enum.Enum):
    """What is known of one invariant in one trial."""

    HELD = "held"
    BROKEN = "broken"
    UNSEEN = "unseen"


class Outcome(enum.Enum):
    """Of a trial, in order of precedence."""

    ERROR = "ERROR"
    FAIL = "FAIL"
    INVALID = "INVALID"
    PASS = "PASS"  # noqa: S105


#: How a PASS of a trial is called that asked for no NMI.
NO_NMIS_ASKED: Final = "no NMIs asked"
WITHOUT_NMIS: Final = f"{Outcome.PASS.value} ({NO_NMIS_ASKED})"

#: Places of ``TrialRecord.coverage`` where an NMI is pending on a sibling in its core's window.
ON_SIBLINGS: Final = tuple(f"{Phase.WINDOW.value} {role.value}" for role in (Role.SIBLING, Role.OFFLINE))

#: Shots of one trial and phase that ``TrialRecord.fractions`` keeps: a plan of a thousand NMIs makes a record no longer
#: than a few kilobytes.
MAX_FRACTIONS: Final = 256

#: Exit status of ``lab trial`` and ``lab judge``; 2 is wrong usage.
EXIT_STATUS = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INVALID: 3, Outcome.ERROR: 4}


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """One event that proves a finding.

    :param seq: sequence number in the observer's ring, 0 for a proof from another witness
    :param vcpu: -1 when it is nobody's in particular
    :param at_us: time into the window where ``core`` is one, else since the load's begin; None when unknown
    :param core: the core whose window it happened in, -1 outside any
    :param symbol: ``symbol+0x..`` or empty
    :param text: one sentence
    """

    text: str
    seq: int = 0
    vcpu: int = -1
    core: int = -1
    at_us: float | None = None
    symbol: str = ""


class Invariant(msgspec.Struct, frozen=True, kw_only=True):
    """One invariant's finding, why, and the events that prove it (all it was broken by, bounded)."""

    name: str
    finding: Finding
    required: bool
    reason: str
    proofs: tuple[Proof, ...] = ()


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A duration of one vCPU or core, in microseconds of the clock that its list names."""

    who: int
    us: float


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """How long things took. ``host_*`` and ``guest_*`` are different clocks and are never added.

    :param host_load_us: from load begin to load end
    :param host_rendezvous_us: from load begin to the last call-in
    :param host_windows_us: per core
    :param host_holds_us: per sibling, from call-in to release; where the update itself holds it, from its stall to the
        window's close
    :param host_nmi_delay_us: from each NMI's sending to the entry that took it, one per entry and vCPU
    :param guest_waits_us: per CPU, wait begin to wait end by the guest's TSC, at the rate that was measured
    :param guest_updates_us: per primary
    :param tsc_offset_cycles: guest TSC less host TSC, the middle of what all pairs allow; None without pairs
    :param tsc_error_us: half the width of what they allow
    :param tsc_claimed_khz: the rate that the guest takes its TSC for; None where it names none
    :param tsc_measured_khz: the rate by the observer's pairs of TSC and CLOCK_MONOTONIC; None as above
    """

    host_load_us: float | None = None
    host_rendezvous_us: float | None = None
    host_windows_us: tuple[Span, ...] = ()
    host_holds_us: tuple[Span, ...] = ()
    host_nmi_delay_us: tuple[Span, ...] = ()
    guest_waits_us: tuple[Span, ...] = ()
    guest_updates_us: tuple[Span, ...] = ()
    tsc_offset_cycles: int | None = None
    tsc_error_us: float | None = None
    tsc_claimed_khz: int | None = None
    tsc_measured_khz: float | None = None


class Handler(enum.Enum):
    """Who took an NMI that a CPU entered, by the kernel's own ledger."""

    ORDINARY = "ordinary"
    #: It ran the mechanism's part of the rendezvous.
    MECHANISM = "mechanism"
    #: exc_nmi() returned at once, since the CPU was offline.
    DROPPED = "dropped"


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """Where one NMI of the plan landed on one vCPU.

    :param nmi: index of the plan's injection
    :param pending: the phase of the vCPU's core in which it was set pending, None when that is one of two
    :param fraction: how far into that phase, 0 to 1; None where the phase has no two ends
    :param entered: the phase in which the vCPU entered it, None when it shared another one's entry
    :param entry_seq: the record of that entry, 0 without one
    :param delay_us: from its sending to that entry, by the host's clock
    :param hold: index of the plan's hold during which it was set pending, -1 without one
    :param shared_seq: the record of the entry that took it together with one before it; 0 when it has an entry of its
        own, or none at all
    :param shared_with: what else that entry, or its own, took
    :param by: who handled it, None where that is not known
    """

    nmi: int
    vcpu: int
    role: Role
    pending: Phase | None
    fraction: float | None
    entered: Phase | None
    entry_seq: int
    delay_us: float | None
    hold: int = -1
    shared_seq: int = 0
    shared_with: tuple[str, ...] = ()
    by: Handler | None = None


class NmiEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One NMI that a vCPU entered.

    :param seq: of the observer's record
    :param phase: of the vCPU's core
    :param took: what set the pending bit, in words: the lab's NMIs by number, the guest's own by kind, first the one
        that set it, then those that merged with it; empty when nothing known did
    :param by: who handled it, None where that is not known
    """

    seq: int
    vcpu: int
    phase: Phase
    took: tuple[str, ...]
    by: Handler | None


class NmiAccount(msgspec.Struct, frozen=True, kw_only=True):
    """The NMIs of one vCPU over a trial: entries = sent + sentinels + own - merged - never + unexplained.

    Own are self-NMIs, IPIs and backtraces.

    :param sent: of the plan's, those that reached it or may have
    :param unreachable: of the plan's, those that met its masked LINT1
    :param sentinels: sent by the lab after the load
    :param self_nmis: sent by the guest's mechanism to this vCPU from itself
    :param ipis: sent by the guest's mechanism from another one
    :param backtraces: entries put down to NMIs that the kernel sent from another one for backtraces, as by sysrq-l; one
        that was for others, or merged, is not among them
    :param merged: set pending while the bit was set already, and so taken by another one's entry
    :param never: that no entry followed
    :param entries: seen by the observer
    :param unexplained: entries that nothing known sent
    :param counted: what the guest itself counted, None where it did not tell
    :param closes: nothing is left over on either side, and the guest counted the same
    """

    vcpu: int
    sent: int
    unreachable: int
    sentinels: int
    self_nmis: int
    ipis: int
    merged: int
    never: int
    entries: int
    unexplained: int
    counted: int | None
    closes: bool
    backtraces: int = 0


class NmiCount(msgspec.Struct, frozen=True, kw_only=True):
    """NMIs of one trial.

    :param sent: commands acknowledged
    :param handled: taken by the kernel's ordinary handlers, over all CPUs
    :param entries: NMI entries the observer saw, self-NMIs included
    :param proven_in_window: sent and acknowledged within a window of a sibling that was alive after it
    :param on_siblings: those of them that were pending on a sibling; None in records of labs that did not count them
    :param masked: sent and acknowledged within a window, and met a sibling's masked LINT1; None as above
    """

    sent: int = 0
    handled: int = 0
    entries: int = 0
    proven_in_window: int = 0
    on_siblings: int | None = None
    masked: int | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the judge says of one trial.

    :param reason: one sentence
    :param windows_judged: windows that counted for ``quiet``
    :param windows_unseen: windows that could not
    :param accounts: one for each vCPU, none where the observer lost records
    :param entries: of all vCPUs, in order, none where the observer lost records
    :param stall: of a guest that stopped answering, where each vCPU was, one line each
    :param matched: how the landmarks are known to be those of the kernel that ran, in words
    """

    outcome: Outcome = Outcome.INVALID
    reason: str = "nothing was seen"
    invariants: tuple[Invariant, ...] = ()
    durations: Durations = Durations()
    nmis: NmiCount = NmiCount()
    windows_judged: int = 0
    windows_unseen: int = 0
    landings: tuple[Landing, ...] = ()
    accounts: tuple[NmiAccount, ...] = ()
    entries: tuple[NmiEntry, ...] = ()
    stall: tuple[str, ...] = ()
    matched: str = ""

    @property
    def without_nmis(self) -> bool:
        """Whether it passed without an NMI, as asked: nothing is shown of protection against them."""
        return _is_without_nmis(self)

    @property
    def label(self) -> str:
        """Its outcome, in words that nobody takes for protection where there was nothing to be protected from."""
        return _label(self)


class TrialRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One trial as the store keeps it.

    :param invariants: name to ``held``, ``broken`` or ``unseen``
    :param evidence: the evidence folder, relative to the run's folder
    :param coverage: ``phase role`` to how many NMIs were set pending there, ``unsure`` for a phase that is one of two
    :param match: how kernel and vmlinux are known to belong together, None where no guest booted
    :param fractions: phase to how far into it random NMIs were set pending, 0 to 1, one for each that surely was; of
        many, a sample in which each is as likely as any other
    :param shots: phase to how many there were; empty in records of labs that kept the first ones and did not count
    :param wait_region: functions in which its waiting threads could be, by name; what siblings executed outside of them
        breaks ``quiet``
    :param first_load: it is the first load of its kind in a guest, which is without NMIs; its plan was not begun
    :param bucket: what went wrong, in words that equal failures share; see lab/judge/bucket.py
    """

    trial: int
    mechanism: str
    topology: str
    seed: int
    outcome: Outcome
    reason: str
    invariants: dict[str, Finding]
    nmis: NmiCount
    durations: Durations
    windows_judged: int
    windows_unseen: int
    kernel_sha256: str
    evidence: str
    match: Match | None = None
    coverage: dict[str, int] = {}
    fractions: dict[str, tuple[float, ...]] = {}
    bucket: str = ""
    shots: dict[str, int] = {}
    wait_region: tuple[str, ...] = ()
    first_load: bool = False

    @property
    def nmis_on_siblings(self) -> int:
        """NMIs proven pending on a live sibling in its core's window; of an older record, all that landed there."""
        if self.nmis.on_siblings is not None:
            return self.nmis.on_siblings
        return sum(self.coverage.get(place, 0) for place in ON_SIBLINGS)

    @property
    def without_nmis(self) -> bool:
        """Whether it passed without an NMI, as asked: nothing is shown of protection against them."""
        return _is_without_nmis(self)

    @property
    def label(self) -> str:
        """Its outcome, in words that nobody takes for protection where there was nothing to be protected from."""
        return _label(self)


def _is_without_nmis(of: Verdict | TrialRecord) -> bool:
    return of.outcome is Outcome.PASS and not of.nmis.sent


def _label(of: Verdict | TrialRecord) -> str:
    return WITHOUT_NMIS if of.without_nmis else of.outcome.value
