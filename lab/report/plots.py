# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws distributions as SVG, to be put into a page: share of values below each time, and boxes.

matplotlib draws them: it places ticks, labels and boxes so that they can be read, writes text as text, and is kept by
many. The page's own colours and fonts hold in the drawing. No colour alone tells anything: each curve has its own dash
pattern, and a table beside the drawing has the same figures.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup, escape

from lab.report.distributions import Compared, Distribution
from lab.report.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: matplotlib takes longer to load than the rest of the page takes to write. So it is imported where it draws.

#: Stands for the page's text colour. No other part of a drawing has it.
_INK: Final = "#010203"
#: Legible on light and dark ground alike (contrast of 3 to 1 at least).
_COLOURS: Final = ("#3584e4", "#c64600", "#26a269", "#a347ba", "#b5835a", "#d43d8f", "#1c8a9a", "#8a7a00")
_DASHES: Final = ((), (6, 2), (2, 2), (8, 2, 2, 2), (4, 1, 1, 1, 1, 1))
#: A curve is drawn by so many points: enough for a screen, whatever the number of trials.
_MAX_POINTS: Final = 120
_WIDTH_INCHES: Final = 9.2
_CURVES_INCHES: Final = 2.6
_ROW_INCHES: Final = 0.26
_WHISKERS: Final = (5, 95)
_MAX_NAME_CHARS: Final = 40
#: Before the root element come declarations that are of no use inside a page.
_ROOT: Final = re.compile(r"<svg\b[^>]*>", re.DOTALL)
_VIEW_BOX: Final = re.compile(r'viewBox="[^"]*"')
#: It would be the style of the whole page.
_STYLE: Final = re.compile(r"<style\b.*?</style>", re.DOTALL)
#: The name of an element, and what a link or a clip path refers to.
_NAMED: Final = re.compile(r' id="([^"]*)"')
_REFERRED: Final = re.compile(r'[("]#([^)"]+)[)"]')
_METADATA: Final = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def draw_compared(compared: Compared) -> Markup:
    """Return a drawing as an element ``svg``. Equal values give equal bytes."""
    # Not by pyplot: it keeps figures, and would look for a display.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = compared.rows
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        # Names of parts are unique on the page.
        "svg.hashsalt": compared.name,
        "font.size": 9,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        # A name is a name, also with a dollar in it.
        "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
    }
    with matplotlib.rc_context(settings):
        heights = (_CURVES_INCHES, 0.5 + _ROW_INCHES * len(rows))
        figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), layout="constrained")
        FigureCanvasSVG(figure)
        curves, boxes = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _draw_curves(curves, rows)
        _draw_boxes(boxes, rows)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embed(sink.getvalue(), compared)


def _draw_curves(axes: "Axes", rows: Sequence[Distribution]) -> None:
    import numpy as np

    for number, row in enumerate(rows):
        at = np.unique(np.linspace(0, row.n - 1, min(row.n, _MAX_POINTS)).round().astype(int))
        values_ms = row.values_us[np.concatenate(([0], at))] / 1_000
        shares = np.concatenate(([0], 100 * (at + 1) / row.n))
        dashes = _DASHES[number % len(_DASHES)]
        (curve,) = axes.step(values_ms, shares, where="post", color=_colour(number), label=_name(row), linewidth=1.4)
        if dashes:
            curve.set_dashes(dashes)
    axes.set_ylabel("% of values below")
    axes.set_ylim(0, 101)
    axes.grid(visible=True, color=_INK, alpha=0.15, linewidth=0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=3.2)
    if all(row.values_us[0] > 0 for row in rows):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())


def _draw_boxes(axes: "Axes", rows: Sequence[Distribution]) -> None:
    thin = {"color": _INK, "linewidth": 0.9}
    drawn = axes.boxplot(
        [row.values_us / 1_000 for row in rows],
        orientation="horizontal",
        whis=_WHISKERS,
        showfliers=False,
        widths=0.55,
        tick_labels=[_name(row) for row in rows],
        medianprops={"color": _INK, "linewidth": 1.6},
        boxprops=thin,
        whiskerprops=thin,
        capprops=thin,
    )
    for number, box in enumerate(drawn["boxes"]):
        box.set_color(_colour(number))
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.grid(visible=True, axis="x", color=_INK, alpha=0.15, linewidth=0.6)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _name(row: Distribution) -> str:
    # matplotlib leaves a label that begins with an underscore out of the legend.
    name = clean(row.mechanism)[:_MAX_NAME_CHARS]
    return f" {name}" if name.startswith("_") else name


def _embed(svg: str, compared: Compared) -> Markup:
    """Return the root element and what is in it, named, and as wide as the page."""
    root = _ROOT.search(svg)
    assert root is not None
    view_box = _VIEW_BOX.search(root[0])
    assert view_box is not None
    names = ", ".join(_name(row) for row in compared.rows)
    told = escape(f"{compared.name}, {compared.what}: share of values below each time, and boxes, for {names}")
    body = _METADATA.sub("", _STYLE.sub("", svg[root.end() :]))
    # Names such as figure_1 are in each drawing of a page; only what a drawing refers to itself is unique.
    referred = set(_REFERRED.findall(body))
    body = _NAMED.sub(lambda named: named[0] if named[1] in referred else "", body)
    # Inside a page a name with a prefix has no namespace; since SVG 2 it needs none.
    body = body.replace(" xlink:href=", " href=").replace(_INK, "currentColor")
    head = f'<svg class="distribution" {view_box[0]} role="img" aria-label="{told}" stroke-linejoin="round">'
    return Markup(head + body.strip())  # noqa: S704 - matplotlib has escaped what it wrote
