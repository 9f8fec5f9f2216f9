# SPDX-License-Identifier: GPL-2.0-or-later
"""Computes stacked columns over time. A template draws them. This file knows nothing about campaigns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lab.report.panel import WIDTH_PX, Tick

LEFT_PX: Final = 58
RIGHT_PX: Final = 10
TOP_PX: Final = 10
PLOT_PX: Final = 150
AXIS_PX: Final = 40
GAP_PX: Final = 1.0
_TICKS_X: Final = 10
_TICKS_Y: Final = 4
#: Round lengths of time: seconds, minutes, hours, days.
_ROUND_S: Final = (
    *(1, 2, 5, 10, 20, 30),
    *(60, 120, 300, 600, 1_200, 1_800),
    *(3_600, 7_200, 10_800, 21_600, 43_200),
    *(86_400, 172_800, 604_800, 2_592_000),
)
_UNITS: Final = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The parts of one column, from the bottom up, over one span of time.

    :param text: the text under the mouse pointer
    """

    begin_s: float
    end_s: float
    heights: tuple[float, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A drawn part of a column. ``kind`` is its index in the stack."""

    x: float
    y: float
    width: float
    height: float
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A drawn column. ``x`` and ``width`` describe the whole area that reacts to the mouse pointer."""

    x: float
    width: float
    text: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """A chart, ready to draw.

    :param borders: the x of the vertical lines
    """

    width: int
    height: float
    left: float
    right: float
    top: float
    base_y: float
    columns: tuple[Drawn, ...]
    ticks: tuple[Tick, ...]
    levels: tuple[Tick, ...]
    borders: tuple[float, ...]
    unit: str


def draw_stacks(columns: Sequence[Column], borders_s: Sequence[float], most: float | None = None) -> Stacks | None:
    """Lay out columns from time 0 on; None if there is nothing to draw.

    :param most: the top of the axis; None for the height of the highest column
    """
    whole_s = max((column.end_s for column in columns), default=0.0)
    highest = most if most is not None else max((sum(column.heights) for column in columns), default=0.0)
    if not (0 < whole_s < math.inf and 0 < highest < math.inf):
        return None
    step, top = _choose_levels(highest)
    base_y = TOP_PX + PLOT_PX

    def place(at_s: float) -> float:
        return round(LEFT_PX + at_s / whole_s * (WIDTH_PX - LEFT_PX - RIGHT_PX), 1)

    def rise(value: float) -> float:
        return round(base_y - value / top * PLOT_PX, 1)

    step_s = next((each for each in _ROUND_S if whole_s / each <= _TICKS_X), _ROUND_S[-1])
    unit_s, unit = next((each for each in _UNITS if step_s >= each[0]), _UNITS[-1])
    return Stacks(
        width=WIDTH_PX,
        height=base_y + AXIS_PX,
        left=LEFT_PX,
        right=WIDTH_PX - RIGHT_PX,
        top=TOP_PX,
        base_y=base_y,
        columns=tuple(_draw(column, place(column.begin_s), place(column.end_s), top) for column in columns),
        ticks=tuple(
            Tick(x=place(turn * step_s), label=f"{turn * step_s / unit_s:g}")
            for turn in range(min(int(whole_s / step_s), 10 * _TICKS_X) + 1)
        ),
        levels=tuple(
            Tick(x=rise(turn * step), label=f"{turn * step:,.10g}".replace(",", "\u202f"))
            for turn in range(round(top / step) + 1)
        ),
        borders=tuple(place(border_s) for border_s in borders_s if 0 < border_s < whole_s),
        unit=unit,
    )


def _draw(column: Column, left: float, right: float, top: float) -> Drawn:
    boxes, below = [], 0.0
    width = round(max(0.5, right - left - GAP_PX), 1)
    for kind, value in enumerate(column.heights):
        if value > 0:
            height = value / top * PLOT_PX
            y = TOP_PX + PLOT_PX - below - height
            boxes.append(Box(x=left, y=round(y, 2), width=width, height=round(height, 2), kind=kind))
            below += height
    return Drawn(x=left, width=round(max(0.5, right - left), 1), text=column.text, boxes=tuple(boxes))


def _choose_levels(highest: float) -> tuple[float, float]:
    """Return a round step, and the lowest multiple that is not below the highest column."""
    rough = highest / _TICKS_Y
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return step, step * math.ceil(highest / step * (1 - 1e-9))
