# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel configuration: what was asked for, and whether Kconfig kept it. It drops options without a word."""

import re
from collections.abc import Iterable, Mapping

#: ``CONFIG_NAME=value`` and ``# CONFIG_NAME is not set``, the two forms a setting takes; all else is a comment.
_SET = re.compile(r"(CONFIG_\w+)=(.*)", re.ASCII)
_UNSET = re.compile(r"# (CONFIG_\w+) is not set", re.ASCII)

NOT_SET = "n"


def parse_config(lines: Iterable[str]) -> dict[str, str]:
    """Read a ``.config`` or a fragment of one; what is not set has the value NOT_SET."""
    settings = {}
    for line in lines:
        if match := _SET.fullmatch(line.strip()):
            settings[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line.strip()):
            settings[match[1]] = NOT_SET
    return settings


def find_lost(wanted: Mapping[str, str], got: Mapping[str, str]) -> tuple[str, ...]:
    """Return the settings that were asked for and did not survive, as they were asked for."""
    return tuple(
        f"# {name} is not set" if value == NOT_SET else f"{name}={value}"
        for name, value in wanted.items()
        if got.get(name, NOT_SET) != value
    )
