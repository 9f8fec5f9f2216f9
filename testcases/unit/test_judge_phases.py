# SPDX-License-Identifier: GPL-2.0-or-later
"""Phases, landings and plans that missed: where in a load an NMI was set and entered, and what then counts."""

from typing import Any

import msgspec
import pytest
from evidence_builder import END_AT_NS, MS, ORIGIN_NS, RELEASE_AT_NS, WINDOW_AT_NS, WINDOW_NS, Load, change

from lab.judge import judge
from lab.judge.facts import Facts, find_facts
from lab.judge.landings import find_landings, why_phase_missed
from lab.judge.phases import find_phases
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import Ending, EventKind, Evidence
from lab.model.hold import Hold
from lab.model.phase import PHASES, Phase, Role
from lab.model.scenario import Siblings
from lab.model.verdict import Outcome

#: When a clean load is in which phase, seen from its first core.
TIMES = {
    Phase.BEFORE: -MS,
    Phase.GATHER: 50_000,
    Phase.ARMED: MS,
    Phase.WINDOW: 3 * MS,
    Phase.CLOSING: 13 * MS,
    Phase.RELEASE: 15 * MS,
    Phase.AFTER: 17 * MS,
}


def facts_of(evidence: Evidence) -> Facts:
    return find_facts(evidence, evidence.scenario.topology, find_mechanism(evidence.scenario.mechanism))


def test_a_clean_load_goes_through_all_phases() -> None:
    phases = find_phases(facts_of(Load().build()), 0)
    assert [phases.at_ns(ORIGIN_NS + at_ns) for at_ns in TIMES.values()] == list(PHASES)
    closed_ns = ORIGIN_NS + WINDOW_AT_NS + WINDOW_NS
    # The sibling's own release ends the phase before it, not the primary's.
    released_ns = ORIGIN_NS + RELEASE_AT_NS + 1_000
    assert [phases.span_ns(each) for each in (Phase.WINDOW, Phase.CLOSING, Phase.AFTER)] == [
        (ORIGIN_NS + WINDOW_AT_NS, closed_ns),
        (closed_ns, released_ns),
        (ORIGIN_NS + END_AT_NS, float("inf")),
    ]


def test_an_edge_begins_the_phase_behind_it() -> None:
    evidence = Load().build()
    phases = find_phases(facts_of(evidence), 0)
    assert evidence.observer is not None
    edges = {
        EventKind.LOAD_BEGIN: Phase.GATHER,
        EventKind.WINDOW_OPEN: Phase.WINDOW,
        EventKind.WINDOW_CLOSE: Phase.CLOSING,
        EventKind.LOAD_END: Phase.AFTER,
    }
    for event in evidence.observer.events:
        if event.vcpu == 0 and event.kind in edges:
            assert phases.at_seq(event.seq) is edges[event.kind]
            assert phases.at_seq(event.seq - 1) is not edges[event.kind]


def test_each_core_has_windows_of_its_own() -> None:
    found = facts_of(Load().build())
    at_ns = ORIGIN_NS + WINDOW_AT_NS + 500
    assert [find_phases(found, core).at_ns(at_ns) for core in (0, 1)] == [Phase.WINDOW, Phase.ARMED]


def test_a_phase_that_was_not_gone_through_is_none() -> None:
    late = Load()
    for step in late.steps:
        if step.kind is EventKind.CALL_IN and step.vcpu == 1:
            step.at_ns = 4 * MS
    phases = find_phases(facts_of(late.build()), 0)
    assert phases.span_ns(Phase.ARMED) is None
    assert [phases.at_ns(ORIGIN_NS + at_ns) for at_ns in (MS, 5 * MS)] == [Phase.GATHER, Phase.WINDOW]


def test_a_load_without_any_record_is_before_for_ever() -> None:
    found = facts_of(change(Load().build(), "observer", None))
    assert {find_phases(found, 0).at_ns(ORIGIN_NS + at_ns) for at_ns in TIMES.values()} == {Phase.BEFORE}
    assert find_landings(found) == ()


def send(phase: Phase, vcpu: int = 1, at_ns: int | None = None) -> Load:
    """A load with one NMI sent in a phase."""
    when = TIMES[phase] if at_ns is None else at_ns
    return Load(sends=[(vcpu, when, when + 10_000)])


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("vcpu", "role"), [(0, Role.PRIMARY), (1, Role.SIBLING), (3, Role.SIBLING)])
def test_an_nmi_landed_where_it_was_sent_and_acknowledged(phase: Phase, vcpu: int, role: Role) -> None:
    (landing,) = find_landings(facts_of(send(phase, vcpu).build()))
    assert (landing.nmi, landing.vcpu, landing.role, landing.pending) == (0, vcpu, role, phase)
    assert (landing.fraction is None) is (phase in (Phase.BEFORE, Phase.AFTER))
    if landing.fraction is not None:
        assert 0 <= landing.fraction <= 1


def test_a_broadcast_lands_on_every_vcpu() -> None:
    landings = find_landings(facts_of(send(Phase.WINDOW, -1).build()))
    assert [(each.vcpu, each.pending) for each in landings] == [(vcpu, Phase.WINDOW) for vcpu in range(4)]
    # Held back until they are let go.
    assert {each.entered for each in landings} == {Phase.RELEASE}
    assert all(each.delay_us and each.delay_us > 10_000 for each in landings)


def test_one_across_an_edge_is_in_neither_phase() -> None:
    (landing,) = find_landings(facts_of(send(Phase.WINDOW, at_ns=WINDOW_AT_NS - 5_000).build()))
    assert (landing.pending, landing.fraction) == (None, None)


def test_of_merged_nmis_one_has_the_entry() -> None:
    evidence = Load(sends=[(1, 3 * MS, 3 * MS + 10_000), (1, 4 * MS, 4 * MS + 10_000)]).build()
    landings = find_landings(facts_of(evidence))
    assert [each.pending for each in landings] == [Phase.WINDOW] * 2
    assert sorted(each.entered is None for each in landings) == [False, True]
    assert {each.entry_seq for each in landings if each.entered is None} == {0}


def test_an_offline_sibling_is_called_so_and_a_masked_broadcast_landed_nowhere() -> None:
    load = Load(mechanism="upstream", siblings=Siblings.OFFLINE, sends=[(1, 3 * MS, 3 * MS + 10_000)])
    (landing,) = find_landings(facts_of(load.build()))
    assert (landing.role, landing.pending) == (Role.OFFLINE, Phase.WINDOW)
    broadcast = Load(mechanism="upstream", siblings=Siblings.OFFLINE, sends=[(-1, 3 * MS, 3 * MS + 10_000)])
    assert {each.vcpu for each in find_landings(facts_of(broadcast.build()))} == {0, 2}


def hold_in(load: Load, *, begin_ns: int, end_ns: int, vcpu: int = 1, end: EventKind = EventKind.LET_GO) -> Load:
    load.add(begin_ns, EventKind.HELD, vcpu)
    load.add(end_ns, end, vcpu)
    return load


def planned(evidence: Evidence, **fields: Any) -> Evidence:
    """Mean the one NMI of the plan for a phase."""
    return change(evidence, "plan.injections", lambda old: (msgspec.structs.replace(old[0], **fields),))


HOLD = Hold(at="nmi-entry", vcpu=1, arrival=3, phase=Phase.WINDOW)


def held_load(end: EventKind = EventKind.LET_GO) -> Evidence:
    return _with_hold(hold_in(send(Phase.WINDOW), begin_ns=3 * MS - 5_000, end_ns=3 * MS + 20_000, end=end).build())


def _with_hold(evidence: Evidence, hold: Hold = HOLD, arrivals: tuple[int, ...] = (3,), index: int = 0) -> Evidence:
    (injection,) = evidence.plan.injections
    plan = msgspec.structs.replace(
        evidence.plan, injections=(msgspec.structs.replace(injection, hold=index),), holds=(hold,)
    )
    return change(change(evidence, "plan", plan), "observer.arrivals", arrivals)


def outcome_of(evidence: Evidence) -> tuple[Outcome, str]:
    verdict = judge(evidence)
    return verdict.outcome, verdict.reason


def test_a_hold_that_was_kept_passes_and_is_counted() -> None:
    outcome, reason = outcome_of(held_load())
    assert outcome is Outcome.PASS, reason
    assert "1 holds reached and let go" in reason


def test_an_arrival_that_never_came_is_invalid_with_what_was_seen() -> None:
    evidence = _with_hold(send(Phase.WINDOW).build(), arrivals=(2,))
    said = "hold 0, of vCPU 1 at nmi-entry in window, was for arrival 3, and 2 were seen"
    assert outcome_of(evidence) == (Outcome.INVALID, said)
    # Also where its NMI was not sent for it, and where the observer did not even count.
    unsent = change(change(evidence, "injections.sent", ()), "injections.problem", "0 of 1 NMIs were sent: late")
    assert outcome_of(unsent) == (Outcome.INVALID, said)
    uncounted = change(evidence, "observer.arrivals", ())
    assert outcome_of(uncounted)[1].endswith("and 0 were seen")


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        (held_load(end=EventKind.HOLD_OVERRUN), "was ended by its bound"),
        (_with_hold(send(Phase.WINDOW).add(3 * MS, EventKind.HELD, 1).build()), "was never seen to end"),
        (
            _with_hold(
                hold_in(
                    hold_in(send(Phase.WINDOW), begin_ns=3 * MS - 5_000, end_ns=3 * MS + 20_000),
                    begin_ns=4 * MS,
                    end_ns=5 * MS,
                ).build()
            ),
            "was reached 2 times",
        ),
        # It was held, and its NMI came too early, too late, or was that of no hold there is.
        (
            _with_hold(hold_in(send(Phase.WINDOW), begin_ns=3 * MS + 5_000, end_ns=4 * MS).build()),
            "NMI 0 was not sent and acknowledged while hold 0 lasted",
        ),
        (
            _with_hold(hold_in(send(Phase.WINDOW), begin_ns=2 * MS + 5_000, end_ns=3 * MS + 5_000).build()),
            "NMI 0 was not sent and acknowledged while hold 0 lasted",
        ),
        (
            _with_hold(hold_in(send(Phase.WINDOW), begin_ns=3 * MS - 5_000, end_ns=4 * MS).build(), index=7),
            "NMI 0 was not sent and acknowledged while hold 7 lasted",
        ),
        (
            _with_hold(
                hold_in(send(Phase.WINDOW), begin_ns=3 * MS - 5_000, end_ns=4 * MS).build(),
                msgspec.structs.replace(HOLD, phase=Phase.ARMED),
            ),
            "hold 0, of vCPU 1 at nmi-entry in armed, held it in window",
        ),
    ],
    ids=["overrun", "open", "twice", "early", "late", "other", "phase"],
)
def test_a_hold_that_was_not_kept_is_invalid(evidence: Evidence, says: str) -> None:
    outcome, reason = outcome_of(evidence)
    assert outcome is Outcome.INVALID
    assert says in reason


@pytest.mark.parametrize("wanted", PHASES)
@pytest.mark.parametrize("sent", PHASES)
def test_a_phase_that_was_missed_is_told_of_and_one_that_was_hit_is_not(wanted: Phase, sent: Phase) -> None:
    why = why_phase_missed(facts_of(planned(send(sent).build(), phase=wanted)))
    missed = f"NMI 0 was for {wanted.value} of core 0, and sent in {sent.value}"
    assert why == ("" if wanted is sent else missed)


def test_a_trial_whose_nmi_missed_its_phase_is_invalid() -> None:
    load = Load(sends=[(1, 3 * MS, 4 * MS), (1, WINDOW_AT_NS + WINDOW_NS - 5_000, WINDOW_AT_NS + WINDOW_NS + 5_000)])
    evidence = load.build()
    assert outcome_of(evidence)[0] is Outcome.PASS
    meant = tuple(msgspec.structs.replace(each, phase=Phase.WINDOW) for each in evidence.plan.injections)
    said = "NMI 1 was for window of core 0, and sent in window and closing"
    assert outcome_of(change(evidence, "plan.injections", meant)) == (Outcome.INVALID, said)


def test_a_phase_of_a_core_that_is_not_there_was_missed() -> None:
    outcome, reason = outcome_of(planned(send(Phase.WINDOW).build(), phase=Phase.WINDOW, core=9))
    assert outcome is Outcome.INVALID
    assert "NMI 0 was for core 9, which the guest does not have" in reason


def test_a_missed_plan_never_hides_what_broke_nor_accuses() -> None:
    broken = hold_in(send(Phase.WINDOW).add(4 * MS, EventKind.OUTSIDE, 1), begin_ns=MS, end_ns=MS + 10)
    assert outcome_of(_with_hold(broken.build(), arrivals=(0,)))[0] is Outcome.FAIL


def test_a_scenario_about_nmis_in_a_phase_is_not_shown_by_a_plan_that_sends_none() -> None:
    evidence = change(Load(sends=[]).build(), "scenario.phase", Phase.CLOSING)
    evidence = change(evidence, "scenario.nmis", 12)
    outcome, reason = outcome_of(evidence)
    assert outcome is Outcome.INVALID
    assert "the plan holds nobody at 2 places of the scenario" in reason
    after = change(evidence, "scenario.phase", Phase.AFTER)
    assert outcome_of(after) == (Outcome.INVALID, "no NMI was sent though the scenario is about some")


def panicked(end: EventKind | None, *, for_ns: int) -> Evidence:
    load = Load(ending=Ending.PANIC).add(3 * MS, EventKind.HELD, 1)
    if end is not None:
        load.add(3 * MS + for_ns, end, 1)
    load.add(3 * MS + max(for_ns, MS), EventKind.WAIT_LOOP, 0)
    evidence = load.build()
    return change(evidence, "console_tail", ("[   12.0] Kernel panic - not syncing: Timeout during microcode update!",))


def test_a_limit_that_the_lab_s_own_hold_used_up_accuses_nobody() -> None:
    assert outcome_of(panicked(EventKind.LET_GO, for_ns=MS))[0] is Outcome.FAIL
    assert outcome_of(panicked(EventKind.HOLD_OVERRUN, for_ns=MS))[0] is Outcome.INVALID
    assert outcome_of(panicked(EventKind.LET_GO, for_ns=400 * MS))[0] is Outcome.INVALID
    assert outcome_of(panicked(None, for_ns=400 * MS))[0] is Outcome.INVALID
