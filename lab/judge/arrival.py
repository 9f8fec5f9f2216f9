# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether an NMI that the lab sent came: what its vCPU did from the moment on at which it could enter.

A pending NMI enters before the next instruction, unless the vCPU is in an NMI handler, in SMM, in the instruction that
its core's window is, or kept there by the observer; then it enters behind that. So a vCPU that ran on past that moment
had none pending. That it ran is told by the observer's longest gap between two of its blocks, in which it was neither
halted nor held; where the observer does not look, by how long the host let it wait for a CPU. A halted vCPU wakes.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from lab.judge.facts import Facts
from lab.mechanisms.code_places import Copied
from lab.mechanisms.mechanism import Landmarks
from lab.model.evidence import EventKind, ObserverEvent, Sent

#: From where it can enter to its entry's record are a few blocks, or the rest of another NMI's handler. The kernel
#: itself complains of handlers that take longer (``nmi_longest_ns``).
PROMPT_NS = 1_000_000

#: The handlers of NMIs take less than 0.1 ms under an emulator, and some milliseconds when none of their code has been
#: translated yet. Whoever ran for longer was outside of them.
RAN_NS = 5_000_000

#: A vCPU that comes to where NMIs can enter is outside of every handler. It has been at its block for less than this,
#: and what the host makes of it is told by the gaps.
MARGIN_NS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """When one vCPU could take NMIs, and what shows that it ran.

    :param shut_ns: from when to when no NMI can enter, in order; infinite where the end was not seen
    :param spins_ns: from when to when it is never halted, so that the observer's gaps tell whether it ran
    :param gap_ns: its longest time between two blocks in the load, while it was neither halted nor held
    :param waited_ns: how long it waited for a host CPU over the whole trial, infinite where that is not known
    :param left_ns: up to here an NMI must be acknowledged to be entered before the load's end; it goes on from there to
        that end outside of any NMI handler
    :param end_seq: the record of that end
    :param entries: its NMI entries
    :param outside: its records of where NMIs can enter
    """

    shut_ns: tuple[tuple[float, float], ...]
    spins_ns: tuple[float, float]
    gap_ns: int
    waited_ns: float
    left_ns: float
    end_seq: float
    entries: tuple[ObserverEvent, ...]
    outside: tuple[ObserverEvent, ...]

    def opens_ns(self, at_ns: int) -> float:
        """Return from when on an NMI can enter that is pending at a time; infinite where that was not seen."""
        open_ns: float = at_ns
        for begin_ns, end_ns in self.shut_ns:
            # A window and a hold behind it have a moment between them.
            if begin_ns <= open_ns + PROMPT_NS and end_ns > open_ns:
                open_ns = end_ns
        return open_ns

    def is_prompt(self, sent: Sent, entry: ObserverEvent) -> bool:
        """Say whether an entry came as soon as an NMI could enter, so that it is its consequence."""
        return entry.mono_ns - self.opens_ns(sent.reply_ns) <= PROMPT_NS

    def has_left(self, sent: Sent) -> bool:
        """Say whether the vCPU left the load without an entry that can be an NMI's, by the order of records alone."""
        if not 0 < sent.reply_ns <= self.left_ns:
            return False
        return not any(entry.mono_ns >= sent.send_ns and entry.seq < self.end_seq for entry in self.entries)

    def has_run_on(self, sent: Sent) -> bool:
        """Say whether the vCPU ran with NMIs open between an NMI's acknowledgement and the first entry that follows."""
        open_ns = self.opens_ns(sent.reply_ns)
        if not sent.reply_ns or open_ns == math.inf:
            return False
        entry = next((one for one in self.entries if one.mono_ns >= sent.send_ns), None)
        until_ns, until_seq = (entry.mono_ns, entry.seq) if entry is not None else (math.inf, math.inf)
        begin_ns, end_ns = self.spins_ns
        # Of two gaps at least one block lies wholly between: an NMI is looked for before it begins.
        if min(until_ns, end_ns) - max(open_ns, begin_ns) > RAN_NS + 2 * self.gap_ns:
            return True
        if any(one.mono_ns - open_ns > MARGIN_NS + 2 * self.gap_ns and one.seq < until_seq for one in self.outside):
            return True
        return until_ns < math.inf and until_ns - open_ns > RAN_NS + self.waited_ns


def find_arrival(facts: Facts, vcpu: int) -> Arrival:
    """Look at one vCPU."""
    observer, timings = facts.evidence.observer, facts.evidence.timings
    gaps_ns = observer.gaps_ns if observer is not None else ()
    waited = [each.waited_ns for each in timings.vcpus if each.vcpu == vcpu] if timings is not None else []
    releases = [each for each in facts.releases(vcpu) if facts.end is not None and each.seq < facts.end.seq]
    leaves = vcpu in facts.online and releases
    return Arrival(
        shut_ns=tuple(sorted(_find_shut(facts, vcpu))),
        spins_ns=_find_spinning(facts, vcpu) if len(gaps_ns) == len(facts.vcpus) else (math.inf, -math.inf),
        gap_ns=gaps_ns[vcpu] if vcpu < len(gaps_ns) else 0,
        waited_ns=waited[0] if len(waited) == 1 else math.inf,
        left_ns=releases[-1].mono_ns if leaves else -math.inf,
        end_seq=facts.end.seq if facts.end is not None else math.inf,
        entries=facts.every_of_kind(EventKind.NMI_ENTRY, vcpu),
        outside=_find_outside(facts, vcpu) if len(gaps_ns) == len(facts.vcpus) else (),
    )


def _find_shut(facts: Facts, vcpu: int) -> list[tuple[float, float]]:
    """Return when no NMI could enter, as far as landmarks tell; of an ordinary handler they do not."""
    shut = _find_handlers(facts, vcpu) + _find_holds(facts, vcpu)
    if isinstance(facts.mechanism.landmarks.call_in, Copied):
        # Code that is copied is that of SMM.
        shut += _pair(facts, vcpu, facts.every_of_kind(EventKind.CALL_IN, vcpu))
    for window in facts.windows:
        seen = window.seen
        if seen.primary == vcpu or (seen.stalled and vcpu in window.siblings):
            shut.append((seen.open_ns, seen.close_ns if seen.close_seq else math.inf))
    return shut


def _find_handlers(facts: Facts, vcpu: int) -> list[tuple[float, float]]:
    """Return when the vCPU waited in the NMI handler: from an entry that led to the mechanism's part to its release."""
    own = _list_own(facts.mechanism.landmarks)
    kinds = (EventKind.NMI_ENTRY, EventKind.CALL_IN, EventKind.WAIT_LOOP)
    events = [event for event in facts.every_event if event.vcpu == vcpu and event.kind in kinds]
    entered = tuple(
        entry for entry, after in pairwise(events) if entry.kind is EventKind.NMI_ENTRY and after.kind in own
    )
    return _pair(facts, vcpu, entered)


def _list_own(landmarks: Landmarks) -> tuple[EventKind, ...]:
    """Return which landmarks are in the NMI handler."""
    if landmarks.wait_loop == landmarks.call_in:
        return ()
    if landmarks.self_nmi or landmarks.ipi_nmi:
        return EventKind.CALL_IN, EventKind.WAIT_LOOP
    return (EventKind.WAIT_LOOP,)


def _find_outside(facts: Facts, vcpu: int) -> tuple[ObserverEvent, ...]:
    """Return the vCPU's records of the load that are outside of NMI handlers and SMM."""
    marks = facts.mechanism.landmarks
    kinds = [EventKind.LOAD_BEGIN, EventKind.SELF_NMI, EventKind.LOAD_END]
    if EventKind.CALL_IN not in _list_own(marks) and not isinstance(marks.call_in, Copied):
        kinds += [EventKind.CALL_IN, EventKind.WINDOW_OPEN, EventKind.RELEASE]
    return tuple(event for event in facts.events if event.vcpu == vcpu and event.kind in kinds)


def _pair(facts: Facts, vcpu: int, begins: tuple[ObserverEvent, ...]) -> list[tuple[float, float]]:
    releases = facts.every_of_kind(EventKind.RELEASE, vcpu)
    ends = (next((end for end in releases if end.seq > begin.seq), None) for begin in begins)
    return [(begin.mono_ns, end.mono_ns if end else math.inf) for begin, end in zip(begins, ends, strict=True)]


def _find_holds(facts: Facts, vcpu: int) -> list[tuple[float, float]]:
    """Return when the plan's holds kept the vCPU; one that may be early keeps it from a moment that is not recorded."""
    ends = [event for kind in (EventKind.LET_GO, EventKind.HOLD_OVERRUN) for event in facts.every_of_kind(kind, vcpu)]
    plan = facts.evidence.plan.holds
    holds = []
    for held in facts.every_of_kind(EventKind.HELD, vcpu):
        early = held.detail < len(plan) and plan[held.detail].early
        after = [event.mono_ns for event in ends if event.seq > held.seq and event.detail == held.detail]
        holds.append((-math.inf if early else held.mono_ns, min(after, default=math.inf)))
    return holds


def _find_spinning(facts: Facts, vcpu: int) -> tuple[float, float]:
    """Return from when to when a vCPU is in stop_machine() without a break; an empty span where it may be halted.

    Those that come first wait for the last, with interrupts disabled, also once they have been released.
    """
    marks = facts.mechanism.landmarks
    may_halt = facts.mechanism.siblings_absent or (facts.is_sibling(vcpu) and facts.masks_lint1(vcpu))
    begins = [event.mono_ns for kind in (EventKind.SELF_NMI, EventKind.CALL_IN) for event in facts.of_kind(kind, vcpu)]
    ends = [facts.releases(other) for other in facts.online]
    if vcpu not in facts.online or may_halt or not marks.call_in or not begins or not all(ends):
        return math.inf, -math.inf
    return min(begins), max(releases[-1].mono_ns for releases in ends)
