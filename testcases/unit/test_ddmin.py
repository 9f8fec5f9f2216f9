# SPDX-License-Identifier: GPL-2.0-or-later
from hypothesis import given
from hypothesis import strategies as st

from lab.reduce.ddmin import ddmin, split

UNITS = tuple(range(16))


def test_parts_come_first_then_what_is_left_without_them_then_finer_ones() -> None:
    """The paper's example: of eight units the first and the last two fail together."""
    asked: list[str] = []

    def fails(part: tuple[int, ...]) -> bool:
        asked.append("".join(map(str, part)))
        return {1, 7, 8} <= set(part)

    assert ddmin(range(1, 9), fails) == (1, 7, 8)
    halves, quarters, rests = ["1234", "5678"], ["12", "34", "56", "78"], ["345678", "125678"]
    assert asked == [*halves, *quarters, *rests, "1278", "1", "2", "7", "8", "278", "178", "18", "17"]


@given(st.sets(st.sampled_from(UNITS), min_size=1))
def test_what_fails_by_its_units_is_found_exactly(guilty: set[int]) -> None:
    assert ddmin(UNITS, lambda part: guilty <= set(part)) == tuple(sorted(guilty))


@given(st.integers(min_value=1, max_value=len(UNITS)), st.integers(min_value=1, max_value=7))
def test_no_unit_of_the_result_can_be_left_out(least: int, step: int) -> None:
    def fails(part: tuple[int, ...]) -> bool:
        return len([each for each in part if each % step == 0]) >= min(least, len(UNITS[::step]))

    left = ddmin(UNITS, fails)
    assert fails(left)
    assert not any(fails(tuple(each for each in left if each != one)) for one in left)


def test_a_failure_that_never_comes_back_leaves_all() -> None:
    assert ddmin(UNITS, lambda _: False) == UNITS
    assert ddmin((3,), lambda _: False) == (3,)


@given(st.integers(min_value=0, max_value=40), st.integers(min_value=1, max_value=50))
def test_parts_are_neighbours_of_like_size(units: int, count: int) -> None:
    parts = split(range(units), count)
    assert [each for part in parts for each in part] == list(range(units))
    assert len(parts) == min(count, units)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1
