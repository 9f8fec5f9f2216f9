# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep as the command line shows it: for a machine, and for a terminal."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from lab.cli.present import clean, make_table
from lab.model.sweep import SweepAsk
from lab.sweep.journal import Tried
from lab.sweep.result import Swept

#: Of a point whose kernel has no debug information.
UNKNOWN_LINE = "unknown: no debug information"
#: How many points a person is shown; the journal has all.
SHOWN_POINTS = 40


def describe_sweep(ask: SweepAsk, swept: Swept, lines: dict[int, str], folder: Path) -> dict[str, object]:
    """Return a sweep as ``--json`` prints it."""
    return {
        "asked": ask,
        "points_known": swept.known,
        "points_tried": swept.tried,
        "points_earlier": swept.earlier,
        "points_entered": swept.entered,
        "untried": swept.untried,
        "broken": [
            {
                "role": tried.role,
                "phase": tried.phase,
                "arrival": tried.arrival,
                "rank": tried.rank,
                "address": f"{tried.pc:#x}",
                "symbol": swept.symbols.get(tried.pc, ""),
                "source": lines.get(tried.pc),
                "invariants": tried.broken,
                "reason": tried.reason,
                "evidence": str(folder / tried.evidence),
            }
            for tried in swept.broken
        ],
        "broken_without_nmi": swept.dry_broken,
        "broken_before": [
            {
                "role": each.role,
                "phase": each.phase,
                "address": f"{each.pc:#x}",
                "symbol": swept.symbols.get(each.pc, ""),
                "invariants": each.broken,
                "reason": each.reason,
                "evidence": str(folder / each.evidence),
            }
            for each in swept.broke
        ],
        "stopped": swept.stopped,
        "uncovered": swept.uncovered,
        "unseen": swept.unseen,
        "masked": swept.masked,
        "complete": swept.is_complete,
    }


def make_sweep_view(swept: Swept, lines: dict[int, str], folder: Path) -> RenderableType:
    """Return a sweep for a terminal: what broke, what could not be tried, and the coverage."""
    parts: list[RenderableType] = []
    if swept.broken:
        table = make_table("role", "phase", "arrival", "symbol", "source", "broke", "evidence")
        for tried in swept.broken[:SHOWN_POINTS]:
            table.add_row(*_make_row(tried, swept, lines))
        parts.append(table)
        if len(swept.broken) > SHOWN_POINTS:
            parts.append(Text(f"and {len(swept.broken) - SHOWN_POINTS} more"))
    parts += [Text(f"a load without an NMI broke {', '.join(dry.broken)}: {dry.evidence}") for dry in swept.dry_broken]
    for each in swept.broke[:SHOWN_POINTS]:
        where = clean(swept.symbols.get(each.pc, "") or f"{each.pc:#x}")
        parts.append(Text(f"on the way to {where}, a load broke {', '.join(each.broken)}: {each.evidence}"))
    if len(swept.broke) > SHOWN_POINTS:
        parts.append(Text(f"and {len(swept.broke) - SHOWN_POINTS} more loads broke something on the way"))
    parts += [Text(f"not tried: {count}: {clean(reason)}") for reason, count in swept.untried.items()]
    if swept.earlier:
        parts.append(Text(f"tried at an earlier arrival than meant, which did not come: {swept.earlier}"))
    if swept.masked:
        parts.append(Text(f"only in handlers of the sweep's own NMIs, where no other enters: {swept.masked} blocks"))
    if swept.uncovered:
        parts.append(Text(f"not listed by the observer, whose table was full: {swept.uncovered} blocks"))
    parts += [Text(f"no block of role {role.value} was seen, so none was tried") for role in swept.unseen]
    if swept.stopped:
        parts.append(Text(f"stopped: {clean(swept.stopped)}"))
    entered = f"{swept.entered} NMIs entered right there"
    parts.append(
        Text(f"points tried {swept.tried} / points known {swept.known}; {len(swept.broken)} broke; {entered}; {folder}")
    )
    return Group(*parts)


def _make_row(tried: Tried, swept: Swept, lines: dict[int, str]) -> tuple[str, ...]:
    return (
        tried.role.value,
        tried.phase.value,
        f"{tried.arrival} ({tried.rank.value})",
        clean(swept.symbols.get(tried.pc, "") or f"{tried.pc:#x}"),
        clean(lines.get(tried.pc, UNKNOWN_LINE)),
        ", ".join(tried.broken),
        tried.evidence,
    )
