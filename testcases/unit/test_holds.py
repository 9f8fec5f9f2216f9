# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds and placed NMIs as values: what is refused, in which words, and what a plan makes of what is allowed."""

from typing import Any

import msgspec
import pytest

from lab.errors import UsageError
from lab.model.hold import LANDMARKS, MAX_ARRIVAL, MAX_HELD_US, MAX_HOLDS, Hold, check_holds, check_place
from lab.model.phase import PHASES, Phase, Role
from lab.model.placed import UNPINNED, Placed, Target, find_thread
from lab.model.plan import Injection, draw_plan
from lab.model.scenario import MAX_STRETCH_US, Aim, Scenario, Siblings
from lab.model.topology import Topology

ONE_CORE = Topology(1, 1, 2)
TWO_CORES = Topology(1, 2, 2)


def hold(at: str = "call-in", **fields: Any) -> Hold:
    return Hold(at=at, vcpu=0, bound_us=1_000, **fields)


@pytest.mark.parametrize(
    "at", [*LANDMARKS, "asm_exc_nmi", "f.isra.0", "_f9+0x0", "f+0xdeadbeef", "0x0", "0x" + "f" * 16]
)
def test_places_have_one_of_three_forms(at: str) -> None:
    check_place(at)


@pytest.mark.parametrize(
    "at", ["", "window-opne", "f+10", "f+0x", "f-0x1", "f+0x123456789", "9f", "0X1", "0x", "0x" + "f" * 17, "f g"]
)
def test_any_other_is_refused_with_the_names_of_landmarks(at: str) -> None:
    with pytest.raises(UsageError, match=r"neither a landmark.*window-open.*nor function"):
        check_place(at)


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        ((hold(),) * (MAX_HOLDS + 1), "17 holds are too many: allowed are 16"),
        ((hold(arrival=0),), r"hold 0: arrival is 0: allowed is 1 to"),
        ((hold(), hold(arrival=MAX_ARRIVAL + 1)), r"hold 1: arrival is 4294967296"),
        ((Hold(at="call-in", vcpu=0, bound_us=0),), "hold 0: bound is 0 us: allowed is 1 to"),
        ((Hold(at="call-in", vcpu=0, bound_us=MAX_HELD_US + 1),), f"hold 0: bound is {MAX_HELD_US + 1} us"),
        ((Hold(at="call-in", vcpu=0, bound_us=300_000),) * 2, "add up to 600000 us: allowed is 500000 us"),
        ((hold(until=0),), "hold 0: until is 0"),
        ((hold(until=1),), "hold 0: until is 1"),
        ((hold(until=-2),), "hold 0: until is -2"),
        ((hold(until=1), hold(until=0)), "hold 0 waits for itself to be over, by way of hold 1"),
        ((hold(until=1), hold(until=2), hold(until=1)), "waits for itself"),
        ((hold(phase=Phase.BEFORE),), "hold 0: phase is before: allowed is gather to release"),
        ((hold(phase=Phase.AFTER),), "hold 0: phase is after"),
        ((hold(early=True),), "hold 0: early is true: without a phase"),
        ((hold("nowhere at all"),), "place 'nowhere at all' is neither"),
    ],
)
def test_what_the_observer_or_a_kernel_would_not_survive_is_refused(holds: tuple[Hold, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_holds(holds)


def test_what_they_do_survive_is_not() -> None:
    check_holds(())
    check_holds(tuple(hold(until=index + 1 if index + 1 < MAX_HOLDS else -1) for index in range(MAX_HOLDS)))
    check_holds((hold("load-end", phase=Phase.AFTER), hold(arrival=MAX_ARRIVAL)))
    check_holds((Hold(at="call-in", vcpu=0, bound_us=MAX_HELD_US),))


def test_roles_are_seen_from_one_core() -> None:
    found = [[find_thread(TWO_CORES, role, core) for role in Role] for core in (0, 1)]
    assert found == [[0, 1, 1, 2], [2, 3, 3, 0]]
    for core in (-1, 2, 2**70):
        with pytest.raises(UsageError, match=rf"core is {core}: topology 1x2x2 has 0 to 1"):
            find_thread(TWO_CORES, Role.PRIMARY, core)
    with pytest.raises(UsageError, match="role is other: topology 1x1x2 has one core"):
        find_thread(ONE_CORE, Role.OTHER, 0)


def check(**fields: Any) -> None:
    Scenario(**{"mechanism": "nmi-self", "topology": ONE_CORE, **fields}).check()


def at_call_in(**fields: Any) -> dict[str, tuple[Placed, ...]]:
    return {"placed": (Placed(**{"at": "call-in", "role": Role.PRIMARY, **fields}),)}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"role": Role.SIBLING}, "role is sibling: it goes with a phase only"),
        ({"phase": Phase.WINDOW, "aim": Aim.SIBLING}, "aim is sibling: with a phase the role says"),
        ({"phase": Phase.WINDOW, "role": Role.OFFLINE}, "role is offline: siblings are online"),
        (
            {"phase": Phase.WINDOW, "role": Role.SIBLING, "siblings": Siblings.OFFLINE},
            "role is sibling: siblings are off",
        ),
        ({"phase": Phase.WINDOW, "role": Role.OTHER}, "role is other: topology 1x1x2 has one core"),
        ({"phase": Phase.ARMED, "role": Role.OTHER}, "role is other: topology 1x1x2 has one core"),
        ({"phase": Phase.GATHER, "mechanism": "uniform"}, "phase is gather: mechanism 'uniform' has no rendezvous"),
        ({"phase": Phase.ARMED, "mechanism": "uniform"}, "phase is armed: mechanism 'uniform' has no rendezvous"),
        ({"phase": Phase.RELEASE, "mechanism": "uniform"}, "phase is release: mechanism 'uniform' has no rendezvous"),
        ({"phase": Phase.ARMED, "siblings": Siblings.OFFLINE}, "phase is armed: mechanism 'nmi-self' leaves soft-off"),
        (
            {"phase": Phase.GATHER, "siblings": Siblings.OFFLINE},
            "phase is gather: mechanism 'nmi-self' leaves soft-off",
        ),
        (
            {"phase": Phase.RELEASE, "siblings": Siblings.RETURNING},
            "phase is release: mechanism 'nmi-self' leaves soft",
        ),
        ({"phase": Phase.WINDOW, "role": Role.SIBLING, "mechanism": "init-sipi"}, "not with mechanism 'init-sipi'"),
        (at_call_in(role=Role.OFFLINE), "role is offline: siblings are online"),
        (at_call_in(role=Role.SIBLING) | {"siblings": Siblings.OFFLINE}, "role is sibling: siblings are offline"),
        (at_call_in(role=Role.OTHER), "role is other: topology 1x1x2 has one core"),
        (at_call_in(nmi=Target.OTHER), "role is other: topology 1x1x2 has one core"),
        (at_call_in(core=1), "core is 1: topology 1x1x2 has 0 to 0"),
        (at_call_in(arrival=0), "hold 0: arrival is 0"),
        (at_call_in(until=0), "hold 0: until is 0"),
        (at_call_in(phase=Phase.BEFORE), "hold 0: phase is before"),
        (at_call_in(role=Role.SIBLING) | {"mechanism": "init-sipi"}, "an NMI is for a sibling: not with mechanism"),
        (at_call_in() | {"stretch_per_core_us": (MAX_STRETCH_US,)}, "add up to 900000 us: allowed is 800000"),
        (at_call_in() | {"stretch_us": (0, 750_000)}, "add up to 850000 us: allowed is 800000"),
        ({"phase": Phase.ARMED, "stretch_us": (0, 750_000)}, "add up to 850000 us: allowed is 800000"),
    ],
)
def test_a_scenario_that_cannot_be_run_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        *({"phase": phase, "role": role} for phase in PHASES for role in (None, Role.PRIMARY, Role.SIBLING)),
        *({"phase": phase, "role": Role.OTHER, "topology": TWO_CORES} for phase in PHASES),
        *(
            {"phase": phase, "role": Role.OFFLINE, "siblings": Siblings.OFFLINE, "mechanism": "upstream"}
            for phase in PHASES
        ),
        {"phase": Phase.GATHER, "role": Role.PRIMARY, "siblings": Siblings.OFFLINE},
        {"phase": Phase.CLOSING, "mechanism": "uniform"},
        {"phase": Phase.ARMED, "topology": Topology(2, 8, 2)},
        at_call_in(role=Role.SIBLING, nmi=Target.NONE) | {"mechanism": "init-sipi"},
    ],
)
def test_one_that_can_be_is_not(fields: dict[str, Any]) -> None:
    check(**fields)
    draw_plan(Scenario(**{"mechanism": "nmi-self", "topology": ONE_CORE, **fields}), 1)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("role", "vcpus"), [(Role.PRIMARY, (0, 2)), (Role.SIBLING, (1, 3)), (Role.OTHER, (2, 0)), (None, (-1, -1))]
)
def test_a_phase_plan_is_for_the_role_of_each_core(phase: Phase, role: Role | None, vcpus: tuple[int, int]) -> None:
    scenario = Scenario(mechanism="nmi-self", topology=TWO_CORES, phase=phase, role=role, nmis=50)
    plan = draw_plan(scenario, 3)

    assert {(each.core, each.vcpu) for each in plan.injections} == set(enumerate(vcpus))
    assert {each.phase for each in plan.injections} == {phase}
    if phase in UNPINNED:
        assert (len(plan.injections), plan.holds) == (50, ())
        assert [each.at_ppm for each in plan.injections] == sorted(each.at_ppm for each in plan.injections)
    else:
        assert [each.hold for each in plan.injections] == [0, 1]
        assert len(plan.holds) == 2
    assert plan == draw_plan(scenario, 3)


def test_the_pins_of_phases_are_at_a_landmark_that_does_not_end_before_the_nmi_is_there() -> None:
    pins = {
        (phase, role): [(hold.at, hold.vcpu) for hold in draw_plan(_for(phase, role), 1).holds]
        for phase in PHASES
        if phase not in UNPINNED
        for role in (Role.PRIMARY, Role.SIBLING)
    }
    assert pins == {
        (Phase.GATHER, Role.PRIMARY): [("call-in", 0)],
        (Phase.GATHER, Role.SIBLING): [("call-in", 1)],
        **{(Phase.ARMED, role): [("window-open", 0)] for role in (Role.PRIMARY, Role.SIBLING)},
        **{(Phase.CLOSING, role): [("window-close", 0)] for role in (Role.PRIMARY, Role.SIBLING)},
        **{(Phase.RELEASE, role): [("release", 1)] for role in (Role.PRIMARY, Role.SIBLING)},
    }


def _for(phase: Phase, role: Role) -> Scenario:
    return Scenario(mechanism="nmi-self", topology=ONE_CORE, phase=phase, role=role)


@pytest.mark.parametrize(
    ("target", "aim", "vcpu"),
    [
        (Target.HELD, Aim.SIBLING, 3),
        (Target.PRIMARY, Aim.PRIMARY, 2),
        (Target.SIBLING, Aim.SIBLING, 3),
        (Target.OTHER, Aim.PRIMARY, 0),
        (Target.BROADCAST, Aim.BROADCAST, -1),
    ],
)
def test_a_placed_nmi_follows_the_random_ones(target: Target, aim: Aim, vcpu: int) -> None:
    placed = Placed(at="call-in", role=Role.SIBLING, core=1, nmi=target, phase=Phase.GATHER)
    plan = draw_plan(Scenario(mechanism="nmi-self", topology=TWO_CORES, nmis=2, placed=(placed,)), 1)

    assert plan.injections[2:] == (Injection(at_ppm=0, aim=aim, vcpu=vcpu, hold=0, core=1),)
    assert [(each.at, each.vcpu, each.phase) for each in plan.holds] == [("call-in", 3, Phase.GATHER)]


def test_a_hold_alone_sends_nothing() -> None:
    placed = Placed(at="call-in", role=Role.PRIMARY, nmi=Target.NONE)
    scenario = Scenario(mechanism="nmi-self", nmis=0, placed=(placed,))
    plan = draw_plan(scenario, 1)

    assert (plan.injections, len(plan.holds), scenario.sends_nmis) == ((), 1, False)
    assert msgspec.structs.replace(scenario, nmis=1).sends_nmis
    aimed = msgspec.structs.replace(placed, nmi=Target.HELD)
    assert msgspec.structs.replace(scenario, placed=(aimed,)).sends_nmis
