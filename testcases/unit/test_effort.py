# SPDX-License-Identifier: GPL-2.0-or-later
import time

import pytest

from lab.errors import UsageError
from lab.model.duration import read_seconds
from lab.model.plan import MAX_SEED
from lab.pytest_plugin.effort import Effort, read_effort


def test_a_case_does_by_itself_what_it_says() -> None:
    assert list(Effort().draw(5)) == [0, 1, 2, 3, 4]
    assert Effort().longer_s == 0


def test_seeds_follow_from_one_and_differ_from_those_of_another() -> None:
    first, again, other = (list(Effort(seed=seed).draw(50)) for seed in (7, 7, 8))
    assert first == again
    assert len({*first, *other}) == 100
    assert all(0 <= seed <= MAX_SEED for seed in (*first, *other))


def test_more_trials_begin_with_the_same_ones() -> None:
    assert list(Effort(seed=7, trials=50).draw(5))[:20] == list(Effort(seed=7).draw(20))


@pytest.mark.parametrize("trials", [1, 5, 50])
def test_the_number_asked_for_is_the_number_of_trials(trials: int) -> None:
    assert list(Effort(trials=trials).draw(5)) == list(range(trials))


def draw_slowly(effort: Effort, usual: int) -> tuple[int, float]:
    begun = time.monotonic()
    count = 0
    for _ in effort.draw(usual):
        time.sleep(0.02)
        count += 1
    return count, time.monotonic() - begun


def test_trials_go_on_until_the_time_is_over_and_no_longer() -> None:
    count, took_s = draw_slowly(Effort(for_s=0.4), 2)
    assert count > 2
    assert 0.4 <= took_s < 1.5


def test_time_begins_with_the_first_trial() -> None:
    seeds = Effort(for_s=0.2).draw(1)
    time.sleep(0.3)
    assert [next(seeds), next(seeds)] == [0, 1]


def test_a_case_is_done_once_even_if_there_is_no_time() -> None:
    assert draw_slowly(Effort(for_s=0.001), 5)[0] == 5


def test_trials_bound_those_that_time_asks_for() -> None:
    assert draw_slowly(Effort(for_s=30.0, trials=7), 5)[0] == 7
    assert draw_slowly(Effort(for_s=30.0, trials=3), 5)[0] == 3


@pytest.mark.parametrize(("cases", "workers", "for_s"), [(10, 1, 60.0), (10, 2, 120.0), (1, 4, 600.0), (0, 2, 600.0)])
def test_time_is_divided_among_cases_that_run_beside_each_other(cases: int, workers: int, for_s: float) -> None:
    shared = Effort(seed=3, for_s=600.0).share(cases, workers)
    assert shared == Effort(seed=3, for_s=for_s)
    assert shared.longer_s == for_s


def test_without_a_time_there_is_nothing_to_divide() -> None:
    assert Effort(trials=4).share(10, 2) == Effort(trials=4)
    assert Effort(trials=4).longer_s > 4


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("8h", 28_800), ("2d", 172_800), ("0.5m", 30)]
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert read_seconds("--for", text) == seconds
    assert read_effort("0", "1", text) == Effort(seed=0, trials=1, for_s=seconds)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("x", None, None), f"--lab-seed is 'x': allowed is a whole number from 0 to {MAX_SEED}"),
        ((str(MAX_SEED + 1), None, None), f"--lab-seed is '{MAX_SEED + 1}': allowed is a whole number from 0 to"),
        (("1" * 5000, None, None), "--lab-seed is"),
        ((None, "0", None), "--lab-trials is '0': allowed is a whole number from 1 to 1000000"),
        ((None, "1.5", None), "--lab-trials is '1.5': allowed is"),
        ((None, "\u0661", None), "--lab-trials is '\u0661': allowed is"),
        ((None, None, "10"), "--lab-for is '10': allowed is a number above 0 with s, m, h or d"),
        ((None, None, "0s"), "--lab-for is '0s': allowed is"),
        ((None, None, "-1s"), "--lab-for is '-1s': allowed is"),
    ],
)
def test_what_is_not_allowed_is_named(words: tuple[str | None, str | None, str | None], told: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_effort(*words)
    assert str(raised.value).startswith(told)
