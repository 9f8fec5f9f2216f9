# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a scenario as the TOML that :mod:`lab.model.scenario_file` reads."""

from lab.model.placed import Placed
from lab.model.scenario import Scenario


def format_scenario(scenario: Scenario, summary: str) -> str:
    """Return a scenario file with the values that differ from the default.

    :param summary: one line
    """
    plain = Scenario(mechanism=scenario.mechanism)
    lines = [f"summary = {_quote(summary)}", f"mechanism = {_quote(scenario.mechanism)}"]
    for name in Scenario.__struct_fields__:
        value = getattr(scenario, name)
        if name not in ("mechanism", "placed") and value != getattr(plain, name):
            lines.append(f"{name} = {format_value(value)}")
    for placed in scenario.placed:
        usual = Placed(at=placed.at, role=placed.role)
        lines += ["", "[[placed]]"]
        for name in Placed.__struct_fields__:
            value = getattr(placed, name)
            if name in ("at", "role") or value != getattr(usual, name):
                lines.append(f"{name} = {format_value(value)}")
    return "\n".join(("# SPDX-License-Identifier: GPL-2.0-or-later", *lines, ""))


def format_value(value: object) -> str:
    """Return one value of a scenario as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, int):
        return str(value)
    return _quote(str(getattr(value, "value", value)))


def _quote(text: str) -> str:
    """Return a TOML basic string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
