# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the tables of docs/sound.md from ``sound.toml``; docs/generate.py calls it. Nothing reads the page back."""

import re
from collections.abc import Sequence
from typing import Final

from lab.expected.cells import Cell, CellKind

_TITLES: Final = {
    CellKind.SOUND: ("mechanism", "axes", "what shows it", "source"),
    CellKind.FAILING: ("mechanism", "axes", "what shows it", "source", "evidence"),
}
_DEFECTS: Final = "Sound but for a rare defect"
_DEFECT_TITLES: Final = ("mechanism", "axes", "defect", "breaks", "source", "evidence")
#: A heading, the text below the heading, and the table to replace.
_TABLE: Final = r"(^## {}\n(?:(?!^\||^## ).*\n)*)(?:^\|.*\n)*"


def replace_tables(page: str, cells: Sequence[Cell]) -> str:
    """Return the page with new tables.

    :raise ValueError: the page lacks a heading
    """
    tables = {
        CellKind.SOUND.value: _format_table(
            _TITLES[CellKind.SOUND], [_row(cell) for cell in cells if cell.kind is CellKind.SOUND]
        ),
        _DEFECTS: _format_table(_DEFECT_TITLES, [_defect_row(cell) for cell in cells if cell.defect is not None]),
        CellKind.FAILING.value: _format_table(
            _TITLES[CellKind.FAILING], [_row(cell) for cell in cells if cell.kind is CellKind.FAILING]
        ),
    }
    for heading, table in tables.items():
        found = re.search(_TABLE.format(re.escape(heading)), page, re.MULTILINE)
        if found is None:
            raise ValueError(f"the page has no heading '## {heading}'")
        page = page[: found.end(1)] + table + page[found.end() :]
    return page


def _row(cell: Cell) -> tuple[str, ...]:
    return (f"`{cell.mechanism}`", f"`{cell.axes}`" if cell.axes else "", *cell.notes)


def _defect_row(cell: Cell) -> tuple[str, ...]:
    defect = cell.defect
    assert defect is not None
    breaks = ", ".join(f"`{name}`" for name in defect.breaks)
    return (*_row(cell)[:2], defect.what, breaks, defect.source, defect.evidence)


def _format_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("|  |", "| |")
