# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mechanism adds to the reference: pairs, intervals, and what counts for nobody."""

import random

import msgspec
import pytest
from report_samples import make_record

from lab.model.verdict import Durations, Outcome, Span, TrialRecord
from lab.report.latency import MIN_PAIRS, REFERENCE, Added, compute_own_us, measure_added


def timed(
    mechanism: str, load_us: float | None, window_us: float = 0.0, outcome: Outcome = Outcome.PASS
) -> TrialRecord:
    durations = Durations(host_load_us=load_us, host_windows_us=(Span(who=0, us=window_us), Span(who=1, us=1.0)))
    return msgspec.structs.replace(make_record(1, mechanism, outcome), durations=durations)


def paired(differences: list[float]) -> list[TrialRecord]:
    """Trials in turn, of which the reference's wander by far more than what is looked for."""
    source = random.Random(1)
    records = []
    for difference in differences:
        base_us = 1_000 + 100_000 * source.random()
        records += [timed(REFERENCE, base_us + 50, 50), timed("x", base_us + difference + 90, 90)]
    return records


def test_the_longest_window_is_taken_off() -> None:
    assert compute_own_us(timed("x", 130.0, 100.0)) == 30.0
    assert compute_own_us(timed("x", None)) is None
    assert compute_own_us(timed("x", 130.0, 100.0, Outcome.INVALID)) is None


def test_a_small_difference_shows_in_pairs_beside_a_large_spread() -> None:
    added = measure_added(paired([5.0, 6.0, 7.0, 8.0, 9.0, 10.0]), "x")
    assert added is not None
    assert added.pairs == MIN_PAIRS
    assert (added.low_us, added.median_us, added.high_us) == pytest.approx((5.0, 7.5, 10.0))


def test_the_reference_and_too_few_pairs_have_none() -> None:
    records = paired([1.0] * (MIN_PAIRS - 1))
    assert measure_added(records, "x") is None
    assert measure_added(paired([1.0] * MIN_PAIRS), REFERENCE) is None
    assert measure_added([each for each in paired([1.0] * 9) if each.mechanism == "x"], "x") is None


def test_a_trial_that_shows_nothing_takes_its_partner_along() -> None:
    records = paired([1.0] * 7)
    records[2] = msgspec.structs.replace(records[2], outcome=Outcome.INVALID)
    added = measure_added(records, "x")
    assert added is not None
    assert added.pairs == 6
    assert added.median_us == pytest.approx(1.0)


def test_the_interval_misses_the_true_median_about_as_seldom_as_it_says() -> None:
    source = random.Random(2)
    intervals: list[Added] = []
    for _ in range(400):
        added = measure_added(paired([source.gauss(20.0, 5.0) for _ in range(25)]), "x")
        assert added is not None
        intervals.append(added)
    missed = sum(not each.low_us <= 20.0 <= each.high_us for each in intervals)
    assert 1 <= missed <= 0.07 * len(intervals)
