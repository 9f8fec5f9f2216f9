# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells as values of ``sound.toml``. A cell is a mechanism and its axes; it is expected sound or known to fail."""

import enum
import re
from typing import Any, Final

import msgspec

from lab.errors import UsageError
from lab.model.scenario import Scenario
from lab.model.scenario_file import load_toml, parse_axes


class CellKind(enum.Enum):
    """What the lab expects of a cell. The values are the headings of the tables in docs/sound.md."""

    SOUND = "Sound"
    FAILING = "Known to fail"


#: The allowed values of the key ``expected``.
_EXPECTED: Final = {"sound": CellKind.SOUND, "failing": CellKind.FAILING}
#: The notes of a cell beside its mechanism and axes, in the order of the table's columns.
NOTES: Final = {CellKind.SOUND: ("shown_by", "source"), CellKind.FAILING: ("shown_by", "source", "evidence")}
_CELL: Final = re.compile(r"\s*\[\[\s*cell\s*\]\]", re.ASCII)


class Defect(msgspec.Struct, frozen=True, kw_only=True):
    """A rare defect of a kernel. The cells that name the defect are expected sound in all other respects.

    :param breaks: invariants; a trial that breaks no other required invariant shows the defect and accuses no mechanism
    :param what: what happens, in one sentence
    :param source: the function of the kernel
    :param evidence: the second witness
    """

    name: str
    breaks: tuple[str, ...]
    what: str
    source: str
    evidence: str


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the list.

    :param kind: whether the cell is expected sound or known to fail; stored under the key ``held``
    :param axes: keys of a scenario file in TOML's inline form, empty for the defaults
    :param notes: the notes that :data:`NOTES` names
    :param line: the line in the file, from 1
    :param defect: the defect with which a trial may FAIL; None where no trial may FAIL
    """

    kind: CellKind = msgspec.field(name="held")
    scenario: Scenario
    axes: str
    notes: tuple[str, ...]
    line: int
    defect: Defect | None = None

    @property
    def mechanism(self) -> str:
        """The name of the cell's mechanism."""
        return self.scenario.mechanism


def parse_cells(text: str, file: str) -> tuple[Cell, ...]:
    """Read the list, in order.

    :param file: the name of the file in errors
    :raise UsageError: an entry is malformed, is no scenario, or exists twice; the error names the line
    """
    table = load_toml(text, f"list of cells '{file}'")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if _CELL.match(line)]
    entries = table.get("cell", [])
    _check_keys(table, ("cell", "defect"), file)
    if not isinstance(entries, list) or len(entries) != len(lines):
        raise UsageError(f"{file}: each cell begins with a line '[[cell]]'")
    defects = _parse_defects(table.get("defect", {}), file)
    cells: list[Cell] = []
    seen: dict[Scenario, int] = {}
    for line, entry in zip(lines, entries, strict=True):
        cell = _parse_cell(entry, defects, line, f"{file} line {line}")
        if cell.scenario in seen:
            raise UsageError(f"{file} line {line}: this cell is in line {seen[cell.scenario]} already")
        seen[cell.scenario] = line
        cells.append(cell)
    for word, kind in _EXPECTED.items():
        if not any(cell.kind is kind for cell in cells):
            raise UsageError(f"{file}: there is no cell that is expected to be '{word}'")
    return tuple(cells)


def _parse_cell(entry: dict[str, Any], defects: dict[str, Defect], line: int, where: str) -> Cell:
    word = entry.get("expected", "sound")
    if word not in _EXPECTED:
        raise UsageError(f"{where}: key 'expected' is '{word}': allowed is {' or '.join(_EXPECTED)}")
    kind = _EXPECTED[word]
    _check_keys(entry, ("expected", "mechanism", "axes", "defect", *NOTES[kind]), where)
    notes = tuple(_find_text(entry, key, where) for key in NOTES[kind])
    name = entry.get("defect")
    if name is not None and (name not in defects or kind is CellKind.FAILING):
        allowed = "a sound cell's is one of the tables below 'defect'"
        raise UsageError(f"{where}: key 'defect' is '{name}': {allowed}: {', '.join(defects)}")
    axes = _find_text(entry, "axes", where) if "axes" in entry else ""
    return Cell(
        kind=kind,
        scenario=parse_axes(_find_text(entry, "mechanism", where), axes, where),
        axes=axes,
        notes=notes,
        line=line,
        defect=defects[name] if name is not None else None,
    )


def _parse_defects(table: Any, file: str) -> dict[str, Defect]:
    found = {}
    for name, entry in table.items():
        where = f"{file}: defect '{name}'"
        try:
            found[name] = msgspec.convert({"name": name, **entry}, Defect)
        except (msgspec.ValidationError, TypeError) as error:
            raise UsageError(f"{where} is no defect: {error}") from None
        _check_keys(entry, ("breaks", "what", "source", "evidence"), where)
    return found


def _check_keys(table: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        raise UsageError(f"{where}: key '{unknown[0]}' is unknown: allowed are {', '.join(allowed)}")


def _find_text(entry: dict[str, Any], key: str, where: str) -> str:
    text = entry.get(key)
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{where}: key '{key}' is missing or no text")
    return text
