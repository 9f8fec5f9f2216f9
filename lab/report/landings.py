# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the NMIs of a run landed: how many in each phase, on which thread, and how evenly over each phase. Pure."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from lab.model.phase import PHASES, Phase
from lab.model.verdict import MAX_FRACTIONS, TrialRecord
from lab.report import statistics

#: With fewer shots than this nearly every distribution would pass as uniform.
MIN_SHOTS: Final = 50
#: Below this value chance alone is not a good explanation.
SUSPICIOUS_P: Final = 0.01


class CoverageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Number of NMIs that were set pending on threads of one role, by phase. ``unsure`` means one of two phases."""

    mechanism: str
    role: str
    nmis: dict[str, int]


class Uniformity(msgspec.Struct, frozen=True, kw_only=True):
    """How evenly the random shots that landed in one phase are spread over it (Kolmogorov-Smirnov against uniform).

    :param shots: number of shots that landed in the phase
    :param sent: NMIs in the same trials, in all phases
    :param tested: number of tested shots; of a trial with many shots, a random sample
    :param statistic: the largest distance between the two distributions
    :param p: how often chance alone gives such a distance or a larger distance
    :param tests: number of tests on the same page
    :param p_holm: how often chance alone gives at least one such striking test on the page (Holm)
    """

    mechanism: str
    phase: str
    shots: int
    sent: int
    statistic: float
    p: float
    tested: int
    tests: int = 1
    p_holm: float = 1.0

    @property
    def is_uneven(self) -> bool:
        """Whether chance alone is not a good explanation."""
        return self.p_holm < SUSPICIOUS_P

    @property
    def sentence(self) -> str:
        """What the result means."""
        shown = f"{self.shots} of {self.sent} NMIs of {self.mechanism} landed in {self.phase}"
        shown += f" ({self.tested} of them tested)" if self.tested < self.shots else ""
        found = f"D = {self.statistic:.3f}, p = {self.p_holm:.2g}"
        found += f" by Holm for {self.tests} tests, {self.p:.2g} alone" if self.tests > 1 else ""
        if self.is_uneven:
            return f"{shown}, unevenly over its length ({found})"
        return f"{shown}; nothing speaks against evenly over its length ({found})"


def tally_coverage(records: Iterable[TrialRecord]) -> tuple[CoverageRow, ...]:
    """Add up the NMIs of all trials by the place where they were set pending."""
    return tally_places(
        (record.mechanism, place, count) for record in records for place, count in record.coverage.items()
    )


def tally_places(landed: Iterable[tuple[str, str, int]]) -> tuple[CoverageRow, ...]:
    """Add up NMIs by the place where they were set pending.

    :param landed: mechanism, place as a phase and a role, and number of NMIs
    """
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for mechanism, place, count in landed:
        phase, _, role = place.partition(" ")
        counts[mechanism, role][phase] += count
    return tuple(
        CoverageRow(mechanism=mechanism, role=role, nmis=_order(found)) for (mechanism, role), found in counts.items()
    )


def list_columns(rows: Iterable[CoverageRow]) -> tuple[str, ...]:
    """Return the phases that a table of these rows needs, in order of time. Other names come last."""
    return tuple(_order(Counter({phase: 1 for row in rows for phase in row.nmis})))


def measure_uniformity(records: Sequence[TrialRecord]) -> tuple[Uniformity, ...]:
    """Test each mechanism's shots in each phase with enough shots."""
    shots = Shots()
    for record in records:
        shots.add(record.mechanism, record.nmis.sent, record.fractions, record.shots)
    return correct(shots.measure())


def correct(found: Sequence[Uniformity]) -> tuple[Uniformity, ...]:
    """Correct the p of each test on a page for the number of tests."""
    corrected = statistics.correct([each.p for each in found])
    return tuple(
        msgspec.structs.replace(each, tests=len(found), p_holm=p) for each, p in zip(found, corrected, strict=True)
    )


class Shots:
    """Collects random shots, trial after trial: eight bytes for each shot.

    Older labs did not count shots. Of a trial with many shots they kept the first shots, which come early in their
    phase. So such trials are left out.
    """

    def __init__(self) -> None:
        self._fractions: dict[tuple[str, Phase], array[float]] = {}
        self._sent: Counter[str] = Counter()
        self._landed: Counter[tuple[str, Phase]] = Counter()

    def add(
        self, mechanism: str, sent: int, fractions: Mapping[str, Sequence[float]], shots: Mapping[str, int]
    ) -> None:
        """Add the shots of one trial, by phase. Names that are not phases are left out.

        :param shots: number of shots; ``fractions`` may be a sample of them
        """
        self._sent[mechanism] += sent
        for phase in PHASES:
            found = fractions.get(phase.value, ())
            if phase.value not in shots and len(found) >= MAX_FRACTIONS:
                continue
            self._fractions.setdefault((mechanism, phase), array("d")).extend(found)
            self._landed[mechanism, phase] += shots.get(phase.value, len(found))

    def measure(self) -> tuple[Uniformity, ...]:
        """Test each mechanism's shots in each phase with enough shots. No test is corrected for the other tests."""
        return tuple(
            self._test(mechanism, phase, fractions)
            for (mechanism, phase), fractions in self._fractions.items()
            if len(fractions) >= MIN_SHOTS
        )

    def _test(self, mechanism: str, phase: Phase, fractions: "array[float]") -> Uniformity:
        # scipy takes longer to load than the rest of the lab. So import scipy only when there is a figure to compute.
        from scipy.stats import kstest

        result = kstest(fractions, "uniform")
        return Uniformity(
            mechanism=mechanism,
            phase=phase.value,
            shots=self._landed[mechanism, phase],
            sent=self._sent[mechanism],
            tested=len(fractions),
            statistic=float(result.statistic),
            p=float(result.pvalue),
            p_holm=float(result.pvalue),
        )


def _order(counts: Counter[str]) -> dict[str, int]:
    known = [phase.value for phase in PHASES]
    return {name: counts[name] for name in (*known, *sorted(set(counts) - set(known))) if counts[name]}
