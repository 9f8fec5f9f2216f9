# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of cells: what is refused, that each cell stands where it is expected, and that the page shows the list."""

from pathlib import Path

import pytest

from lab.errors import UsageError
from lab.expected.cells import Cell, CellKind, parse_cells
from lab.expected.expect import expect
from lab.expected.sound_page import replace_tables
from lab.host.paths import ROOT, SOUND
from lab.judge.judging import INVARIANTS
from lab.mechanisms.mechanism import Expectation, Mechanism
from lab.mechanisms.table import MECHANISMS
from lab.model.scenario import Scenario, Siblings
from lab.model.topology import Topology

CELLS = parse_cells(SOUND.read_text(), "sound.toml")
PAGE = ROOT / "docs" / "sound.md"
FAILING = """[[cell]]
expected = "failing"
mechanism = "stop-machine"
shown_by = "w"
source = "s"
evidence = "e"
"""
DEFECT = """[defect.rare]
breaks = ["quiet"]
what = "w"
source = "s"
evidence = "e"
"""


def sound(axes: str, more: str = "") -> str:
    return f'[[cell]]\nmechanism = "nmi-self"\naxes = \'{axes}\'\nshown_by = "w"\nsource = "s"\n{more}'


def name(cell: Cell) -> str:
    return f"{cell.line}-{cell.mechanism}"


@pytest.mark.parametrize("cell", CELLS, ids=name)
def test_the_list_has_what_is_expected_of_each_cell(cell: Cell) -> None:
    expected = expect(cell.scenario)

    assert (expected.kind is Expectation.CAUGHT) is (cell.kind is CellKind.FAILING), expected
    assert set(expected.caught_by) <= set(INVARIANTS)
    assert cell.defect is None or set(cell.defect.breaks) <= set(INVARIANTS)


def test_every_mechanism_has_a_cell() -> None:
    assert {cell.mechanism for cell in CELLS} == {each.name for each in MECHANISMS}


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda each: each.name)
def test_a_mechanism_has_its_default_scenario_where_it_belongs(mechanism: Mechanism) -> None:
    plain = {cell.scenario: cell.kind for cell in CELLS}
    caught = mechanism.expectation is Expectation.CAUGHT

    assert plain[Scenario(mechanism=mechanism.name)] is (CellKind.FAILING if caught else CellKind.SOUND)


def test_the_page_shows_the_list() -> None:
    page = PAGE.read_text()

    assert replace_tables(page, CELLS) == page, "docs/generate.py writes it again"
    assert replace_tables(page, CELLS[1:]) != page


def test_a_page_without_a_table_is_no_place_for_it() -> None:
    with pytest.raises(ValueError, match="no heading '## Known to fail'"):
        replace_tables(PAGE.read_text().replace("## Known to fail", "## Known"), CELLS)


def test_an_entry_is_read_as_a_scenario_file_would_be() -> None:
    axes = 'topology = "1x1x2", siblings = "offline", stretch_us = [1, 2]'
    text = sound(axes, 'defect = "rare"\n').replace("nmi-self", "upstream")
    first, failing = parse_cells(f"{text}\n{FAILING}{DEFECT}", "list")

    assert first.scenario == Scenario(
        mechanism="upstream", topology=Topology(1, 1, 2), siblings=Siblings.OFFLINE, stretch_us=(1, 2)
    )
    assert (first.kind, first.axes, first.notes, first.line) == (CellKind.SOUND, axes, ("w", "s"), 1)
    assert first.defect is not None
    assert (first.defect.name, first.defect.breaks) == ("rare", ("quiet",))
    assert (failing.kind, failing.scenario) == (CellKind.FAILING, Scenario(mechanism="stop-machine"))
    assert (failing.axes, failing.notes, failing.line, failing.defect) == ("", ("w", "s", "e"), 8, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (sound("nmi = 0"), "list line 1': key 'nmi' is unknown"),
        (sound("nmis = -1"), "list line 1': nmis is -1: allowed is 0 to 1000"),
        (sound("nmis = "), "list line 1' is no TOML"),
        (sound("nmis = 0 }, b = { c = 1"), "list line 1' is no TOML"),
        (sound('mechanism = "upstream"'), "list line 1': key 'mechanism' is no axis"),
        (sound('siblings = "away"'), "list line 1': key 'siblings' is 'away': allowed is"),
        (sound("min_revision = true"), "list line 1': min_revision is true: mechanism 'nmi-self' is of linux-6.1"),
        (sound("nmis = 0", "evidence = 'e'\n"), "list line 1: key 'evidence' is unknown: allowed are"),
        (
            sound("nmis = 0", "expected = 'often'\n"),
            "list line 1: key 'expected' is 'often': allowed is sound or failing",
        ),
        (sound("nmis = 0", "defect = 'none'\n"), "list line 1: key 'defect' is 'none': a sound cell's is one of"),
        (sound("nmis = 0").replace('"s"', '" "'), "list line 1: key 'source' is missing or no text"),
        (
            sound("nmis = 0").replace("nmi-self", "no-such"),
            "list line 1': key 'mechanism' is 'no-such': allowed is one of",
        ),
        (
            sound("nmis = 0", "[defect.rare]\n"),
            "list: defect 'rare' is no defect: Object missing required field `breaks`",
        ),
        (sound("nmis = 0", "[defects]\n"), "list: key 'defects' is unknown: allowed are cell, defect"),
        ("cell = 1\n", "list: each cell begins with a line '[[cell]]'"),
        ("cell = \n", "list of cells 'list' is no TOML"),
    ],
)
def test_an_entry_that_is_none_is_refused_by_its_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_cells(text, "list")

    assert said in str(refused.value)


def test_a_cell_is_there_once() -> None:
    plain = sound("").replace("axes = ''\n", "")
    with pytest.raises(UsageError, match="list line 6: this cell is in line 1 already"):
        parse_cells(sound("nmis = 12") + plain, "list")


def test_both_kinds_must_be_there() -> None:
    with pytest.raises(UsageError, match="list: there is no cell that is expected to be 'failing'"):
        parse_cells(sound("nmis = 0"), "list")
    with pytest.raises(UsageError, match="list: there is no cell that is expected to be 'sound'"):
        parse_cells(FAILING, "list")


def test_the_list_is_data_of_the_package() -> None:
    assert SOUND.is_relative_to(Path(ROOT, "lab"))
