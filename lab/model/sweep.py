# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: the request, and the points at which a thread of a load can receive an NMI."""

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

#: A window needs to last only as long as the send of an NMI to a stopped thread.
STRETCH_US: Final = 1_000
#: In the other phases a thread executes nothing of the load. So these phases have no block head.
SWEPT_PHASES: Final = (Phase.GATHER, Phase.ARMED, Phase.WINDOW, Phase.CLOSING, Phase.RELEASE)
SWEPT_ROLES: Final = (Role.PRIMARY, Role.SIBLING, Role.OFFLINE)
#: Some code runs only after an NMI. An NMI at the point that showed the code leads there. Code that this second NMI
#: shows needs both NMIs.
MAX_LEAD: Final = 2


class Rank(enum.Enum):
    """Selects one of a thread's visits to a block."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"


class SweepAsk(msgspec.Struct, frozen=True, kw_only=True):
    """The request for a sweep.

    :param first: the first phase of the sweep
    :param last: the last phase of the sweep
    :param core: the core whose threads receive the NMIs, and whose phases count
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
        """All phases of the sweep, in order."""
        return PHASES[PHASES.index(self.first) : PHASES.index(self.last) + 1]

    @property
    def scenario(self) -> Scenario:
        """The scenario of the dry load: without NMIs and holds."""
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
        """Refuse a request that no sweep can run.

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
    """One block head that a thread visits in a phase."""

    role: Role
    phase: Phase
    pc: int


class Point(msgspec.Struct, frozen=True):
    """One visit of a thread to a block. One trial tries one point."""

    block: Block
    rank: Rank


def ranks_of(count: int) -> tuple[Rank, ...]:
    """Return the ranks that differ for a given number of visits."""
    if count < 1:
        return ()
    return {1: (Rank.FIRST,), 2: (Rank.FIRST, Rank.LAST)}.get(count, (Rank.FIRST, Rank.MIDDLE, Rank.LAST))


def arrival_of(rank: Rank, count: int) -> int:
    """Return the visit that has a rank, for a given number of visits; 1 for the first visit."""
    return {Rank.FIRST: 1, Rank.MIDDLE: (count + 1) // 2, Rank.LAST: count}[rank]


class Visit(msgspec.Struct, frozen=True):
    """A point in the form that a trial tries: with the number of the visit.

    :param early: visits count from the load's begin on; the thread may have to wait there for the phase
    :param pinned: a second hold stops the other thread, so that the other thread cannot end the phase
    """

    block: Block
    arrival: int
    early: bool = False
    pinned: bool = False


class Way(msgspec.Struct, frozen=True):
    """One way to bring a thread to a block in a phase.

    The phase in which a thread visits a block depends on the other threads, and so on chance. An *early* thread waits
    at the block until the phase begins. So the visit is in the right phase with any timing of the others.

    :param lead: the trial repeats the earlier NMIs of the load that showed the block; without them the thread may visit
        the block by itself
    :param early: as in :class:`Visit`
    :param pinned: as in :class:`Visit`
    :param last: the thread that calls in last of its core; None leaves the order to the load, or to the lead
    """

    lead: bool = True
    early: bool = False
    pinned: bool = False
    last: Role | None = None


#: In order of cost, the cheapest way first. A spin loop runs a different number of times in every load. If the
#: requested visit to a loop never happens, the next attempt uses half the visit count. If the thread is early, the next
#: attempt stops the thread half as far into the loop.
WAYS: Final = (
    Way(),
    Way(pinned=True),
    Way(early=True, pinned=True),
    # A thread spins in a call-in only while another thread has yet to call in.
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
    """Return the hold at a point, and the NMI during the hold."""
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


#: The window needs no pin: the window lasts until the observer has seen the sibling.
_PINS: Final = {
    (Role.SIBLING, Phase.ARMED): (Landmark.WINDOW_OPEN.value, Role.PRIMARY, None),
    (Role.SIBLING, Phase.CLOSING): (Landmark.WINDOW_CLOSE.value, Role.PRIMARY, None),
    (Role.PRIMARY, Phase.CLOSING): (ANY_BLOCK, Role.SIBLING, Phase.CLOSING),
    (Role.PRIMARY, Phase.RELEASE): (Landmark.RELEASE.value, Role.SIBLING, None),
    (Role.SIBLING, Phase.RELEASE): (ANY_BLOCK, Role.PRIMARY, Phase.RELEASE),
}


def can_pin(block: Block) -> bool:
    """Say whether another thread could end the phase of a block, and a hold can stop this thread."""
    return (block.role, block.phase) in _PINS


def pin_phases(visits: tuple[Visit, ...], core: int) -> tuple[Placed, ...]:
    """Return the holds that keep a core in the phase of each pinned visit, until the hold of the visit is over.

    A thread may sleep until another thread begins the phase. If the phase is short, the phase is over while the thread
    still wakes up. A thread that loops in a phase may not reach a late visit before the phase ends.
    """
    pins = []
    for index, visit in enumerate(visits):
        if visit.pinned and can_pin(visit.block):
            at, role, phase = _PINS[visit.block.role, visit.block.phase]
            pins.append(Placed(at=at, role=role, core=core, phase=phase, nmi=Target.NONE, until=index))
    return tuple(pins)


def delay_call_in(role: Role, core: int) -> Placed:
    """Return a hold without an NMI that makes a thread the last of its core to call in."""
    return Placed(at=Landmark.CALL_IN.value, role=role, core=core, phase=Phase.GATHER, nmi=Target.NONE)


def place_nmis(visits: tuple[Visit, ...], core: int) -> tuple[Placed, ...]:
    """Return the holds of one trial. The sum of their bounds is the bound of one usual hold."""
    return tuple(place_nmi(visit, core, DEFAULT_BOUND_US // len(visits)) for visit in visits)
