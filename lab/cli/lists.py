# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that say what there is to try."""

from lab.cli.app import JsonOption, print_json, print_text
from lab.cli.axes import read_scenario
from lab.host.paths import SCENARIOS
from lab.mechanisms.table import MECHANISMS
from lab.model.scenario_file import to_words


def scenarios(as_json: JsonOption = False) -> None:
    """List the scenarios of this project."""
    found = [read_scenario(path) for path in sorted(SCENARIOS.glob("*.toml"))]
    if as_json:
        print_json(
            {
                "scenarios": [
                    {"name": each.name, "summary": each.summary, "options": to_words(each.scenario)} for each in found
                ]
            }
        )
        return
    for each in found:
        print_text(f"{each.name:34} {each.summary}")


def mechanisms(as_json: JsonOption = False) -> None:
    """List the mechanisms there are."""
    if as_json:
        print_json({"mechanisms": [{"name": each.name, "summary": each.summary} for each in MECHANISMS]})
        return
    for each in MECHANISMS:
        print_text(f"{each.name:22} {each.summary}")
