# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that says what changed between two runs or campaigns."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lab.cli.app import JsonOption, out, print_json
from lab.errors import EvidenceError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lab.report.comparison import Comparison, PartComparison

#: Exit status when something changed, and when too few trials tell.
CHANGED: Final = 1
UNKNOWN: Final = 3
_US_PER_MS: Final = 1_000
#: How many titles of a side are shown.
_SHOWN: Final = 10


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="the folder of a run or campaign")],
    after: Annotated[Path, typer.Argument(metavar="B", help="the folder of the one to hold against it")],
    as_json: JsonOption = False,
) -> None:
    """Say what changed between two runs or campaigns: exit 0 nothing, 1 something, 3 too few trials to tell."""
    for folder in (before, after):
        if not folder.is_dir():
            raise UsageError(f"'{folder}' is not a folder: that of a run or of a campaign is needed")
    from lab.report.comparison import Change
    from lab.report.since import compare_folders

    try:
        found = compare_folders(before, after)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    if as_json:
        print_json({"change": found.change, "comparison": found})
    else:
        out().print(make_comparison_view(found))
    raise typer.Exit({Change.CHANGED: CHANGED, Change.UNKNOWN: UNKNOWN}.get(found.change, 0))


def make_comparison_view(found: "Comparison") -> "RenderableType":
    """Return a comparison for a terminal: a row for each figure, then titles, then one line that sums up."""
    from rich.console import Group
    from rich.text import Text

    from lab.cli.present import clean, make_table
    from lab.report.comparison import Change

    table = make_table("scenario", "figure", "before", "after", "p (Holm)", "so")
    lines: list[RenderableType] = []
    for part in found.parts:
        for row in _list_rows(part):
            table.add_row(part.name, *row)
        for what, titles in (("new", part.new_buckets), ("gone", part.gone_buckets)):
            lines += [Text(f"{part.name}: {what}: {clean(title)}") for title in titles[:_SHOWN]]
            if len(titles) > _SHOWN:
                lines.append(Text(f"{part.name}: {what}: and {len(titles) - _SHOWN} more"))
    lines += [Text(f"{name}: only in A") for name in found.only_before]
    lines += [Text(f"{name}: only in B") for name in found.only_after]
    style = {Change.CHANGED: "bold red", Change.UNKNOWN: "yellow"}.get(found.change, "green")
    return Group(table, *lines, Text(found.change.value, style))


def _list_rows(part: "PartComparison") -> list[tuple[str, str, str, str, str]]:
    from lab.report.comparison import format_rate

    rows = [
        (each.outcome.value, format_rate(each.before), format_rate(each.after), f"{each.p:.2g}", each.change.value)
        for each in part.rates
        if each.before.count or each.after.count
    ]
    for time in part.times:
        shift = "" if time.shift_us is None else f" ({time.shift_us / _US_PER_MS:+.2f} ms)"
        rows.append(
            (
                f"{time.name}, median",
                _format_ms(time.before_median_us),
                _format_ms(time.after_median_us) + shift,
                "" if time.p is None else f"{time.p:.2g}",
                time.change.value,
            )
        )
    return rows


def _format_ms(value_us: float | None) -> str:
    return "unknown" if value_us is None else f"{value_us / _US_PER_MS:.2f} ms"
