# SPDX-License-Identifier: GPL-2.0-or-later
"""Distributions of a run's times: figures against numbers computed another way, and drawings a page can hold."""

import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from report_samples import make_record

from lab.host.paths import ROOT
from lab.model.verdict import Durations, Outcome, Span, TrialRecord
from lab.report.distributions import MIN_VALUES, PERCENTILES, Compared, compare
from lab.report.plots import draw_compared
from lab.report.statistics import compute_quantile_interval


def make(mechanism: str, values_us: list[float], outcome: Outcome = Outcome.PASS) -> list[TrialRecord]:
    return [
        msgspec.structs.replace(
            make_record(number, mechanism, outcome),
            durations=Durations(
                host_rendezvous_us=us,
                host_windows_us=(Span(who=0, us=us),),
                host_nmi_delay_us=(Span(who=0, us=us), Span(who=1, us=2 * us)),
            ),
        )
        for number, us in enumerate(values_us)
    ]


def choose(n: int, k: int, share: float) -> float:
    return math.comb(n, k) * share**k * (1 - share) ** (n - k)


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 6, 40, 500])
def test_an_interval_misses_its_quantile_in_one_run_of_twenty_at_most(n: int, share: float) -> None:
    low, high = compute_quantile_interval(n, share, 0.05)
    # The low end is above the quantile when at most `low` values are below the quantile; the high end likewise.
    above = sum(choose(n, k, share) for k in range(low + 1)) if low is not None else 0.0
    below = sum(choose(n, k, share) for k in range(high + 1, n + 1)) if high is not None else 0.0
    assert above <= 0.025
    assert below <= 0.025
    if low is not None:
        assert sum(choose(n, k, share) for k in range(low + 2)) > 0.025
    if n == 500 and share < 0.99:
        assert low is not None
        assert high is not None


def test_figures_are_those_of_the_values_and_bounds_are_among_them() -> None:
    values_us = [float(us) for us in range(1, 101)]
    found = {each.name: each for each in compare({"nmi-self": make("nmi-self", values_us[::-1])})}
    assert set(found) == {"rendezvous", "window", "NMI delay"}
    (row,) = found["rendezvous"].rows
    assert row.n == 100
    assert [each.us for each in row.percentiles] == [float(np.percentile(values_us, each)) for each in PERCENTILES]
    assert (row.percentiles[0].low_us, row.percentiles[0].high_us) == (40.0, 61.0)
    assert row.percentiles[2].high_us is None
    assert found["NMI delay"].rows[0].n == 200


def test_trials_that_show_nothing_and_quantities_with_few_values_are_left_out() -> None:
    shown = make("a", [1.0] * MIN_VALUES) + make("a", [9.0] * 50, Outcome.INVALID)
    few = make("b", [1.0] * (MIN_VALUES - 1)) + make("b", [math.nan, math.inf])
    (compared, *_) = compare({"a": shown, "b": few})
    assert [(row.mechanism, row.n) for row in compared.rows] == [("a", MIN_VALUES)]
    assert compare({"b": few[:1]}) == ()


def compared(*names: str, values_us: tuple[float, ...] = (1_500.0, 2_500.0, 4_000.0, 9_000.0, 30_000.0)) -> Compared:
    return compare({name: make(name, list(values_us)) for name in names})[0]


def test_a_drawing_is_one_element_with_text_for_those_who_do_not_see_it() -> None:
    drawn = draw_compared(compared("stop-machine", "nmi-self"))
    root = ET.fromstring(drawn)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert "rendezvous, load begin to last call-in" in root.get("aria-label", "")
    texts = [element.text for element in root.iter() if element.tag == "text"]
    assert texts.count("nmi-self") == 2
    assert "% of values below" in texts
    assert {"2", "5", "10", "20"} <= set(texts)
    # Nothing of it reaches the rest of the page, and nothing is fetched.
    assert "<style" not in drawn
    assert "http" not in drawn
    assert "#010203" not in drawn
    assert "currentColor" in drawn
    assert len(drawn) < 40_000


def test_curves_differ_by_more_than_colour() -> None:
    drawn = draw_compared(compared(*(f"m{number}" for number in range(12))))
    root = ET.fromstring(drawn)
    styles = [
        element.get("style", "") for element in root.iter("path") if "stroke-width: 1.4" in element.get("style", "")
    ]
    curves = styles[:12] if len(styles) >= 12 else styles
    assert len({(style.partition("stroke-dasharray")[2], style.partition("stroke: ")[2][:7]) for style in curves}) == 12
    for one, next_one in pairwise(curves):
        assert one.partition("stroke-dasharray")[2] != next_one.partition("stroke-dasharray")[2]


def test_a_curve_ends_where_the_values_do_and_is_bounded() -> None:
    many = tuple(float(us) for us in range(1, 100_001))
    drawn = draw_compared(compared("nmi-self", values_us=many))
    assert len(drawn) < 40_000


@pytest.mark.parametrize("name", ["$x^", "_hidden", "<script>alert(1)</script>", "\x1b[31m\u202ered", "a" * 500, ""])
def test_a_name_is_a_name(name: str) -> None:
    drawn = draw_compared(compared(name, "nmi-self"))
    root = ET.fromstring(drawn)
    assert all(element.tag != "script" for element in root.iter())
    assert "\x1b" not in drawn
    assert "\u202e" not in drawn


def test_values_of_zero_and_below_are_drawn_too() -> None:
    ET.fromstring(draw_compared(compared("a", values_us=(0.0, 0.0, 0.0, 0.0, 0.0))))
    ET.fromstring(draw_compared(compared("a", values_us=(-1.0, 0.0, 2.0, 5.0, 9.0))))


def test_equal_values_give_equal_bytes_in_another_process_too() -> None:
    here = draw_compared(compared("a", "b"))
    script = (
        "import sys; sys.path.insert(0, 'testcases/unit')\n"
        "from test_distributions import compared, draw_compared\n"
        "sys.stdout.write(draw_compared(compared('a', 'b')))"
    )
    there = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    assert there.stdout == here
