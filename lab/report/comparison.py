# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between two sets of trials: outcomes, times, and what went wrong. Pure: records in, findings out.

Rates have exact intervals (Clopper and Pearson 1934) and Fisher's exact test. Times have the test of Mann and Whitney,
and the shift of Hodges and Lehmann. Holm's method corrects all tests of one comparison for their number.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from lab.model.verdict import Outcome, TrialRecord
from lab.report.latency import compute_own_us
from lab.report.statistics import compute_interval, correct

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: A difference that chance alone would show in more than one of so many comparisons is no change.
RISK: Final = 0.05
#: Without a change seen, a rate counts as unchanged only if the intervals of both sides are at most this wide.
MAX_WIDTH_PERCENT: Final = 20.0
#: Times are compared from this many trials of each side on.
MIN_TIMES: Final = 12
#: Pairs for the shift of two long series; the sample is taken at even distances of the sorted values.
MAX_SERIES: Final = 1_000


class Change(enum.Enum):
    """The answer for one figure."""

    CHANGED = "changed"
    UNCHANGED = "no change"
    UNKNOWN = "cannot tell"


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """How often something happened, with its 95 % interval.

    :param low_percent: and ``high_percent``: 0 and 100 without a trial
    """

    count: int
    of: int
    low_percent: float
    high_percent: float


class RateChange(msgspec.Struct, frozen=True, kw_only=True):
    """One outcome's rate on both sides.

    :param p: of Fisher's test, corrected; 1 without trials
    """

    outcome: Outcome
    before: Rate
    after: Rate
    p: float
    change: Change


class TimeChange(msgspec.Struct, frozen=True, kw_only=True):
    """One time on both sides, microseconds of the host's clock.

    :param shift_us: after less before (Hodges and Lehmann)
    :param p: of Mann and Whitney's test, corrected; None with too few trials
    """

    name: str
    before: int
    after: int
    before_median_us: float | None
    after_median_us: float | None
    shift_us: float | None
    p: float | None
    change: Change


class PartComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario on both sides.

    :param new_buckets: titles of what went wrong after, and not before; ``gone_buckets`` the other way round
    """

    name: str
    rates: tuple[RateChange, ...]
    times: tuple[TimeChange, ...]
    new_buckets: tuple[str, ...]
    gone_buckets: tuple[str, ...]

    @property
    def change(self) -> Change:
        """Changed if a figure is, unknown if a rate is; times alone decide nothing without enough trials."""
        rates = {rate.change for rate in self.rates}
        if Change.CHANGED in rates | {time.change for time in self.times}:
            return Change.CHANGED
        return Change.UNKNOWN if Change.UNKNOWN in rates else Change.UNCHANGED


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two sets of trials.

    :param only_before: scenarios that the other side does not have, and ``only_after``
    """

    parts: tuple[PartComparison, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def change(self) -> Change:
        """Changed if one scenario is; unknown if one is unknown or no scenario is on both sides."""
        found = {part.change for part in self.parts}
        if Change.CHANGED in found:
            return Change.CHANGED
        return Change.UNKNOWN if Change.UNKNOWN in found or not found else Change.UNCHANGED


Times = Callable[[TrialRecord], float | None]
#: What is compared of each trial's times. The plan draws windows, so a load less its longest one is the mechanism's.
TIMES: Final[Mapping[str, Times]] = {
    "load less its longest window": compute_own_us,
    "rendezvous": lambda record: record.durations.host_rendezvous_us,
}


def compare(before: Mapping[str, Sequence[TrialRecord]], after: Mapping[str, Sequence[TrialRecord]]) -> Comparison:
    """Compare trials by scenario; a scenario of one side alone is named, and not compared."""
    both = [name for name in before if name in after]
    p_rates = {(name, outcome): _test_rates(before[name], after[name], outcome) for name in both for outcome in Outcome}
    p_times = {
        (name, what): found
        for name in both
        for what, read in TIMES.items()
        if (found := _test_times(_read(before[name], read), _read(after[name], read))) is not None
    }
    corrected = correct([*p_rates.values(), *p_times.values()])
    rates = dict(zip(p_rates, corrected, strict=False))
    times = dict(zip(p_times, corrected[len(p_rates) :], strict=True))
    return Comparison(
        parts=tuple(
            PartComparison(
                name=name,
                rates=tuple(
                    _compare_rates(before[name], after[name], outcome, rates[name, outcome]) for outcome in Outcome
                ),
                times=tuple(
                    _compare_times(what, _read(before[name], read), _read(after[name], read), times.get((name, what)))
                    for what, read in TIMES.items()
                ),
                new_buckets=_list_new(after[name], before[name]),
                gone_buckets=_list_new(before[name], after[name]),
            )
            for name in both
        ),
        only_before=tuple(name for name in before if name not in after),
        only_after=tuple(name for name in after if name not in before),
    )


def compute_rate(count: int, of: int) -> Rate:
    """Return a rate with its exact 95 % interval."""
    low, high = compute_interval(count, of, RISK) if of else (0.0, 1.0)
    return Rate(count=count, of=of, low_percent=100 * low, high_percent=100 * high)


def format_rate(rate: Rate) -> str:
    """Return a rate with its interval, for a person."""
    return f"{rate.count} of {rate.of} ({rate.low_percent:.1f} to {rate.high_percent:.1f} %)"


def _count(records: Sequence[TrialRecord], outcome: Outcome) -> int:
    return sum(record.outcome is outcome for record in records)


def _test_rates(before: Sequence[TrialRecord], after: Sequence[TrialRecord], outcome: Outcome) -> float:
    from scipy.stats import fisher_exact

    table = [[count := _count(each, outcome), len(each) - count] for each in (before, after)]
    return float(fisher_exact(table).pvalue) if all(sum(row) for row in table) else 1.0


def _compare_rates(
    before: Sequence[TrialRecord], after: Sequence[TrialRecord], outcome: Outcome, p: float
) -> RateChange:
    old, new = (compute_rate(_count(each, outcome), len(each)) for each in (before, after))
    wide = max(each.high_percent - each.low_percent for each in (old, new)) > MAX_WIDTH_PERCENT
    change = Change.CHANGED if p < RISK else Change.UNKNOWN if wide else Change.UNCHANGED
    return RateChange(outcome=outcome, before=old, after=new, p=p, change=change)


def _read(records: Sequence[TrialRecord], read: Times) -> list[float]:
    """Return the times of trials that show something."""
    told = (read(record) for record in records if record.outcome in (Outcome.PASS, Outcome.FAIL))
    return sorted(us for us in told if us is not None)


def _test_times(before: Sequence[float], after: Sequence[float]) -> float | None:
    from scipy.stats import mannwhitneyu

    if min(len(before), len(after)) < MIN_TIMES:
        return None
    return float(mannwhitneyu(before, after).pvalue)


def _compare_times(name: str, before: Sequence[float], after: Sequence[float], p: float | None) -> TimeChange:
    import numpy as np

    old, new = (np.asarray(each, dtype=np.float64) for each in (before, after))
    shift = float(np.median(np.subtract.outer(_thin(new), _thin(old)))) if old.size and new.size else None
    change = Change.UNKNOWN if p is None else Change.CHANGED if p < RISK else Change.UNCHANGED
    return TimeChange(
        name=name,
        before=len(before),
        after=len(after),
        before_median_us=float(np.median(old)) if old.size else None,
        after_median_us=float(np.median(new)) if new.size else None,
        shift_us=shift,
        p=p,
        change=change,
    )


def _thin(values: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
    """Return a long sorted series at even distances."""
    import numpy as np

    if values.size <= MAX_SERIES:
        return values
    return values[np.linspace(0, values.size - 1, MAX_SERIES).astype(np.int64)]


def _list_new(there: Sequence[TrialRecord], other: Sequence[TrialRecord]) -> tuple[str, ...]:
    known = {record.bucket for record in other}
    return tuple(dict.fromkeys(each.bucket for each in there if each.bucket and each.bucket not in known))
