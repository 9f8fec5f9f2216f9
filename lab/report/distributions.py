# SPDX-License-Identifier: GPL-2.0-or-later
"""How the times of a run are distributed, mechanism by mechanism. Pure: records in, values and figures out.

All mechanisms of a run share topology, NMIs and stretch, so like is compared with like. Times are of the host's clock.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lab.model.verdict import TrialRecord
from lab.report.figures import TIMED_OUTCOMES, compute_beyond
from lab.report.statistics import compute_quantile_interval

#: The interval of a percentile misses the percentile in one run of twenty.
RISK: Final = 0.05
#: Percentiles of the tables.
PERCENTILES: Final = (50, 95, 99)
#: With fewer values a curve is made of single steps, and shows nothing that the table does not.
MIN_VALUES: Final = 5

#: Each quantity by its name on the page, with what it is.
QUANTITIES: Final[Mapping[str, str]] = {
    "rendezvous": "load begin to last call-in",
    "window": "WRMSR 0x79, with the stretch that the plan asked for",
    "sibling hold": "beyond its core's window",
    "NMI delay": "send to entry",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentile:
    """One percentile in microseconds, and its 95 % interval. A bound is None if there are too few values for it."""

    us: float
    low_us: float | None
    high_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The values of one quantity for one mechanism.

    :param values_us: finite, in order
    :param percentiles: those of :data:`PERCENTILES`, in order
    """

    mechanism: str
    values_us: npt.NDArray[np.float64]
    percentiles: tuple[Percentile, ...]

    @property
    def n(self) -> int:
        """Number of values."""
        return int(self.values_us.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One quantity, for all mechanisms that have enough values of it."""

    name: str
    what: str
    rows: tuple[Distribution, ...]


def compare(records: Mapping[str, Sequence[TrialRecord]]) -> tuple[Compared, ...]:
    """Return each quantity that some mechanism has enough values of.

    :param records: by mechanism, in the page's order
    """
    found = []
    for name, what in QUANTITIES.items():
        rows = tuple(
            row
            for mechanism, own in records.items()
            if (row := _distribute(mechanism, _pick(name, own))).n >= MIN_VALUES
        )
        if rows:
            found.append(Compared(name=name, what=what, rows=rows))
    return tuple(found)


def _pick(name: str, records: Iterable[TrialRecord]) -> list[float]:
    timed = [record for record in records if record.outcome in TIMED_OUTCOMES]
    if name == "rendezvous":
        return [us for record in timed if (us := record.durations.host_rendezvous_us) is not None]
    if name == "sibling hold":
        return [us for record in timed for us in compute_beyond(record)]
    spans = [
        record.durations.host_windows_us if name == "window" else record.durations.host_nmi_delay_us for record in timed
    ]
    return [span.us for each in spans for span in each]


def _distribute(mechanism: str, values_us: Sequence[float]) -> Distribution:
    ordered = np.sort(np.asarray(values_us, dtype=np.float64))
    ordered = ordered[np.isfinite(ordered)]
    percentiles = []
    if ordered.size:
        for percent, us in zip(PERCENTILES, np.percentile(ordered, PERCENTILES), strict=True):
            low, high = compute_quantile_interval(int(ordered.size), percent / 100, RISK)
            percentiles.append(
                Percentile(
                    us=float(us),
                    low_us=None if low is None else float(ordered[low]),
                    high_us=None if high is None else float(ordered[high]),
                )
            )
    return Distribution(mechanism=mechanism, values_us=ordered, percentiles=tuple(percentiles))
