# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs sent in a phase or at a place: they land where they were asked for, or the trial says what was seen instead."""

import pytest

from conftest import Trial, Tried
from lab.model.evidence import EventKind, ObserverEvent
from lab.model.phase import PHASES, Phase, Role
from lab.model.placed import Placed, Target
from lab.model.scenario import Siblings
from lab.model.topology import Topology
from lab.model.verdict import Finding, Landing, Outcome

pytestmark = pytest.mark.e2e

HOLD_EDGES = (EventKind.HELD, EventKind.LET_GO)
ONE_CORE = Topology(1, 1, 2)
PRIMARY, SIBLING = 0, 1
#: A busy host may take a hold's bound, or starve a vCPU: one trial of them says nothing.
TRIES = 3


def run_valid(trial: Trial, mechanism: str, **fields: object) -> Tried:
    """Run trials until one is not INVALID."""
    for seed in range(TRIES):
        tried = trial(mechanism, seed=seed, **{"topology": ONE_CORE, **fields})
        if tried.record.outcome is not Outcome.INVALID:
            break
    return tried


def find_events(tried: Tried, *kinds: EventKind) -> list[ObserverEvent]:
    assert tried.evidence.observer is not None
    return [event for event in tried.evidence.observer.events if event.kind in kinds]


def landed(tried: Tried) -> tuple[Landing, ...]:
    return tried.verdict.landings


@pytest.mark.parametrize("role", [Role.PRIMARY, Role.SIBLING, None], ids=lambda role: role.value if role else "all")
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.value)
def test_every_phase_is_hit_for_every_role(trial: Trial, phase: Phase, role: Role | None) -> None:
    tried = run_valid(trial, "nmi-self", phase=phase, role=role, nmis=2)
    assert tried.record.outcome is Outcome.PASS, tried.verdict.reason
    wanted = {Role.PRIMARY: {PRIMARY}, Role.SIBLING: {SIBLING}, None: {PRIMARY, SIBLING}}[role]
    assert {each.vcpu for each in landed(tried)} == wanted
    assert {each.pending for each in landed(tried)} == {phase}
    assert set(tried.record.coverage) == {
        f"{phase.value} {Role.PRIMARY.value if vcpu == PRIMARY else Role.SIBLING.value}" for vcpu in wanted
    }


def test_an_nmi_to_a_sibling_in_the_window_is_what_a_control_lacks_an_answer_to(trial: Trial) -> None:
    tried = run_valid(trial, "stop-machine", phase=Phase.WINDOW, role=Role.SIBLING, nmis=3)
    assert tried.record.outcome is Outcome.FAIL
    assert tried.finding("quiet") is Finding.BROKEN
    assert {each.pending for each in landed(tried)} == {Phase.WINDOW}


def test_two_holds_nest_in_the_order_that_was_asked_for(trial: Trial) -> None:
    """The primary waits before its update until the sibling has been held in its wait, each with an NMI pending."""
    placed = (
        Placed(at="window-open", role=Role.PRIMARY, until=1),
        Placed(at="wait-loop", role=Role.SIBLING),
    )
    tried = run_valid(trial, "nmi-self", nmis=0, placed=placed)
    assert tried.record.outcome is Outcome.PASS, tried.verdict.reason
    assert "2 holds reached and let go" in tried.verdict.reason
    edges = {(event.kind, event.detail): event.mono_ns for event in find_events(tried, *HOLD_EDGES)}
    sent = {each.index: each for each in tried.evidence.injections.sent} if tried.evidence.injections else {}
    for hold, vcpu in ((0, PRIMARY), (1, SIBLING)):
        assert sent[hold].vcpu == vcpu
        assert edges[EventKind.HELD, hold] <= sent[hold].send_ns
        # The primary is let go last, and both only when the NMI of the inner one is there.
        assert max(sent[0].reply_ns, sent[1].reply_ns) <= edges[EventKind.LET_GO, 0]
    (opened,) = find_events(tried, EventKind.WINDOW_OPEN)
    assert edges[EventKind.HELD, 1] < opened.mono_ns


def test_a_hold_without_an_nmi_is_clean(trial: Trial) -> None:
    placed = (Placed(at="window-open", role=Role.PRIMARY, nmi=Target.NONE),)
    tried = run_valid(trial, "nmi-self", nmis=0, placed=placed)
    assert tried.record.outcome is Outcome.PASS, tried.verdict.reason
    held, gone, opened = find_events(tried, EventKind.HELD, EventKind.LET_GO, EventKind.WINDOW_OPEN)
    assert held.seq < gone.seq < opened.seq
    assert (tried.verdict.nmis.sent, landed(tried)) == (0, ())


def test_an_nmi_enters_at_the_block_behind_the_one_that_was_held(trial: Trial) -> None:
    """A sibling that is let go leaves the handler of its self-NMI, and takes the one that waited for that."""
    tried = run_valid(trial, "nmi-self", nmis=0, placed=(Placed(at="release", role=Role.SIBLING),))
    assert tried.record.outcome is Outcome.PASS, tried.verdict.reason
    (landing,) = landed(tried)
    assert (landing.vcpu, landing.pending) == (SIBLING, Phase.RELEASE)
    assert landing.entered in (Phase.RELEASE, Phase.AFTER)


def test_an_arrival_that_never_comes_is_invalid_with_what_was_seen(trial: Trial) -> None:
    placed = (Placed(at="release", role=Role.SIBLING, arrival=1000),)
    tried = trial("nmi-self", topology=ONE_CORE, nmis=0, placed=placed)
    assert tried.record.outcome is Outcome.INVALID
    assert "hold 0, of vCPU 1 at release, was for arrival 1000, and 1 were seen" in tried.verdict.reason
    never = trial("nmi-self", topology=ONE_CORE, nmis=0, placed=(Placed(at="panic", role=Role.PRIMARY),))
    assert never.record.outcome is Outcome.INVALID
    assert never.verdict.reason.endswith("and 0 were seen")


def test_a_hold_that_nobody_ends_is_invalid_and_the_guest_serves_on(trial: Trial) -> None:
    placed = (
        Placed(at="window-open", role=Role.PRIMARY, until=1, nmi=Target.NONE, bound_us=20_000),
        Placed(at="panic", role=Role.SIBLING, nmi=Target.NONE),
    )
    tried = trial("nmi-self", topology=ONE_CORE, nmis=0, placed=placed)
    assert tried.record.outcome is Outcome.INVALID
    assert "hold 0, of vCPU 0 at window-open, was ended by its bound" in tried.verdict.reason
    after = run_valid(trial, "nmi-self", nmis=2)
    assert after.record.outcome is Outcome.PASS, after.verdict.reason
    assert not find_events(after, EventKind.HELD)


def test_the_primary_of_another_core_is_hit(trial: Trial) -> None:
    tried = run_valid(trial, "nmi-self", topology=Topology(1, 2, 2), phase=Phase.ARMED, role=Role.OTHER, nmis=1)
    assert tried.record.outcome is Outcome.PASS, tried.verdict.reason
    assert {each.vcpu for each in landed(tried)} == {0, 2}


@pytest.mark.parametrize("phase", [Phase.GATHER, Phase.ARMED, Phase.WINDOW, Phase.CLOSING], ids=lambda each: each.value)
def test_an_offline_sibling_of_mainline_is_hit(trial: Trial, phase: Phase) -> None:
    fields = {"siblings": Siblings.OFFLINE, "phase": phase, "role": Role.OFFLINE, "nmis": 1}
    tried = run_valid(trial, "upstream", **fields)
    assert tried.record.outcome is Outcome.PASS, tried.verdict.reason
    assert {(each.vcpu, each.role, each.pending) for each in landed(tried)} == {(SIBLING, Role.OFFLINE, phase)}
