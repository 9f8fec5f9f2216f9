# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of axes: complete, the same on its page, and behind the options of each command that runs trials."""

import msgspec
import pytest

from lab.cli.deferred import Deferred
from lab.cli.main import app
from lab.host.paths import ROOT
from lab.model.axes import AXES, PLACED
from lab.model.axes_page import format_page
from lab.model.placed import Placed
from lab.model.scenario import Scenario
from lab.model.scenario_file import parse_scenario


def test_the_page_is_what_the_table_says() -> None:
    page = ROOT / "docs/reference/scenario.md"
    assert page.read_text() == format_page(), "run docs/generate.py, or make docs"


def test_every_field_of_a_scenario_is_an_axis_and_every_field_of_a_placed_nmi_a_key() -> None:
    assert sorted(axis.key for axis in AXES) == sorted({*Scenario.__struct_fields__} - {"mechanism"})
    assert [each.key for each in PLACED] == [field.name for field in msgspec.structs.fields(Placed)]


def test_the_example_of_the_page_is_a_scenario() -> None:
    text = format_page().partition("```toml\n")[2].partition("```")[0]
    assert parse_scenario(text, "example", "example").scenario.nmis == 4


@pytest.mark.parametrize("command", ["trial", "run"])
def test_a_command_that_runs_trials_has_an_option_for_each_axis(command: str) -> None:
    deferred = app.commands[command]
    assert isinstance(deferred, Deferred)
    options = {param.name: param for param in deferred.load().params}
    for axis in AXES:
        names = [*options[axis.parameter].opts, *options[axis.parameter].secondary_opts]
        assert "/".join(names) == axis.option


def test_defaults_are_those_of_a_scenario() -> None:
    plain = Scenario(mechanism="nmi-self")
    told = {axis.key: axis.default for axis in AXES}
    assert told["topology"] == str(plain.topology)
    assert told["nmis"] == str(plain.nmis)
    assert told["stretch_us"] == ",".join(map(str, plain.stretch_us))
    for key in ("aim", "siblings", "parking", "granularity"):
        assert told[key] == getattr(plain, key).value
