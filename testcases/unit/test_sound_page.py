# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/sound.md as values: what is refused, and that the page and what is expected of each cell say the same."""

import pytest

from lab.errors import UsageError
from lab.expected.cells import COLUMNS, Cell, Held, parse_cells
from lab.expected.expect import expect
from lab.host.paths import SOUND
from lab.judge.judging import INVARIANTS
from lab.mechanisms.mechanism import Expectation, Mechanism
from lab.mechanisms.table import MECHANISMS
from lab.model.scenario import Scenario, Siblings
from lab.model.topology import Topology

CELLS = parse_cells(SOUND.read_text(), "sound.md")
ROW = "| `nmi-self` | `{}` | w | s |"


def page(*sound: str, failing: str = "| `stop-machine` | | w | s | e |", head: str = "") -> str:
    tables = {Held.SOUND: sound, Held.FAILING: (failing,)}
    parts = head.splitlines()
    for held, rows in tables.items():
        columns = COLUMNS[held]
        parts += [f"## {held.value}", "", "words", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows, ""]
    return "\n".join(parts)


def name(cell: Cell) -> str:
    return f"{cell.line}-{cell.mechanism}"


@pytest.mark.parametrize("cell", CELLS, ids=name)
def test_the_page_holds_what_is_expected_of_each_cell(cell: Cell) -> None:
    expected = expect(cell.scenario)

    assert (expected.kind is Expectation.CAUGHT) is (cell.held is Held.FAILING), expected
    assert set(expected.caught_by) <= set(INVARIANTS)


def test_every_mechanism_has_a_cell() -> None:
    assert {cell.mechanism for cell in CELLS} == {each.name for each in MECHANISMS}


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda each: each.name)
def test_a_mechanism_has_its_default_scenario_where_it_belongs(mechanism: Mechanism) -> None:
    plain = {cell.scenario: cell.held for cell in CELLS}
    caught = mechanism.expectation is Expectation.CAUGHT

    assert plain[Scenario(mechanism=mechanism.name)] is (Held.FAILING if caught else Held.SOUND)


def test_a_row_is_read_as_a_scenario_file_would_be() -> None:
    axes = 'topology = "1x1x2", siblings = "offline", stretch_us = [1, 2]'
    sound, failing = parse_cells(page(f"| `upstream` | `{axes}` | shows | line |"), "page")

    assert sound.scenario == Scenario(
        mechanism="upstream", topology=Topology(1, 1, 2), siblings=Siblings.OFFLINE, stretch_us=(1, 2)
    )
    assert (sound.held, sound.axes, sound.notes, sound.line) == (Held.SOUND, axes, ("shows", "line"), 6)
    assert (failing.held, failing.scenario) == (Held.FAILING, Scenario(mechanism="stop-machine"))
    assert (failing.axes, failing.notes) == ("", ("w", "s", "e"))


def test_other_tables_of_the_page_are_left_alone() -> None:
    head = "# Title\n| a | b |\n|---|---|\n| 1 | 2 |\n"

    assert len(parse_cells(page(ROW.format("nmis = 1"), head=head) + "## More\n| x |\n", "page")) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            "| `nmi-self` | | w |",
            "page line 6: there are 3 columns instead of 4: mechanism, axes, what shows it,",
        ),
        ("| nmi-self | | w | s |", "page line 6: the first column is not the name of a mechanism in backticks"),
        ("| `nmi-self` | nmis = 0 | w | s |", "page line 6: the second column is not axes in backticks"),
        ("| `nmi-self` | | | s |", "page line 6: the column 'what shows it' is empty"),
        ("| `no-such` | | w | s |", "page line 6': key 'mechanism' is 'no-such': allowed is one of"),
        (ROW.format("nmi = 0"), "page line 6': key 'nmi' is unknown"),
        (ROW.format("nmis = -1"), "page line 6': nmis is -1: allowed is 0 to 1000"),
        (ROW.format("nmis = "), "page line 6' is no TOML"),
        (ROW.format("nmis = 0 }, b = { c = 1"), "page line 6' is no TOML"),
        (ROW.format('mechanism = "upstream"'), "page line 6': key 'mechanism' is no axis"),
        (ROW.format('siblings = "away"'), "page line 6': key 'siblings' is 'away': allowed is"),
        (ROW.format("min_revision = true"), "page line 6': min_revision is true: mechanism 'nmi-self' is of linux-6.1"),
    ],
)
def test_a_row_that_is_none_is_refused_by_its_line(row: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_cells(page(row), "page")

    assert said in str(refused.value)


def test_a_cell_is_there_once() -> None:
    with pytest.raises(UsageError, match="page line 7: this cell is in line 6 already"):
        parse_cells(page(ROW.format("nmis = 12"), "| `nmi-self` | | w | s |"), "page")
    with pytest.raises(UsageError, match="is in line 6 already"):
        parse_cells(page(ROW.format(""), failing="| `nmi-self` | | w | s | e |"), "page")


def test_both_tables_must_be_there() -> None:
    with pytest.raises(UsageError, match="page: the table below '## Known to fail' is missing or empty"):
        parse_cells(page(ROW.format("")).replace("## Known to fail", "## Known"), "page")
    with pytest.raises(UsageError, match="page: the table below '## Sound' is missing or empty"):
        parse_cells(page(), "page")


def test_a_table_with_other_columns_is_refused() -> None:
    with pytest.raises(UsageError, match="page line 4: the columns are not mechanism, axes, what shows it, source"):
        parse_cells(page(ROW.format("")).replace("| axes |", "| options |", 1), "page")
