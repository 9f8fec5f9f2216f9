# SPDX-License-Identifier: GPL-2.0-or-later
"""Placed NMIs: NMIs that a scenario wants at a certain place, and the holds that a plan makes from them."""

import enum

import msgspec

from lab.errors import UsageError
from lab.model.hold import DEFAULT_BOUND_US, Hold, Landmark
from lab.model.phase import Phase, Role
from lab.model.topology import Topology


class Target(enum.Enum):
    """The receiver of an NMI while a hold stops a thread."""

    #: The stopped thread.
    HELD = "held"
    PRIMARY = "primary"
    SIBLING = "sibling"
    #: The primary of another core.
    OTHER = "other"
    #: QMP ``inject-nmi``: LINT1 of every vCPU.
    BROADCAST = "broadcast"
    #: No receiver: the hold alone.
    NONE = "none"


class Placed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hold of one thread at one place, and an NMI during the hold.

    :param at: the place, as in :class:`lab.model.hold.Hold`
    :param role: the thread that stops, seen from ``core``
    :param phase: the phase in which the thread visits the place; other threads of the core may be in a later phase when
        the lab sends the NMI
    :param nmi: selects who receives an NMI during the hold; PRIMARY, SIBLING and OTHER are seen from ``core``
    :param until: index of another placed NMI that must be over first; -1 for none
    :param early: the thread may visit the place before the phase; the thread then waits there for the phase
    """

    at: str
    role: Role
    core: int = 0
    phase: Phase | None = None
    arrival: int = 1
    nmi: Target = Target.HELD
    bound_us: int = DEFAULT_BOUND_US
    until: int = -1
    early: bool = False


def find_thread(topology: Topology, role: Role, core: int) -> int:
    """Return the vCPU that has a role, seen from one core.

    :raise UsageError: no vCPU has this role, or the core does not exist
    """
    if not 0 <= core < topology.total_cores:
        raise UsageError(f"core is {core}: topology {topology} has 0 to {topology.total_cores - 1}")
    match role:
        case Role.PRIMARY:
            return topology.primary_of(core)
        case Role.SIBLING | Role.OFFLINE:
            return topology.siblings_of(core)[0]
        case Role.OTHER:
            if topology.total_cores == 1:
                raise UsageError(f"role is other: topology {topology} has one core")
            return topology.primary_of((core + 1) % topology.total_cores)


def to_hold(placed: Placed, topology: Topology) -> Hold:
    """Return the hold of a placed NMI.

    :raise UsageError: the topology has no such thread
    """
    return Hold(
        at=placed.at,
        vcpu=find_thread(topology, placed.role, placed.core),
        phase=placed.phase,
        arrival=placed.arrival,
        bound_us=placed.bound_us,
        until=placed.until,
        early=placed.early,
    )


#: The landmark and the thread that pin a phase. To pin a phase is to keep a core in the phase while the lab sends an
#: NMI to any other thread. ``before``, ``window`` and ``after`` need no hold: they last until the lab goes on, or until
#: the window ends.
_PINS = {
    Phase.ARMED: (Landmark.WINDOW_OPEN, Role.PRIMARY),
    Phase.CLOSING: (Landmark.WINDOW_CLOSE, Role.PRIMARY),
    Phase.RELEASE: (Landmark.RELEASE, Role.SIBLING),
}


#: Phases in which the lab can send an NMI without a hold.
UNPINNED = (Phase.BEFORE, Phase.WINDOW, Phase.AFTER)
#: The receiver of an NMI that is for a thread of a role.
TARGETS = {
    Role.PRIMARY: Target.PRIMARY,
    Role.SIBLING: Target.SIBLING,
    Role.OFFLINE: Target.SIBLING,
    Role.OTHER: Target.OTHER,
}


def pin_phase(phase: Phase, role: Role) -> tuple[str, Role]:
    """Return the landmark and the role of the thread that stops while the lab sends an NMI in a phase.

    :param role: the thread that receives the NMI; in ``gather`` this thread itself stops before its call-in
    """
    if phase is Phase.GATHER:
        return Landmark.CALL_IN.value, Role.PRIMARY if role is Role.OTHER else role
    landmark, pin = _PINS[phase]
    return landmark.value, pin
