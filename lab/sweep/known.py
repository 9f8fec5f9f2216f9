# SPDX-License-Identifier: GPL-2.0-or-later
"""The known blocks and points of a sweep, from the lines of its journal."""

from collections import Counter
from dataclasses import dataclass, field

from lab.model.evidence import Covered, ObserverEvidence
from lab.model.phase import PHASES, Phase, Role
from lab.model.sweep import Block, Point, SweepAsk, Visit, ranks_of
from lab.sweep.journal import Broke, Dry, Found, Line, Tried, Uncovered


@dataclass(frozen=True, slots=True)
class Lead:
    """What a load gets in addition to its point: NMIs, and the thread that calls in last."""

    visits: tuple[Visit, ...] = ()
    last: Role | None = None


@dataclass(slots=True)
class Known:
    """The known blocks and points of a sweep, from the lines of its journal.

    :ivar found: blocks in order of discovery, each with the maximum number of visits
    :ivar masked: blocks that run only in the handler of the sweep's own NMIs
    :ivar leads: per point, the lead of the load that first showed the point
    """

    found: dict[Block, Found] = field(default_factory=dict)
    tried: dict[Point, Tried] = field(default_factory=dict)
    leads: dict[Point, Lead] = field(default_factory=dict)
    dry: list[Dry] = field(default_factory=list)
    masked: dict[Block, Found] = field(default_factory=dict)
    broke: list[Broke] = field(default_factory=list)
    uncovered: int = 0

    def take(self, line: Line) -> None:
        """Take in one line."""
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
        """All known points, in order of discovery."""
        return tuple(Point(block, rank) for block, found in self.found.items() for rank in ranks_of(found.count))

    def find_new(self, ask: SweepAsk, observer: ObserverEvidence | None, lead: Lead) -> tuple[Found, ...]:
        """Return the blocks of a trial that are new, or that have more visits than known without more NMIs.

        :param lead: the lead of the trial
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
                # In a handler of the mechanism's own NMIs, the moment when an NMI becomes pending matters. The NMI
                # enters later.
                masked=bool(lead.visits) and (vcpu, phase, pc) not in open_to_nmis,
            )
            if self._is_news(found):
                new.append(found)
        return tuple(new)

    def _is_news(self, found: Found) -> bool:
        """Say whether a block adds points.

        An NMI of the sweep adds visits, such as the visits of the handler. So only loads with the fewest NMIs decide
        the number of visits to a block. A block has at most three points. More visits to a loop with three points add
        no point.
        """
        known = self.found.get(found.block)
        if known is None:
            return not (found.masked and found.block in self.masked)
        if found.masked:
            return False
        return len(found.lead) <= len(known.lead) and len(ranks_of(found.count)) > len(ranks_of(known.count))


def _count_befores(seen: tuple[Covered, ...]) -> Counter[tuple[int, Phase, int]]:
    """Count a vCPU's visits to a block in all phases before each phase."""
    befores = Counter[tuple[int, Phase, int]]()
    for each in seen:
        for later in PHASES[PHASES.index(each.phase) + 1 :]:
            befores[each.vcpu, later, each.pc] += each.count
    return befores
