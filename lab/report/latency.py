# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mechanism adds to the rendezvous as it was. Pure: records in, a figure out.

Trials of one run take turns between its mechanisms, so the n-th of each met the same host: they are compared in pairs.
A load's longest window is the plan's choice and taken off; without NMIs and with equal stretches the rest is the
mechanism's own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.model.verdict import Outcome, TrialRecord

#: What all others are compared with: the rendezvous without any protection.
REFERENCE = "stop-machine"
#: An interval that misses the median in one run of twenty.
RISK = 0.05
#: With fewer pairs no interval of that confidence exists.
MIN_PAIRS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """The median of the differences in pairs, in microseconds of the host's clock, and a 95 % interval for it."""

    pairs: int
    median_us: float
    low_us: float
    high_us: float


def find_own_us(record: TrialRecord) -> float | None:
    """Return what a load took beside its longest window; None where that is not known or shows nothing."""
    durations = record.durations
    if durations.host_load_us is None or record.outcome not in (Outcome.PASS, Outcome.FAIL):
        return None
    return durations.host_load_us - max((span.us for span in durations.host_windows_us), default=0.0)


def measure_added(records: Iterable[TrialRecord], mechanism: str) -> Added | None:
    """Compare a mechanism's trials with those of the reference; None without enough pairs."""
    chosen = list(records)
    own = [find_own_us(record) for record in chosen if record.mechanism == mechanism]
    reference = [find_own_us(record) for record in chosen if record.mechanism == REFERENCE]
    if mechanism == REFERENCE:
        return None
    return _spread([a - b for a, b in zip(own, reference, strict=False) if a is not None and b is not None])


def _spread(differences_us: Sequence[float]) -> Added | None:
    # scipy takes longer to load than all the rest of the lab: not before there is a figure to work out.
    import numpy as np
    from scipy.stats import binom

    ordered = np.sort(np.asarray(differences_us, dtype=np.float64))
    ordered = ordered[np.isfinite(ordered)]
    if ordered.size < MIN_PAIRS:
        return None
    # Of the median's order statistics: so many values lie below it as seldom as coins fall so unevenly.
    rank = int(binom.ppf(RISK / 2, ordered.size, 0.5)) - 1
    return Added(
        pairs=int(ordered.size),
        median_us=float(np.median(ordered)),
        low_us=float(ordered[rank]),
        high_us=float(ordered[-1 - rank]),
    )
