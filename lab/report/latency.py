# SPDX-License-Identifier: GPL-2.0-or-later
"""The time that a mechanism adds to the original rendezvous. Pure: records in, a figure out.

The mechanisms of a run take turns, so the n-th trials of two mechanisms ran on the host in the same state. The lab
compares such pairs. The plan chooses the length of windows, so the lab subtracts a load's longest window. Without NMIs
and with equal stretches the rest is the time of the mechanism itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.model.verdict import Outcome, TrialRecord
from lab.report.statistics import compute_quantile_interval

#: The reference for all other mechanisms: the rendezvous without protection.
REFERENCE = "stop-machine"
#: The interval misses the median in one run of twenty.
RISK = 0.05
#: With fewer pairs no interval has this confidence.
MIN_PAIRS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """The median of the differences of the pairs, in microseconds of the host's clock, and its 95 % interval."""

    pairs: int
    median_us: float
    low_us: float
    high_us: float


def compute_own_us(record: TrialRecord) -> float | None:
    """Return the time of a load minus its longest window; None if the time is not known or the trial shows nothing."""
    durations = record.durations
    if durations.host_load_us is None or record.outcome not in (Outcome.PASS, Outcome.FAIL):
        return None
    return durations.host_load_us - max((span.us for span in durations.host_windows_us), default=0.0)


def measure_added(records: Iterable[TrialRecord], mechanism: str) -> Added | None:
    """Compare a mechanism's trials with the reference's trials; None without enough pairs."""
    chosen = list(records)
    own = [compute_own_us(record) for record in chosen if record.mechanism == mechanism]
    reference = [compute_own_us(record) for record in chosen if record.mechanism == REFERENCE]
    if mechanism == REFERENCE:
        return None
    return _spread([a - b for a, b in zip(own, reference, strict=False) if a is not None and b is not None])


def _spread(differences_us: Sequence[float]) -> Added | None:
    import numpy as np

    ordered = np.sort(np.asarray(differences_us, dtype=np.float64))
    ordered = ordered[np.isfinite(ordered)]
    if ordered.size < MIN_PAIRS:
        return None
    low, high = compute_quantile_interval(int(ordered.size), 0.5, RISK)
    assert low is not None
    assert high is not None
    return Added(
        pairs=int(ordered.size),
        median_us=float(np.median(ordered)),
        low_us=float(ordered[low]),
        high_us=float(ordered[high]),
    )
