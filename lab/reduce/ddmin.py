# SPDX-License-Identifier: GPL-2.0-or-later
"""Delta debugging. Pure.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE Transactions on Software
Engineering 28(2), 2002, the algorithm ddmin.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def ddmin(units: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Return a part of the units that still fails, and from which no single unit can be dropped (1-minimal).

    :param units: all different; the caller knows that they fail together, so this function does not test them together
    :param fails: says whether a part fails; the units of the part are in their order; an unclear outcome counts as no;
        this function never tests the empty part, and no part twice
    """
    known: dict[tuple[T, ...], bool] = {tuple(units): True}

    def ask(part: tuple[T, ...]) -> bool:
        if part not in known:
            known[part] = fails(part)
        return known[part]

    left = tuple(units)
    grain = 2
    while len(left) >= 2:
        parts = split(left, grain)
        rests = [tuple(each for each in left if each not in part) for part in parts]
        if (part := next(filter(ask, parts), None)) is not None:
            left, grain = part, 2
        elif (rest := next(filter(ask, rests), None)) is not None:
            left, grain = rest, max(grain - 1, 2)
        elif grain < len(left):
            grain = min(2 * grain, len(left))
        else:
            break
    return left


def split(units: Sequence[T], count: int) -> list[tuple[T, ...]]:
    """Split the units into a number of neighbouring parts. Sizes differ by at most one; every part has a unit."""
    count = min(count, len(units))
    ends = [len(units) * number // count for number in range(count + 1)] if count else []
    return [tuple(units[begin:end]) for begin, end in pairwise(ends)]
