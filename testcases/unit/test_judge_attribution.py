# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entry took which NMI: in the order in which they were set pending, since a CPU has one pending bit."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lab.judge.attribution import Cause, _put_in_order


def cause(first: int, last: int, likely: int) -> Cause:
    return Cause(first=first, last=last, likely=likely, sent=None, event=None)


def weigh(causes: list[Cause], put: tuple[int, ...]) -> tuple[int, int]:
    far = sum(abs(each - one.likely) for each, one in zip(put, causes, strict=True))
    return len(set(put)), -far


def test_what_was_set_later_is_taken_no_earlier() -> None:
    """An entry for which none is likely is given one of its neighbours'."""
    assert _put_in_order([cause(0, 2, 1), cause(0, 2, 1), cause(1, 2, 1)]) == [0, 1, 2]
    assert _put_in_order([cause(0, 1, 1), cause(1, 1, 1)]) == [0, 1]


def test_each_by_itself_is_put_where_it_is_likely() -> None:
    assert _put_in_order([cause(0, 5, 2)]) == [2]
    assert _put_in_order([]) == []


def test_without_an_order_there_is_none() -> None:
    assert _put_in_order([cause(3, 3, 3), cause(1, 1, 1)]) == []


@st.composite
def causes(draw: st.DrawFn) -> list[Cause]:
    found = []
    for _ in range(draw(st.integers(0, 5))):
        first = draw(st.integers(0, 4))
        last = draw(st.integers(first, 4))
        found.append(cause(first, last, draw(st.integers(first, last))))
    return sorted(found, key=lambda one: (one.likely, one.first, one.last))


@given(causes())
def test_it_is_the_best_of_all_ways_in_that_order(given: list[Cause]) -> None:
    ways = itertools.product(*(range(one.first, one.last + 1) for one in given))
    ordered = [way for way in ways if list(way) == sorted(way)]
    put = _put_in_order(given)
    if not ordered or not given:
        assert put == []
    else:
        assert tuple(put) in ordered
        assert weigh(given, tuple(put)) == max(weigh(given, way) for way in ordered)
