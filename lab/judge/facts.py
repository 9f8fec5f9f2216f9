# SPDX-License-Identifier: GPL-2.0-or-later
"""An indexed view of one trial's evidence."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from lab.judge.completeness import is_contradicted, why_lost, why_misplaced
from lab.judge.finding import clean
from lab.mechanisms.base import Base, Witness, find_base
from lab.mechanisms.mechanism import Mechanism, Threads, is_play_dead
from lab.model.engine import EFFECTIVE, Engine
from lab.model.evidence import (
    CpuLedger,
    Ending,
    EventKind,
    Evidence,
    ObserverEvent,
    Sees,
    Sent,
    SiblingView,
    Taken,
    UpdateSeen,
    WindowSeen,
)
from lab.model.scenario import Siblings
from lab.model.topology import Topology

NS_PER_US = 1_000


def to_us(ns: int) -> float:
    """Return nanoseconds as microseconds."""
    return ns / NS_PER_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One window and its place among the observer's records.

    :param end_seq: the first record known to be after it; infinite when it never closed and its primary did no more
    """

    seen: WindowSeen
    siblings: tuple[int, ...]
    end_seq: float

    def holds(self, event: ObserverEvent) -> bool:
        """Say whether a record falls between the window's edges."""
        return self.seen.open_seq < event.seq < self.end_seq

    def at_us(self, event: ObserverEvent) -> float:
        """Return how far into the window a record is, by the host's clock."""
        return to_us(event.mono_ns - self.seen.open_ns)

    def view_of(self, vcpu: int) -> SiblingView | None:
        """Return what one sibling did; None when there is no account of it, or more than one."""
        views = [view for view in self.seen.siblings if view.vcpu == vcpu]
        return views[0] if len(views) == 1 else None


#: Records by kind and vCPU, and by kind alone with None for the vCPU; each in order.
Index = Mapping[tuple[EventKind, int | None], tuple[ObserverEvent, ...]]


# Compared by identity, so that what a rule computes of a trial's facts can be remembered.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Facts:
    """What the judge's rules look things up in.

    :param base: the kernel that has the mechanism
    :param offline: threads that were booted once and are offline during the load
    :param every_event: the observer's records by sequence number, each once
    :param events: those before a second load
    :param every_by_kind: the same as ``every_event``, indexed
    :param by_kind: the same as ``events``, indexed
    :param windows: those whose edges no record contradicts: of another, nobody knows what happened in it
    :param begin: the load's first record, None when it was not seen
    :param end: the load's last record, None when it was not seen
    :param repeat: the first record of a second load that followed the first, None without one
    :param misplaced: why the edges of windows are not known to be those of updates, empty when they are
    :param lost: why the observer's account is not whole, empty when it is
    """

    evidence: Evidence
    topology: Topology
    mechanism: Mechanism
    base: Base
    offline: frozenset[int]
    every_event: tuple[ObserverEvent, ...]
    events: tuple[ObserverEvent, ...]
    every_by_kind: Index
    by_kind: Index
    windows: tuple[Window, ...]
    begin: ObserverEvent | None
    end: ObserverEvent | None
    repeat: ObserverEvent | None
    misplaced: str
    lost: str

    @property
    def vcpus(self) -> range:
        """All vCPUs of the guest."""
        return range(self.topology.vcpus)

    @property
    def cores(self) -> range:
        """All cores of the guest."""
        return range(self.topology.total_cores)

    @property
    def complete(self) -> bool:
        """Whether the trial ran to its end."""
        return self.evidence.ending is Ending.COMPLETE

    @property
    def has_engine(self) -> bool:
        """Whether the CPU does what the scenario says: by an engine of ours, or by ignoring what it is to refuse."""
        if self.evidence.scenario.engine is Engine.REFUSES:
            return True
        answered = any(update.taken is not Taken.UNASKED for update in self._updates)
        return self.base.engine or self._sees(Sees.ENGINE) or answered

    @property
    def takes(self) -> bool:
        """Whether this scenario's update is to take effect."""
        return self.has_engine and self.evidence.scenario.engine in EFFECTIVE

    @property
    def sees_updates(self) -> bool:
        """Whether the observer reads the update that a WRMSR 0x79 names: it says so, or tells of one."""
        return self._sees(Sees.UPDATES) or bool(self._updates or self.every_of_kind(EventKind.UPDATE))

    def _sees(self, what: Sees) -> bool:
        return self.evidence.observer is not None and what in self.evidence.observer.sees

    @property
    def _updates(self) -> tuple[UpdateSeen, ...]:
        return self.evidence.observer.updates if self.evidence.observer is not None else ()

    def has(self, witness: Witness) -> bool:
        """Say whether the kernel has a witness of ours."""
        return witness in self.base.witnesses

    @property
    def online(self) -> tuple[int, ...]:
        """The vCPUs that were online during the load."""
        return self.evidence.scenario.online_threads

    def has_landmarks(self, vcpu: int) -> bool:
        """Say whether the landmarks are known to be those of the kernel that a vCPU runs.

        One kernel runs on all threads: an address that any of them hit is right for all that call in there. Where
        siblings call in elsewhere than primaries, only a sibling shows it. A mechanism may leave offline threads alone;
        then the call-in of their core's primary says it. Without a rendezvous there is the load's begin alone.
        """
        marks = self.mechanism.landmarks
        if not marks.call_in:
            return self.begin is not None
        primary = self.topology.primary_of(self.topology.core_of(vcpu))
        if vcpu in self.offline:
            return self.call_in(vcpu) is not None or self.call_in(primary) is not None
        apart = bool(marks.primary_call_in)
        alike = [each for each in self.online if not apart or self.is_sibling(each) is self.is_sibling(vcpu)]
        return any(self.call_in(each) is not None for each in alike)

    def parks_at(self, vcpu: int, symbol: str) -> bool:
        """Say whether a place is where an offline thread waits in MWAIT.

        Hardware sleeps there. An emulator of several CPUs executes it as PAUSE, again and again: what is seen there
        is the emulator's doing, and what the thread would have done is not seen.
        """
        return vcpu in self.offline and self.evidence.scenario.boot.monitor and is_play_dead(symbol)

    def of_kind(self, kind: EventKind, vcpu: int | None = None) -> tuple[ObserverEvent, ...]:
        """Return the records of one kind, in order, of one vCPU or of all."""
        return self.by_kind.get((kind, vcpu), ())

    def every_of_kind(self, kind: EventKind, vcpu: int | None = None) -> tuple[ObserverEvent, ...]:
        """Return the same of the whole trial, a second load included: the ledger counts over both."""
        return self.every_by_kind.get((kind, vcpu), ())

    def call_in(self, vcpu: int) -> ObserverEvent | None:
        """Return a vCPU's first call-in of the load: the 6.1 rendezvous enters the same function again to leave."""
        return next((event for event in self.of_kind(EventKind.CALL_IN, vcpu) if self._in_load(event)), None)

    def releases(self, vcpu: int) -> tuple[ObserverEvent, ...]:
        """Return when a vCPU was let go in the load, in order.

        An offline one only counts after it had called in, and then also behind the load: nobody waits for it to leave.
        """
        releases = self.of_kind(EventKind.RELEASE, vcpu)
        if vcpu not in self.offline:
            return tuple(event for event in releases if self._in_load(event))
        call_in = self.call_in(vcpu)
        return tuple(event for event in releases if call_in is not None and event.seq > call_in.seq)

    def consumed(self, vcpu: int) -> tuple[ObserverEvent, ...]:
        """Return the NMI entries after which the vCPU's next landmark was the mechanism's own.

        Where a mechanism does not wait in the NMI handler, its landmarks are reached from elsewhere.
        """
        if not self.mechanism.landmarks.takes_nmis:
            return ()
        own = (EventKind.CALL_IN, EventKind.WAIT_LOOP)
        kinds = (*own, EventKind.NMI_ENTRY)
        landmarks = [event for event in self.every_event if event.vcpu == vcpu and event.kind in kinds]
        pairs = pairwise(landmarks)
        return tuple(entry for entry, after in pairs if entry.kind is EventKind.NMI_ENTRY and after.kind in own)

    def counted_nmis(self, cpu: int) -> int | None:
        """Return how many NMIs ``/proc/interrupts`` counted on one CPU in this trial; None where it did not tell."""
        guest = self.evidence.guest
        if guest is None or not len(guest.nmis_before) == len(guest.nmis_after) == len(self.vcpus):
            return None
        before, after = guest.nmis_before[cpu], guest.nmis_after[cpu]
        return after - before if before >= 0 and after >= 0 else None

    def ledger_delta(self, cpu: int) -> CpuLedger | None:
        """Return what the ledger counted for one CPU in this trial; None unless it was read once on each side."""
        guest = self.evidence.guest
        if guest is None:
            return None
        before = [entry for entry in guest.ledger_before if entry.cpu == cpu]
        after = [entry for entry in guest.ledger_after if entry.cpu == cpu]
        if len(before) != 1 or len(after) != 1:
            return None
        return CpuLedger(
            cpu=cpu,
            ordinary=after[0].ordinary - before[0].ordinary,
            consumed=after[0].consumed - before[0].consumed,
            self_sent=after[0].self_sent - before[0].self_sent,
            dropped=after[0].dropped - before[0].dropped,
        )

    @property
    def self_senders(self) -> tuple[int, ...]:
        """The vCPUs that send themselves an NMI in each load."""
        return self._threads(self.mechanism.landmarks.self_nmi_by, self.online)

    def ipis_to(self, vcpu: int) -> tuple[ObserverEvent, ...]:
        """Return the records of NMIs that other threads, or the mechanism for all, sent to a vCPU."""
        reach = self.mechanism.landmarks.ipi_nmi_to
        if reach is Threads.OFFLINE:
            return self._first_ipis() if vcpu in self.offline else ()
        core = self.topology.threads_of(self.topology.core_of(vcpu))
        return tuple(
            event
            for event in self.every_of_kind(EventKind.IPI_NMI)
            if reach is Threads.ALL or (reach is Threads.SIBLINGS and event.vcpu in core and event.vcpu != vcpu)
        )

    def backtraces_to(self, vcpu: int) -> tuple[ObserverEvent, ...]:
        """Return the records of NMIs that the kernel sent from another vCPU for backtraces: this one's may be among.

        They go to CPUs that are online (``nmi_trigger_cpumask_backtrace()`` is given ``cpu_online_mask``).
        """
        if vcpu in self.offline and self.evidence.scenario.siblings is not Siblings.RETURNING:
            return ()
        return tuple(event for event in self.every_of_kind(EventKind.BACKTRACE) if event.vcpu != vcpu)

    def _first_ipis(self) -> tuple[ObserverEvent, ...]:
        first = {event.load: event for event in reversed(self.every_of_kind(EventKind.IPI_NMI))}
        return tuple(sorted(first.values(), key=lambda event: event.seq))

    def _threads(self, which: Threads, vcpus: Iterable[int]) -> tuple[int, ...]:
        if which is Threads.NONE:
            return ()
        return tuple(vcpu for vcpu in vcpus if which is Threads.ALL or self.is_sibling(vcpu))

    def is_sibling(self, vcpu: int) -> bool:
        """Say whether a vCPU is one of those that must stay quiet while their primary updates."""
        return vcpu != self.topology.primary_of(self.topology.core_of(vcpu))

    def reaching(self, vcpu: int) -> tuple[Sent, ...]:
        """Return the lab's NMIs that surely reach a vCPU, in order: not those that may have met a masked LINT1."""
        return tuple(sent for sent in self.planned_to(vcpu) if not self.perhaps_masked(sent, vcpu))

    def masks_lint1(self, vcpu: int) -> bool:
        """Say whether the mechanism has a vCPU mask LINT1 while it waits."""
        return vcpu in self._threads(self.mechanism.landmarks.lint1_masked_by, self.vcpus)

    def perhaps_masked(self, sent: Sent, vcpu: int) -> bool:
        """Say whether a broadcast may have met a masked LINT1: an offline thread's, or one that the mechanism masks."""
        if sent.vcpu == -1 and vcpu in self.offline:
            return True
        if sent.vcpu != -1 or not self.masks_lint1(vcpu) or self.begin is None:
            return False
        last = self.every_of_kind(EventKind.LOAD_END)[-1:]
        over = last and (self.repeat is None or last[0].seq > self.repeat.seq)
        end_ns = last[0].mono_ns if over else math.inf
        return sent.send_ns <= end_ns and (not sent.reply_ns or sent.reply_ns >= self.begin.mono_ns)

    def surely_masked(self, sent: Sent, vcpu: int) -> bool:
        """Say whether a broadcast met a masked LINT1: sent to an offline thread, or between call-in and release."""
        if sent.vcpu == -1 and vcpu in self.offline:
            return True
        call_in, releases = self.call_in(vcpu), self.releases(vcpu)
        if not self.perhaps_masked(sent, vcpu) or call_in is None or not releases or not sent.reply_ns:
            return False
        return call_in.mono_ns <= sent.send_ns and sent.reply_ns <= releases[0].mono_ns

    def planned_to(self, vcpu: int) -> tuple[Sent, ...]:
        """Return the plan's NMIs that are aimed at a vCPU, in order; with ``apic_extnmi=all`` a broadcast is at all."""
        log = self.evidence.injections
        return _in_order(one for one in (log.sent if log is not None else ()) if one.vcpu in (-1, vcpu))

    def sentinels_to(self, vcpu: int) -> tuple[Sent, ...]:
        """Return the NMIs that the lab sent to a vCPU after the load, to see whether it still takes them."""
        log = self.evidence.injections
        return _in_order(one for one in (log.sentinels if log is not None else ()) if one.vcpu == vcpu)

    def sent_to(self, vcpu: int) -> tuple[Sent, ...]:
        """Return all of the lab's NMIs that are aimed at a vCPU, in order."""
        return _in_order((*self.planned_to(vcpu), *self.sentinels_to(vcpu)))

    def where(self, event: ObserverEvent) -> str:
        """Return the record's code address in words."""
        return clean(event.symbol) or f"{event.pc:#x}"

    def _in_load(self, event: ObserverEvent) -> bool:
        after_begin = self.begin is None or event.seq > self.begin.seq
        return after_begin and (self.end is None or event.seq < self.end.seq)


def find_repeat(evidence: Evidence) -> ObserverEvent | None:
    """Return the begin of a second load; None unless there are two in all, and it came after the first one's end."""
    raw = evidence.observer.events if evidence.observer is not None else ()
    events = sorted(dict.fromkeys(raw), key=lambda event: event.seq)
    begins = [event for event in events if event.kind is EventKind.LOAD_BEGIN]
    end = _first(events, EventKind.LOAD_END)
    if len(begins) != 2 or end is None:
        return None
    first, second = begins
    return second if first.seq < end.seq < second.seq and first.load != second.load else None


def find_facts(evidence: Evidence, topology: Topology, mechanism: Mechanism) -> Facts:
    """Index the evidence of a trial whose scenario has been found sane."""
    raw = evidence.observer.events if evidence.observer is not None else ()
    every_event = tuple(sorted(dict.fromkeys(raw), key=lambda event: event.seq))
    repeat = find_repeat(evidence)
    events = tuple(event for event in every_event if repeat is None or event.seq < repeat.seq)
    windows = tuple(
        Window(
            seen=seen,
            siblings=_siblings(topology, seen),
            end_seq=_end_seq(seen, events),
        )
        for seen in (evidence.observer.windows if evidence.observer is not None else ())
        if not is_contradicted(seen, events) and (repeat is None or seen.open_seq < repeat.seq)
    )
    updates = evidence.observer.updates if evidence.observer is not None else ()
    misplaced = why_misplaced(every_event, frozenset(each.seq for each in updates if each.taken is Taken.FAULT))
    return Facts(
        evidence=evidence,
        topology=topology,
        mechanism=mechanism,
        base=find_base(mechanism.base),
        offline=frozenset(evidence.scenario.offline_threads),
        every_event=every_event,
        events=events,
        every_by_kind=_index(every_event),
        by_kind=_index(events),
        windows=() if misplaced else windows,
        begin=_first(events, EventKind.LOAD_BEGIN),
        end=_first(events, EventKind.LOAD_END),
        repeat=repeat,
        misplaced=misplaced,
        lost=why_lost(evidence, topology, every_event, repeat) or misplaced,
    )


def _index(events: tuple[ObserverEvent, ...]) -> Index:
    index: defaultdict[tuple[EventKind, int | None], list[ObserverEvent]] = defaultdict(list)
    for event in events:
        index[event.kind, event.vcpu].append(event)
        index[event.kind, None].append(event)
    return {key: tuple(found) for key, found in index.items()}


def _in_order(sent: Iterable[Sent]) -> tuple[Sent, ...]:
    return tuple(sorted(sent, key=lambda one: (one.send_ns, one.reply_ns)))


def _first(events: Iterable[ObserverEvent], kind: EventKind) -> ObserverEvent | None:
    return next((event for event in events if event.kind is kind), None)


def _siblings(topology: Topology, seen: WindowSeen) -> tuple[int, ...]:
    if not 0 <= seen.core < topology.total_cores:
        return ()
    return tuple(vcpu for vcpu in topology.threads_of(seen.core) if vcpu != seen.primary)


def _end_seq(seen: WindowSeen, events: tuple[ObserverEvent, ...]) -> float:
    if seen.close_seq:
        return seen.close_seq
    # A vCPU's records come from its own execution, but for the snapshot its core's primary takes of it.
    later = (
        event.seq
        for event in events
        if event.vcpu == seen.primary and event.seq > seen.open_seq and event.kind is not EventKind.IN_FLIGHT
    )
    return min(later, default=math.inf)
