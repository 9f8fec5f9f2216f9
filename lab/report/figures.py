# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of a run, by mechanism. Pure: records in, rows out."""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lab.errors import UsageError
from lab.expected.tally import Tally
from lab.model.topology import Topology
from lab.model.verdict import Durations, Finding, Outcome, Span, TrialRecord

#: Other outcomes show nothing, or the host failed. Their durations describe the host and not the mechanism.
TIMED_OUTCOMES = (Outcome.PASS, Outcome.FAIL)
#: No scenario requires these invariants. A break of them accuses no mechanism (design: the invariants).
NEVER_REQUIRED = ("still", "nmis-serviced")

_KHZ_PER_MHZ = 1_000

_parse_topology = functools.cache(Topology.parse)

_DIGITS = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The spread of one duration, in microseconds. Without a value, all fields but ``n`` are None."""

    n: int
    p50_us: float | None = None
    p95_us: float | None = None
    max_us: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The cost of a mechanism's loads. ``guest_*`` are times of the guest's clock, all others of the host's clock.

    :param hold_beyond: each sibling's hold minus the window of its core; the plan chose the length of the window
    """

    load: Spread
    rendezvous: Spread
    window: Spread
    hold: Spread
    hold_beyond: Spread
    nmi_delay: Spread
    guest_wait: Spread
    guest_update: Spread
    tsc_error: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestClock:
    """Measured rates of guests' TSCs, in MHz, and the error of the rates that guests assumed.

    :param off_percent: the largest error of a guest
    """

    trials: int
    low_mhz: float
    high_mhz: float
    off_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NmiTotals:
    """Sums of NMIs over all trials of a mechanism.

    :param trials_proven: trials with at least one NMI proven in a window
    :param trials_struck: trials with at least one NMI proven pending on a sibling in its core's window
    """

    sent: int
    handled: int
    entries: int
    proven_in_window: int
    trials_proven: int
    trials_struck: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Trials that ended in the same way."""

    mechanism: str
    outcome: Outcome
    reason: str
    count: int


def measure_price(records: Iterable[TrialRecord]) -> Price:
    """Return the spread of the durations of one mechanism's PASS and FAIL trials."""
    chosen = [record for record in records if record.outcome in TIMED_OUTCOMES]
    timed = [record.durations for record in chosen]

    def each(pick: Callable[[Durations], float | None]) -> Spread:
        return measure_spread([value for value in map(pick, timed) if value is not None])

    def every(pick: Callable[[Durations], Sequence[Span]]) -> Spread:
        return measure_spread([span.us for durations in timed for span in pick(durations)])

    return Price(
        load=each(lambda d: d.host_load_us),
        rendezvous=each(lambda d: d.host_rendezvous_us),
        window=every(lambda d: d.host_windows_us),
        hold=every(lambda d: d.host_holds_us),
        hold_beyond=measure_spread([beyond_us for record in chosen for beyond_us in compute_beyond(record)]),
        nmi_delay=every(lambda d: d.host_nmi_delay_us),
        guest_wait=every(lambda d: d.guest_waits_us),
        guest_update=every(lambda d: d.guest_updates_us),
        tsc_error=each(lambda d: d.tsc_error_us),
    )


def measure_clock(records: Iterable[TrialRecord]) -> GuestClock | None:
    """Return the measured rates of guests' TSCs; None if no trial measured a rate."""
    rates = [(record.durations.tsc_claimed_khz, record.durations.tsc_measured_khz) for record in records]
    known = [(claimed, measured) for claimed, measured in rates if claimed and measured and np.isfinite(measured)]
    if not known:
        return None
    return GuestClock(
        trials=len(known),
        low_mhz=min(measured for _, measured in known) / _KHZ_PER_MHZ,
        high_mhz=max(measured for _, measured in known) / _KHZ_PER_MHZ,
        off_percent=max(abs(100 * (claimed / measured - 1)) for claimed, measured in known),
    )


def compute_beyond(record: TrialRecord) -> list[float]:
    """Return for how long each sibling of a trial was held beyond its core's window, in microseconds."""
    windows_us = {span.who: span.us for span in record.durations.host_windows_us}
    try:
        topology = _parse_topology(record.topology)
    except UsageError:
        return []
    holds = [(topology.core_of(span.who), span.us) for span in record.durations.host_holds_us]
    return [hold_us - windows_us[core] for core, hold_us in holds if core in windows_us]


def measure_spread(values_us: Sequence[float]) -> Spread:
    """Return median, 95th percentile and maximum of the finite values."""
    array = np.asarray(values_us, dtype=np.float64)
    array = array[np.isfinite(array)]
    if not array.size:
        return Spread(n=0)
    p50, p95, most = np.percentile(array, (50, 95, 100))
    return Spread(n=int(array.size), p50_us=float(p50), p95_us=float(p95), max_us=float(most))


def total_nmis(records: Iterable[TrialRecord]) -> NmiTotals:
    """Add up the NMIs of one mechanism's trials."""
    records = tuple(records)
    nmis = [record.nmis for record in records]
    return NmiTotals(
        sent=sum(nmi.sent for nmi in nmis),
        handled=sum(nmi.handled for nmi in nmis),
        entries=sum(nmi.entries for nmi in nmis),
        proven_in_window=sum(nmi.proven_in_window for nmi in nmis),
        trials_proven=sum(nmi.proven_in_window > 0 for nmi in nmis),
        trials_struck=sum(record.nmis_on_siblings > 0 for record in records),
    )


def tally_invariant(records: Iterable[TrialRecord], name: str) -> Tally | None:
    """Return the findings of an invariant; None if the judge evaluated the invariant in no trial."""
    counter = Counter(record.invariants[name] for record in records if name in record.invariants)
    if not counter:
        return None
    return Tally(held=counter[Finding.HELD], broken=counter[Finding.BROKEN], unseen=counter[Finding.UNSEEN])


def count_broken(records: Iterable[TrialRecord]) -> tuple[tuple[str, int], ...]:
    """Return each broken invariant and its number of trials. The most frequent come first, never-required ones last."""
    counter = Counter(
        name for record in records for name, finding in record.invariants.items() if finding is Finding.BROKEN
    )
    return tuple(sorted(counter.items(), key=lambda item: (item[0] in NEVER_REQUIRED, -item[1], item[0])))


def generalise(reason: str) -> str:
    """Return a reason without its numbers, because numbers differ from trial to trial."""
    return _DIGITS.sub("#", reason)


def group_reasons(records: Iterable[TrialRecord], outcomes: Sequence[Outcome]) -> tuple[Group, ...]:
    """Group the trials of these outcomes by reason. Numbers do not separate groups. A group shows its first reason."""
    counts: Counter[tuple[str, Outcome, str]] = Counter()
    shown: dict[tuple[str, Outcome, str], str] = defaultdict(str)
    for record in records:
        if record.outcome in outcomes:
            key = (record.mechanism, record.outcome, generalise(record.reason))
            counts[key] += 1
            shown.setdefault(key, record.reason)
    return tuple(
        Group(mechanism=key[0], outcome=key[1], reason=shown[key], count=count) for key, count in counts.most_common()
    )
