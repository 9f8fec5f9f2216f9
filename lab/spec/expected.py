# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mechanism must show in one scenario: a sound one is not sound everywhere, nor a control broken everywhere."""

import msgspec

from lab.spec.mechanism import Expectation, Threads
from lab.spec.mechanisms import find_mechanism
from lab.spec.scenario import Aim, Scenario

ALL_WAITING = "all-waiting-before-update"
QUIET = "quiet"
NO_NMI_ENTRY = "no-nmi-entry-in-window"
RELEASED = "released-after-update"


#: How much later than asked another core's window may end: the oracle holds it up to 150 ms for its siblings to show
#: themselves, and it may open later.
MAX_LATE_US = 200_000


class Expected(msgspec.Struct, frozen=True):
    """What a run must show for the lab itself to be trusted.

    :param caught_by: of what must be caught: the invariants of which one must be seen broken
    :param why: what explains it, in a few words; empty where it is the mechanism's own expectation
    """

    kind: Expectation
    caught_by: tuple[str, ...] = (QUIET,)
    why: str = ""


def expect(scenario: Scenario) -> Expected:
    """Return what is expected of a scenario's mechanism in it. Each exception here was found by the lab itself."""
    mechanism = find_mechanism(scenario.mechanism)
    marks = mechanism.landmarks
    if scenario.offline_threads and not marks.offline_call_in and not mechanism.stalled:
        return Expected(Expectation.CAUGHT, (ALL_WAITING,), "it leaves soft-offlined siblings alone")
    if scenario.offline_threads and marks.ipi_nmi_to is Threads.OFFLINE and _ends_before_another_core(scenario):
        why = "CPU 0 lets all offline siblings go when its own core is done (release_offline_cpus())"
        # With short windows the last one may not even have opened by then.
        return Expected(Expectation.CAUGHT, (RELEASED, QUIET, ALL_WAITING), why)
    if mechanism.expectation is Expectation.CAUGHT and not scenario.nmis:
        return Expected(Expectation.CLEAN, why="without NMIs nothing takes a sibling out of its wait")
    if mechanism.expectation is Expectation.CAUGHT and scenario.aim is Aim.PRIMARY:
        return Expected(Expectation.CLEAN, why="NMIs to primaries alone take no sibling out of its wait")
    if marks.lint1_masked_by is Threads.SIBLINGS and scenario.aim is Aim.SIBLING and scenario.nmis:
        why = "an NMI sent straight to a CPU gets past its masked local vector table"
        return Expected(Expectation.CAUGHT, (NO_NMI_ENTRY, QUIET), why)
    return Expected(mechanism.expectation)


def expect_still(scenario: Scenario) -> Expected:
    """Return what is expected of its mechanism where no NMI is sent and no window is held open for longer."""
    no_stretch = (0,) * scenario.topology.total_cores
    return expect(msgspec.structs.replace(scenario, nmis=0, far_apart=False, stretch_per_core_us=no_stretch))


def _ends_before_another_core(scenario: Scenario) -> bool:
    """Say whether the first core's window may end before another one's."""
    given = scenario.stretch_per_core_us
    return scenario.topology.total_cores > 1 and not (given and given[0] > max(given[1:]) + MAX_LATE_US)
