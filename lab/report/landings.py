# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the NMIs of a run landed: how many in which phase, on which thread, and how evenly over each phase. Pure."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from scipy.stats import kstest

from lab.spec.phase import PHASES, Phase
from lab.spec.verdict import TrialRecord

#: Fewer shots than this would let nearly everything pass for uniform.
MIN_SHOTS: Final = 50
#: Below it, chance alone is no good explanation any more.
SUSPICIOUS_P: Final = 0.01


class CoverageRow(msgspec.Struct, frozen=True, kw_only=True):
    """How many NMIs were set pending on threads of one role, by phase; ``unsure`` is one of two phases."""

    mechanism: str
    role: str
    nmis: dict[str, int]


class Uniformity(msgspec.Struct, frozen=True, kw_only=True):
    """How evenly the random shots that landed in one phase lie over it (Kolmogorov-Smirnov against uniform).

    :param shots: that landed there
    :param sent: NMIs in the same trials, wherever they landed
    :param statistic: the largest distance between the two distributions
    :param p: how often chance alone would make it as large
    """

    mechanism: str
    phase: str
    shots: int
    sent: int
    statistic: float
    p: float

    @property
    def sentence(self) -> str:
        """What it means."""
        shown = f"{self.shots} of {self.sent} NMIs of {self.mechanism} landed in {self.phase}"
        if self.p < SUSPICIOUS_P:
            return f"{shown}, unevenly over its length (D = {self.statistic:.3f}, p = {self.p:.2g})"
        return f"{shown}; nothing speaks against evenly over its length (D = {self.statistic:.3f}, p = {self.p:.2g})"


def tally_coverage(records: Iterable[TrialRecord]) -> tuple[CoverageRow, ...]:
    """Add up where the NMIs of all trials were set pending."""
    return tally_places(
        (record.mechanism, place, count) for record in records for place, count in record.coverage.items()
    )


def tally_places(landed: Iterable[tuple[str, str, int]]) -> tuple[CoverageRow, ...]:
    """Add up where NMIs were set pending.

    :param landed: mechanism, place as a phase and a role, and how many
    """
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for mechanism, place, count in landed:
        phase, _, role = place.partition(" ")
        counts[mechanism, role][phase] += count
    return tuple(
        CoverageRow(mechanism=mechanism, role=role, nmis=_order(found)) for (mechanism, role), found in counts.items()
    )


def list_columns(rows: Iterable[CoverageRow]) -> tuple[str, ...]:
    """Return the phases that a table of these rows needs, in order of time; what is no phase comes last."""
    return tuple(_order(Counter({phase: 1 for row in rows for phase in row.nmis})))


def measure_uniformity(records: Sequence[TrialRecord]) -> tuple[Uniformity, ...]:
    """Test each mechanism's shots in each phase that has enough of them."""
    shots = Shots()
    for record in records:
        shots.add(record.mechanism, record.nmis.sent, record.fractions)
    return shots.measure()


class Shots:
    """Random shots as they are read, trial after trial: eight bytes for each."""

    def __init__(self) -> None:
        self._fractions: dict[tuple[str, Phase], array[float]] = {}
        self._sent: Counter[str] = Counter()

    def add(self, mechanism: str, sent: int, fractions: Mapping[str, Iterable[float]]) -> None:
        """Take one trial's, by phase; what is no phase is left out."""
        self._sent[mechanism] += sent
        for phase in PHASES:
            self._fractions.setdefault((mechanism, phase), array("d")).extend(fractions.get(phase.value, ()))

    def measure(self) -> tuple[Uniformity, ...]:
        """Test each mechanism's shots in each phase that has enough of them."""
        return tuple(
            self._test(mechanism, phase, fractions)
            for (mechanism, phase), fractions in self._fractions.items()
            if len(fractions) >= MIN_SHOTS
        )

    def _test(self, mechanism: str, phase: Phase, fractions: "array[float]") -> Uniformity:
        result = kstest(fractions, "uniform")
        return Uniformity(
            mechanism=mechanism,
            phase=phase.value,
            shots=len(fractions),
            sent=self._sent[mechanism],
            statistic=float(result.statistic),
            p=float(result.pvalue),
        )


def _order(counts: Counter[str]) -> dict[str, int]:
    known = [phase.value for phase in PHASES]
    return {name: counts[name] for name in (*known, *sorted(set(counts) - set(known))) if counts[name]}
