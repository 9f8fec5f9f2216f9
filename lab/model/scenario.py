# SPDX-License-Identifier: GPL-2.0-or-later
"""Describes one kind of trial: kernel, mechanism, shape of the guest, and the aim of the NMIs."""

import enum

import msgspec

from lab.errors import UsageError
from lab.mechanisms.base import find_base
from lab.mechanisms.table import find_mechanism
from lab.model.boot import Boot, Granularity
from lab.model.engine import Engine
from lab.model.hold import DEFAULT_BOUND_US, MAX_HELD_US, check_holds
from lab.model.phase import Phase, Role
from lab.model.placed import TARGETS, UNPINNED, Placed, Target, find_thread, pin_phase, to_hold
from lab.model.topology import Topology


class Aim(enum.Enum):
    """The receiver of a plan's NMIs."""

    #: QMP ``inject-nmi``: LINT1 of every vCPU.
    BROADCAST = "broadcast"
    #: An MSI write through qtest to one sibling. The plan draws the sibling for each NMI.
    SIBLING = "sibling"
    #: An MSI write through qtest to one primary. The plan draws the primary for each NMI.
    PRIMARY = "primary"


class Siblings(enum.Enum):
    """The state of the siblings while their cores execute the update."""

    ONLINE = "online"
    #: The siblings go offline before the load (SMT control off). They have booted, and still react to NMIs.
    OFFLINE = "offline"
    #: The same as ``offline``; the siblings come back online after the load.
    RETURNING = "returning"


class Parking(enum.Enum):
    """The instruction in which an offline thread waits."""

    HLT = "hlt"
    MWAIT = "mwait"


#: 6.1 panics when a thread waits one second. The rendezvous itself and a slow host need the rest.
MAX_STRETCH_US = 800_000
#: Wide enough for an inject-nmi (0.7 ms median, 14 ms worst) to begin and end within a window.
DEFAULT_STRETCH_US = (10_000, 50_000)
#: The values that ``far_apart`` draws from. Some cores finish long before the others.
FAR_APART_US = (1_000, 50_000)
MAX_NMIS = 1_000
DEFAULT_NMIS = 12


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen description of one kind of trial.

    :param mechanism: name of a :class:`lab.mechanisms.mechanism.Mechanism`
    :param stretch_us: range (low, high) from which the plan draws each core's window, in microseconds; equal ends fix
        the window
    :param stretch_per_core_us: exact window of each core instead, in microseconds, or empty
    :param far_apart: the plan draws each core's window from FAR_APART_US instead, and uses both values
    :param nmis: number of NMIs that a plan sends; with 0 a PASS needs no NMI
    :param fsgsbase: whether the kernel may use RDGSBASE and WRGSBASE
    :param parking: the instruction in which offline threads wait; a mechanism that needs MONITOR and MWAIT always uses
        these
    :param phase: the NMIs are for this phase of each core's load; a trial in which an NMI missed the phase shows
        nothing; None draws the NMIs over the whole load
    :param role: with a phase: the NMIs are for the thread with this role, None for all threads
    :param placed: NMIs at certain places, in addition to ``nmis``
    :param min_revision: the lab tells the kernel to refuse updates without a minimum revision, and gives the kernel an
        update with such a revision
    :param granularity: the instructions at which NMIs can enter
    :param engine: how the CPU treats the update
    """

    mechanism: str
    topology: Topology = Topology(1, 2, 2)
    aim: Aim = Aim.BROADCAST
    nmis: int = DEFAULT_NMIS
    stretch_us: tuple[int, int] = DEFAULT_STRETCH_US
    stretch_per_core_us: tuple[int, ...] = ()
    far_apart: bool = False
    siblings: Siblings = Siblings.ONLINE
    fsgsbase: bool = True
    parking: Parking = Parking.HLT
    min_revision: bool = False
    phase: Phase | None = None
    role: Role | None = None
    placed: tuple[Placed, ...] = ()
    granularity: Granularity = Granularity.BLOCK
    engine: Engine = Engine.TAKES

    @property
    def sends_nmis(self) -> bool:
        """Whether a plan of this scenario sends any NMI."""
        return bool(self.nmis) or any(each.nmi is not Target.NONE for each in self.placed)

    @property
    def random_nmis(self) -> int:
        """The number of NMIs that a plan draws over the whole load."""
        return self.nmis if self.phase is None else 0

    @property
    def all_placed(self) -> tuple[Placed, ...]:
        """The NMIs that need a hold: first the placed NMIs, then one NMI per core for a pinned phase."""
        if self.phase is None or self.phase in UNPINNED or not self.nmis:
            return self.placed
        role = self.role or Role.SIBLING
        at, pin = pin_phase(self.phase, role)
        target = Target.BROADCAST if self.role is None else TARGETS[role]
        cores = range(self.topology.total_cores)
        # Before the call-in the hold stops the thread that receives the NMI.
        bound_us = min(DEFAULT_BOUND_US, MAX_HELD_US // len(cores))
        pins = (Placed(at=at, role=pin, core=core, nmi=target, bound_us=bound_us) for core in cores)
        return (*self.placed, *pins)

    @property
    def boot(self) -> Boot:
        """The machine that the scenario needs."""
        mechanism = find_mechanism(self.mechanism)
        return Boot(
            base=mechanism.base,
            topology=self.topology,
            fsgsbase=self.fsgsbase,
            monitor=self.parking is Parking.MWAIT or mechanism.needs_monitor,
            granularity=self.granularity,
            outside=self.engine is not Engine.TAKES,
            refusing=self.engine is Engine.REFUSES,
            min_revision=self.min_revision,
        )

    @property
    def offline_threads(self) -> tuple[int, ...]:
        """The vCPUs that are offline while their cores execute the update."""
        return () if self.siblings is Siblings.ONLINE else self.topology.siblings

    @property
    def online_threads(self) -> tuple[int, ...]:
        """All other vCPUs."""
        offline = self.offline_threads
        return tuple(vcpu for vcpu in range(self.topology.vcpus) if vcpu not in offline)

    def check(self) -> None:
        """Refuse a scenario that cannot run.

        :raise UsageError: a field is out of its range; the text names the field
        """
        if not 0 <= self.nmis <= MAX_NMIS:
            raise UsageError(f"nmis is {self.nmis}: allowed is 0 to {MAX_NMIS}")
        for value_us in (*self.stretch_us, *self.stretch_per_core_us):
            if not 0 <= value_us <= MAX_STRETCH_US:
                raise UsageError(
                    f"stretch of {value_us} us: allowed is 0 to {MAX_STRETCH_US} us,"
                    " since the 6.1 rendezvous panics when a thread has waited for one second"
                )
        if self.stretch_us[0] > self.stretch_us[1]:
            low_us, high_us = self.stretch_us
            raise UsageError(f"stretch range {low_us} to {high_us} us is backwards: low end first")
        if self.stretch_per_core_us and len(self.stretch_per_core_us) != self.topology.total_cores:
            raise UsageError(
                f"stretch names {len(self.stretch_per_core_us)} cores:"
                f" topology {self.topology} has {self.topology.total_cores}"
            )
        self._check_axes()
        self._check_places()

    def _check_places(self) -> None:
        if self.role is not None and self.phase is None:
            raise UsageError(f"role is {self.role.value}: it goes with a phase only")
        if self.phase is not None and self.aim is not Aim.BROADCAST:
            raise UsageError(f"aim is {self.aim.value}: with a phase the role says whom the NMIs are for")
        for role in (self.role, *(each.role for each in self.placed)):
            if (role is Role.OFFLINE) is not bool(self.offline_threads) and role in (Role.OFFLINE, Role.SIBLING):
                raise UsageError(f"role is {role.value}: siblings are {self.siblings.value} in this scenario")
        others = (Role.OTHER for each in self.placed if each.nmi is Target.OTHER)
        for role in (*((self.role,) if self.role else ()), *others):
            find_thread(self.topology, role, 0)
        self._check_phase()
        placed = self.all_placed
        check_holds(tuple(to_hold(each, self.topology) for each in placed))
        held_us = sum(each.bound_us for each in placed)
        if placed and held_us + self._longest_us > MAX_STRETCH_US:
            raise UsageError(
                f"the bounds of all holds and the longest window add up to {held_us + self._longest_us} us:"
                f" allowed is {MAX_STRETCH_US} us, since the 6.1 rendezvous panics when a thread has waited for one"
                " second"
            )
        mechanism = find_mechanism(self.mechanism)
        aimed = any(find_thread(self.topology, each.role, each.core) in self.topology.siblings for each in placed)
        hits = self.role in (Role.SIBLING, Role.OFFLINE) or any(each.nmi is Target.SIBLING for each in placed)
        hits = hits or (aimed and any(each.nmi is Target.HELD for each in placed))
        if mechanism.unaimable and hits:
            raise UsageError(f"an NMI is for a sibling: not with mechanism '{self.mechanism}', {mechanism.unaimable}")

    @property
    def _longest_us(self) -> int:
        if self.stretch_per_core_us:
            return max(self.stretch_per_core_us)
        return max(FAR_APART_US) if self.far_apart else self.stretch_us[1]

    def _check_phase(self) -> None:
        """Refuse phases that no load of the mechanism has, and phases in which no thread can stop."""
        marks, phase = find_mechanism(self.mechanism).landmarks, self.phase
        if phase in (Phase.GATHER, Phase.ARMED) and not marks.call_in:
            raise UsageError(f"phase is {phase.value}: mechanism '{self.mechanism}' has no rendezvous to gather for")
        if phase is Phase.RELEASE and not marks.release:
            raise UsageError(f"phase is release: mechanism '{self.mechanism}' has no rendezvous to be released from")
        pinned = phase in (Phase.ARMED, Phase.RELEASE) or (
            phase is Phase.GATHER and self.role not in (Role.PRIMARY, Role.OTHER)
        )
        if pinned and phase and self.offline_threads and not marks.offline_call_in:
            raise UsageError(
                f"phase is {phase.value}: mechanism '{self.mechanism}' leaves soft-offlined siblings alone,"
                f" and siblings are {self.siblings.value} in this scenario"
            )

    def _check_axes(self) -> None:
        mechanism = find_mechanism(self.mechanism)
        if self.far_apart and self.stretch_per_core_us:
            raise UsageError("far_apart draws each core's stretch: it cannot be given with a stretch of its own")
        if self.far_apart and self.topology.total_cores == 1:
            raise UsageError(f"far_apart needs two cores: topology {self.topology} has one")
        if self.aim is Aim.SIBLING and mechanism.unaimable:
            raise UsageError(f"aim is sibling: not with mechanism '{self.mechanism}', {mechanism.unaimable}")
        if self.siblings is not Siblings.ONLINE and mechanism.siblings_absent:
            raise UsageError(
                f"siblings is {self.siblings.value}: mechanism '{self.mechanism}' takes them offline by itself,"
                " and of one that is offline already no call-in could be seen"
            )
        if self.min_revision and not find_base(mechanism.base).has_min_revision:
            raise UsageError(
                f"min_revision is true: mechanism '{self.mechanism}' is of {mechanism.base}, which has none"
            )
        if self.engine is Engine.CPUID_CHANGES and self.granularity is Granularity.INSTRUCTION:
            raise UsageError(
                "engine is cpuid-changes: not with granularity instruction, since the observer changes what CPUID"
                " returns in front of the next instruction of its block"
            )
        if self.engine is Engine.ONE_CORE and self.topology.total_cores == 1:
            raise UsageError(f"engine is one-core: topology {self.topology} has no other core, which could refuse")
        if self.engine is not Engine.TAKES and self.siblings is Siblings.RETURNING:
            raise UsageError(
                f"engine is {self.engine.value}: siblings cannot be returning in this scenario,"
                " since what they come back with is not judged"
            )
