# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: what is asked of one, and the points at which a thread of a load can be given an NMI."""

import enum
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.model.boot import Granularity
from lab.model.hold import ANY_BLOCK, DEFAULT_BOUND_US, Landmark
from lab.model.phase import PHASES, Phase, Role
from lab.model.placed import Placed, Target, find_thread
from lab.model.scenario import Scenario, Siblings
from lab.model.topology import Topology

#: Windows need to be no longer than an NMI takes to be sent while a thread is held in one.
STRETCH_US: Final = 1_000
#: In the others nothing of the load is executed, so there is no block head to find.
SWEPT_PHASES: Final = (Phase.GATHER, Phase.ARMED, Phase.WINDOW, Phase.CLOSING, Phase.RELEASE)
SWEPT_ROLES: Final = (Role.PRIMARY, Role.SIBLING, Role.OFFLINE)
#: Code that only an NMI leads to is reached by an NMI at the point that showed it; and what that shows, by both.
MAX_LEAD: Final = 2


class Rank(enum.Enum):
    """Which of a thread's arrivals at one block."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"


class SweepAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a sweep.

    :param first: the first phase that is swept
    :param last: the last one
    :param core: whose threads are given the NMIs, and whose phases these are
    """

    mechanism: str
    topology: Topology = Topology(1, 1, 2)
    roles: tuple[Role, ...] = (Role.PRIMARY, Role.SIBLING)
    first: Phase = Phase.ARMED
    last: Phase = Phase.RELEASE
    core: int = 0
    siblings: Siblings = Siblings.ONLINE
    granularity: Granularity = Granularity.BLOCK

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases that are swept, in order."""
        return PHASES[PHASES.index(self.first) : PHASES.index(self.last) + 1]

    @property
    def scenario(self) -> Scenario:
        """The dry load: without NMIs and holds."""
        return Scenario(
            mechanism=self.mechanism,
            topology=self.topology,
            nmis=0,
            stretch_us=(STRETCH_US, STRETCH_US),
            siblings=self.siblings,
            granularity=self.granularity,
        )

    def vcpu_of(self, role: Role) -> int:
        """Return the thread that has a role."""
        return find_thread(self.topology, role, self.core)

    def check(self) -> None:
        """Refuse what cannot be swept.

        :raise UsageError: the text names the field and what is allowed
        """
        for name, phase in (("from", self.first), ("to", self.last)):
            if phase not in SWEPT_PHASES:
                allowed = ", ".join(each.value for each in SWEPT_PHASES)
                raise UsageError(f"{name} is {phase.value}: allowed is {allowed}")
        if not self.phases:
            raise UsageError(f"from is {self.first.value} and to is {self.last.value}: the load goes the other way")
        for role in self.roles:
            if role not in SWEPT_ROLES:
                allowed = ", ".join(each.value for each in SWEPT_ROLES)
                raise UsageError(f"role is {role.value}: allowed is {allowed}, of the core that core says")
            if role is not Role.PRIMARY and (role is Role.OFFLINE) is (self.siblings is Siblings.ONLINE):
                raise UsageError(f"role is {role.value}: siblings are {self.siblings.value} in this sweep")
            place = Placed(at="0x1", role=role, core=self.core)
            msgspec.structs.replace(self.scenario, placed=(place,)).check()


class Block(msgspec.Struct, frozen=True):
    """One block head that a thread comes to in a phase."""

    role: Role
    phase: Phase
    pc: int


class Point(msgspec.Struct, frozen=True):
    """One of its arrivals there: what one trial tries."""

    block: Block
    rank: Rank


def ranks_of(count: int) -> tuple[Rank, ...]:
    """Return the arrivals that are told apart where there are so many."""
    if count < 1:
        return ()
    return {1: (Rank.FIRST,), 2: (Rank.FIRST, Rank.LAST)}.get(count, (Rank.FIRST, Rank.MIDDLE, Rank.LAST))


def arrival_of(rank: Rank, count: int) -> int:
    """Return which arrival has a rank where there are so many, 1 for the first."""
    return {Rank.FIRST: 1, Rank.MIDDLE: (count + 1) // 2, Rank.LAST: count}[rank]


class Visit(msgspec.Struct, frozen=True):
    """A point as a trial tries it, by arrival.

    :param early: the arrival counts from the load's begin, and the thread may have to wait there for the phase
    :param pinned: the other thread is kept from ending the phase meanwhile
    """

    block: Block
    arrival: int
    early: bool = False
    pinned: bool = False


class Way(msgspec.Struct, frozen=True):
    """One way to have a thread come to a block in a phase.

    How far its core is when a thread comes to a block depends on the other threads, and so on chance. A thread that
    comes there *early* is kept until the phase begins: then it comes there in that phase whatever the others do.

    :param lead: as in the load that showed the block, by its NMIs before; without, it may come there by itself
    :param early: and ``pinned`` as of :class:`Visit`
    :param last: which thread is made the last of its core to call in; None leaves that to the load, or the lead
    """

    lead: bool = True
    early: bool = False
    pinned: bool = False
    last: Role | None = None


#: In order: what costs least first. A spin loop runs a different number of times in every load: of one, an arrival that
#: does not come is halved for the next attempt, and where a thread is early, it is stopped half as far into the loop.
WAYS: Final = (
    Way(),
    Way(pinned=True),
    Way(early=True, pinned=True),
    # Who spins in a call-in does so while another has yet to call in.
    Way(early=True, pinned=True, last=Role.PRIMARY),
    Way(lead=False, early=True, pinned=True, last=Role.PRIMARY),
    Way(early=True, pinned=True, last=Role.SIBLING),
    Way(lead=False, early=True, pinned=True),
    Way(pinned=True, last=Role.PRIMARY),
    Way(pinned=True, last=Role.SIBLING),
    Way(lead=False, pinned=True, last=Role.SIBLING),
    Way(lead=False),
)


def place_nmi(visit: Visit, core: int, bound_us: int) -> Placed:
    """Return the hold at a point, and the NMI meanwhile."""
    block = visit.block
    return Placed(
        at=f"{block.pc:#x}",
        role=block.role,
        core=core,
        phase=block.phase,
        arrival=visit.arrival,
        nmi=Target.HELD,
        bound_us=bound_us,
        early=visit.early,
    )


#: The window needs nothing: it lasts until its sibling was seen.
_PINS: Final = {
    (Role.SIBLING, Phase.ARMED): (Landmark.WINDOW_OPEN.value, Role.PRIMARY, None),
    (Role.SIBLING, Phase.CLOSING): (Landmark.WINDOW_CLOSE.value, Role.PRIMARY, None),
    (Role.PRIMARY, Phase.CLOSING): (ANY_BLOCK, Role.SIBLING, Phase.CLOSING),
    (Role.PRIMARY, Phase.RELEASE): (Landmark.RELEASE.value, Role.SIBLING, None),
    (Role.SIBLING, Phase.RELEASE): (ANY_BLOCK, Role.PRIMARY, Phase.RELEASE),
}


def can_pin(block: Block) -> bool:
    """Say whether there is a thread that could end the phase of a block, and a place to keep it at."""
    return (block.role, block.phase) in _PINS


def pin_phases(visits: tuple[Visit, ...], core: int) -> tuple[Placed, ...]:
    """Return what keeps a core in the phase of each visit that is pinned, until that one's hold is over.

    A thread that waits for a phase which another begins and soon ends would still be on its way out of its sleep when
    the phase is over; and one that loops in a phase would not come to a late arrival in it.
    """
    pins = []
    for index, visit in enumerate(visits):
        if visit.pinned and can_pin(visit.block):
            at, role, phase = _PINS[visit.block.role, visit.block.phase]
            pins.append(Placed(at=at, role=role, core=core, phase=phase, nmi=Target.NONE, until=index))
    return tuple(pins)


def delay_call_in(role: Role, core: int) -> Placed:
    """Return a hold without an NMI that lets a thread be the last of its core to call in."""
    return Placed(at=Landmark.CALL_IN.value, role=role, core=core, phase=Phase.GATHER, nmi=Target.NONE)


def place_nmis(visits: tuple[Visit, ...], core: int) -> tuple[Placed, ...]:
    """Return the holds of one trial, whose bounds together are what one may be held anyway."""
    return tuple(place_nmi(visit, core, DEFAULT_BOUND_US // len(visits)) for visit in visits)
