# SPDX-License-Identifier: GPL-2.0-or-later
"""Computes one time axis with lanes of bars and marks. A template draws it. This file knows nothing about microcode.

If two marks are too close for two numbers, the marks share one number. So no number covers another number.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH_PX = 1120
GUTTER_PX = 128
RIGHT_PX = 18
TOP_PX = 8
LANE_PX = 54
BAR_PX = 12
AXIS_PX = 40
#: Two badges of radius 9 do not touch at this distance.
BADGE_GAP_PX = 21.0
BADGE_RISE_PX = 26.0
#: Two marks of one shape at a smaller distance look like one mark.
MARK_GAP_PX = 2.0
MAX_TOLD_PER_BADGE = 6
TICKS_WANTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A moment to mark in a lane.

    :param text: description of the moment, for the table below the drawing
    """

    lane: int
    at_us: float
    shape: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A span of time in a lane. With ``band`` the drawing also shades all lanes."""

    lane: int
    begin_us: float
    end_us: float
    shape: str
    text: str
    band: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One row. Moments and stretches name their row by its number."""

    number: int
    label: str
    role: str
    y: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A span of time, and the form of its labels.

    :param zero_us: the time at which the labels are zero
    :param unit_us: microseconds in one unit of the labels
    """

    begin_us: float
    end_us: float
    zero_us: float
    unit_us: float
    label: str

    def place(self, at_us: float) -> float:
        """Return the x of a moment."""
        share = (at_us - self.begin_us) / (self.end_us - self.begin_us)
        return round(GUTTER_PX + share * (WIDTH_PX - GUTTER_PX - RIGHT_PX), 1)

    def contains(self, at_us: float) -> bool:
        """Say whether a moment is on the axis."""
        return self.begin_us <= at_us <= self.end_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One label of an axis."""

    x: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A drawn stretch."""

    x: float
    y: float
    width: float
    height: float
    shape: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A drawn moment."""

    x: float
    y: float
    shape: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """A number over one or more marks, and the text of these marks.

    :param more: number of further marks without a text
    """

    number: int
    x: float
    y: float
    lane: str
    when: str
    told: tuple[tuple[str, str], ...]
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One axis with its lanes, ready to draw."""

    label: str
    height: float
    axis_y: float
    ticks: tuple[Tick, ...]
    lanes: tuple[Lane, ...]
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]
    badges: tuple[Badge, ...]


def draw_panel(
    axis: Axis, lanes: Sequence[Lane], stretches: Iterable[Stretch], moments: Iterable[Moment], *, numbered: bool
) -> Panel:
    """Lay out the moments and stretches on the axis.

    :param numbered: put numbered badges over the marks
    """
    placed = tuple(
        Lane(number=lane.number, label=lane.label, role=lane.role, y=TOP_PX + LANE_PX * (row + 0.62))
        for row, lane in enumerate(lanes)
    )
    lane_y = {lane.number: lane.y for lane in placed}
    axis_y = TOP_PX + LANE_PX * len(placed) + 4
    shown = sorted(
        (moment for moment in moments if axis.contains(moment.at_us) and moment.lane in lane_y),
        key=lambda moment: moment.at_us,
    )
    return Panel(
        label=axis.label,
        height=axis_y + AXIS_PX,
        axis_y=axis_y,
        ticks=_make_ticks(axis),
        lanes=placed,
        bars=tuple(_draw_bars(axis, lane_y, stretches, axis_y)),
        marks=tuple(_draw_marks(axis, lane_y, shown)),
        badges=_draw_badges(axis, placed, shown) if numbered else (),
    )


def _draw_bars(axis: Axis, lane_y: dict[int, float], stretches: Iterable[Stretch], axis_y: float) -> Iterable[Bar]:
    bands, bars = [], []
    for stretch in stretches:
        begin_us, end_us = max(stretch.begin_us, axis.begin_us), min(stretch.end_us, axis.end_us)
        if begin_us > end_us or stretch.lane not in lane_y:
            continue
        x = axis.place(begin_us)
        width = max(1.0, round(axis.place(end_us) - x, 1))
        y = lane_y[stretch.lane] - BAR_PX / 2
        bars.append(Bar(x=x, y=y, width=width, height=BAR_PX, shape=stretch.shape, text=stretch.text))
        if stretch.band:
            bands.append(
                Bar(x=x, y=TOP_PX, width=width, height=axis_y - TOP_PX, shape=f"{stretch.shape}-band", text="")
            )
    return [*bands, *bars]


def _draw_marks(axis: Axis, lane_y: dict[int, float], moments: Iterable[Moment]) -> Iterable[Mark]:
    last: dict[tuple[int, str], float] = {}
    for moment in moments:
        x = axis.place(moment.at_us)
        key = (moment.lane, moment.shape)
        if x - last.get(key, -math.inf) >= MARK_GAP_PX:
            last[key] = x
            yield Mark(x=x, y=lane_y[moment.lane], shape=moment.shape, text=moment.text)


def _draw_badges(axis: Axis, lanes: Sequence[Lane], moments: Sequence[Moment]) -> tuple[Badge, ...]:
    clusters: list[tuple[Lane, list[Moment]]] = []
    for lane in lanes:
        begin_x = -math.inf
        for moment in moments:
            if moment.lane != lane.number:
                continue
            x = axis.place(moment.at_us)
            if x - begin_x >= BADGE_GAP_PX:
                begin_x = x
                clusters.append((lane, []))
            clusters[-1][1].append(moment)
    clusters.sort(key=lambda cluster: cluster[1][0].at_us)
    return tuple(
        Badge(
            number=number,
            x=axis.place(cluster[0].at_us),
            y=lane.y - BADGE_RISE_PX,
            lane=lane.label,
            when=_tell_when(axis, cluster),
            told=tuple((moment.shape, moment.text) for moment in cluster[:MAX_TOLD_PER_BADGE]),
            more=max(0, len(cluster) - MAX_TOLD_PER_BADGE),
        )
        for number, (lane, cluster) in enumerate(clusters, start=1)
    )


def _tell_when(axis: Axis, cluster: Sequence[Moment]) -> str:
    first, last = (f"{(moment.at_us - axis.zero_us) / axis.unit_us:.1f}" for moment in (cluster[0], cluster[-1]))
    return first if first == last else f"{first} to {last}"


def _make_ticks(axis: Axis) -> tuple[Tick, ...]:
    """Put ticks at round numbers of the labels' unit."""
    low = (axis.begin_us - axis.zero_us) / axis.unit_us
    high = (axis.end_us - axis.zero_us) / axis.unit_us
    rough = (high - low) / TICKS_WANTED
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    digits = max(0, -math.floor(math.log10(step)))
    first = math.ceil(low / step)
    return tuple(
        Tick(x=axis.place(axis.zero_us + turn * step * axis.unit_us), label=f"{turn * step:.{digits}f}")
        for turn in range(first, math.floor(high / step) + 1)
    )
