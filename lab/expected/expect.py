# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mechanism must show in one scenario.

A sound mechanism is not sound in every scenario, and a control is not broken in every scenario.
"""

import msgspec

from lab.mechanisms.mechanism import CONTROLS, Expectation, Threads
from lab.mechanisms.table import find_mechanism
from lab.model.phase import Phase, Role
from lab.model.placed import Target
from lab.model.scenario import Aim, Scenario

ALL_WAITING = "all-waiting-before-update"
QUIET = "quiet"
NO_NMI_ENTRY = "no-nmi-entry-in-window"
RELEASED = "released-after-update"


#: How much later than planned another core's window may end. The observer keeps the window open for up to 150 ms, until
#: its siblings show themselves. The window may also open late.
MAX_LATE_US = 200_000


#: An NMI that is sent in one of these phases may still be handled in the window.
_LEADING = (Phase.GATHER, Phase.ARMED, Phase.WINDOW)
_LASTS = "if it is still handled when the window opens"


class Expected(msgspec.Struct, frozen=True):
    """What a run must show before a reader can trust the lab.

    :param caught_by: of a control that must be caught: at least one of these invariants must be broken
    :param why: the explanation in a few words; empty where the mechanism's own expectation applies
    """

    kind: Expectation
    caught_by: tuple[str, ...] = (QUIET,)
    why: str = ""


def expect(scenario: Scenario) -> Expected:
    """Return what the lab expects of a scenario's mechanism. The lab itself found each exception here."""
    mechanism = find_mechanism(scenario.mechanism)
    marks = mechanism.landmarks
    if scenario.offline_threads and not marks.offline_call_in and not mechanism.stalled:
        return Expected(Expectation.CAUGHT, (ALL_WAITING,), "it leaves soft-offlined siblings alone")
    if scenario.offline_threads and marks.ipi_nmi_to is Threads.OFFLINE and _ends_before_another_core(scenario):
        why = "CPU 0 lets all offline siblings go when its own core is done (release_offline_cpus())"
        # With short windows the last window may not have opened by then.
        return Expected(Expectation.CAUGHT, (RELEASED, QUIET, ALL_WAITING), why)
    if mechanism.expectation is Expectation.CAUGHT:
        return _expect_control(scenario)
    hit = _siblings_hit(scenario, masked=True)
    if marks.lint1_masked_by is Threads.SIBLINGS and hit in CONTROLS:
        why = "an NMI sent straight to a CPU gets past its masked local vector table"
        return Expected(hit, (NO_NMI_ENTRY, QUIET), why if hit is Expectation.CAUGHT else f"{why}, {_LASTS}")
    return Expected(mechanism.expectation)


def _expect_control(scenario: Scenario) -> Expected:
    hit = _siblings_hit(scenario, masked=False)
    if hit is Expectation.EITHER:
        return Expected(hit, why=f"an NMI takes a sibling out of its wait, {_LASTS}")
    if hit is Expectation.CAUGHT:
        return Expected(hit)
    if not scenario.sends_nmis:
        return Expected(hit, why="without NMIs nothing takes a sibling out of its wait")
    if scenario.phase in (None, *_LEADING):
        return Expected(hit, why="NMIs to primaries alone take no sibling out of its wait")
    return Expected(hit, why=f"an NMI that is sent in {scenario.phase.value} is not handled in a window")


def _siblings_hit(scenario: Scenario, *, masked: bool) -> Expectation:
    """Return what the NMIs of a plan do to siblings without protection. CAUGHT takes the siblings out of their wait.

    :param masked: broadcasts do not reach the siblings
    """
    broadcast = not masked
    hits = set()
    if scenario.random_nmis and (scenario.aim is Aim.SIBLING or (broadcast and scenario.aim is Aim.BROADCAST)):
        hits.add(Expectation.CAUGHT)
    if scenario.phase in _LEADING and scenario.nmis:
        role = scenario.role
        if role in (Role.SIBLING, Role.OFFLINE) or (broadcast and role is None):
            hits.add(Expectation.CAUGHT if scenario.phase is Phase.WINDOW else Expectation.EITHER)
    for placed in scenario.placed:
        held = placed.nmi is Target.HELD and placed.role in (Role.SIBLING, Role.OFFLINE)
        if held or placed.nmi is Target.SIBLING or (broadcast and placed.nmi is Target.BROADCAST):
            hits.add(Expectation.EITHER)
    return next((kind for kind in CONTROLS if kind in hits), Expectation.CLEAN)


def expect_still(scenario: Scenario) -> Expected:
    """Return the expectation for a scenario without NMIs in which no window is extended."""
    no_stretch = (0,) * scenario.topology.total_cores
    still = msgspec.structs.replace(scenario, nmis=0, phase=None, role=None, placed=())
    return expect(msgspec.structs.replace(still, far_apart=False, stretch_per_core_us=no_stretch))


def _ends_before_another_core(scenario: Scenario) -> bool:
    """Say whether the first core's window may end before the window of another core."""
    given = scenario.stretch_per_core_us
    return scenario.topology.total_cores > 1 and not (given and given[0] > max(given[1:]) + MAX_LATE_US)
