# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes plans. A plan says when the lab injects what. The same seed and scenario give the same plan, byte for byte."""

import random

import msgspec

from lab.errors import UsageError
from lab.model.hold import Hold
from lab.model.phase import Phase, Role
from lab.model.placed import UNPINNED, Placed, Target, find_thread, to_hold
from lab.model.scenario import FAR_APART_US, Aim, Scenario

MAX_SEED = 2**64 - 1

#: Injection times of a plan are parts per million of the load's span. Only the running guest knows the span.
PPM = 1_000_000


class Injection(msgspec.Struct, frozen=True):
    """One NMI to send.

    :param at_ppm: the time, in parts per million of the span that begins at the load's begin
    :param aim: how the lab sends the NMI
    :param vcpu: the receiver, or -1 for all vCPUs
    :param hold: index of the plan's hold during which the lab sends the NMI; ``at_ppm`` then has no effect; -1 for none
    :param phase: the phase of ``core`` in which the NMI must be sent, None for any phase; without a hold, ``before`` is
        before the load command, ``after`` is behind the load's end, and in ``window`` the span of ``at_ppm`` is the
        core's window
    :param core: the core whose phase counts
    """

    at_ppm: int
    aim: Aim
    vcpu: int
    hold: int = -1
    phase: Phase | None = None
    core: int = 0


class Plan(msgspec.Struct, frozen=True):
    """What one trial injects, and how long the observer extends each core's window.

    :param stretch_us: per core, in microseconds
    :param injections: drawn NMIs in order of time, then the NMIs of holds
    :param holds: the holds of the trial
    :param first_load: the plan is for the first load of its kind in a guest; this load has no NMIs, with any seed
    """

    seed: int
    stretch_us: tuple[int, ...]
    injections: tuple[Injection, ...]
    holds: tuple[Hold, ...] = ()
    first_load: bool = False


def draw_plan(scenario: Scenario, seed: int) -> Plan:
    """Draw a plan.

    The code calls only ``random()`` of ``random.Random``. Python promises to keep the sequence of this one method for a
    given seed over its versions.

    :raise UsageError: the seed is out of its range
    """
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed}: allowed is 0 to {MAX_SEED}")
    source = random.Random(seed)
    topology = scenario.topology
    stretch_us = scenario.stretch_per_core_us or _draw_stretch(scenario, source)
    injections = []
    for at_ppm in sorted(int(source.random() * PPM) for _ in range(scenario.random_nmis)):
        core = int(source.random() * topology.total_cores)
        sibling = topology.siblings_of(core)[int(source.random() * (topology.threads - 1))]
        vcpu = {Aim.BROADCAST: -1, Aim.SIBLING: sibling, Aim.PRIMARY: topology.primary_of(core)}[scenario.aim]
        injections.append(Injection(at_ppm=at_ppm, aim=scenario.aim, vcpu=vcpu))
    if scenario.phase in UNPINNED:
        injections += _draw_phase(scenario, scenario.phase, source)
    placed = scenario.all_placed
    injections += [inject for index, each in enumerate(placed) if (inject := _place(scenario, each, index)) is not None]
    return Plan(
        seed=seed,
        stretch_us=stretch_us,
        injections=tuple(injections),
        holds=tuple(to_hold(each, topology) for each in placed),
    )


def _draw_phase(scenario: Scenario, phase: Phase, source: random.Random) -> list[Injection]:
    """Draw the scenario's number of NMIs, in a phase that needs no hold."""
    injections = []
    for at_ppm in sorted(int(source.random() * PPM) for _ in range(scenario.nmis)):
        core = int(source.random() * scenario.topology.total_cores)
        aim, vcpu = _find_target(scenario, core)
        injections.append(Injection(at_ppm=at_ppm, aim=aim, vcpu=vcpu, phase=phase, core=core))
    return injections


def _find_target(scenario: Scenario, core: int) -> tuple[Aim, int]:
    if scenario.role is None:
        return Aim.BROADCAST, -1
    vcpu = find_thread(scenario.topology, scenario.role, core)
    return (Aim.SIBLING if scenario.role in (Role.SIBLING, Role.OFFLINE) else Aim.PRIMARY), vcpu


def _place(scenario: Scenario, placed: Placed, index: int) -> Injection | None:
    topology = scenario.topology
    match placed.nmi:
        case Target.NONE:
            return None
        case Target.BROADCAST:
            aim, vcpu = Aim.BROADCAST, -1
        case Target.PRIMARY:
            aim, vcpu = Aim.PRIMARY, topology.primary_of(placed.core)
        case Target.SIBLING:
            aim, vcpu = Aim.SIBLING, topology.siblings_of(placed.core)[0]
        case Target.HELD:
            vcpu = find_thread(topology, placed.role, placed.core)
            aim = Aim.SIBLING if vcpu in topology.siblings else Aim.PRIMARY
        case Target.OTHER:
            aim, vcpu = Aim.PRIMARY, find_thread(topology, Role.OTHER, placed.core)
    # A thread that stops in a phase may stay there while its core goes on. The hold proves that the thread came there.
    phase = scenario.phase if index >= len(scenario.placed) else None
    return Injection(at_ppm=0, aim=aim, vcpu=vcpu, hold=index, phase=phase, core=placed.core)


def _draw_stretch(scenario: Scenario, source: random.Random) -> tuple[int, ...]:
    cores = range(scenario.topology.total_cores)
    if scenario.far_apart:
        drawn = [int(source.random() * 2) for _ in cores]
        # The scenario needs at least one core that differs from another core.
        odd = int(source.random() * len(drawn))
        if len(set(drawn)) == 1:
            drawn[odd] = 1 - drawn[odd]
        return tuple(FAR_APART_US[each] for each in drawn)
    low_us, high_us = scenario.stretch_us
    return tuple(low_us + int(source.random() * (high_us - low_us + 1)) for _ in cores)


def derive_seed(campaign_seed: int, stream: str, index: int) -> int:
    """Return the seed of one trial of a campaign. With this seed a user can run any trial alone.

    :param stream: the name of this series of trials; other series under the same campaign seed have other names
    """
    return int(random.Random(f"{campaign_seed}/{stream}/{index}").random() * 2**53)
