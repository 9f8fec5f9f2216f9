# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the page of a run: one file, without scripts or downloads, so that any machine can open it from a folder."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from markupsafe import Markup

from lab import __version__
from lab.campaign.database import NAME
from lab.campaign.old_runs import MechanismAsked, Run
from lab.campaign.run_folder import RECORDS
from lab.campaign.runs import read_run
from lab.errors import EvidenceError
from lab.expected.tally import MechanismResult, Tally, run_met, weigh_run
from lab.host.files import write_whole
from lab.mechanisms.mechanism import CONTROLS
from lab.mechanisms.table import STOCK_MECHANISMS
from lab.model.scenario import Scenario
from lab.model.scenario_file import to_words
from lab.model.verdict import Outcome, TrialRecord
from lab.report.answer import answer
from lab.report.buckets import count_buckets
from lab.report.distributions import PERCENTILES, Compared, compare
from lab.report.environment import make_environment
from lab.report.example import Example, find_evidence, find_example, link_evidence
from lab.report.figures import (
    NEVER_REQUIRED,
    Group,
    NmiTotals,
    Price,
    count_broken,
    group_reasons,
    measure_clock,
    measure_price,
    tally_invariant,
    total_nmis,
)
from lab.report.landings import list_columns, measure_uniformity, tally_coverage
from lab.report.latency import REFERENCE, Added, measure_added
from lab.report.plots import draw_compared
from lab.report.since import Since

PAGE = "index.html"

STILL = "still"

#: More rows make a browser slow, and nobody reads them. The run's folder has all records.
MAX_ROWS = 2_000
MAX_GROUPS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One mechanism on the page.

    :param headline: the answer to the mail's question in a few words; if no break was seen, with its bound
    :param sentence: the same answer with numbers
    :param still: whether the sibling stayed in one loop; no mechanism promises this
    :param added: time that the mechanism adds to the original rendezvous, if the run measured both
    :param broken: broken invariants, each with its number of trials
    """

    asked: MechanismAsked
    result: MechanismResult
    headline: str
    sentence: str
    still: Tally | None
    windows_judged: int
    windows_unseen: int
    nmis: NmiTotals
    price: Price
    added: Added | None
    broken: tuple[tuple[str, int], ...]
    example: Example | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One trial in the list of all trials.

    If its evidence cannot be opened, ``link`` is empty and ``problem`` says why.
    """

    record: TrialRecord
    link: str
    problem: str


def write_report(run_folder: Path, since: Since | None = None) -> Path:
    """Write the page of a run into the run's folder. Return the path of the page.

    :param since: what is new against an earlier one, None to say nothing of that
    :raise EvidenceError: the folder has no run, or a damaged run
    :raise HostError: the page could not be written
    """
    run = read_run(run_folder)
    rows = tuple(_make_rows(run_folder, run))
    listed = _list_trials(run_folder, run)
    page = make_environment().get_template("page.html").render(
        reproduce=reproduce,
        since=since,
        info=run.info,
        torn=run.torn,
        trials=len(run.records),
        rows=rows,
        met=_compute_standing(run, rows),
        outcomes={outcome.value: sum(r.outcome is outcome for r in run.records) for outcome in Outcome},
        without_nmis=sum(record.without_nmis for record in run.records),
        groups=_group(run.records),
        buckets=count_buckets(run.records)[:MAX_GROUPS],
        surprises=[trial for trial in listed if trial.record.outcome is not Outcome.PASS],
        passes=[trial for trial in listed if trial.record.outcome is Outcome.PASS],
        unlisted=len(run.records) - len(listed),
        never_required=NEVER_REQUIRED,
        records_file=NAME if (run_folder / NAME).exists() else RECORDS,
        report_version=__version__,
        coverage=tally_coverage(run.records),
        phases=list_columns(tally_coverage(run.records)),
        uniformity=measure_uniformity(run.records),
        clock=measure_clock(run.records),
        distributions=_draw_distributions(run),
        percentiles=PERCENTILES,
        reference=REFERENCE,
        scenario_words=shlex.join(to_words(run.info.scenario)[2:]),
    )  # fmt: skip
    path = run_folder / PAGE
    write_whole(path, page.encode(errors="backslashreplace"))
    return path


def _draw_distributions(run: Run) -> list[tuple[Compared, Markup]]:
    """Draw each quantity that some mechanism has enough values of."""
    by_name: dict[str, list[TrialRecord]] = {asked.name: [] for asked in run.info.mechanisms}
    for record in run.records:
        by_name[record.mechanism].append(record)
    return [(compared, draw_compared(compared)) for compared in compare(by_name)]


def _compute_standing(run: Run, rows: Sequence[Row]) -> bool | None:
    """Return whether every mechanism met its expectation. None if the run has not ended and no result is wrong."""
    met = run_met(row.result for row in rows)
    if not run.info.finished:
        return False if any(row.result.outcomes.trials and not row.result.met for row in rows) else None
    return met


def reproduce(record: TrialRecord, scenario: Scenario) -> str:
    """Return the command that runs a trial's plan again.

    :param scenario: the scenario of the run; the command leaves out values at their default
    """
    asked = to_words(msgspec.structs.replace(scenario, mechanism=record.mechanism))
    if record.mechanism in {each.name for each in STOCK_MECHANISMS}:
        asked = ("--kernel", "BZIMAGE", "--vmlinux", "VMLINUX", *asked)
    return shlex.join(("lab", "trial", *asked, "--seed", str(record.seed), "--out", "DIR"))


def _make_rows(run_folder: Path, run: Run) -> Iterator[Row]:
    expectations = {asked.name: asked.expected for asked in run.info.mechanisms}
    by_name: dict[str, list[TrialRecord]] = {name: [] for name in expectations}
    for record in run.records:
        by_name[record.mechanism].append(record)
    asked_by_name = {asked.name: asked for asked in run.info.mechanisms}
    for result in weigh_run(expectations, run.records):
        records = by_name[result.name]
        headline, sentence = answer(result)
        yield Row(
            asked=asked_by_name[result.name],
            result=result,
            headline=headline,
            sentence=sentence,
            still=tally_invariant(records, STILL),
            windows_judged=sum(record.windows_judged for record in records),
            windows_unseen=sum(record.windows_unseen for record in records),
            nmis=total_nmis(records),
            price=measure_price(records),
            added=measure_added(run.records, result.name),
            broken=count_broken(records),
            example=find_example(run_folder, records),
        )


def _group(records: Sequence[TrialRecord]) -> Mapping[str, tuple[Group, ...]]:
    """Group the INVALID and ERROR trials. The most frequent reasons of each outcome come first."""
    return {
        outcome.value: group_reasons(records, (outcome,))[:MAX_GROUPS] for outcome in (Outcome.ERROR, Outcome.INVALID)
    }


def _list_trials(run_folder: Path, run: Run) -> list[Listed]:
    """Select the trials for the list: unexpected outcomes first, and at most the number that a browser can show."""
    controls = {asked.name for asked in run.info.mechanisms if asked.expectation in CONTROLS}

    def surprise(record: TrialRecord) -> int:
        if record.outcome is Outcome.FAIL:
            return 3 if record.mechanism in controls else 1
        return {Outcome.ERROR: 0, Outcome.INVALID: 2, Outcome.PASS: 4}[record.outcome]

    return [_list_trial(run_folder, record) for record in sorted(run.records, key=surprise)[:MAX_ROWS]]


def _list_trial(run_folder: Path, record: TrialRecord) -> Listed:
    try:
        find_evidence(run_folder, record.evidence)
    except EvidenceError as error:
        return Listed(record=record, link="", problem=str(error))
    return Listed(record=record, link=link_evidence(record.evidence), problem="")
