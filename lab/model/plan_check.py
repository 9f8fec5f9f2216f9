# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks whether a plan that the lab read can run with its scenario."""

from lab.errors import UsageError
from lab.mechanisms.table import find_mechanism
from lab.model.hold import MAX_HOLDS, Hold, check_holds
from lab.model.placed import UNPINNED
from lab.model.plan import MAX_SEED, PPM, Injection, Plan
from lab.model.scenario import MAX_NMIS, MAX_STRETCH_US, Aim, Scenario


def check_plan(plan: Plan, scenario: Scenario) -> None:
    """Check a foreign plan against the plans that the lab itself draws.

    :raise UsageError: the plan cannot run; the text names the part
    """
    topology = scenario.topology
    if not 0 <= plan.seed <= MAX_SEED:
        raise UsageError(f"the plan's seed is {plan.seed}: allowed is 0 to {MAX_SEED}")
    if len(plan.stretch_us) != topology.total_cores:
        raise UsageError(
            f"the plan has a stretch for {len(plan.stretch_us)} cores: topology {topology} has {topology.total_cores}"
        )
    for value_us in plan.stretch_us:
        if not 0 <= value_us <= MAX_STRETCH_US:
            raise UsageError(f"the plan has a stretch of {value_us} us: allowed is 0 to {MAX_STRETCH_US} us")
    if len(plan.injections) > MAX_NMIS + MAX_HOLDS:
        raise UsageError(f"the plan has {len(plan.injections)} NMIs: allowed are {MAX_NMIS + MAX_HOLDS}")
    check_holds(plan.holds)
    for number, hold in enumerate(plan.holds):
        _check_hold(number, hold, topology.vcpus)
    for number, injection in enumerate(plan.injections):
        _check_injection(number, injection, plan, scenario)


def _check_hold(number: int, hold: Hold, vcpus: int) -> None:
    if not 0 <= hold.vcpu < vcpus:
        raise UsageError(f"hold {number} of the plan is of vCPU {hold.vcpu}: allowed is 0 to {vcpus - 1}")


def _check_injection(number: int, injection: Injection, plan: Plan, scenario: Scenario) -> None:
    topology, mechanism = scenario.topology, find_mechanism(scenario.mechanism)
    what = f"NMI {number} of the plan"
    if not 0 <= injection.at_ppm < PPM:
        raise UsageError(f"{what} is at {injection.at_ppm} ppm: allowed is 0 to {PPM - 1}")
    if not -1 <= injection.vcpu < topology.vcpus or (injection.vcpu == -1) is not (injection.aim is Aim.BROADCAST):
        raise UsageError(f"{what} has aim {injection.aim.value} and vCPU {injection.vcpu}, which do not go together")
    if mechanism.unaimable and injection.vcpu in topology.siblings:
        raise UsageError(f"{what} is for a sibling: not with mechanism '{mechanism.name}', {mechanism.unaimable}")
    if not -1 <= injection.hold < len(plan.holds):
        raise UsageError(f"{what} is of hold {injection.hold}: the plan has {len(plan.holds)}")
    if not 0 <= injection.core < topology.total_cores:
        raise UsageError(f"{what} is of core {injection.core}: topology {topology} has {topology.total_cores}")
    if injection.hold < 0 and injection.phase not in (None, *UNPINNED):
        raise UsageError(f"{what} is for {injection.phase.value if injection.phase else ''}, which needs a hold")
