# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of a campaign that need all its trials, read one after the other. Pure: lines in, figures out."""

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

#: Kinds of trials over time. The FAIL of a control is ``expected``.
KINDS: Final = ("PASS", "expected", "FAIL", "INVALID", "ERROR")
#: A page has room for this number of columns.
MAX_BINS: Final = 96
#: Shorter columns would show the accidental end times of single trials.
MIN_BIN_S: Final = 10.0
#: A clock that somebody set may claim any time. No sitting is longer than this.
MAX_SITTING_S: Final = 366 * 86_400.0
#: Reasons that a guest makes up must not fill the memory.
MAX_REASONS: Final = 2_000
_US_PER_S: Final = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """Trials that show nothing, or in which the lab or the host failed, for one reason.

    :param newest: number of the trial that was stored last
    :param evidence: folder of the trial that was stored last
    """

    part: str
    outcome: Outcome
    reason: str
    count: int
    newest: int
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasted:
    """Durations of one scenario's trials. ``trial`` counts all trials. The other durations count only PASS and FAIL.

    :param trial: from the begin of the first attempt to the end of the last attempt, with the waits for the host's
        vCPUs
    """

    part: str
    trial: Spread
    load: Spread
    rendezvous: Spread
    nmi_delay: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """A part of the time that a campaign ran. The sittings follow each other without gaps.

    :param counts: number of trials that ended in this time, by KINDS
    """

    begin_s: float
    end_s: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The course of a campaign over the time that it ran.

    :param borders_s: times at which one sitting ends and the next sitting begins
    :param unplaced: trials with an unreadable time
    """

    bins: tuple[Bin, ...]
    borders_s: tuple[float, ...]
    unplaced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of all trials.

    :param reasons: the most frequent reasons first
    :param reasons_more: number of trials with other reasons
    :param uniformity: each test without a correction for the other tests
    """

    course: Course
    lasted: tuple[Lasted, ...]
    reasons: tuple[Alike, ...]
    reasons_more: int
    uniformity: tuple[Uniformity, ...]


class _Timed:
    """Collects the durations of one scenario, in microseconds."""

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
    """Collects the reasons of trials that show nothing."""

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
    """Collects the end times of trials of each kind, by sitting."""

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
        """Put the sittings one behind the other, and count the ended trials in equal parts of this time."""
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

    :param expected: the scenarios by name, in the order of the page, and whether a FAIL of the scenario is expected
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
