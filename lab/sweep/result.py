# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of a sweep."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from lab.model.phase import Role
from lab.model.verdict import Outcome
from lab.sweep.journal import Broke, Dry, Tried
from lab.sweep.known import Known

#: What differs between the reasons of points that could not be tried for the same reason.
_NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")

COMPLETE_AND_CLEAN, SOMETHING_BROKE, INCOMPLETE = 0, 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What came of a sweep.

    :param known: how many points are known
    :param tried: of how many there is a PASS or FAIL
    :param earlier: of how many of those at an earlier arrival, since the one that was meant did not come
    :param entered: at how many the NMI entered right there; at the others it was masked, or handled already
    :param untried: reasons, and of how many points
    :param broken: points with a FAIL
    :param symbols: of blocks by address
    :param dry_broken: loads without an NMI that broke something
    :param broke: loads that broke something though their point was not reached
    :param masked: blocks that only NMIs of the sweep lead to, in their handler, where no further one can enter
    :param stopped: why the rest was not tried, empty when all was
    :param uncovered: blocks of its loads that the observer had no place for: not all points are known
    :param unseen: roles asked for of which no block is known
    """

    known: int
    tried: int
    earlier: int
    entered: int
    untried: dict[str, int]
    broken: tuple[Tried, ...]
    symbols: dict[int, str]
    dry_broken: tuple[Dry, ...]
    broke: tuple[Broke, ...]
    masked: int
    stopped: str
    uncovered: int
    unseen: tuple[Role, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every point that there is was tried."""
        return 0 < self.known == self.tried and not self.stopped and not self.uncovered and not self.unseen

    @property
    def exit_status(self) -> int:
        """0 when all was tried and nothing broke, 1 when something broke, 3 when some could not be tried."""
        if self.broken or self.dry_broken or self.broke:
            return SOMETHING_BROKE
        return COMPLETE_AND_CLEAN if self.is_complete else INCOMPLETE


def sum_up(known: Known, stopped: str = "", roles: Iterable[Role] = ()) -> Swept:
    """Say what is known of a sweep so far. Pure.

    :param roles: whose blocks were asked for
    """
    points = set(known.points)
    done = [tried for point, tried in known.tried.items() if point in points]
    good = [tried for tried in done if tried.was_tried]
    untried = Counter(_NUMBER.sub("..", tried.reason) for tried in done if not tried.was_tried)
    left = len(points) - len(done)
    if left:
        untried["not yet tried"] = left
    return Swept(
        known=len(points),
        tried=len(good),
        earlier=sum(tried.arrival < tried.asked for tried in good),
        entered=sum(tried.entered for tried in good),
        untried=dict(untried),
        broken=tuple(tried for tried in good if tried.outcome is Outcome.FAIL),
        symbols={found.pc: found.symbol for found in known.found.values()},
        dry_broken=tuple(dry for dry in known.dry if dry.outcome is Outcome.FAIL),
        broke=tuple(known.broke),
        masked=len(known.masked),
        stopped=stopped,
        uncovered=known.uncovered,
        unseen=tuple(role for role in roles if role not in {point.block.role for point in points}),
    )
