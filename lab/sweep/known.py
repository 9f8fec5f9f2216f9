# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a sweep's blocks and points, from its journal's lines."""

from collections import Counter
from dataclasses import dataclass, field

from lab.model.evidence import Covered, ObserverEvidence
from lab.model.phase import PHASES, Phase, Role
from lab.model.sweep import Block, Point, SweepAsk, Visit, ranks_of
from lab.sweep.journal import Broke, Dry, Found, Line, Tried, Uncovered


@dataclass(frozen=True, slots=True)
class Lead:
    """What a load was given beside the point that it is to try: its NMIs, and which thread was to call in last."""

    visits: tuple[Visit, ...] = ()
    last: Role | None = None


@dataclass(slots=True)
class Known:
    """What is known of a sweep's blocks and points, from its journal's lines.

    :ivar found: in order of discovery, each with the most arrivals seen
    :ivar masked: those that only NMIs of the sweep lead to, in their handler
    :ivar leads: what the load that first showed a point had been given
    """

    found: dict[Block, Found] = field(default_factory=dict)
    tried: dict[Point, Tried] = field(default_factory=dict)
    leads: dict[Point, Lead] = field(default_factory=dict)
    dry: list[Dry] = field(default_factory=list)
    masked: dict[Block, Found] = field(default_factory=dict)
    broke: list[Broke] = field(default_factory=list)
    uncovered: int = 0

    def take(self, line: Line) -> None:
        """Learn from one line."""
        match line:
            case Found(masked=True):
                self.masked[line.block] = line
            case Found():
                self.masked.pop(line.block, None)
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

    def find_new(self, ask: SweepAsk, observer: ObserverEvidence | None, lead: Lead) -> tuple[Found, ...]:
        """Return those blocks that a trial shows, and that are new or were come to more often than known, unaided.

        :param lead: what the trial was given
        """
        cover = observer.cover if observer is not None else None
        seen = cover.blocks if cover is not None else ()
        roles = {ask.vcpu_of(role): role for role in ask.roles}
        open_to_nmis = {(each.vcpu, each.phase, each.pc) for each in seen if not each.masked}
        counts = Counter[tuple[int, Phase, int]]()
        symbols = {}
        for each in seen:
            if each.vcpu in roles and each.phase in ask.phases:
                counts[each.vcpu, each.phase, each.pc] += each.count
                symbols[each.vcpu, each.phase, each.pc] = each.symbol
        befores = _count_befores(seen)
        new = []
        for (vcpu, phase, pc), count in counts.items():
            found = Found(
                role=roles[vcpu],
                phase=phase,
                pc=pc,
                symbol=symbols[vcpu, phase, pc],
                count=count,
                lead=lead.visits,
                last=lead.last,
                before=befores[vcpu, phase, pc],
                # In a handler of the mechanism's own NMIs it matters when one becomes pending, though it enters later.
                masked=bool(lead.visits) and (vcpu, phase, pc) not in open_to_nmis,
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
            return not (found.masked and found.block in self.masked)
        if found.masked:
            return False
        return len(found.lead) <= len(known.lead) and len(ranks_of(found.count)) > len(ranks_of(known.count))


def _count_befores(seen: tuple[Covered, ...]) -> Counter[tuple[int, Phase, int]]:
    """Count how often a vCPU had come to a block in all phases before one."""
    befores = Counter[tuple[int, Phase, int]]()
    for each in seen:
        for later in PHASES[PHASES.index(each.phase) + 1 :]:
            befores[each.vcpu, later, each.pc] += each.count
    return befores
