# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that writes a run's trials in a format that other programs read."""

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.errors import EvidenceError, UsageError
from lab.host.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.expected.expect import Expected
    from lab.model.verdict import TrialRecord


class Format(enum.Enum):
    """What can be written."""

    JUNIT = "junit"
    KTAP = "ktap"
    CSV = "csv"


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run or campaign")],
    form: Annotated[Format, typer.Option("--format", help="JUnit XML, KTAP, or a row for each trial")],
    target: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="default: standard output")] = None,
) -> None:
    """Write a run's or campaign's trials as JUnit XML, KTAP or CSV, for other programs to read."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: that of a run or of a campaign is needed")
    if target is not None and target.is_dir():
        raise UsageError(f"--out '{target}' is a folder: name a file")
    from lab.report.exchange import format_csv, format_junit, format_ktap, make_suites

    try:
        trials = read_trials(folder)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    match form:
        case Format.JUNIT:
            text = format_junit(make_suites(trials))
        case Format.KTAP:
            text = format_ktap(make_suites(trials))
        case Format.CSV:
            text = format_csv(trials)
    if target is None:
        sys.stdout.write(text)
    else:
        write_whole(target, text.encode())


def read_trials(folder: Path) -> "dict[str, tuple[Expected, Sequence[TrialRecord]]]":
    """Return a folder's scenarios by name: what is expected of each, and its records.

    :raise EvidenceError: the folder holds no run and no campaign, or a damaged one
    """
    from lab.campaign.definition import choose_trial
    from lab.campaign.reader import read_campaign_spec, read_records
    from lab.campaign.runs import is_run, read_run
    from lab.expected.expect import Expected, expect

    if is_run(folder):
        run = read_run(folder)
        return {
            asked.name: (
                Expected(kind=asked.expectation, caught_by=asked.caught_by, why=asked.why),
                [record for record in run.records if record.mechanism == asked.name],
            )
            for asked in run.info.mechanisms
        }
    _, spec = read_campaign_spec(folder)
    found: dict[str, list[TrialRecord]] = {part.name: [] for part in spec.parts}
    for record in read_records(folder):
        found[choose_trial(spec, record.trial).part.name].append(record)
    return {part.name: (expect(part.scenario), found[part.name]) for part in spec.parts}
