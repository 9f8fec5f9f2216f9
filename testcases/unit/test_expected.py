# SPDX-License-Identifier: GPL-2.0-or-later
"""What is expected of a mechanism in a scenario, and that the judge's own words are used for what catches it."""

from typing import Any

import pytest

from lab.expected.expect import ALL_WAITING, NO_NMI_ENTRY, QUIET, RELEASED, expect, expect_still
from lab.host.paths import SCENARIOS
from lab.judge.judging import INVARIANTS
from lab.mechanisms.mechanism import Expectation
from lab.mechanisms.table import MECHANISMS
from lab.model.phase import PHASES, Phase, Role
from lab.model.placed import Placed, Target
from lab.model.scenario import Aim, Scenario, Siblings
from lab.model.scenario_file import parse_scenario
from lab.model.topology import Topology

CAUGHT, CLEAN = Expectation.CAUGHT, Expectation.CLEAN
ONE_CORE = Topology(1, 1, 2)
LET_GO = (RELEASED, QUIET, ALL_WAITING)

NAMES = [each.name for each in MECHANISMS]
CONTROLS = [each.name for each in MECHANISMS if each.expectation is CAUGHT]
#: Those that leave offline threads alone, and have no hardware that does not.
ALONE = [each.name for each in MECHANISMS if not each.landmarks.offline_call_in and not each.stalled]


def kind(name: str, **axes: Any) -> Expectation:
    return expect(Scenario(mechanism=name, **axes)).kind


@pytest.mark.parametrize("name", NAMES)
def test_in_the_default_scenario_it_is_the_mechanisms_own(name: str) -> None:
    mechanism = next(each for each in MECHANISMS if each.name == name)
    expected = expect(Scenario(mechanism=name))

    assert (expected.kind, expected.why) == (mechanism.expectation, "")
    assert expected.caught_by == (QUIET,)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("siblings", [Siblings.OFFLINE, Siblings.RETURNING])
@pytest.mark.parametrize("axes", [{}, {"nmis": 0}, {"aim": Aim.PRIMARY}, {"aim": Aim.SIBLING}, {"topology": ONE_CORE}])
def test_who_leaves_offline_siblings_alone_is_caught_whatever_is_sent(
    name: str, siblings: Siblings, axes: dict[str, Any]
) -> None:
    expected = expect(Scenario(mechanism=name, siblings=siblings, **axes))

    assert (expected.kind, expected.caught_by) == (CAUGHT, (ALL_WAITING,))
    assert expected.why


@pytest.mark.parametrize(
    ("axes", "caught_by"),
    [
        ({"topology": ONE_CORE}, ()),
        ({}, LET_GO),
        ({"nmis": 0}, LET_GO),
        ({"far_apart": True}, LET_GO),
        ({"stretch_per_core_us": (1_000, 50_000)}, LET_GO),
        ({"stretch_per_core_us": (50_000, 50_000)}, LET_GO),
        ({"stretch_per_core_us": (0, 0)}, LET_GO),
        # CPU 0's own core is the last to be done.
        ({"stretch_per_core_us": (50_000, 1_000)}, LET_GO),
        ({"stretch_per_core_us": (400_000, 1_000)}, ()),
        ({"stretch_per_core_us": (50_000, 1_000, 60_000, 1_000), "topology": Topology(2, 2, 2)}, LET_GO),
    ],
)
@pytest.mark.parametrize("siblings", [Siblings.OFFLINE, Siblings.RETURNING])
def test_mainline_lets_offline_siblings_go_with_its_first_core(
    axes: dict[str, Any], caught_by: tuple[str, ...], siblings: Siblings
) -> None:
    expected = expect(Scenario(mechanism="upstream", siblings=siblings, **axes))

    assert expected.kind is (CAUGHT if caught_by else CLEAN)
    assert not caught_by or expected.caught_by == caught_by
    assert kind("upstream", **axes) is CLEAN


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_needs_nmis_that_reach_its_siblings(name: str) -> None:
    """Eight loads of each control with NMIs aimed at primaries passed: the NMI is taken by who updates."""
    assert kind(name, aim=Aim.SIBLING) is CAUGHT
    assert kind(name, fsgsbase=False) is CAUGHT
    for axes in ({"nmis": 0}, {"aim": Aim.PRIMARY}, {"nmis": 0, "aim": Aim.SIBLING}):
        expected = expect(Scenario(mechanism=name, **axes))
        assert expected.kind is CLEAN
        assert expected.why


def test_an_nmi_sent_straight_to_a_parked_sibling_gets_past_its_masked_vectors() -> None:
    expected = expect(Scenario(mechanism="park-hlt", aim=Aim.SIBLING))

    assert (expected.kind, expected.caught_by) == (CAUGHT, (NO_NMI_ENTRY, QUIET))
    assert kind("park-hlt", aim=Aim.SIBLING, nmis=0) is CLEAN
    assert kind("park-hlt", aim=Aim.PRIMARY) is CLEAN
    assert kind("nmi-self", aim=Aim.SIBLING) is CLEAN


@pytest.mark.parametrize(
    ("name", "axes", "asked", "still"),
    [
        # CPU 0 is the last to be done where its window is held longest, and not where none is held.
        ("upstream", {"siblings": Siblings.OFFLINE, "stretch_per_core_us": (400_000, 1_000)}, CLEAN, CAUGHT),
        ("upstream", {"siblings": Siblings.OFFLINE, "far_apart": True}, CAUGHT, CAUGHT),
        ("upstream", {"siblings": Siblings.OFFLINE, "topology": ONE_CORE}, CLEAN, CLEAN),
        ("stop-machine", {"siblings": Siblings.OFFLINE}, CAUGHT, CAUGHT),
        ("stop-machine", {}, CAUGHT, CLEAN),
        ("park-hlt", {"aim": Aim.SIBLING}, CAUGHT, CLEAN),
        ("nmi-self", {}, CLEAN, CLEAN),
    ],
)
def test_a_load_without_plan_is_held_to_what_is_expected_of_it_alone(
    name: str, axes: dict[str, Any], asked: Expectation, still: Expectation
) -> None:
    scenario = Scenario(mechanism=name, **axes)

    assert (expect(scenario).kind, expect_still(scenario).kind) == (asked, still)


def test_what_catches_is_an_invariant_of_the_judges() -> None:
    files = [parse_scenario(path.read_text(), path.name, path.stem).scenario for path in SCENARIOS.glob("*.toml")]
    made = [
        Scenario(mechanism=name, siblings=siblings, aim=aim) for name in NAMES for siblings in Siblings for aim in Aim
    ]

    assert files
    for scenario in (*files, *made):
        assert set(expect(scenario).caught_by) <= set(INVARIANTS)
        assert expect(scenario).caught_by


EITHER = Expectation.EITHER
MASKED = ["park-hlt", "park-mwait"]
#: What 20 trials of each phase showed: an NMI is still handled when the window opens, or is not.
BEFORE_THE_WINDOW = (Phase.GATHER, Phase.ARMED)


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_control_shows_itself_where_an_nmi_is_handled_in_the_window(name: str, phase: Phase) -> None:
    hit = CAUGHT if phase is Phase.WINDOW else EITHER if phase in BEFORE_THE_WINDOW else CLEAN
    for role in (None, Role.SIBLING):
        expected = expect(Scenario(mechanism=name, phase=phase, role=role))
        assert (expected.kind, bool(expected.why), expected.caught_by) == (hit, hit is not CAUGHT, (QUIET,))
    for role in (Role.PRIMARY, Role.OTHER):
        assert kind(name, phase=phase, role=role) is CLEAN
    assert kind(name, phase=phase, nmis=0) is CLEAN


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("phase", PHASES)
def test_a_masked_sibling_is_reached_by_what_is_sent_straight_to_it(name: str, phase: Phase) -> None:
    hit = CAUGHT if phase is Phase.WINDOW else EITHER if phase in BEFORE_THE_WINDOW else CLEAN
    expected = expect(Scenario(mechanism=name, phase=phase, role=Role.SIBLING))
    assert expected.kind is hit
    assert ("gets past its masked" in expected.why, QUIET in expected.caught_by) == (hit is not CLEAN, True)
    for role in (None, Role.PRIMARY):
        assert kind(name, phase=phase, role=role) is CLEAN


@pytest.mark.parametrize("name", [each.name for each in MECHANISMS if each.expectation is CLEAN])
def test_a_sound_mechanism_is_sound_in_every_phase(name: str) -> None:
    if name not in MASKED:
        assert {kind(name, phase=phase) for phase in PHASES} == {CLEAN}


@pytest.mark.parametrize(
    ("placed", "hit", "masked"),
    [
        (Placed(at="release", role=Role.SIBLING), EITHER, EITHER),
        (Placed(at="release", role=Role.PRIMARY), CLEAN, CLEAN),
        (Placed(at="window-open", role=Role.PRIMARY, nmi=Target.SIBLING), EITHER, EITHER),
        (Placed(at="window-open", role=Role.PRIMARY, nmi=Target.BROADCAST), EITHER, CLEAN),
        (Placed(at="release", role=Role.SIBLING, nmi=Target.PRIMARY), CLEAN, CLEAN),
        (Placed(at="release", role=Role.SIBLING, nmi=Target.OTHER), CLEAN, CLEAN),
        (Placed(at="release", role=Role.SIBLING, nmi=Target.NONE), CLEAN, CLEAN),
    ],
)
def test_what_a_placed_nmi_shows_depends_on_the_place(placed: Placed, hit: Expectation, masked: Expectation) -> None:
    assert kind("stop-machine", nmis=0, placed=(placed,)) is hit
    assert kind("park-hlt", nmis=0, placed=(placed,)) is masked
    assert kind("nmi-self", nmis=0, placed=(placed,)) is CLEAN
    # Random ones beside it are what they are without it.
    assert kind("stop-machine", placed=(placed,)) is CAUGHT


def test_nothing_is_expected_of_a_control_that_is_left_alone() -> None:
    placed = (Placed(at="release", role=Role.SIBLING),)
    for axes in ({"phase": Phase.WINDOW, "role": Role.SIBLING}, {"placed": placed}):
        assert expect_still(Scenario(mechanism="stop-machine", **axes)).kind is CLEAN
