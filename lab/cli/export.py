# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that writes a run's trials in a format that other programs read."""

import enum
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.errors import EvidenceError, UsageError
from lab.host.files import write_whole

if TYPE_CHECKING:
    from lab.expected.expect import Expected
    from lab.model.verdict import TrialRecord


class Format(enum.Enum):
    """What can be written."""

    JUNIT = "junit"
    KTAP = "ktap"
    CSV = "csv"
    KCIDB = "kcidb"
    PARQUET = "parquet"
    #: Of one trial: all others are of a run or campaign.
    TRACE = "trace"


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="the folder of a run or campaign; of trace, of a trial")
    ],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="JUnit XML, KTAP, a row for each trial, JSON for KCIDB, Parquet, or Chrome trace events of one trial",
        ),
    ],
    target: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="default: standard output")] = None,
    origin: Annotated[
        str | None, typer.Option(metavar="NAME", help="with kcidb: the CI system that submits (a-z, 0-9, _)")
    ] = None,
) -> None:
    """Write trials as JUnit XML, KTAP, CSV, KCIDB, Parquet or Chrome trace events, for other programs to read."""
    if origin is not None and form is not Format.KCIDB:
        raise UsageError(f"--origin goes with --format kcidb, and not with {form.value}")
    if form is Format.PARQUET and target is None and sys.stdout.isatty():
        raise UsageError("--format parquet is no text for a terminal: name a file with --out")
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: that of a run or of a campaign is needed")
    if target is not None and target.is_dir():
        raise UsageError(f"--out '{target}' is a folder: name a file")
    try:
        data = _format(folder, form, origin)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    if target is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    else:
        write_whole(target, data)


def _format(folder: Path, form: Format, origin: str | None) -> bytes:
    if form is Format.TRACE:
        import msgspec

        from lab.evidence.folder import read_evidence
        from lab.report.trace_events import make_trace

        return msgspec.json.encode(make_trace(read_evidence(folder))) + b"\n"
    from lab.campaign.runs import read_scenarios
    from lab.report.exchange import format_csv, format_junit, format_ktap, make_suites

    trials = read_scenarios(folder)
    if form is Format.KCIDB:
        return _format_kcidb(folder, trials, origin)
    if form is Format.PARQUET:
        from lab.report.parquet import format_parquet

        return format_parquet(trials)
    if form is Format.CSV:
        return format_csv(trials).encode()
    suites = make_suites(trials)
    return (format_junit(suites) if form is Format.JUNIT else format_ktap(suites)).encode()


def _format_kcidb(
    folder: Path, trials: "Mapping[str, tuple[Expected, list[TrialRecord]]]", origin: str | None
) -> bytes:
    import msgspec

    from lab.campaign.about import read_about
    from lab.report.kcidb import DEFAULT_ORIGIN, make_kcidb

    about = read_about(folder)
    made = make_kcidb(trials, about.images, about.id, about.started, DEFAULT_ORIGIN if origin is None else origin)
    return msgspec.json.format(msgspec.json.encode(made)) + b"\n"
