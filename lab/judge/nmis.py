# SPDX-License-Identifier: GPL-2.0-or-later
"""Where every NMI came from and went.

A CPU has one pending bit (QEMU: CPU_INTERRUPT_NMI, domain section 4.5). Whatever sets it before the next entry is taken
by that entry, so several causes may merge into one entry, but no entry comes without a cause and no cause without a
later entry. A lost NMI and one that merged with the next look the same, unless the vCPU ran on in between where NMIs
can enter (``arrival``): then none was pending. Whether it was lost or never sent, only another vCPU tells that took it;
where none does, nothing is known of the kernel. One that only its vCPU's sentinel follows is unseen. A self-NMI is
different: its vCPU runs on from there to the load's end outside of any NMI handler, so its entry comes before that end.

The kernel itself sends NMIs for backtraces of other CPUs (sysrq-l, stalls, lockups). To which ones is not known: so
each such sending is a cause that one later entry of each other vCPU may have and none needs to.

Sources: the lab's injection log, the observer's SELF_NMI, IPI_NMI, BACKTRACE and NMI_ENTRY records, and the guest's own
count: its ledger, or ``/proc/interrupts`` on kernels without one.
"""

import heapq
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from lab.judge.arrival import Arrival, find_arrival
from lab.judge.attribution import Cause, attribute
from lab.judge.facts import Facts, to_us
from lab.judge.finding import broken, held, unseen
from lab.judge.starvation import why_starved
from lab.mechanisms.base import Witness
from lab.model.evidence import EventKind, ObserverEvent, Sent
from lab.model.topology import MAX_VCPUS
from lab.model.verdict import Invariant, Proof

#: Several rules ask the same of each vCPU of the trial at hand.
REMEMBERED = MAX_VCPUS


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuNmis:
    """One vCPU's NMIs.

    :param sent: of the plan's, those that reached it or may have
    :param self_sent: of the mechanism's own
    :param backtraces: entries that are put down to a backtrace alone
    :param spurious: entries that no cause is left for
    :param lost: causes that no entry follows
    :param hidden: causes that no entry follows but the last, which the sentinel explains as well
    :param left: the plan's NMIs without which it left the load
    :param passed: the same, and those after which it ran on where NMIs can enter, before the entry that follows
    :param prompt: the plan's NMIs that it entered as soon as it could
    :param causes: all of them
    :param merged: causes beyond one per entry, without backtraces, which may have been for others
    :param owners: pairs of an entry and the first cause that it is thought to have taken
    :param shared: pairs of a further cause and the entry that is thought to have taken it, too
    """

    vcpu: int
    sent: int
    sentinels: int
    self_sent: int
    backtraces: int
    entries: int
    spurious: tuple[ObserverEvent, ...]
    lost: tuple[Cause, ...]
    hidden: tuple[Cause, ...]
    left: frozenset[Sent]
    passed: tuple[Sent, ...]
    prompt: frozenset[Sent]
    causes: tuple[Cause, ...]
    merged: int
    owners: tuple[tuple[ObserverEvent, Cause], ...]
    shared: tuple[tuple[Cause, ObserverEvent], ...]


@lru_cache(REMEMBERED)
def explain(facts: Facts, vcpu: int) -> VcpuNmis:
    """Match one vCPU's NMI entries with their causes, as many as can be.

    Each cause can have been taken by a run of neighbouring entries only, so taking the cause that runs out first is
    the best matching there is: an entry left over has no cause in any other matching either.
    """
    entries = facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)
    causes = _find_causes(facts, vcpu, entries)
    sentinels = facts.sentinels_to(vcpu)
    arrival = find_arrival(facts, vcpu)
    passed = _find_passed(arrival, causes)
    owned, spurious = _match(entries, causes)
    coming = [cause for cause in causes if cause.sent not in passed]
    if passed and len((found := _match(entries, coming))[1]) == len(spurious):
        owned = found[0]
    else:
        # One that no entry can do without was late.
        coming = causes
    owners, shared = attribute(entries, coming, owned)
    self_sent = sum(cause.sent is None and not cause.is_backtrace for cause in causes)
    backtraces = sum(cause.is_backtrace for _, cause in owners)
    known = sum(cause.first < len(entries) and not cause.is_backtrace for cause in coming)
    took = [*owners, *((entry, cause) for cause, entry in shared)]
    return VcpuNmis(
        vcpu=vcpu,
        sent=sum(cause.sent is not None for cause in causes) - len(sentinels),
        sentinels=len(sentinels),
        self_sent=self_sent,
        backtraces=backtraces,
        entries=len(entries),
        spurious=spurious,
        lost=tuple(cause for cause in causes if cause.first >= len(entries) and not cause.optional),
        hidden=_find_hidden(facts, vcpu, coming, entries),
        left=frozenset(sent for sent in passed if arrival.has_left(sent)),
        passed=passed,
        prompt=frozenset(
            cause.sent
            for entry, cause in took
            if cause.sent is not None and cause.sent not in passed and arrival.is_prompt(cause.sent, entry)
        ),
        causes=tuple(causes),
        merged=known - (len(entries) - len(spurious) - backtraces),
        owners=owners,
        shared=shared,
    )


def _match(entries: tuple[ObserverEvent, ...], causes: list[Cause]) -> tuple[dict[int, int], tuple[ObserverEvent, ...]]:
    """Return the number of the entry by index of the cause, as many as can be, and the entries that are left over."""
    coming = sorted((one.first, one.last, index) for index, one in enumerate(causes) if one.first < len(entries))
    open_causes: list[tuple[int, int]] = []
    spurious: list[ObserverEvent] = []
    owned: dict[int, int] = {}
    position = 0
    for number, entry in enumerate(entries):
        while position < len(coming) and coming[position][0] <= number:
            heapq.heappush(open_causes, coming[position][1:])
            position += 1
        while open_causes and open_causes[0][0] < number:
            heapq.heappop(open_causes)
        if open_causes:
            owned[heapq.heappop(open_causes)[1]] = number
        else:
            spurious.append(entry)
    return owned, tuple(spurious)


def _find_passed(arrival: Arrival, causes: list[Cause]) -> tuple[Sent, ...]:
    planned = [one.sent for one in causes if one.sent is not None and one.sent.index >= 0 and not one.optional]
    return tuple(sent for sent in planned if arrival.has_left(sent) or arrival.has_run_on(sent))


def judge_delivered(facts: Facts) -> Invariant:
    """Hold when every NMI entry has a cause, every cause an entry, and the guest counts the same.

    An entry too many is laid at the kernel's door only if the lab's log is whole and every self-NMI landmark was hit;
    a missing one only if the guest's own count says the same as the observer; and both only if the trial ran to its
    end: a kernel that panics sends NMIs to stop the other CPUs.
    """
    name = "nmis-delivered"
    if facts.lost:
        return unseen(name, facts.lost)
    proofs: list[Proof] = []
    doubts = [doubt] if (doubt := why_log_doubted(facts)) else []
    every = [explain(facts, vcpu) for vcpu in facts.vcpus]
    for nmis in every:
        count_doubt = _why_count_doubted(facts, nmis)
        if count_doubt:
            doubts.append(count_doubt)
        if facts.evidence.guest is None or not count_doubt:
            proofs += _find_spurious(facts, nmis, doubts)
        if facts.complete and not count_doubt:
            proofs += _find_lost(facts, nmis) + _find_dropped(facts, nmis, every)
        doubts += _why_delivery_doubted(facts, nmis)
    if proofs:
        return broken(name, proofs)
    if doubts:
        return unseen(name, doubts[0])
    if not facts.complete:
        return unseen(name, "the trial did not run to its end, so NMIs may still have been pending")
    return held(name, _total(facts))


def why_log_doubted(facts: Facts) -> str:
    """Say why the injection log is no full account of what the lab sent; empty when it is."""
    log = facts.evidence.injections
    if log is None:
        return "the injection log is missing"
    if log.problem:
        return f"not every planned NMI was sent: {log.problem}"
    planned = [(index, injection.vcpu) for index, injection in enumerate(facts.evidence.plan.injections)]
    if sorted((sent.index, sent.vcpu) for sent in log.sent) != planned:
        return f"the injection log names {len(log.sent)} NMIs that do not match the {len(planned)} planned"
    if any(not -1 <= vcpu < len(facts.vcpus) for _, vcpu in planned):
        return "the plan aims at a vCPU that the guest does not have"
    if any(sent.vcpu not in facts.vcpus for sent in log.sentinels):
        return "a sentinel names a vCPU that the guest does not have"
    if any(sent.reply_ns and sent.reply_ns < sent.send_ns for sent in (*log.sent, *log.sentinels)):
        return "the injection log has a reply before its command"
    return ""


def _find_causes(facts: Facts, vcpu: int, entries: tuple[ObserverEvent, ...]) -> list[Cause]:
    times = list(accumulate((entry.mono_ns for entry in entries), max))
    floors = _find_floors(facts, vcpu)
    seqs = [entry.seq for entry in entries]
    causes = []
    for sent in facts.sent_to(vcpu):
        if facts.surely_masked(sent, vcpu):
            continue
        first = bisect_left(times, sent.send_ns)
        # The bit falls a moment before the entry's record is written, and a vCPU may be preempted in between: an NMI
        # set in that moment belongs to the entry after, though it was acknowledged before this one was recorded.
        last = bisect_right(floors, sent.reply_ns) if sent.reply_ns else len(entries)
        last = max(first, min(last, len(entries) - 1))
        masked = facts.perhaps_masked(sent, vcpu)
        likely = bisect_left(times, sent.reply_ns) if sent.reply_ns else last
        likely = max(first, min(likely, last))
        causes.append(Cause(first=first, last=last, likely=likely, sent=sent, event=None, optional=masked))
    for event in facts.every_of_kind(EventKind.SELF_NMI, vcpu):
        first = bisect_left(seqs, event.seq)
        # Other NMIs may enter between the landmark and the write to the APIC, but the load does not end before it.
        last = bisect_left(seqs, _end_of_load(facts, event))
        last = max(first, min(last, len(entries) - 1))
        causes.append(Cause(first=first, last=last, likely=first, sent=None, event=event))
    for event in facts.ipis_to(vcpu):
        # Another vCPU's record: by its time, and as with the self-NMI before the load's end.
        first = bisect_left(times, event.mono_ns)
        last = bisect_left(seqs, _end_of_load(facts, event))
        last = max(first, min(last, len(entries) - 1))
        causes.append(Cause(first=first, last=last, likely=first, sent=None, event=event))
    for event in facts.backtraces_to(vcpu):
        # When it is sent behind its landmark, and for how long it is pending then, nothing tells.
        first = bisect_left(seqs, event.seq)
        last = max(first, len(entries) - 1)
        causes.append(Cause(first=first, last=last, likely=first, sent=None, event=event, optional=True))
    return causes


def _end_of_load(facts: Facts, event: ObserverEvent) -> float:
    """Return the number of the record that ended the load a record is of, or the last load that ended."""
    ends = [end.seq for end in facts.every_of_kind(EventKind.LOAD_END)]
    return next((seq for seq in ends if seq > event.seq), max(ends, default=math.inf))


def _find_hidden(facts: Facts, vcpu: int, causes: list[Cause], entries: tuple[ObserverEvent, ...]) -> tuple[Cause, ...]:
    sentinels = facts.sentinels_to(vcpu)
    # What a second load sends comes after the sentinel.
    last = sum(facts.repeat is None or entry.seq < facts.repeat.seq for entry in entries) - 1
    if last < 0 or not any(sentinel.send_ns <= entries[last].mono_ns for sentinel in sentinels):
        return ()
    return tuple(
        cause for cause in causes if cause.first == last and not cause.optional and cause.sent not in sentinels
    )


def _find_floors(facts: Facts, vcpu: int) -> list[int]:
    """Return for each entry a time before which the vCPU had not yet taken it: that of its own last record before.

    The entry's block may itself close a window, or be the first seen outside the wait region: such a record comes
    before that of the entry, and after its NMI was taken (``on_block()`` of the observer).
    """
    floors = []
    floor_ns = 0
    entry_pcs = {entry.pc for entry in facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)}
    for event in facts.every_event:
        if event.vcpu != vcpu or event.kind is EventKind.IN_FLIGHT:
            continue
        if event.kind is EventKind.NMI_ENTRY:
            floors.append(floor_ns)
        elif event.pc in entry_pcs:
            continue
        floor_ns = max(floor_ns, event.mono_ns)
    return floors


def _find_spurious(facts: Facts, nmis: VcpuNmis, doubts: list[str]) -> list[Proof]:
    if not nmis.spurious:
        return []
    own = nmis.vcpu in facts.self_senders or facts.mechanism.landmarks.ipi_nmi
    landmark_missing = own and not nmis.self_sent
    if why_log_doubted(facts) or landmark_missing or not facts.complete:
        doubts.append(f"vCPU {nmis.vcpu} entered more NMIs than the landmarks and the log explain")
        return []
    return [
        _proof(facts, nmis.vcpu, event, f"vCPU {nmis.vcpu} entered an NMI that nobody sent") for event in nmis.spurious
    ]


def _find_lost(facts: Facts, nmis: VcpuNmis) -> list[Proof]:
    entries = facts.every_of_kind(EventKind.NMI_ENTRY, nmis.vcpu)
    ends = facts.every_of_kind(EventKind.LOAD_END)
    proofs = []
    for event in facts.every_of_kind(EventKind.SELF_NMI, nmis.vcpu):
        end = next((end for end in ends if end.seq > event.seq), None)
        if end is not None and not any(event.seq < entry.seq < end.seq for entry in entries):
            text = f"the self-NMI of vCPU {nmis.vcpu} was never entered before the load's end"
            proofs.append(_proof(facts, nmis.vcpu, event, text))
    if _takes_no_nmi(facts, nmis.vcpu) and _shows_others_running(facts, nmis.vcpu):
        text = f"vCPU {nmis.vcpu} no longer takes NMIs after the load"
        proofs.append(Proof(text=text, vcpu=nmis.vcpu))
    delta = facts.ledger_delta(nmis.vcpu)
    backtraces = len(facts.backtraces_to(nmis.vcpu))
    most = nmis.sentinels + backtraces
    if delta is not None and delta.ordinary > most and not nmis.sent and not why_log_doubted(facts):
        sent = "only the lab's sentinel" if nmis.sentinels else "none"
        also = f", and for backtraces {backtraces} at most" if backtraces else ""
        text = f"CPU {nmis.vcpu} handled {delta.ordinary} NMIs though {sent} was sent to it{also}"
        proofs.append(Proof(text=text, vcpu=nmis.vcpu))
    return proofs


def _find_dropped(facts: Facts, nmis: VcpuNmis, every: list[VcpuNmis]) -> list[Proof]:
    """Find broadcasts that a vCPU left the load without, and another one's entries show to have been sent.

    They do when more of them are left without a cause as soon as those broadcasts are not counted.
    """
    dropped = {sent for sent in nmis.left if sent.vcpu == -1}
    if not dropped or why_log_doubted(facts):
        return []
    for other in every:
        entries = facts.every_of_kind(EventKind.NMI_ENTRY, other.vcpu)
        causes = [cause for cause in other.causes if cause.sent not in dropped]
        taken = len(_match(entries, causes)[1]) > len(other.spurious)
        if other.vcpu != nmis.vcpu and taken and not _why_count_doubted(facts, other):
            reached = [cause.sent for cause in other.causes if cause.sent is not None and cause.sent in dropped]
            return [_tell_dropped(nmis.vcpu, other.vcpu, sorted(sent.index for sent in reached))]
    return []


def _tell_dropped(vcpu: int, other: int, numbers: list[int]) -> Proof:
    which = f"NMI {' or '.join(map(str, numbers))}"
    taken = f"{'one of which' if len(numbers) > 1 else 'which'} vCPU {other} entered"
    return Proof(text=f"vCPU {vcpu} never entered {which}, {taken}: it left the rendezvous without it", vcpu=vcpu)


def _takes_no_nmi(facts: Facts, vcpu: int) -> bool:
    """Say whether an acknowledged sentinel was not entered."""
    entries = facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)
    last_ns = max((entry.mono_ns for entry in entries), default=-1)
    return any(sentinel.reply_ns and sentinel.send_ns > last_ns for sentinel in facts.sentinels_to(vcpu))


def _shows_others_running(facts: Facts, vcpu: int) -> bool:
    """Say whether the host runs the guest, and another vCPU took its sentinel: what one does not take is its own."""
    others = [
        other for other in facts.vcpus if other != vcpu and any(one.reply_ns for one in facts.sentinels_to(other))
    ]
    taking = any(not _takes_no_nmi(facts, other) for other in others)
    return taking and not why_starved(facts) and not why_log_doubted(facts)


def _why_delivery_doubted(facts: Facts, nmis: VcpuNmis) -> list[str]:
    """Say why not every NMI to a vCPU is known to have been taken."""
    vcpu = nmis.vcpu
    doubts = [f"NMI {sent.index} was never acknowledged" for sent in facts.planned_to(vcpu) if not sent.reply_ns]
    for sent in nmis.passed if facts.complete else ():
        did = "left the rendezvous" if sent in nmis.left else "ran on where it can enter,"
        doubts.append(
            f"vCPU {vcpu} did not enter NMI {sent.index}, though it {did} after that was acknowledged: it was lost, or"
            " never sent"
        )
    if any(not sentinel.reply_ns for sentinel in facts.sentinels_to(vcpu)):
        doubts.append(f"the sentinel of vCPU {vcpu} was never acknowledged")
    log = facts.evidence.injections
    if facts.complete and log is not None and log.sentinels and not facts.sentinels_to(vcpu):
        doubts.append(f"no sentinel was sent to vCPU {vcpu}, though others got one")
    if facts.complete and nmis.lost:
        doubts.append(f"vCPU {vcpu} took no NMI after the load")
    if facts.complete:
        doubts += [
            f"vCPU {vcpu} took {name_cause(cause)} together with its sentinel, or never" for cause in nmis.hidden
        ]
    return doubts


def name_cause(cause: Cause) -> str:
    """Return what set a pending bit, in a few words."""
    if cause.sent is not None:
        return f"NMI {cause.sent.index}" if cause.sent.index >= 0 else "its sentinel"
    if cause.is_backtrace:
        return "a backtrace's NMI"
    return "its self-NMI" if cause.event is not None and cause.event.kind is EventKind.SELF_NMI else "an NMI IPI"


def name_shared(cause: Cause) -> str:
    """Return the same of a further cause of an entry: a backtrace may have been for other CPUs."""
    return f"perhaps {name_cause(cause)}" if cause.is_backtrace else name_cause(cause)


def _why_count_doubted(facts: Facts, nmis: VcpuNmis) -> str:
    if nmis.vcpu in facts.offline:
        return _why_offline_count_doubted(facts, nmis)
    if not facts.has(Witness.LEDGER):
        counted = facts.counted_nmis(nmis.vcpu)
        if counted is None:
            return f"/proc/interrupts has no count of CPU {nmis.vcpu}"
        if counted != nmis.entries:
            return f"/proc/interrupts counts {counted} NMIs on CPU {nmis.vcpu}, the observer {nmis.entries}"
        return ""
    delta = facts.ledger_delta(nmis.vcpu)
    if delta is None:
        return f"the ledger of CPU {nmis.vcpu} is missing"
    if delta.total != nmis.entries:
        return f"the ledger counts {delta.total} NMIs on CPU {nmis.vcpu}, the observer {nmis.entries}"
    return ""


def _why_offline_count_doubted(facts: Facts, nmis: VcpuNmis) -> str:
    """On an offline CPU exc_nmi() returns before any counter but that of the ledger's dropped ones."""
    if not facts.has(Witness.LEDGER):
        return ""
    delta = facts.ledger_delta(nmis.vcpu)
    if delta is None:
        return f"the ledger of CPU {nmis.vcpu} is missing"
    if delta.ordinary or delta.consumed:
        handled = delta.ordinary + delta.consumed
        return f"the ledger says that CPU {nmis.vcpu}, which is offline, handled {handled} NMIs"
    if delta.dropped != nmis.entries:
        return f"the ledger counts {delta.dropped} NMIs dropped on CPU {nmis.vcpu}, the observer {nmis.entries} entries"
    return ""


def _total(facts: Facts) -> str:
    every = [explain(facts, vcpu) for vcpu in facts.vcpus]
    masked = sum(facts.surely_masked(sent, vcpu) for vcpu in facts.vcpus for sent in facts.planned_to(vcpu))
    sentinels = sum(nmis.sentinels for nmis in every)
    backtraces = sum(nmis.backtraces for nmis in every)
    sendings = len(facts.every_of_kind(EventKind.BACKTRACE))
    also = f" {backtraces} for {sendings} backtraces of the guest's," if sendings else ""
    return (
        f"{sum(nmis.sent for nmis in every)} sent, {sentinels} sentinels and"
        f" {sum(nmis.self_sent for nmis in every)} of the mechanism's own,{also}"
        f" {sum(nmis.merged for nmis in every)} merged, {sum(nmis.entries for nmis in every)} entries,"
        f" counted per vCPU, and {'the ledger' if facts.has(Witness.LEDGER) else '/proc/interrupts'} agrees"
        + (f"; {masked} more met a masked LINT1" if masked else "")
    )


def _proof(facts: Facts, vcpu: int, event: ObserverEvent, text: str) -> Proof:
    at_us = to_us(event.mono_ns - facts.begin.mono_ns) if facts.begin is not None else None
    return Proof(text=text, seq=event.seq, vcpu=vcpu, at_us=at_us, symbol=facts.where(event))
