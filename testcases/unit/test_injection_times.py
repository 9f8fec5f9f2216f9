# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in a load the times of a plan lie: none of its parts is left out, and its windows never come short."""

import pytest

from lab.model.plan import PPM
from lab.trial.schedule import MIN_WINDOW_PPM, Overhead, place

#: As if the first window opened exactly when it was thought to.
LOADS = {
    "quick": (Overhead(2_000, 1_000), 50_000),
    "as-long": (Overhead(20_000, 5_000), 25_000),
    "hotplug": (Overhead(100_000, 150_000), 30_000),
    "unknown": (Overhead(30_000), 10_000),
    "no-window": (Overhead(30_000, 10_000), 0),
    "nothing-else": (Overhead(0, 0), 10_000),
    "nothing": (Overhead(0, 0), 0),
}


def list_times_us(overhead: Overhead, window_us: int) -> list[float]:
    """Return when NMIs are due, since the load's begin, for plan times all over it."""
    times_us = []
    for at_ppm in range(0, PPM, 997):
        after_ns, from_opening = place(at_ppm, overhead, window_us)
        times_us.append(after_ns / 1_000 + (overhead.before_us if from_opening else 0))
    return times_us


@pytest.mark.parametrize(("overhead", "window_us"), LOADS.values(), ids=LOADS)
def test_times_keep_their_order_and_reach_from_the_begin_to_the_end(overhead: Overhead, window_us: int) -> None:
    times_us = list_times_us(overhead, window_us)
    total_us = overhead.total_us + window_us
    assert times_us == sorted(times_us)
    assert times_us[0] == 0
    assert total_us * 0.98 <= times_us[-1] <= total_us


@pytest.mark.parametrize("load", ["quick", "as-long"])
def test_where_windows_are_the_longer_part_times_lie_evenly(load: str) -> None:
    overhead, window_us = LOADS[load]
    total_us = overhead.total_us + window_us
    for number, at_us in enumerate(list_times_us(overhead, window_us)):
        assert at_us == pytest.approx(number * 997 * total_us / PPM, abs=2)


def test_where_they_are_the_shorter_part_half_of_the_times_lie_in_them() -> None:
    overhead, window_us = LOADS["hotplug"]
    times_us = list_times_us(overhead, window_us)
    inside = [at_us for at_us in times_us if 0 <= at_us - overhead.before_us < window_us]
    before = [at_us for at_us in times_us if at_us < overhead.before_us]
    assert len(inside) / len(times_us) == pytest.approx(MIN_WINDOW_PPM / PPM, abs=0.01)
    assert len(before) / len(times_us) == pytest.approx(0.2, abs=0.01)
