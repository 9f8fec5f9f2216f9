# SPDX-License-Identifier: GPL-2.0-or-later
"""How a failing trial gets smaller, on guests that are made up: which of them fails is up to each case."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from evidence_builder import MS, RELEASE_AT_NS, WAIT_SYMBOL, WINDOW_AT_NS, Load, change

from lab.errors import UsageError
from lab.evidence.folder import read_evidence
from lab.judge import judge
from lab.model.evidence import EventKind, Evidence
from lab.model.phase import Phase, Role
from lab.model.placed import Placed, Target
from lab.model.plan import Injection, Plan, draw_plan
from lab.model.scenario import Aim, Parking, Scenario, Siblings
from lab.model.scenario_file import parse_scenario
from lab.model.scenario_text import format_scenario
from lab.model.topology import Topology
from lab.model.verdict import Outcome
from lab.reduce.case import Case, list_changes, make_case, with_fewer_cores
from lab.reduce.minimise import LAST, Minimised, Need, minimise
from lab.reduce.replay import Again, Replayed, RunTrial, ends_the_same, replay
from lab.trial.session import Kept

SHAPE = Topology(1, 2, 2)
GUILTY_PPM = 500

Fails = Callable[[Scenario, Plan], bool]


def tell(scenario: Scenario, plan: Plan, *, bad: bool) -> Evidence:
    """Tell of a load of nmi-self, in whose window vCPU 1 enters one NMI too early if it is a bad one."""
    sends = [
        (each.vcpu, 4 * MS + 100_000 * index, 4 * MS + 100_000 * index + 50_000)
        for index, each in enumerate(plan.injections)
    ]
    load = Load(topology=scenario.topology, sends=sends)
    if bad:
        load.add(WINDOW_AT_NS + 5 * MS, EventKind.NMI_ENTRY, 1)
        load.move(EventKind.RELEASE, 1, RELEASE_AT_NS)
    return msgspec.structs.replace(load.build(), scenario=scenario, plan=plan)


def made_up(fails: Fails) -> RunTrial:
    """Run trials that end as they are told to."""

    def run_trial(scenario: Scenario, plan: Plan) -> Kept:
        scenario.check()
        return Kept(tell(scenario, plan, bad=fails(scenario, plan)), {})

    return run_trial


def storm(count: int = 12, **fields: object) -> Evidence:
    scenario = Scenario(mechanism="nmi-self", topology=SHAPE, nmis=count, **fields)  # type: ignore[arg-type]
    plan = draw_plan(scenario, 3)
    guilty = msgspec.structs.replace(plan.injections[count // 2], at_ppm=GUILTY_PPM)
    injections = tuple(guilty if number == count // 2 else each for number, each in enumerate(plan.injections))
    return tell(scenario, msgspec.structs.replace(plan, injections=injections), bad=True)


def is_guilty(plan: Plan, each: Injection) -> bool:
    if each.hold < 0:
        return each.at_ppm == GUILTY_PPM and each.vcpu in (-1, 1)
    return plan.holds[each.hold].phase is Phase.WINDOW and each.vcpu == 1


def by_one(_: Scenario, plan: Plan) -> bool:
    return any(is_guilty(plan, each) for each in plan.injections)


def run(evidence: Evidence, fails: Fails, folder: Path, need: str = "1/1", trials: int = 300) -> Minimised:
    return minimise(evidence, made_up(fails), Need.parse(need), folder, lambda _: None, trials)


def test_a_storm_becomes_one_nmi_at_a_place_on_one_core(tmp_path: Path) -> None:
    evidence = storm()
    assert judge(evidence).outcome is Outcome.FAIL, judge(evidence).reason
    found = run(evidence, by_one, tmp_path)
    assert found.reproduced
    assert found.after.whole
    assert found.after.scenario == Scenario(
        mechanism="nmi-self",
        topology=Topology(1, 1, 2),
        nmis=0,
        stretch_per_core_us=(1_000,),
        placed=(Placed(at=WAIT_SYMBOL, role=Role.SIBLING, phase=Phase.WINDOW),),
    )
    assert read_evidence(tmp_path / LAST).scenario == found.after.scenario
    assert list_changes(found.before, found.after)[:2] == (
        f"NMIs: 12 at drawn times -> 1 at {WAIT_SYMBOL} in window (sibling)",
        'topology: "1x2x2" -> "1x1x2"',
    )


def test_a_core_alone_keeps_its_own_nmis_under_its_new_number() -> None:
    here, there = (Placed(at="call-in", role=Role.SIBLING, core=core, until=-1) for core in (1, 0))
    other = Placed(at="call-in", role=Role.OTHER, core=1)
    waiting = msgspec.structs.replace(here, at="release", until=1)
    scenario = Scenario(
        mechanism="nmi-self", topology=SHAPE, stretch_per_core_us=(3, 4), placed=(there, here, other, waiting)
    )
    timed = tuple(
        Injection(number, Aim.BROADCAST if vcpu < 0 else Aim.SIBLING, vcpu) for number, vcpu in enumerate((-1, 1, 3))
    )
    first, second = with_fewer_cores(Case(scenario=scenario, seed=1, timed=timed))
    assert first.scenario.topology == Topology(1, 1, 2)
    assert [(each.at, each.core, each.until) for each in first.scenario.placed] == [
        ("call-in", 0, -1),
        ("release", 0, 0),
    ]
    assert [(each.at_ppm, each.vcpu) for each in first.timed] == [(0, -1), (2, 1)]
    assert (first.scenario.stretch_per_core_us, first.scenario.nmis) == ((4,), 2)
    assert [(each.at, each.core) for each in second.scenario.placed] == [("call-in", 0)]
    assert [(each.at_ppm, each.vcpu) for each in second.timed] == [(0, -1), (1, 1)]
    assert list(with_fewer_cores(first)) == []


def test_what_fails_without_nmis_needs_none(tmp_path: Path) -> None:
    found = run(storm(), lambda *_: True, tmp_path)
    assert (found.after.scenario.placed, found.after.timed) == ((), ())
    assert found.after.scenario.nmis == 0


def test_what_needs_two_nmis_keeps_two(tmp_path: Path) -> None:
    evidence = storm()
    other = evidence.plan.injections[1].at_ppm

    def fails(scenario: Scenario, plan: Plan) -> bool:
        return by_one(scenario, plan) and any(each.at_ppm == other for each in plan.injections)

    found = run(evidence, fails, tmp_path)
    assert len(found.after.timed) + len(found.after.scenario.placed) == 2
    assert not found.after.whole


def test_a_failure_that_the_times_do_not_bring_back_is_put_where_it_landed(tmp_path: Path) -> None:
    def fails(_: Scenario, plan: Plan) -> bool:
        return any(each.hold >= 0 and is_guilty(plan, each) for each in plan.injections)

    found = run(storm(), fails, tmp_path)
    assert found.reproduced
    assert found.after.whole
    assert [each.phase for each in found.after.scenario.placed] == [Phase.WINDOW]


def test_a_failure_that_never_comes_back_is_said_to(tmp_path: Path) -> None:
    found = run(storm(), lambda *_: False, tmp_path)
    assert not found.reproduced
    assert found.after == found.before
    assert list(tmp_path.iterdir()) == []


def test_a_change_is_kept_only_when_it_fails_often_enough(tmp_path: Path) -> None:
    turns = iter(range(10**6))

    def fails(scenario: Scenario, plan: Plan) -> bool:
        return by_one(scenario, plan) and (scenario.topology == SHAPE or next(turns) % 3 > 0)

    found = run(storm(), fails, tmp_path, need="3/3")
    assert found.after.scenario.topology == SHAPE
    assert run(storm(), fails, tmp_path, need="2/3").after.scenario.topology == Topology(1, 1, 2)


def test_the_smallest_so_far_is_told_each_time(tmp_path: Path) -> None:
    kept: list[Case] = []
    evidence = storm()
    found = minimise(evidence, made_up(by_one), Need(1, 1), tmp_path, lambda _: None, 300, kept.append)
    assert kept[-1] == found.after
    assert kept[0] == found.before
    counts = [len(case.timed) + len(case.scenario.placed) for case in kept]
    assert counts == sorted(counts, reverse=True)


def test_the_search_ends_at_its_bound_with_the_smallest_so_far(tmp_path: Path) -> None:
    found = run(storm(), by_one, tmp_path, trials=4)
    assert found.exhausted
    assert found.trials == 4
    assert 0 < len(found.after.timed) < 12


def test_another_failure_is_not_taken_for_it(tmp_path: Path) -> None:
    def other(scenario: Scenario, plan: Plan) -> Kept:
        clean = tell(scenario, plan, bad=False)
        broken = change(clean, "guest.dmesg", lambda old: (*old, "[   12.2] BUG: unable to handle page fault"))
        assert judge(broken).outcome is Outcome.FAIL
        return Kept(broken, {})

    evidence = storm()
    found = minimise(evidence, other, Need(1, 1), tmp_path, lambda _: None, 100)
    assert not found.reproduced
    assert not ends_the_same(judge(evidence), judge(other(evidence.scenario, evidence.plan).evidence))


def test_only_a_fail_can_be_made_smaller(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the trial ended as PASS, and only a FAIL can be made smaller"):
        run(Load().build(), by_one, tmp_path)


def test_a_plan_whose_holds_are_others_is_refused() -> None:
    placed = Placed(at="call-in", role=Role.SIBLING)
    scenario = Scenario(mechanism="nmi-self", topology=SHAPE, nmis=0, placed=(placed,))
    plan = draw_plan(scenario, 1)
    evidence = msgspec.structs.replace(storm(), scenario=scenario, plan=plan)
    assert make_case(evidence).plan == plan
    foreign = change(evidence, "plan.holds.0.vcpu", 3)
    with pytest.raises(UsageError, match="are not those of its scenario"):
        make_case(foreign)


@pytest.mark.parametrize(
    "text", ["", "3", "3/", "/3", "4/3", "0/3", "1/101", "1/1/1", "-1/3", "a/b", "9" * 5000 + "/1"]
)
def test_a_need_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not K/N with 1 <= K <= N <= 100, such as 3/3"):
        Need.parse(text)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(mechanism="nmi-self"),
        Scenario(
            mechanism="upstream",
            topology=Topology(2, 1, 2),
            aim=Aim.PRIMARY,
            nmis=0,
            stretch_per_core_us=(1, 2),
            siblings=Siblings.RETURNING,
            fsgsbase=False,
            parking=Parking.MWAIT,
            min_revision=True,
            placed=(
                Placed(at="window-open", role=Role.PRIMARY, core=1, nmi=Target.NONE, until=1, bound_us=5_000),
                Placed(at="wait_for_cpus+0x1f", role=Role.OFFLINE, phase=Phase.ARMED, arrival=2, nmi=Target.PRIMARY),
            ),
        ),
        Scenario(mechanism="stop-machine", nmis=1, phase=Phase.WINDOW, role=Role.SIBLING, stretch_us=(5, 5)),
    ],
    ids=["default", "all", "phase"],
)
def test_a_scenario_is_written_as_it_is_read(scenario: Scenario) -> None:
    evidence = msgspec.structs.replace(storm(), scenario=scenario, plan=draw_plan(scenario, 1))
    case = msgspec.structs.replace(make_case(evidence), scenario=scenario, timed=())
    text = format_scenario(case.scenario, 'a "summary"')
    found = parse_scenario(text, "minimal.toml", "minimal")
    assert (found.scenario, found.summary) == (scenario, 'a "summary"')


def test_a_replay_keeps_each_trial_and_counts_those_that_end_the_same_way(tmp_path: Path) -> None:
    evidence = storm()
    turns = iter([True, False, True])
    run_trial = made_up(lambda *_: next(turns))
    replayed = replay(evidence, judge(evidence), run_trial, 3, tmp_path, lambda _: None)
    assert [each.same for each in replayed.tries] == [True, False, True]
    assert (replayed.same, replayed.silent, replayed.exit_status) == (2, (), 1)
    assert [read_evidence(tmp_path / each.evidence).plan for each in replayed.tries] == [evidence.plan] * 3


@pytest.mark.parametrize(
    ("outcomes", "status", "silent"),
    [
        (("FAIL", "FAIL"), 0, 0),
        (("FAIL", "INVALID"), 3, 1),
        (("FAIL", "INVALID", "ERROR"), 4, 2),
        (("FAIL", "INVALID", "PASS"), 1, 1),
        (("INVALID", "INVALID"), 3, 2),
        ((), 1, 0),
    ],
)
def test_a_repetition_that_shows_nothing_is_neither_the_same_nor_another(
    outcomes: tuple[str, ...], status: int, silent: int
) -> None:
    tries = tuple(
        Again(same=name == "FAIL", outcome=Outcome[name], accused=(), reason="", evidence=str(number))
        for number, name in enumerate(outcomes)
    )
    replayed = Replayed(outcome=Outcome.FAIL, accused=("quiet",), tries=tries)
    assert (replayed.exit_status, len(replayed.silent)) == (status, silent)
