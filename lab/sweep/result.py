# SPDX-License-Identifier: GPL-2.0-or-later
"""The result of a sweep."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from lab.model.phase import Role
from lab.model.verdict import Outcome
from lab.sweep.journal import Broke, Dry, Tried
from lab.sweep.known import Known

#: Numbers differ between the reasons of points that failed to be tried for the same reason.
_NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")

COMPLETE_AND_CLEAN, SOMETHING_BROKE, INCOMPLETE = 0, 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """The result of a sweep.

    :param known: number of known points
    :param tried: number of points with a PASS or FAIL
    :param earlier: number of these points that were tried at an earlier visit, because the requested visit never
        happened
    :param entered: number of points at which the NMI entered right there; at the others the NMI was masked, or already
        handled
    :param untried: reasons, each with its number of points
    :param broken: points with a FAIL
    :param symbols: symbols of blocks, by address
    :param dry_broken: loads without an NMI that broke an invariant
    :param broke: loads that broke an invariant although their thread did not reach the point
    :param masked: blocks that run only in the handler of the sweep's own NMIs, where no further NMI can enter
    :param stopped: why the sweep stopped early; empty when the sweep tried all points
    :param uncovered: number of blocks that did not fit into the observer's table; the sweep does not know all points
    :param unseen: requested roles without a known block
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
        """Whether the sweep knows and tried every point."""
        return 0 < self.known == self.tried and not self.stopped and not self.uncovered and not self.unseen

    @property
    def exit_status(self) -> int:
        """0 if the sweep tried all points and nothing broke, 1 if something broke, 3 if some points were not tried."""
        if self.broken or self.dry_broken or self.broke:
            return SOMETHING_BROKE
        return COMPLETE_AND_CLEAN if self.is_complete else INCOMPLETE


def sum_up(known: Known, stopped: str = "", roles: Iterable[Role] = ()) -> Swept:
    """Return the result of a sweep so far. Pure.

    :param roles: the roles that the request names
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
