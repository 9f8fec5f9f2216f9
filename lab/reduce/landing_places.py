# SPDX-License-Identifier: GPL-2.0-or-later
"""Places where an NMI would land in the same way as an NMI that came at a drawn time. Pure.

The order of the places: first the landmarks that the vCPU reached before in the same phase, then the landmark that pins
this phase. In the window a sibling reaches no landmark. There the places are blocks of its wait region; blocks of the
function in which it waits come first.
"""

from collections.abc import Iterator
from itertools import islice

from lab.judge.facts import Facts, find_facts
from lab.judge.phases import CorePhases, find_phases
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import EventKind, Evidence
from lab.model.hold import LANDMARKS, check_place
from lab.model.phase import Phase, Role
from lab.model.placed import TARGETS, UNPINNED, Placed, Target, pin_phase
from lab.model.verdict import Landing, Verdict

#: The number of blocks of the wait region to try. If none of them reproduces the failure, the place is not important.
MAX_BLOCKS = 3
#: Useless places: at an NMI entry a thread waits for another NMI, and the load's end is behind the load.
_USELESS = (EventKind.NMI_ENTRY, EventKind.LOAD_END)


def order_landings(verdict: Verdict, nmi: int) -> tuple[Landing, ...]:
    """Return the landings of one NMI of the plan. Landings on vCPUs that broke an invariant come first."""
    proofs = [proof for one in verdict.invariants for proof in one.proofs]
    accused = [proof.vcpu for proof in proofs]
    mine = [each for each in verdict.landings if each.nmi == nmi]
    return tuple(sorted(mine, key=lambda each: (each.vcpu not in accused, each.entered is not Phase.WINDOW, each.vcpu)))


def list_places(evidence: Evidence, landing: Landing) -> Iterator[Placed]:
    """Yield the places at which an NMI would land in the same way, each place once."""
    facts = find_facts(evidence, evidence.scenario.topology, find_mechanism(evidence.scenario.mechanism))
    core = facts.topology.core_of(landing.vcpu)
    phase = landing.entered or landing.pending
    if phase is None or facts.begin is None or facts.lost:
        return
    seen = set()
    for placed in (
        *_find_landmarks(facts, find_phases(facts, core), landing, phase),
        *_find_pin(landing, core, phase),
        *islice(_find_blocks(facts, landing, core, phase), MAX_BLOCKS),
    ):
        if placed not in seen:
            seen.add(placed)
            yield placed


def _find_landmarks(facts: Facts, phases: CorePhases, landing: Landing, phase: Phase) -> Iterator[Placed]:
    if not landing.entry_seq:
        return
    counts: dict[EventKind, int] = {}
    found = []
    for event in facts.events:
        if event.vcpu != landing.vcpu or event.seq >= landing.entry_seq or event.kind.value not in LANDMARKS:
            continue
        # A hold stops a thread before its call-in, and before its window opens. So the phase before the record counts.
        early = event.kind in (EventKind.CALL_IN, EventKind.WINDOW_OPEN)
        if event.kind in _USELESS or phases.at_seq(event.seq - early) is not phase:
            continue
        counts[event.kind] = counts.get(event.kind, 0) + 1
        found.append((event.kind, counts[event.kind]))
    for kind, arrival in reversed(found):
        yield Placed(
            at=kind.value,
            role=landing.role,
            core=facts.topology.core_of(landing.vcpu),
            phase=phase,
            arrival=arrival,
        )


def _find_pin(landing: Landing, core: int, phase: Phase) -> Iterator[Placed]:
    if phase not in UNPINNED:
        at, role = pin_phase(phase, landing.role)
        target = Target.HELD if role is landing.role else TARGETS[landing.role]
        yield Placed(at=at, role=role, core=core, phase=phase, nmi=target)


def _find_blocks(facts: Facts, landing: Landing, core: int, phase: Phase) -> Iterator[Placed]:
    if phase is not Phase.WINDOW or landing.role is Role.PRIMARY:
        return
    waits = {
        event.symbol.partition("+")[0]
        for kind in (EventKind.WAIT_LOOP, EventKind.CALL_IN)
        for event in facts.of_kind(kind, landing.vcpu)
    }
    for window in facts.windows:
        view = window.view_of(landing.vcpu)
        if window.seen.core != core or view is None:
            continue
        blocks = [each for each in view.blocks if each.in_region and each.symbol]
        for block in sorted(blocks, key=lambda each: (each.symbol.partition("+")[0] not in waits, -each.count)):
            check_place(block.symbol)
            yield Placed(at=block.symbol, role=landing.role, core=core, phase=phase)
