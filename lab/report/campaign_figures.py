# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of a campaign that its trials have to be read for, one after the other. Pure: lines in, figures out."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lab.campaign.details import SittingHeld, TrialLine
from lab.model.verdict import Outcome
from lab.report.figures import TIMED_OUTCOMES, Spread, generalise, measure_spread
from lab.report.landings import Shots, Uniformity
from lab.report.text import MAX_TEXT_CHARS

#: How trials are told apart over time: a control's FAIL is what was to be seen.
KINDS: Final = ("PASS", "expected", "FAIL", "INVALID", "ERROR")
#: A page has room for so many columns.
MAX_BINS: Final = 96
#: Finer ones would show when a trial happened to end.
MIN_BIN_S: Final = 10.0
#: Clocks that are set may claim anything; no sitting is longer.
MAX_SITTING_S: Final = 366 * 86_400.0
#: Reasons that a guest makes up must not fill the memory.
MAX_REASONS: Final = 2_000
_US_PER_S: Final = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """Trials that show nothing, or that the lab or host failed, for one reason.

    :param newest: the number of the one that was stored last, and ``evidence`` its folder
    """

    part: str
    outcome: Outcome
    reason: str
    count: int
    newest: int
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasted:
    """How long trials of one scenario took; the first of all of them, and the others of those that PASS or FAIL.

    :param trial: from the begin of its first attempt to the end of its last, waits for the host's vCPUs included
    """

    part: str
    trial: Spread
    load: Spread
    rendezvous: Spread
    nmi_delay: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """A stretch of the time that a campaign ran, its sittings one behind the other.

    :param counts: of trials that ended in it, by KINDS
    """

    begin_s: float
    end_s: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a campaign went over the time that it ran.

    :param borders_s: where one sitting ends and the next begins
    :param unplaced: trials whose time cannot be read
    """

    bins: tuple[Bin, ...]
    borders_s: tuple[float, ...]
    unplaced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What came of reading all trials.

    :param reasons: the most frequent first; ``reasons_more`` trials have others
    :param uniformity: each test as if it were the only one
    """

    course: Course
    lasted: tuple[Lasted, ...]
    reasons: tuple[Alike, ...]
    reasons_more: int
    uniformity: tuple[Uniformity, ...]


class _Timed:
    """Durations of one scenario as they are read, in microseconds."""

    def __init__(self) -> None:
        self.trial, self.load, self.rendezvous, self.nmi_delay = (array("d") for _ in range(4))

    def add(self, line: TrialLine) -> None:
        self.trial.append(line.took_s * _US_PER_S)
        if line.outcome not in TIMED_OUTCOMES:
            return
        durations = line.durations
        if durations.host_load_us is not None:
            self.load.append(durations.host_load_us)
        if durations.host_rendezvous_us is not None:
            self.rendezvous.append(durations.host_rendezvous_us)
        self.nmi_delay.extend(span.us for span in durations.host_nmi_delay_us)

    def measure(self, part: str) -> Lasted:
        return Lasted(
            part=part,
            trial=measure_spread(self.trial),
            load=measure_spread(self.load),
            rendezvous=measure_spread(self.rendezvous),
            nmi_delay=measure_spread(self.nmi_delay),
        )


class _Reasons:
    """Why trials show nothing, as they are read."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, Outcome, str], Alike] = {}
        self.more = 0

    def add(self, line: TrialLine) -> None:
        reason = line.reason[:MAX_TEXT_CHARS]
        key = (line.part, line.outcome, generalise(reason))
        before = self._groups.get(key)
        if before is None and len(self._groups) >= MAX_REASONS:
            self.more += 1
            return
        self._groups[key] = Alike(
            part=line.part,
            outcome=line.outcome,
            reason=before.reason if before else reason,
            count=before.count + 1 if before else 1,
            newest=line.number,
            evidence=line.evidence,
        )

    def list(self, limit: int) -> tuple[Alike, ...]:
        groups = sorted(self._groups.values(), key=lambda group: (group.outcome is not Outcome.ERROR, -group.count))
        self.more += sum(group.count for group in groups[limit:])
        return tuple(groups[:limit])


class _Times:
    """When trials of each kind ended, sitting by sitting."""

    def __init__(self) -> None:
        self._ended: dict[int, tuple[array[float], ...]] = {}
        self.unplaced = 0

    def add(self, line: TrialLine, kind: str) -> None:
        if line.ended_s is None or not math.isfinite(line.ended_s):
            self.unplaced += 1
            return
        ended = self._ended.setdefault(line.sitting, tuple(array("d") for _ in KINDS))
        ended[KINDS.index(kind)].append(min(max(line.ended_s, 0.0), MAX_SITTING_S))

    def lay_out(self, sittings: Iterable[SittingHeld]) -> Course:
        """Put the sittings one behind the other, and count what ended in equal stretches of them."""
        placed: list[tuple[float, tuple[array[float], ...]]] = []
        borders_s = [0.0]
        for sitting in sittings:
            ended = self._ended.get(sitting.id, ())
            last_s = max((max(times) for times in ended if times), default=0.0)
            placed.append((borders_s[-1], ended))
            borders_s.append(borders_s[-1] + max(last_s, min(sitting.length_s or 0.0, MAX_SITTING_S)))
        whole_s = borders_s[-1]
        if whole_s <= 0:
            return Course(bins=(), borders_s=(), unplaced=self.unplaced)
        count = max(1, min(MAX_BINS, math.ceil(whole_s / MIN_BIN_S)))
        counts = [Counter[str]() for _ in range(count)]
        for begin_s, ended in placed:
            for kind, times in zip(KINDS, ended, strict=False):
                for at_s in times:
                    counts[min(int((begin_s + at_s) / whole_s * count), count - 1)][kind] += 1
        return Course(
            bins=tuple(
                Bin(
                    begin_s=whole_s * index / count,
                    end_s=whole_s * (index + 1) / count,
                    counts=tuple(each[kind] for kind in KINDS),
                )
                for index, each in enumerate(counts)
            ),
            borders_s=tuple(border for border in borders_s[1:-1]),
            unplaced=self.unplaced,
        )


def read_figures(
    lines: Iterable[TrialLine], sittings: Sequence[SittingHeld], expected: Mapping[str, bool], max_reasons: int
) -> Figures:
    """Read all trials once.

    :param expected: the scenarios by name, in the order in which they are to be listed, and whether their FAILs are
        what is to be seen
    """
    timed = {part: _Timed() for part in expected}
    reasons, times, shots = _Reasons(), _Times(), Shots()
    for line in lines:
        timed.setdefault(line.part, _Timed()).add(line)
        shots.add(line.mechanism, line.nmis_sent, line.fractions, line.shots)
        is_expected = line.outcome is Outcome.FAIL and expected.get(line.part, False)
        times.add(line, "expected" if is_expected else line.outcome.value)
        if line.outcome in (Outcome.ERROR, Outcome.INVALID):
            reasons.add(line)
    listed = reasons.list(max_reasons)
    return Figures(
        course=times.lay_out(sittings),
        lasted=tuple(each.measure(part) for part, each in timed.items() if each.trial),
        reasons=listed,
        reasons_more=reasons.more,
        uniformity=shots.measure(),
    )
