# SPDX-License-Identifier: GPL-2.0-or-later
"""At which rate the guest's TSC goes, and which offset of it against the host's both witnesses allow.

TCG gives every vCPU the host's TSC plus one constant, so each pair of a guest's stamp and an observer's record whose
order is known bounds that constant, and all bounds together must leave room for a value. The order is known from
where the patched kernel reads the stamps: ``arrival`` and ``wait_begin`` after the load's begin and before the call-in
record; ``update_begin`` before the window opens and ``update_end`` after it closes; ``wait_end`` in the function whose
entry is the release record, and before that vCPU calls in again or the load ends.

So that a window lies within the wait and the update that the guest tells of is not checked apart: it is what the
bounds of the update say, and what those of the wait imply as long as the observer saw call-in, window and release in
order. An empty intersection says that the two witnesses cannot both be right.

The rate is measured: each of the observer's records has a reading of the host's TSC and one of CLOCK_MONOTONIC. What
the guest takes its TSC for is an estimate of its kernel's, made once at boot against an emulated timer, and no
duration of the guest's is computed by it. Where the two differ, the kernel's own limits are as far off, and so is what
it tells of.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from lab.judge.facts import NS_PER_US, Facts, to_us
from lab.model.evidence import CpuState, EventKind, ObserverEvent

#: How far what a guest takes its TSC for may be off what was measured. On a host that lets it boot in peace the two
#: differ by a millionth; a guest that is off by more than 3 % is not used at all (lab.trial.guest_clock).
MAX_OFF: Final = 0.05
#: Records at either end of a load that the rate is measured by: the median of all pairs is that of the undisturbed.
_RATE_RECORDS: Final = 32
#: They lie in so much of the load's time at either end.
_RATE_END: Final = 0.25
_US_PER_MS: Final = 1_000


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """At which rate the guest's TSC goes.

    :param claimed_khz: what the guest takes it for
    :param measured_khz: what the observer's records give
    """

    claimed_khz: int
    measured_khz: float

    @property
    def is_off(self) -> bool:
        """Whether the guest is so far off that its kernel's limits are others than they are meant to be."""
        return abs(self.claimed_khz / self.measured_khz - 1) > MAX_OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpan:
    """One duration that the guest tells of, and what the observer saw of it.

    :param what: in words
    :param cycles: of the guest's TSC
    :param least_us: the observer saw the guest in it for so long, and ``most_us``: between what came before and after
        it; by the host's clock, None where a record is missing
    """

    cpu: int
    what: str
    cycles: int
    least_us: float | None
    most_us: float | None


def find_cycles_per_us(facts: Facts) -> float | None:
    """Measure the TSC's rate by the observer's records; None without two of them apart.

    A thread may be kept from running between the two clocks of a record, so no pair of records decides alone: it is the
    median over all pairs of one near the beginning and one near the end.
    """
    events = sorted(facts.events, key=lambda event: event.mono_ns)
    if len(events) < 2:
        return None
    first_ns, last_ns = events[0].mono_ns, events[-1].mono_ns
    margin_ns = (last_ns - first_ns) * _RATE_END
    early = [event for event in events if event.mono_ns <= first_ns + margin_ns][:_RATE_RECORDS]
    late = [event for event in events if event.mono_ns >= last_ns - margin_ns][-_RATE_RECORDS:]
    slopes = [_slope(one, other) for one in early for other in late if other.mono_ns > one.mono_ns]
    rate = statistics.median(slopes) * NS_PER_US if slopes else 0.0
    return rate if rate > 0 else None


def find_rate(facts: Facts) -> Rate | None:
    """Return both rates; None where one of them is not known."""
    guest, cycles_per_us = facts.evidence.guest, find_cycles_per_us(facts)
    khz = guest.state.tsc_khz if guest is not None and guest.state is not None else 0
    if khz <= 0 or cycles_per_us is None:
        return None
    return Rate(claimed_khz=khz, measured_khz=cycles_per_us * _US_PER_MS)


def find_updates(facts: Facts) -> tuple[GuestSpan, ...]:
    """Return how long each primary's update took by the guest: a CPU that did none leaves zeros."""
    windows = {window.seen.primary: window.seen for window in facts.windows if window.seen.close_seq}
    spans = []
    for state in _list_states(facts):
        if state.update_begin_tsc and state.update_end_tsc:
            seen = windows.get(state.cpu)
            least_us = to_us(seen.close_ns - seen.open_ns) if seen is not None else None
            cycles = state.update_end_tsc - state.update_begin_tsc
            spans.append(_span(facts, state.cpu, "update", cycles, least_us))
    return tuple(spans)


def find_waits(facts: Facts) -> tuple[GuestSpan, ...]:
    """Return how long each CPU waited by the guest."""
    spans = []
    for state in _list_states(facts):
        if state.wait_begin_tsc and state.wait_end_tsc:
            call_in, release = facts.call_in(state.cpu), next(iter(facts.releases(state.cpu)), None)
            cycles = state.wait_end_tsc - state.wait_begin_tsc
            spans.append(_span(facts, state.cpu, "wait", cycles, _between(call_in, release)))
    return tuple(spans)


def _span(facts: Facts, cpu: int, what: str, cycles: int, least_us: float | None) -> GuestSpan:
    # An offline thread may leave its wait when the load is over.
    most_us = _between(facts.begin, facts.end) if cpu not in facts.offline else None
    return GuestSpan(cpu=cpu, what=what, cycles=cycles, least_us=least_us, most_us=most_us)


def _list_states(facts: Facts) -> Sequence[CpuState]:
    guest = facts.evidence.guest
    # After a second load the stamps are of that one.
    if guest is None or guest.state is None or facts.repeat is not None:
        return ()
    return guest.state.cpus


def _slope(one: ObserverEvent, other: ObserverEvent) -> float:
    return (other.tsc - one.tsc) / (other.mono_ns - one.mono_ns)


def _between(first: ObserverEvent | None, last: ObserverEvent | None) -> float | None:
    return to_us(last.mono_ns - first.mono_ns) if first is not None and last is not None else None


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
