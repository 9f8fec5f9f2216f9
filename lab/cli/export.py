# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that writes a run's trials in a format that other programs read."""

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from lab.errors import EvidenceError, UsageError
from lab.host.files import write_whole


class Format(enum.Enum):
    """What can be written."""

    JUNIT = "junit"
    KTAP = "ktap"
    CSV = "csv"
    #: Of one trial: all others are of a run or campaign.
    TRACE = "trace"


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="the folder of a run or campaign; of trace, of a trial")
    ],
    form: Annotated[
        Format,
        typer.Option("--format", help="JUnit XML, KTAP, a row for each trial, or Chrome trace events of one trial"),
    ],
    target: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="default: standard output")] = None,
) -> None:
    """Write trials as JUnit XML, KTAP, CSV or Chrome trace events, for other programs to read."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: that of a run or of a campaign is needed")
    if target is not None and target.is_dir():
        raise UsageError(f"--out '{target}' is a folder: name a file")
    try:
        text = _format(folder, form)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    if target is None:
        sys.stdout.write(text)
    else:
        write_whole(target, text.encode())


def _format(folder: Path, form: Format) -> str:
    if form is Format.TRACE:
        import msgspec

        from lab.evidence.folder import read_evidence
        from lab.report.trace_events import make_trace

        return msgspec.json.encode(make_trace(read_evidence(folder))).decode() + "\n"
    from lab.campaign.runs import read_scenarios
    from lab.report.exchange import format_csv, format_junit, format_ktap, make_suites

    trials = read_scenarios(folder)
    if form is Format.CSV:
        return format_csv(trials)
    suites = make_suites(trials)
    return format_junit(suites) if form is Format.JUNIT else format_ktap(suites)
