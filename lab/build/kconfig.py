# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel configuration: the requested settings, and whether Kconfig kept them. Kconfig drops settings silently."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

#: ``CONFIG_NAME=value`` and ``# CONFIG_NAME is not set`` are the two forms of a setting. All other lines are comments.
_SET = re.compile(r"(CONFIG_\w+)=(.*)", re.ASCII)
_UNSET = re.compile(r"# (CONFIG_\w+) is not set", re.ASCII)

#: ``config NAME`` and ``menuconfig NAME``: a tree declares a setting in this form.
_DECLARED = re.compile(rb"^[ \t]*(?:menu)?config[ \t]+(\w+)[ \t]*$", re.ASCII | re.MULTILINE)

NOT_SET = "n"


def parse_config(lines: Iterable[str]) -> dict[str, str]:
    """Read a ``.config`` or a fragment of a ``.config``. A setting that is not set has the value NOT_SET."""
    settings = {}
    for line in lines:
        if match := _SET.fullmatch(line.strip()):
            settings[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line.strip()):
            settings[match[1]] = NOT_SET
    return settings


def find_lost(wanted: Mapping[str, str], got: Mapping[str, str]) -> tuple[str, ...]:
    """Return the requested settings that Kconfig did not keep, in the form of the request."""
    return tuple(
        f"# {name} is not set" if value == NOT_SET else f"{name}={value}"
        for name, value in wanted.items()
        if got.get(name, NOT_SET) != value
    )


def find_unknown(names: Iterable[str], source: Path) -> frozenset[str]:
    """Return the settings that no Kconfig of a tree declares.

    The tree is too old or too new, or the setting is misspelt.
    """
    unknown = set(names)
    for path in source.rglob("Kconfig*") if unknown else ():
        if path.is_file():
            unknown -= {f"CONFIG_{name.decode()}" for name in _DECLARED.findall(path.read_bytes())}
    return frozenset(unknown)
