# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in the phases of a late load something happened, seen from one core (design, section 2).

Source: the observer's landmarks and window edges. A phase that a load did not go through has no time.
"""

import math
from dataclasses import dataclass

from lab.judge.facts import Facts
from lab.model.evidence import ObserverEvent
from lab.model.phase import PHASES, Phase


@dataclass(frozen=True, slots=True)
class _Edge:
    """The beginning of a phase: by the ring's numbers, and by the host's clock."""

    phase: Phase
    seq: float
    mono_ns: float


@dataclass(frozen=True, slots=True)
class CorePhases:
    """One core's way through a load."""

    edges: tuple[_Edge, ...]

    def at_seq(self, seq: int) -> Phase:
        """Return the phase that a record falls into; one that is an edge itself begins the phase behind it."""
        return [edge.phase for edge in self.edges if edge.seq <= seq][-1]

    def at_ns(self, mono_ns: int) -> Phase:
        """Return the phase that a time of the host's falls into."""
        return [edge.phase for edge in self.edges if edge.mono_ns <= mono_ns][-1]

    def span_ns(self, phase: Phase) -> tuple[float, float] | None:
        """Return when a phase began and ended; None when the load did not go through it."""
        for edge, after in zip(self.edges, (*self.edges[1:], None), strict=True):
            if edge.phase is phase:
                return edge.mono_ns, after.mono_ns if after is not None else math.inf
        return None


def find_phases(facts: Facts, core: int) -> CorePhases:
    """Find where one core's phases begin; one that begins no sooner than a later one is none."""
    events = {
        Phase.GATHER: facts.begin,
        Phase.ARMED: _last_call_in(facts, core),
        Phase.RELEASE: _first_release(facts, core),
        Phase.AFTER: facts.end,
    }
    found = {phase: _Edge(phase, event.seq, event.mono_ns) for phase, event in events.items() if event is not None}
    for window in facts.windows:
        seen = window.seen
        if seen.core == core:
            found[Phase.WINDOW] = _Edge(Phase.WINDOW, seen.open_seq, seen.open_ns)
            if seen.close_seq:
                found[Phase.CLOSING] = _Edge(Phase.CLOSING, seen.close_seq, seen.close_ns)
    edges = [_Edge(Phase.BEFORE, -math.inf, -math.inf)]
    for phase in PHASES:
        edge = found.get(phase)
        later = [found[each].seq for each in PHASES[PHASES.index(phase) + 1 :] if each in found]
        if edge is not None and edge.seq > edges[-1].seq and edge.seq < min(later, default=math.inf):
            edges.append(edge)
    return CorePhases(tuple(edges))


def _last_call_in(facts: Facts, core: int) -> ObserverEvent | None:
    call_ins = [facts.call_in(vcpu) for vcpu in facts.topology.threads_of(core)]
    seen = [call_in for call_in in call_ins if call_in is not None]
    return max(seen, key=lambda event: event.seq) if len(seen) == len(call_ins) else None


def _first_release(facts: Facts, core: int) -> ObserverEvent | None:
    closed = max((window.seen.close_seq for window in facts.windows if window.seen.core == core), default=0)
    siblings = facts.topology.siblings_of(core)
    releases = [event for vcpu in siblings for event in facts.releases(vcpu) if event.seq > closed]
    return min(releases, key=lambda event: event.seq, default=None)
