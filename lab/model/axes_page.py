# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes docs/reference/scenario.md, the page of a scenario's keys and options, from the table of axes.

docs/generate.py writes the page. A test compares the page with the table.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from lab.mechanisms.table import MECHANISMS
from lab.model.axes import AXES, PLACED, Axis
from lab.model.scenario import Scenario
from lab.model.scenario_file import ALLOWED

_HEAD: Final = """\
<!-- Written by docs/generate.py from the table of axes. Change lab/model/axes.py, then run `make docs`. -->

# Scenario

A scenario is a mechanism and the axes below. Each axis is an option of `lab trial` and `lab run`, and a key of a file.
A file is TOML: it has a `summary` and a `mechanism`, and the keys that it changes. An option wins over its key.
"""
_EXAMPLE: Final = """\
## A file

```toml
summary = "one core is done long before the other, and NMIs meet siblings in the window"
mechanism = "nmi-self"
topology = "1x2x2"
far_apart = true
phase = "window"
role = "sibling"
nmis = 4
```
"""
_PLACED: Final = """\
## Placed NMIs

Each `--place` stops one thread at one place and sends an NMI meanwhile, such as
`--place at=window-open,role=primary,nmi=sibling`.
In a file each is a table `[[placed]]` with the same keys.
"""


def format_page() -> str:
    """Return the page."""
    required = [(f"`{key}`", ALLOWED[key]) for key in ("summary", "mechanism")]
    axes = [
        (f"`{axis.key}`", f"`{axis.option}`", axis.what, axis.allowed, axis.default or _find_default(axis))
        for axis in AXES
    ]
    placed = [(f"`{each.key}`", each.what, each.allowed, each.default or "must be given") for each in PLACED]
    return "\n".join(
        (
            _HEAD,
            "## What each file must have\n",
            _format_table(("key", "allowed"), required),
            "## Axes\n",
            _format_table(("key", "option", "what it changes", "allowed as a key", "default"), axes),
            _EXAMPLE,
            _PLACED,
            _format_table(("key", "what it says", "allowed", "default"), placed).removesuffix("\n"),
        )
    )


def _find_default(axis: Axis) -> str:
    """Return the default of a key in the form of a scenario file."""
    value = getattr(Scenario(mechanism=MECHANISMS[0].name), axis.key)
    return msgspec.json.encode(value).decode() if value else {False: "false", (): "none"}[value]


def _format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in lines)
