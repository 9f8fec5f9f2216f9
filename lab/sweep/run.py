# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a sweep: one NMI at every place of a late load where a thread of a core can receive an NMI.

Dry loads show which blocks each thread begins in which phase. The first, middle and last visit to each block then have
a trial each. In this trial a hold stops the thread at the visit until the thread's NMI is acknowledged. A trial may
show blocks that no earlier load showed. The sweep adds these blocks, and ends when it has tried all known points.
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
from lab.trial.pool import MAX_FAILED_BOOTS, WarmGuests
from lab.trial.record import keep_trial
from lab.trial.session import Kept

#: Loads differ by chance: one load may show blocks that another load does not show.
DRY_LOADS: Final = 3
#: A trial takes a third of a second. With several trials in a row the wait for the host's vCPUs costs little, and other
#: processes wait only a little longer than without turns.
TURN_S: Final = 2.0
#: A block with more visits in a load is part of a spin loop, whose number of rounds is open.
FEW_ARRIVALS: Final = 8
#: How often a sweep tries each way to a point. Few points need more than two tries. One of 690 points was not reached
#: in 22 tries.
ROUNDS: Final = 5
#: How many dry loads may fail to PASS.
MAX_FAILED_DRY: Final = 6
#: Where each NMI handler of the kernels begins.
NMI_ENTRY: Final = "asm_exc_nmi+0x0"
BROKEN: Final = "broken"

#: Receives the progress of a sweep: finished points, known points, and broken points.
Advance = Callable[[int, int, int], None]


def run_sweep(
    ask: SweepAsk, guests: WarmGuests, journal: Journal, advance: Advance, until_broken: int | None = None
) -> Swept:
    """Run a sweep, or continue the sweep of the journal's lines.

    :param until_broken: the sweep stops at this number of broken points; None tries all points
    :raise HostError: the host failed; the lines in the journal stay
    """
    sweep = _Sweep(ask, guests, journal, advance, until_broken)
    return sum_up(sweep.known, sweep.run(), ask.roles)


class _Sweep:
    """The state of a running sweep."""

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
        """Return why the sweep stopped early; empty when the sweep has tried all known points."""
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
        """Try one point until a trial shows a result. If necessary, try earlier visits."""
        count = self.known.found[point.block].count
        asked = arrival = arrival_of(point.rank, count)
        spins = count > FEW_ARRIVALS
        early, broke = 0, False
        ways = self._list_ways(point)
        # Each way several times: loads differ, and the next load may reach the point.
        for attempt, way in enumerate(ways * ROUNDS, start=1):
            again = attempt >= len(ways)
            lead = self.known.leads[point] if way.lead else Lead()
            last = way.last or lead.last
            early += way.early
            before = self._pin(lead.visits[-MAX_LEAD:], way)
            visits = (*before, self._visit(point, arrival, way, early))
            placed = (*place_nmis(visits, self._ask.core), *self._help(visits, last))
            # The phase finds a thread that stopped in its loop already there. So this is the first visit in the phase.
            meant = 1 if way.early and self.known.found[point.block].before > FEW_ARRIVALS else arrival
            tried = _make_tried(point, asked, meant, visits, placed, attempt)
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
                tried = _evaluate(tried, verdict, kept.evidence)
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
                arrival = _compute_earlier(point.rank, arrival, _count_arrivals(kept.evidence, len(visits) - 1))
        self._journal.append(tried)
        self.known.take(tried)
        broken = sum(bool(each.broken) for each in self.known.tried.values())
        self._advance(len(self.known.tried), len(self.known.points), broken)
        return ""

    def _list_ways(self, point: Point) -> tuple[Way, ...]:
        """Return the ways that differ for this point."""
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
        """Return the visit of one attempt.

        :param early: number of this attempt among the early attempts; each attempt stops a spinning thread further from
            the end of its loop, because the number of rounds differs from load to load
        """
        before = self.known.found[point.block].before
        if not way.early:
            return Visit(point.block, arrival, pinned=way.pinned)
        total = before + arrival
        # The load that showed the block may have had one visit more before the phase than other loads.
        total = total >> early if before > FEW_ARRIVALS else total - early // 2
        return Visit(point.block, max(1, total), early=True, pinned=way.pinned)

    def _pin(self, visits: tuple[Visit, ...], way: Way) -> tuple[Visit, ...]:
        """Return the visits of a lead. They may be as hard to reach as the point, so they get the same pins."""
        return tuple(msgspec.structs.replace(visit, pinned=visit.pinned or way.pinned) for visit in visits)

    def _help(self, visits: tuple[Visit, ...], last: Role | None) -> tuple[Placed, ...]:
        """Return the holds without an NMI that make the visits happen."""
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
        """Write the result of a trial, and the blocks that the trial showed, in one step."""
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


def _make_tried(
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


def _evaluate(tried: Tried, verdict: Verdict, evidence: Evidence) -> Tried:
    return msgspec.structs.replace(
        tried,
        outcome=verdict.outcome,
        reason=verdict.reason,
        entered=_has_entered(evidence, len(tried.lead)),
        broken=_list_broken(verdict) if verdict.outcome is Outcome.FAIL else (),
    )


def _list_broken(verdict: Verdict) -> tuple[str, ...]:
    return tuple(each.name for each in verdict.invariants if each.required and each.finding is Finding.BROKEN)


def _compute_earlier(rank: Rank, arrival: int, seen: int) -> int:
    """Return half of a visit number that did not happen, or less where the load had fewer visits."""
    half = max(1, arrival // 2)
    return min(half, arrival_of(rank, seen)) if seen > 0 else half


def _count_arrivals(evidence: Evidence, hold: int) -> int:
    arrivals = evidence.observer.arrivals if evidence.observer is not None else ()
    return arrivals[hold] if hold < len(arrivals) else 0


def _has_come(evidence: Evidence, hold: int) -> bool:
    """Say whether the thread reached a hold of the plan."""
    events = evidence.observer.events if evidence.observer is not None else ()
    return any(event.kind is EventKind.HELD and event.detail == hold for event in events)


def _has_entered(evidence: Evidence, hold: int) -> bool:
    """Say whether the NMI entered at the hold: the thread's first block after the hold is then the NMI handler's."""
    events = evidence.observer.events if evidence.observer is not None else ()
    vcpu = evidence.plan.holds[hold].vcpu if hold < len(evidence.plan.holds) else -1
    held = [event.seq for event in events if event.kind is EventKind.HELD and event.detail == hold]
    resumed = [event for event in events if event.kind is EventKind.RESUMED and event.vcpu == vcpu]
    behind = [event for event in resumed if held and event.seq > held[0]]
    return bool(behind) and behind[0].symbol == NMI_ENTRY
