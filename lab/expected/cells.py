# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells, each a mechanism and its axes, that are held to be sound or known to fail: ``docs/sound.md`` as values."""

import enum
import re
from collections.abc import Iterator

import msgspec

from lab.errors import UsageError
from lab.model.scenario import Scenario
from lab.model.scenario_file import parse_axes


class Held(enum.Enum):
    """What a cell is held to be; the values are the headings of the page's two tables."""

    SOUND = "Sound"
    FAILING = "Known to fail"


#: The columns of each table: what a row says beside its mechanism and axes.
COLUMNS = {
    Held.SOUND: ("mechanism", "axes", "what shows it", "source"),
    Held.FAILING: ("mechanism", "axes", "what shows it", "source", "evidence"),
}

_NAME = re.compile(r"`([a-z0-9-]+)`", re.ASCII)
_AXES = re.compile(r"(?:`([^`]*)`)?")
_RULE = re.compile(r"\|(?: *:?-+:? *\|)+", re.ASCII)


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the page.

    :param axes: as the page has them, empty for the defaults
    :param notes: the columns behind the axes
    :param line: of the page, from 1
    """

    held: Held
    scenario: Scenario
    axes: str
    notes: tuple[str, ...]
    line: int

    @property
    def mechanism(self) -> str:
        """The name of its mechanism."""
        return self.scenario.mechanism


def parse_cells(text: str, file: str) -> tuple[Cell, ...]:
    """Read the page's two tables, in order.

    Accepted row: ``| `nmi-self` | `topology = "1x1x2", nmis = 0` | words | words |``, the axes in backticks as keys of
    a scenario file in TOML's inline form, or left empty; no cell holds a bar.

    :param file: what errors call it
    :raise UsageError: a table is missing, or a row is none, is no scenario, or is there twice; the error names the line
    """
    cells: list[Cell] = []
    seen: dict[Scenario, int] = {}
    for held, line, row in _find_rows(text, file):
        cell = _parse_row(held, line, row, f"{file} line {line}")
        if cell.scenario in seen:
            raise UsageError(f"{file} line {line}: this cell is in line {seen[cell.scenario]} already")
        seen[cell.scenario] = line
        cells.append(cell)
    for held in Held:
        if not any(cell.held is held for cell in cells):
            raise UsageError(f"{file}: the table below '## {held.value}' is missing or empty")
    return tuple(cells)


def _find_rows(text: str, file: str) -> Iterator[tuple[Held, int, tuple[str, ...]]]:
    """Yield the rows below the two headings, without the head of each table."""
    held: Held | None = None
    headed = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("#"):
            title = line.lstrip("#").strip()
            held, headed = next((each for each in Held if each.value == title), None), False
        if held is None or not line.startswith("|") or _RULE.fullmatch(line):
            continue
        row = tuple(part.strip() for part in line.strip("|").split("|"))
        if headed:
            yield held, number, row
        elif row != COLUMNS[held]:
            raise UsageError(f"{file} line {number}: the columns are not {', '.join(COLUMNS[held])}")
        headed = True


def _parse_row(held: Held, line: int, row: tuple[str, ...], where: str) -> Cell:
    columns = COLUMNS[held]
    if len(row) != len(columns):
        raise UsageError(f"{where}: there are {len(row)} columns instead of {len(columns)}: {', '.join(columns)}")
    name, axes = _NAME.fullmatch(row[0]), _AXES.fullmatch(row[1])
    if name is None:
        raise UsageError(f"{where}: the first column is not the name of a mechanism in backticks")
    if axes is None:
        raise UsageError(f"{where}: the second column is not axes in backticks, or empty for the defaults")
    for column, note in zip(columns[2:], row[2:], strict=True):
        if not note:
            raise UsageError(f"{where}: the column '{column}' is empty")
    inline = axes[1] or ""
    scenario = parse_axes(name[1], inline, where)
    return Cell(held=held, scenario=scenario, axes=inline, notes=row[2:], line=line)
