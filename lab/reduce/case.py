# SPDX-License-Identifier: GPL-2.0-or-later
"""A failing trial that becomes smaller: the changes that drop a part, one at a time. Pure.

A case has a scenario, and the NMIs that still come at a drawn time. The scenario lists all its holds as placed NMIs. If
a case has no drawn NMI, its scenario file alone describes the case.
"""

from collections.abc import Iterator

import msgspec

from lab.errors import UsageError
from lab.model.evidence import Evidence
from lab.model.phase import Phase, Role
from lab.model.placed import Placed, to_hold
from lab.model.plan import Injection, Plan, draw_plan
from lab.model.scenario import Parking, Scenario, Siblings
from lab.model.scenario_text import format_value
from lab.model.topology import Topology

#: Window lengths that a smaller case may have, shortest first. The observer extends a window until an NMI that was sent
#: in the window is handled.
STRETCHES_US = (1_000, 5_000, 20_000)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One trial to try.

    :param scenario: ``nmis`` is the number of ``timed``, unless the scenario draws its NMIs in a phase
    :param timed: the NMIs without a hold
    """

    scenario: Scenario
    seed: int
    timed: tuple[Injection, ...] = ()

    @property
    def plan(self) -> Plan:
        """The injections and holds of the case."""
        if self.scenario.phase is not None:
            return draw_plan(self.scenario, self.seed)
        plan = draw_plan(msgspec.structs.replace(self.scenario, nmis=0), self.seed)
        return msgspec.structs.replace(plan, injections=(*self.timed, *plan.injections))

    @property
    def whole(self) -> bool:
        """Whether the scenario alone describes the whole case, with any seed."""
        return not self.timed


def make_case(evidence: Evidence) -> Case:
    """Return the case of a kept trial.

    :raise UsageError: the plan's holds differ from the holds of its scenario
    """
    scenario, plan = evidence.scenario, evidence.plan
    placed = scenario.all_placed
    # A guest's first load of a kind has no NMIs. If this load fails by itself, its trial's evidence has no holds.
    if plan.holds and plan.holds != tuple(to_hold(each, scenario.topology) for each in placed):
        raise UsageError("the holds of the trial's plan are not those of its scenario: it cannot be made smaller")
    timed = tuple(each for each in plan.injections if each.hold < 0)
    changed = msgspec.structs.replace(
        scenario,
        placed=placed if plan.holds else (),
        phase=None,
        role=None,
        nmis=len(timed),
        stretch_per_core_us=plan.stretch_us,
        stretch_us=Scenario(mechanism=scenario.mechanism).stretch_us,
        far_apart=False,
    )
    return Case(scenario=changed, seed=plan.seed, timed=timed)


def keep_timed(case: Case, timed: tuple[Injection, ...]) -> Case:
    """Return the case with only these of its drawn NMIs."""
    scenario = msgspec.structs.replace(case.scenario, nmis=len(timed))
    return msgspec.structs.replace(case, scenario=scenario, timed=timed)


def keep_placed(case: Case, kept: tuple[int, ...]) -> Case:
    """Return the case with only these of its placed NMIs, by number.

    A placed NMI that waits for a dropped NMI waits for none.
    """
    number = {old: new for new, old in enumerate(kept)}
    placed = tuple(
        msgspec.structs.replace(case.scenario.placed[old], until=number.get(case.scenario.placed[old].until, -1))
        for old in kept
    )
    return msgspec.structs.replace(case, scenario=msgspec.structs.replace(case.scenario, placed=placed))


def turn_into_place(case: Case, timed: Injection, placed: Placed) -> Case:
    """Return the case with a place instead of a drawn NMI."""
    scenario = msgspec.structs.replace(case.scenario, placed=(*case.scenario.placed, placed))
    rest = tuple(each for each in case.timed if each is not timed)
    return keep_timed(msgspec.structs.replace(case, scenario=scenario), rest)


def turn_into_phase(case: Case, phase: Phase, role: Role) -> Case:
    """Return the case with one NMI in a phase instead of its last drawn NMI."""
    scenario = msgspec.structs.replace(case.scenario, phase=phase, role=role, nmis=1)
    return msgspec.structs.replace(case, scenario=scenario, timed=())


def with_fewer_cores(case: Case) -> Iterator[Case]:
    """Yield the case on one core, once for each core; cores with more NMIs of the case come first."""
    scenario = case.scenario
    topology = scenario.topology
    if topology.total_cores == 1:
        return
    about = [each.core for each in scenario.placed] + [
        topology.core_of(each.vcpu) for each in case.timed if each.vcpu >= 0
    ]
    for core in sorted(range(topology.total_cores), key=lambda each: (-about.count(each), each)):
        yield _on_core(case, core)


def _on_core(case: Case, core: int) -> Case:
    scenario, topology = case.scenario, case.scenario.topology
    kept = tuple(
        number
        for number, each in enumerate(scenario.placed)
        if each.core == core and each.role is not Role.OTHER and each.nmi.value != Role.OTHER.value
    )
    smaller = keep_placed(case, kept)
    timed = tuple(
        msgspec.structs.replace(
            each, vcpu=each.vcpu if each.vcpu < 0 else topology.threads_of(core).index(each.vcpu), core=0
        )
        for each in case.timed
        if each.vcpu < 0 or topology.core_of(each.vcpu) == core
    )
    changed = msgspec.structs.replace(
        smaller.scenario,
        topology=Topology(1, 1, topology.threads),
        placed=tuple(msgspec.structs.replace(each, core=0) for each in smaller.scenario.placed),
        stretch_per_core_us=scenario.stretch_per_core_us[core : core + 1],
    )
    return keep_timed(msgspec.structs.replace(smaller, scenario=changed), timed)


def with_plain_axes(case: Case) -> Iterator[Case]:
    """Yield the case with one axis of its scenario at its default."""
    plain: tuple[dict[str, object], ...] = (
        {"siblings": Siblings.ONLINE},
        {"fsgsbase": True},
        {"parking": Parking.HLT},
        {"min_revision": False},
    )
    for changes in plain:
        if any(getattr(case.scenario, name) != value for name, value in changes.items()):
            scenario = msgspec.structs.replace(case.scenario, **changes)
            roles = [
                msgspec.structs.replace(each, role=Role.SIBLING)
                if each.role is Role.OFFLINE and not scenario.offline_threads
                else each
                for each in scenario.placed
            ]
            yield msgspec.structs.replace(case, scenario=msgspec.structs.replace(scenario, placed=tuple(roles)))


def with_shorter_stretch(case: Case) -> Iterator[Case]:
    """Yield the case with all windows at a length of STRETCHES_US, the shortest first."""
    now_us = case.scenario.stretch_per_core_us
    for us in STRETCHES_US:
        if us < max(now_us):
            scenario = msgspec.structs.replace(case.scenario, stretch_per_core_us=(us,) * len(now_us))
            yield msgspec.structs.replace(case, scenario=scenario)


def list_changes(before: Case, after: Case) -> tuple[str, ...]:
    """Return what was dropped: one line for each difference, with the old and the new value."""
    lines = []
    sent = [_count(each) for each in (before, after)]
    if sent[0] != sent[1]:
        lines.append(f"NMIs: {sent[0]} -> {sent[1]}")
    names = ("topology", "stretch_per_core_us", "siblings", "fsgsbase", "parking", "min_revision")
    for name in names:
        old, new = getattr(before.scenario, name), getattr(after.scenario, name)
        if old != new:
            lines.append(f"{name}: {format_value(old)} -> {format_value(new)}")
    return tuple(lines)


def _count(case: Case) -> str:
    if case.scenario.phase is not None:
        role = f" for the {case.scenario.role.value}" if case.scenario.role else ""
        return f"{case.scenario.nmis} in phase {case.scenario.phase.value}{role}"
    parts = [f"{len(case.timed)} at drawn times"] if case.timed else []
    if case.scenario.placed:
        places = ", ".join(
            f"{each.at}" + (f" in {each.phase.value}" if each.phase else "") + f" ({each.role.value})"
            for each in case.scenario.placed
        )
        parts.append(f"{len(case.scenario.placed)} at {places}")
    return " and ".join(parts) or "none"
