# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether cells held to be sound are never accused, and those known to fail are caught: many trials over docs/sound.md.

Cells of one machine take turns on its warm guest, and machines come one after the other. Each cell leaves a run of its
own below CELLS, page included; evidence is kept of what did not pass.
"""

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.campaign.run_store import RunStore
from lab.campaign.runner import MAX_FAILED_BOOTS, NOT_MET, describe_run, name_trial
from lab.expected.cells import Cell, Held
from lab.expected.expect import expect
from lab.expected.tally import OutcomeCounts, count_outcomes
from lab.model.boot import Boot
from lab.model.evidence import Images
from lab.model.plan import derive_seed, draw_plan
from lab.model.verdict import Finding, Outcome, TrialRecord
from lab.trial.pool import WarmGuests
from lab.trial.record import keep_unless_passed

#: Below the output folder: one run for each cell.
CELLS: Final = "cells"
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
    :param folder: of its run, empty when none of its trials was run
    """

    cell: Cell
    outcomes: OutcomeCounts
    caught: int
    invalid: tuple[tuple[str, int], ...]
    folder: str
    by_defect: int = 0

    @property
    def accused(self) -> int:
        """How many trials FAILed that nothing explains."""
        return self.outcomes.failed - self.by_defect

    @property
    def needed(self) -> int:
        """How many of its trials must PASS: none of a cell that is known to fail."""
        if self.cell.held is Held.FAILING:
            return 0
        return max(1, math.ceil(self.outcomes.trials * MIN_PASS_PERCENT / 100))

    @property
    def met(self) -> bool:
        """Whether the trials show what the cell is held to be; how many may be INVALID is weighed over all cells."""
        if self.cell.held is Held.SOUND:
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
        sound = all(one.cell.held is Held.SOUND for one in self.results)
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


def run_cells(
    guests: WarmGuests,
    folder: Path,
    asked: Mapping[Cell, int],
    seed: int,
    images: Mapping[str, Images],
    command: tuple[str, ...],
    progress: Callable[[TrialRecord], None],
) -> Soundness:
    """Run so many trials of each cell; of one that is known to fail, no more once it is caught.

    The run is stopped when there was no guest several times in a row, since there will be none for the rest.

    :param folder: a new or empty one
    :param seed: of the whole run; each trial's seed follows from it, its cell and its index
    :param images: by base, as they were booted
    :raise HostError: the host failed; what has been stored stays
    """
    records: dict[Cell, list[TrialRecord]] = {cell: [] for cell in asked}
    places = {cell: folder / CELLS / f"{number:03}-{cell.mechanism}" for number, cell in enumerate(asked, 1)}
    stopped = ""
    for boot, cells in _by_machine(asked).items():
        with contextlib.ExitStack() as stack:
            stores = {}
            for cell in cells:
                info = describe_run(command, (cell.scenario,), asked[cell], seed, (images[boot.base],))
                stores[cell] = stack.enter_context(RunStore(places[cell], info))
            for index, cell in _take_turns(cells, asked):
                if _is_done(cell, records[cell]):
                    continue
                record = _run_trial(guests, places[cell], cell, seed, index)
                stores[cell].append(record)
                records[cell].append(record)
                progress(record)
                if guests.failed_boots >= MAX_FAILED_BOOTS:
                    stopped = (
                        f"no guest was there for {guests.failed_boots} trials in a row, so the run was stopped after"
                        f" {sum(map(len, records.values()))} of {sum(asked.values())}: {record.reason}"
                    )
                    break
            for cell in cells:
                stores[cell].finish(0 if weigh_cell(cell, records[cell]).met else NOT_MET)
        # The next machine's guest needs its place.
        guests.find(boot).retire()
        if stopped:
            break
    results = tuple(
        weigh_cell(cell, records[cell], str(places[cell].relative_to(folder)) if records[cell] else "")
        for cell in asked
    )
    return Soundness(results=results, host_cores=os.cpu_count() or 1, stopped=stopped)


def weigh_cell(cell: Cell, records: Iterable[TrialRecord], folder: str = "") -> CellResult:
    """Hold one cell's records against what it is held to be."""
    records = tuple(records)
    reasons = Counter(_PARTICULAR.sub("#", record.reason) for record in records if record.outcome is Outcome.INVALID)
    return CellResult(
        cell=cell,
        outcomes=count_outcomes(records),
        caught=sum(_is_caught(cell, record) for record in records),
        invalid=tuple(reasons.most_common()),
        folder=folder,
        by_defect=sum(_shows_defect(cell, record) for record in records),
    )


def _by_machine(asked: Mapping[Cell, int]) -> dict[Boot, list[Cell]]:
    machines: dict[Boot, list[Cell]] = {}
    for cell, count in asked.items():
        if count:
            machines.setdefault(cell.scenario.boot, []).append(cell)
    return machines


def _take_turns(cells: list[Cell], asked: Mapping[Cell, int]) -> Iterator[tuple[int, Cell]]:
    """Yield each cell as often as was asked, with the index of its trial: whatever the host does falls on all alike."""
    for index in range(max(asked[cell] for cell in cells)):
        yield from ((index, cell) for cell in cells if index < asked[cell])


def _run_trial(guests: WarmGuests, folder: Path, cell: Cell, seed: int, index: int) -> TrialRecord:
    plan = draw_plan(cell.scenario, derive_seed(seed, name_cell(cell), index))
    name = name_trial(index + 1, cell.mechanism)
    kept = guests.run_trial(cell.scenario, plan)
    return keep_unless_passed(folder / name, kept, index + 1, name)


def _shows_defect(cell: Cell, record: TrialRecord) -> bool:
    """Say whether a trial FAILed by nothing but the rare defect of the cell's kernel."""
    if cell.defect is None or record.outcome is not Outcome.FAIL:
        return False
    broken = {name for name, finding in record.invariants.items() if finding is Finding.BROKEN}
    return bool(broken) and broken <= set(cell.defect.breaks)


def _is_caught(cell: Cell, record: TrialRecord) -> bool:
    caught_by = expect(cell.scenario).caught_by
    return record.outcome is Outcome.FAIL and any(record.invariants.get(one) is Finding.BROKEN for one in caught_by)


def _is_done(cell: Cell, records: list[TrialRecord]) -> bool:
    return cell.held is Held.FAILING and any(_is_caught(cell, record) for record in records)


def _explain(result: CellResult) -> str:
    counts = result.outcomes
    if counts.error:
        return f"{counts.error} of {counts.trials} trials ended in ERROR: the lab or the host failed"
    if result.cell.held is Held.SOUND:
        if result.accused:
            return f"held to be sound, and {result.accused} of {counts.trials} trials FAIL"
        return f"held to be sound, and {counts.passed} of {counts.trials} trials PASS: {result.needed} or more must"
    wanted = " or ".join(expect(result.cell.scenario).caught_by)
    return f"known to fail, and none of {counts.trials} trials failed with {wanted} broken"
