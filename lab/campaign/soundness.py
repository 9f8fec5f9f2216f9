# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether cells held to be sound are never accused, and those known to fail are caught: many trials over docs/sound.md.

They are one campaign, of which each cell is a scenario; evidence is kept of what did not pass.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.campaign.definition import CampaignSpec, Front, Order, Part, Until, limit_turns
from lab.campaign.reader import group_records, read_campaign_spec, summarise
from lab.campaign.runs import NOT_MET
from lab.expected.cells import Cell, CellKind
from lab.expected.expect import expect
from lab.expected.tally import OutcomeCounts, count_outcomes, is_caught
from lab.model.verdict import Finding, Outcome, TrialRecord

#: Where a host core is there for every vCPU, so many INVALID trials in a hundred, or more, need an explanation.
MAX_INVALID_PERCENT: Final = 2
#: Of a sound cell's trials so many in a hundred must PASS, and one at least. Where vCPUs outnumber the host's cores,
#: most may be INVALID; of a cell of which all are, nothing is known.
MIN_PASS_PERCENT: Final = 25

#: What tells one trial's reason from another's of the same kind.
_PARTICULAR = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What came of one cell's trials.

    :param caught: trials that FAILed with one of the invariants broken that its scenario is expected to break
    :param by_defect: trials that FAILed by the cell's rare defect, and by nothing else
    :param invalid: why trials were INVALID, with ``#`` for what differs from trial to trial, the most frequent first
    """

    cell: Cell
    outcomes: OutcomeCounts
    caught: int
    invalid: tuple[tuple[str, int], ...]
    by_defect: int = 0

    @property
    def accused(self) -> int:
        """How many trials FAILed that nothing explains."""
        return self.outcomes.failed - self.by_defect

    @property
    def needed(self) -> int:
        """How many of its trials must PASS: none of a cell that is known to fail."""
        if self.cell.kind is CellKind.FAILING:
            return 0
        return max(1, math.ceil(self.outcomes.trials * MIN_PASS_PERCENT / 100))

    @property
    def met(self) -> bool:
        """Whether the trials show what the cell is held to be; how many may be INVALID is weighed over all cells."""
        if self.cell.kind is CellKind.SOUND:
            return not self.accused and not self.outcomes.error and self.outcomes.passed >= self.needed
        return bool(self.caught) and not self.outcomes.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Soundness:
    """What came of all cells.

    :param host_cores: of this host
    :param stopped: why not all trials were run, in one sentence; empty when all were
    """

    results: tuple[CellResult, ...]
    host_cores: int
    stopped: str = ""

    @property
    def fitting(self) -> OutcomeCounts:
        """The outcomes of all cells whose vCPUs do not outnumber the host's cores."""
        fits = (one for one in self.results if one.cell.scenario.topology.vcpus <= self.host_cores)
        return add_up(one.outcomes for one in fits)

    @property
    def problems(self) -> tuple[str, ...]:
        """What speaks against the list or the host, a sentence each."""
        found = [self.stopped] if self.stopped else []
        tried = [one for one in self.results if one.outcomes.trials]
        found += [f"{name_cell(one.cell)} (line {one.cell.line}): {_explain(one)}" for one in tried if not one.met]
        left = len(self.results) - len(tried)
        if left:
            found.append(f"{left} of {len(self.results)} cells have no trial, so nothing is known of them")
        fitting = self.fitting
        sound = all(one.cell.kind is CellKind.SOUND for one in self.results)
        if sound and fitting.invalid and fitting.invalid * 100 >= fitting.trials * MAX_INVALID_PERCENT:
            found.append(
                f"{fitting.invalid} of {fitting.trials} trials are INVALID where vCPUs do not outnumber the"
                f" {self.host_cores} host cores: {MAX_INVALID_PERCENT} % or more"
            )
        return tuple(found)

    @property
    def exit_status(self) -> int:
        """0 when nothing speaks against the list, else 1."""
        return NOT_MET if self.problems or not self.results else 0


def name_cell(cell: Cell) -> str:
    """Return a cell in words, such as ``nmi-self topology = "1x1x2"``."""
    return f"{cell.mechanism} {cell.axes}".strip()


def add_up(counts: Iterable[OutcomeCounts]) -> OutcomeCounts:
    """Return the sum of outcomes."""
    every = list(counts)
    return OutcomeCounts(
        passed=sum(one.passed for one in every),
        failed=sum(one.failed for one in every),
        invalid=sum(one.invalid for one in every),
        error=sum(one.error for one in every),
        passed_without_nmis=sum(one.passed_without_nmis for one in every),
    )


def share_out(trials: int, cells: tuple[Cell, ...]) -> dict[Cell, int]:
    """Return how many of all trials each cell gets: as many as any other, the first ones one more."""
    return {cell: trials // len(cells) + (index < trials % len(cells)) for index, cell in enumerate(cells)}


def make_sound_spec(command: tuple[str, ...], asked: Mapping[Cell, int], seed: int) -> CampaignSpec:
    """Return so many trials of each cell as a campaign; of one that is known to fail, no more once it is caught.

    Cells of one machine take turns on its warm guest, and machines come one after the other.

    :param command: the words of the command line
    :param seed: of the whole campaign; each trial's seed follows from it, its cell and its index
    """
    names = {cell: f"{number:03}-{cell.mechanism}" for number, cell in enumerate(asked, 1)}
    blocks = {boot: block for block, boot in enumerate(dict.fromkeys(cell.scenario.boot for cell in asked))}
    parts = [
        Part(
            name=names[cell],
            scenario=cell.scenario,
            trials=trials,
            block=blocks[cell.scenario.boot],
            stream=name_cell(cell),
            until=Until.CAUGHT if cell.kind is CellKind.FAILING else Until.ALL,
        )
        for cell, trials in asked.items()
    ]
    return CampaignSpec(
        summary=f"whether cells of docs/sound.md are as they are held to be: {len(parts)} cells",
        seed=seed,
        parts=tuple(sorted(parts, key=lambda part: part.block)),
        limits=limit_turns(parts, keep_passes_one_in=0),
        order=Order.TURNS,
        keeps_guests=True,
        front=Front.SOUND,
        command=command,
        cells={names[cell]: cell for cell in asked},
    )


def read_soundness(folder: Path) -> Soundness:
    """Return what came of all cells, also while their trials run.

    :raise UsageError: the folder holds no campaign
    :raise EvidenceError: the store is damaged, or of another lab
    """
    (summary,) = summarise(folder)
    _, spec = read_campaign_spec(folder)
    records = group_records(folder, spec.cells)
    stopped = ""
    if summary.state != "finished":
        why = summary.why or f"it is {summary.state}"
        stopped = f"not all trials were run ({summary.done} of {summary.planned}), since {why}"
    return Soundness(
        results=tuple(weigh_cell(cell, records[name]) for name, cell in spec.cells.items()),
        host_cores=os.cpu_count() or 1,
        stopped=stopped,
    )


def weigh_cell(cell: Cell, records: Iterable[TrialRecord]) -> CellResult:
    """Hold one cell's records against what it is held to be."""
    records = tuple(records)
    reasons = Counter(_PARTICULAR.sub("#", record.reason) for record in records if record.outcome is Outcome.INVALID)
    return CellResult(
        cell=cell,
        outcomes=count_outcomes(records),
        caught=sum(is_caught(expect(cell.scenario), record) for record in records),
        invalid=tuple(reasons.most_common()),
        by_defect=sum(_shows_defect(cell, record) for record in records),
    )


def _shows_defect(cell: Cell, record: TrialRecord) -> bool:
    """Say whether a trial FAILed by nothing but the rare defect of the cell's kernel."""
    if cell.defect is None or record.outcome is not Outcome.FAIL:
        return False
    broken = {name for name, finding in record.invariants.items() if finding is Finding.BROKEN}
    return bool(broken) and broken <= set(cell.defect.breaks)


def _explain(result: CellResult) -> str:
    counts = result.outcomes
    if counts.error:
        return f"{counts.error} of {counts.trials} trials ended in ERROR: the lab or the host failed"
    if result.cell.kind is CellKind.SOUND:
        if result.accused:
            return f"held to be sound, and {result.accused} of {counts.trials} trials FAIL"
        return f"held to be sound, and {counts.passed} of {counts.trials} trials PASS: {result.needed} or more must"
    wanted = " or ".join(expect(result.cell.scenario).caught_by)
    return f"known to fail, and none of {counts.trials} trials failed with {wanted} broken"
