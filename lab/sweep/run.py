# SPDX-License-Identifier: GPL-2.0-or-later
"""The sweep: one NMI at every place of a late load where a thread of a core can be given one.

Dry loads show which blocks each thread begins in which phase. Each block's first, middle and last arrival then has a
trial of its own, in which the thread is held there until an NMI to it is acknowledged. Trials may show blocks that no
load showed before: they are added, until all that is known has been tried.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.judge import judge
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import EventKind, Evidence
from lab.model.phase import Phase, Role
from lab.model.placed import Placed
from lab.model.plan import draw_plan
from lab.model.scenario import Siblings
from lab.model.sweep import (
    MAX_LEAD,
    WAYS,
    Point,
    Rank,
    SweepAsk,
    Visit,
    Way,
    arrival_of,
    can_pin,
    delay_call_in,
    pin_phases,
    place_nmis,
)
from lab.model.verdict import Finding, Outcome, Verdict
from lab.sweep.journal import Broke, Dry, Found, Journal, Line, Tried, Uncovered
from lab.sweep.known import Known, Lead
from lab.sweep.result import Swept, sum_up
from lab.trial.pool import WarmGuests
from lab.trial.record import keep_trial
from lab.trial.session import Kept

#: Loads differ: what one does by chance, another may not.
DRY_LOADS: Final = 3
#: A trial takes a third of a second: with some in a row, waiting for the host's vCPUs costs little, and others that
#: wait do not wait much longer than for each other.
TURN_S: Final = 2.0
#: A block that a load comes to more often is one of a loop that spins, as often as it takes.
FEW_ARRIVALS: Final = 8
#: How often each way to a point is gone. Few points need more than two tries; one of 690 did not come in 22.
ROUNDS: Final = 5
#: How often a dry load may be no PASS.
MAX_FAILED_DRY: Final = 6
#: As in lab.campaign.loop.
MAX_FAILED_BOOTS: Final = 3
#: Where each NMI handler of the kernels begins.
NMI_ENTRY: Final = "asm_exc_nmi+0x0"
BROKEN: Final = "broken"

#: Told of how far a sweep is: points tried or given up, points known, and points broken.
Advance = Callable[[int, int, int], None]


def run_sweep(
    ask: SweepAsk, guests: WarmGuests, journal: Journal, advance: Advance, until_broken: int | None = None
) -> Swept:
    """Sweep, or go on with what the journal's lines leave.

    :param until_broken: at how many broken points to stop; None tries all
    :raise HostError: the host failed; what is in the journal stays
    """
    sweep = _Sweep(ask, guests, journal, advance, until_broken)
    return sum_up(sweep.known, sweep.run(), ask.roles)


class _Sweep:
    """The state of one sweep while it runs."""

    def __init__(
        self, ask: SweepAsk, guests: WarmGuests, journal: Journal, advance: Advance, until_broken: int | None
    ) -> None:
        self._ask = ask
        self._until_broken = until_broken
        self._guests = guests
        self._journal = journal
        self._advance = advance
        self.known = Known()
        for line in journal.lines:
            self.known.take(line)

    def run(self) -> str:
        """Return why it was stopped early; empty when all that is known has been tried."""
        with self._guests.find(self._ask.scenario.boot).in_turns(TURN_S):
            stopped = self._run_dry()
            while not stopped:
                left = [point for point in self.known.points if point not in self.known.tried]
                if not left:
                    return ""
                for point in left:
                    stopped = stopped or self._try(point) or self._look_at_broken()
            return stopped

    def _look_at_broken(self) -> str:
        broken = sum(tried.outcome is Outcome.FAIL for tried in self.known.tried.values()) + len(self.known.broke)
        enough = self._until_broken is not None and broken >= self._until_broken
        return f"{broken} points were broken, as many as asked for" if enough else ""

    def _run_dry(self) -> str:
        scenario = self._ask.scenario
        attempts = 0
        while sum(dry.outcome is Outcome.PASS for dry in self.known.dry) < DRY_LOADS:
            attempts += 1
            kept = self._guests.run_trial(scenario, draw_plan(scenario, 0), cover=True)
            verdict = judge(kept.evidence)
            failed = verdict.outcome is Outcome.FAIL
            dry = Dry(
                outcome=verdict.outcome,
                reason=verdict.reason,
                broken=_list_broken(verdict) if failed else (),
                evidence=self._keep(kept, f"dry-{len(self.known.dry) + 1}") if failed else "",
            )
            self._note(kept.evidence, dry)
            if failed:
                return f"a load without an NMI failed, so no point would show anything: {verdict.reason}"
            if attempts == DRY_LOADS + MAX_FAILED_DRY:
                return f"no load without an NMI passed often enough: {verdict.reason}"
            if self._guests.failed_boots >= MAX_FAILED_BOOTS:
                return f"no guest was there {self._guests.failed_boots} times in a row: {verdict.reason}"
        return ""

    def _try(self, point: Point) -> str:
        """Try one point until it shows something, at ever earlier arrivals if need be."""
        count = self.known.found[point.block].count
        asked = arrival = arrival_of(point.rank, count)
        spins = count > FEW_ARRIVALS
        early, broke = 0, False
        ways = self._list_ways(point)
        # Again and again: what differs from load to load may be in favour the next time.
        for attempt, way in enumerate(ways * ROUNDS, start=1):
            again = attempt >= len(ways)
            lead = self.known.leads[point] if way.lead else Lead()
            last = way.last or lead.last
            early += way.early
            before = self._pin(lead.visits[-MAX_LEAD:], way)
            visits = (*before, self._visit(point, arrival, way, early))
            placed = (*place_nmis(visits, self._ask.core), *self._help(visits, last))
            # One that is stopped somewhere in its loop before the phase is there as that begins: its first arrival.
            meant = 1 if way.early and self.known.found[point.block].before > FEW_ARRIVALS else arrival
            tried = _explain(point, asked, meant, visits, placed, attempt)
            scenario = msgspec.structs.replace(self._ask.scenario, placed=placed)
            try:
                kept = self._guests.run_trial(scenario, draw_plan(scenario, 0), cover=True)
            except UsageError as error:
                tried = msgspec.structs.replace(tried, reason=str(error))
                break
            verdict = judge(kept.evidence)
            self._journal.append(*self._learn(kept.evidence, Lead(visits, last)))
            come = _has_come(kept.evidence, len(visits) - 1)
            if come or verdict.outcome is Outcome.ERROR:
                tried = _weigh(tried, verdict, kept.evidence)
            elif verdict.outcome is Outcome.FAIL and not broke:
                broke = True
                self._note_broke(tried, kept, verdict)
            if tried.outcome is Outcome.FAIL:
                tried = msgspec.structs.replace(tried, evidence=self._keep(kept, f"{len(self.known.tried) + 1:05}"))
            if tried.was_tried:
                break
            if self._guests.failed_boots >= MAX_FAILED_BOOTS:
                return f"no guest was there {self._guests.failed_boots} times in a row: {verdict.reason}"
            if not come and (spins or again) and not way.early:
                arrival = _find_earlier(point.rank, arrival, _count_arrivals(kept.evidence, len(visits) - 1))
        self._journal.append(tried)
        self.known.take(tried)
        broken = sum(bool(each.broken) for each in self.known.tried.values())
        self._advance(len(self.known.tried), len(self.known.points), broken)
        return ""

    def _list_ways(self, point: Point) -> tuple[Way, ...]:
        """Return those ways that differ for this point."""
        has_lead = self.known.leads[point] != Lead()
        may_wait = (
            self._ask.siblings is Siblings.ONLINE
            and find_mechanism(self._ask.mechanism).landmarks.call_in
            and point.block.phase is not Phase.GATHER
        )
        blocks = (point.block, *(visit.block for visit in self.known.leads[point].visits))
        may_pin = self._ask.siblings is Siblings.ONLINE and any(map(can_pin, blocks))
        ways = (
            msgspec.structs.replace(
                way, lead=way.lead and has_lead, pinned=way.pinned and may_pin, last=way.last if may_wait else None
            )
            for way in WAYS
        )
        return tuple(dict.fromkeys(ways))

    def _visit(self, point: Point, arrival: int, way: Way, early: int) -> Visit:
        """Return the visit that an attempt is to make.

        :param early: which attempt it is of those where the thread is early: one that spins before the phase is stopped
            ever further from its end, as no two loads spin as often
        """
        before = self.known.found[point.block].before
        if not way.early:
            return Visit(point.block, arrival, pinned=way.pinned)
        total = before + arrival
        # The load that showed the block may also have come there once more before the phase than others do.
        total = total >> early if before > FEW_ARRIVALS else total - early // 2
        return Visit(point.block, max(1, total), early=True, pinned=way.pinned)

    def _pin(self, visits: tuple[Visit, ...], way: Way) -> tuple[Visit, ...]:
        """Return the visits of a lead, which may be as hard to come to as the point."""
        return tuple(msgspec.structs.replace(visit, pinned=visit.pinned or way.pinned) for visit in visits)

    def _help(self, visits: tuple[Visit, ...], last: Role | None) -> tuple[Placed, ...]:
        """Return holds without an NMI that let the visits happen."""
        pins = pin_phases(visits, self._ask.core)
        delays = (delay_call_in(last, self._ask.core),) if last is not None else ()
        return (*pins, *delays)

    def _learn(self, evidence: Evidence, lead: Lead) -> tuple[Found | Uncovered, ...]:
        cover = evidence.observer.cover if evidence.observer is not None else None
        lost = (Uncovered(blocks=cover.lost),) if cover is not None and cover.lost else ()
        learnt = (*self.known.find_new(self._ask, evidence.observer, lead), *lost)
        for each in learnt:
            self.known.take(each)
        return learnt

    def _note(self, evidence: Evidence, line: Line) -> None:
        """Write what a trial showed beside what came of it, in one step."""
        self._journal.append(*self._learn(evidence, Lead()), line)
        self.known.take(line)
        self._advance(len(self.known.tried), len(self.known.points), 0)

    def _note_broke(self, tried: Tried, kept: Kept, verdict: Verdict) -> None:
        line = Broke(
            role=tried.role,
            phase=tried.phase,
            pc=tried.pc,
            rank=tried.rank,
            reason=verdict.reason,
            placed=tried.placed,
            broken=_list_broken(verdict),
            evidence=self._keep(kept, f"before-{len(self.known.tried) + 1:05}"),
        )
        self._journal.append(line)
        self.known.take(line)

    def _keep(self, kept: Kept, name: str) -> str:
        place = f"{BROKEN}/{name}"
        keep_trial(self._journal.folder / place, kept, 1, place)
        return place


def _explain(
    point: Point, asked: int, arrival: int, visits: tuple[Visit, ...], placed: tuple[Placed, ...], attempt: int
) -> Tried:
    block = point.block
    return Tried(
        role=block.role,
        phase=block.phase,
        pc=block.pc,
        rank=point.rank,
        outcome=Outcome.INVALID,
        reason=f"the thread did not come there again in {attempt} loads",
        asked=asked,
        arrival=arrival,
        attempts=attempt,
        lead=visits[:-1],
        placed=placed,
    )


def _weigh(tried: Tried, verdict: Verdict, evidence: Evidence) -> Tried:
    return msgspec.structs.replace(
        tried,
        outcome=verdict.outcome,
        reason=verdict.reason,
        entered=_has_entered(evidence, len(tried.lead)),
        broken=_list_broken(verdict) if verdict.outcome is Outcome.FAIL else (),
    )


def _list_broken(verdict: Verdict) -> tuple[str, ...]:
    return tuple(each.name for each in verdict.invariants if each.required and each.finding is Finding.BROKEN)


def _find_earlier(rank: Rank, arrival: int, seen: int) -> int:
    """Return half an arrival that did not come, or less where the load came there less often than that."""
    half = max(1, arrival // 2)
    return min(half, arrival_of(rank, seen)) if seen > 0 else half


def _count_arrivals(evidence: Evidence, hold: int) -> int:
    arrivals = evidence.observer.arrivals if evidence.observer is not None else ()
    return arrivals[hold] if hold < len(arrivals) else 0


def _has_come(evidence: Evidence, hold: int) -> bool:
    """Say whether the thread came to a hold of the plan."""
    events = evidence.observer.events if evidence.observer is not None else ()
    return any(event.kind is EventKind.HELD and event.detail == hold for event in events)


def _has_entered(evidence: Evidence, hold: int) -> bool:
    """Say whether the NMI entered where the thread was held: then its first block behind the hold is the handler's."""
    events = evidence.observer.events if evidence.observer is not None else ()
    vcpu = evidence.plan.holds[hold].vcpu if hold < len(evidence.plan.holds) else -1
    held = [event.seq for event in events if event.kind is EventKind.HELD and event.detail == hold]
    resumed = [event for event in events if event.kind is EventKind.RESUMED and event.vcpu == vcpu]
    behind = [event for event in resumed if held and event.seq > held[0]]
    return bool(behind) and behind[0].symbol == NMI_ENTRY
