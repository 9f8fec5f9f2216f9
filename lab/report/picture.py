# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws the timeline of one trial as one complete SVG file: for a README, a mail or a slide."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from lab.errors import EvidenceError
from lab.evidence.folder import read_evidence
from lab.report.environment import make_environment
from lab.report.panel import WIDTH_PX, Panel
from lab.report.timeline import Timeline, draw_timeline

MARGIN_PX = 20
HEAD_PX = 40
KEY_WIDTH_PX = 360
KEY_HEIGHT_PX = 26
#: The shapes that the picture explains, in the order of its key. The page of a run explains more shapes.
KEYS = (
    ("window", "window: the primary in WRMSR 0x79"),
    ("wait", "thread waits, from call-in to release"),
    ("zoom", "enlarged below"),
    ("sent", "NMI sent, until QEMU replied"),
    ("entry", "NMI entry"),
    ("outside", "outside its wait region, first sight"),
    ("flight", "in flight as the window opened"),
    ("hazard", "RDMSR, WRMSR, IRET and the like"),
    ("apart", "GS base, DR, CR"),
)
KEYS_A_ROW = 3
_CSS = Path(__file__).with_name("page.css")
#: Rules of the page's style that the drawing uses.
_RULE = re.compile(r"^(?:\.panel text|circle\.badge|path\.|\.b-|\.m-).*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One drawing of the picture, and the position of its top."""

    head: str
    panel: Panel
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """The meaning of one shape."""

    kind: str
    name: str
    x: float
    y: float


def draw_picture(folder: Path) -> str:
    """Return the timeline of a kept trial as SVG, in the colours of a page on a light screen.

    :raise EvidenceError: the folder has no evidence, or the observer saw no window
    """
    timeline = draw_timeline(read_evidence(folder), core=-1)
    if timeline is None:
        raise EvidenceError(f"'{folder}' has nothing to draw: the observer saw no window")
    parts = _place_parts(timeline)
    keys_y = parts[-1].y + parts[-1].panel.height + 10
    rows = -(-len(KEYS) // KEYS_A_ROW)
    colours, rules = _read_css()
    return (
        make_environment()
        .get_template("picture.svg")
        .render(
            title=f"what the threads of core {timeline.core} did in one late load",
            width=WIDTH_PX + 2 * MARGIN_PX,
            inner=WIDTH_PX,
            margin=MARGIN_PX,
            height=keys_y + rows * KEY_HEIGHT_PX + 8,
            parts=parts,
            keys=[
                Key(
                    kind=kind,
                    name=name,
                    x=index % KEYS_A_ROW * KEY_WIDTH_PX,
                    y=keys_y + index // KEYS_A_ROW * KEY_HEIGHT_PX,
                )
                for index, (kind, name) in enumerate(KEYS)
            ],
            colours=Markup(colours),  # noqa: S704 - of the lab's own file
            rules=Markup(rules),  # noqa: S704 - the same
        )
    )


def _place_parts(timeline: Timeline) -> tuple[Part, ...]:
    whole = Part(head=f"Core {timeline.core}, one late load", panel=timeline.overview, y=HEAD_PX)
    if timeline.breach is None:
        return (whole,)
    below_y = whole.y + whole.panel.height + HEAD_PX
    # The numbers of the badges refer to a table. Only the page has this table.
    breach = replace(timeline.breach, badges=())
    return whole, Part(head="The first breach of the window, enlarged", panel=breach, y=below_y)


def _read_css() -> tuple[str, str]:
    """Return the colours of the page on a light screen, and the style rules for drawings."""
    css = _CSS.read_text()
    colours = css[css.index("--bg") : css.index("}")]
    return colours, "\n".join(_RULE.findall(css))
