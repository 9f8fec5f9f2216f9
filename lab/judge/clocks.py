# SPDX-License-Identifier: GPL-2.0-or-later
"""Which offset of the guest's TSC against the host's both witnesses allow.

TCG gives every vCPU the host's TSC plus one constant, so each pair of a guest's stamp and an oracle's record whose
order is known bounds that constant, and all bounds together must leave room for a value. The order is known from
where the patched kernel reads the stamps: ``arrival`` and ``wait_begin`` after the load's begin and before the call-in
record; ``update_begin`` before the window opens and ``update_end`` after it closes; ``wait_end`` in the function whose
entry is the release record, and before that vCPU calls in again or the load ends.

So that a window lies within the wait and the update that the guest tells of is not checked apart: it is what the
bounds of the update say, and what those of the wait imply as long as the oracle saw call-in, window and release in
order. An empty intersection says that the two witnesses cannot both be right.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lab.judge.facts import NS_PER_US, Facts
from lab.spec.evidence import CpuState, EventKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """What the pairs leave of the guest's TSC less the host's, in cycles; each end with the pair that set it."""

    low: int
    high: int
    low_from: str
    high_from: str

    @property
    def middle(self) -> int:
        """The middle of what is left."""
        return (self.low + self.high) // 2

    @property
    def possible(self) -> bool:
        """Whether anything is left at all."""
        return self.low <= self.high


@dataclass(frozen=True, slots=True)
class _Bound:
    """One inequality; ``value`` is the least or the greatest offset it allows."""

    is_low: bool
    value: int
    text: str


def find_offset(facts: Facts) -> Offset | None:
    """Intersect all bounds; None when one side has none."""
    guest = facts.evidence.guest
    # After a second load the stamps are of that one, and the records of the first.
    if guest is None or guest.state is None or facts.repeat is not None:
        return None
    bounds = [bound for state in guest.state.cpus for bound in _find_bounds(facts, state)]
    lows = [bound for bound in bounds if bound.is_low]
    highs = [bound for bound in bounds if not bound.is_low]
    if not lows or not highs:
        return None
    low = max(lows, key=lambda bound: bound.value)
    high = min(highs, key=lambda bound: bound.value)
    return Offset(low=low.value, high=high.value, low_from=low.text, high_from=high.text)


def find_cycles_per_us(facts: Facts) -> float | None:
    """Estimate the host's TSC rate from the oracle's first and last record; None without two of them apart."""
    if len(facts.events) < 2:
        return None
    first, last = facts.events[0], facts.events[-1]
    cycles, ns = last.tsc - first.tsc, last.mono_ns - first.mono_ns
    return cycles * NS_PER_US / ns if cycles > 0 and ns > 0 else None


def _find_bounds(facts: Facts, state: CpuState) -> Iterator[_Bound]:
    call_in = facts.call_in(state.cpu)
    for name, stamp in (("arrival", state.arrival_tsc), ("wait begin", state.wait_begin_tsc)):
        if stamp and call_in is not None:
            yield _Bound(True, stamp - call_in.tsc, f"CPU {state.cpu}'s {name} before its call-in")
        if stamp and facts.begin is not None:
            yield _Bound(False, stamp - facts.begin.tsc, f"CPU {state.cpu}'s {name} after the load's begin")
    for window in facts.windows:
        seen = window.seen
        if seen.primary == state.cpu and state.update_begin_tsc:
            text = f"CPU {state.cpu}'s update begin before its window opened"
            yield _Bound(True, state.update_begin_tsc - seen.open_tsc, text)
        if seen.primary == state.cpu and state.update_end_tsc and seen.close_seq:
            text = f"CPU {state.cpu}'s update end after its window closed"
            yield _Bound(False, state.update_end_tsc - seen.close_tsc, text)
    yield from _find_release_bounds(facts, state)


def _find_release_bounds(facts: Facts, state: CpuState) -> Iterator[_Bound]:
    releases = facts.releases(state.cpu)
    if not releases or not state.wait_end_tsc:
        return
    yield _Bound(False, state.wait_end_tsc - releases[0].tsc, f"CPU {state.cpu}'s wait end after its release")
    # An NMI may enter before the stamp is read; a call-in cannot.
    again = [event for event in facts.of_kind(EventKind.CALL_IN, state.cpu) if event.seq > releases[-1].seq]
    until = again[0] if again else facts.end
    if until is not None:
        yield _Bound(True, state.wait_end_tsc - until.tsc, f"CPU {state.cpu}'s wait end before {until.kind.value}")
