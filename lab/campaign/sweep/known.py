# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a sweep's blocks and points, from its journal's lines."""

from dataclasses import dataclass, field

from lab.campaign.sweep.journal import Broke, Dry, Found, Line, Tried, Uncovered
from lab.spec.evidence import Covered, OracleEvidence
from lab.spec.phase import PHASES, Role
from lab.spec.sweep import Block, Point, SweepAsk, Visit, ranks_of


@dataclass(frozen=True, slots=True)
class Lead:
    """What a load was given beside the point that it is to try: its NMIs, and which thread was to call in last."""

    visits: tuple[Visit, ...] = ()
    last: Role | None = None


@dataclass(slots=True)
class Known:
    """What is known of a sweep's blocks and points, from its journal's lines.

    :ivar found: in order of discovery, each with the most arrivals seen
    :ivar leads: what the load that first showed a point had been given
    """

    found: dict[Block, Found] = field(default_factory=dict)
    tried: dict[Point, Tried] = field(default_factory=dict)
    leads: dict[Point, Lead] = field(default_factory=dict)
    dry: list[Dry] = field(default_factory=list)
    broke: list[Broke] = field(default_factory=list)
    uncovered: int = 0

    def take(self, line: Line) -> None:
        """Learn from one line."""
        match line:
            case Found():
                for rank in ranks_of(line.count):
                    self.leads.setdefault(Point(line.block, rank), Lead(line.lead, line.last))
                self.found[line.block] = line
            case Tried():
                self.tried[line.point] = line
            case Dry():
                self.dry.append(line)
            case Broke():
                self.broke.append(line)
            case Uncovered():
                self.uncovered += line.blocks

    @property
    def points(self) -> tuple[Point, ...]:
        """All points that are known, in order of discovery."""
        return tuple(Point(block, rank) for block, found in self.found.items() for rank in ranks_of(found.count))

    def find_new(self, ask: SweepAsk, oracle: OracleEvidence | None, lead: Lead) -> tuple[Found, ...]:
        """Return those blocks that a trial shows, and that are new or were come to more often than known, unaided.

        :param lead: what the trial was given
        """
        cover = oracle.cover if oracle is not None else None
        roles = {ask.vcpu_of(role): role for role in ask.roles}
        seen = cover.blocks if cover is not None else ()
        new = []
        for each in seen:
            if each.vcpu not in roles or each.phase not in ask.phases:
                continue
            found = Found(
                role=roles[each.vcpu],
                phase=each.phase,
                pc=each.pc,
                symbol=each.symbol,
                count=each.count,
                lead=lead.visits,
                last=lead.last,
                before=_count_before(each, seen),
            )
            if self._is_news(found):
                new.append(found)
        return tuple(new)

    def _is_news(self, found: Found) -> bool:
        """Say whether there are further points by it.

        An NMI of ours adds arrivals, such as those of the handler's: how many there are is told by the loads with the
        fewest NMIs that come to a block. Of a loop that is told apart by three arrivals, more are no further points.
        """
        known = self.found.get(found.block)
        if known is None:
            return True
        return len(found.lead) <= len(known.lead) and len(ranks_of(found.count)) > len(ranks_of(known.count))


def _count_before(covered: Covered, seen: tuple[Covered, ...]) -> int:
    """Count how often a vCPU had come to a block in the phases before."""
    earlier = PHASES[: PHASES.index(covered.phase)]
    return sum(
        each.count for each in seen if (each.vcpu, each.pc) == (covered.vcpu, covered.pc) and each.phase in earlier
    )
