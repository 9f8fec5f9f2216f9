# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs that a scenario wants at a certain place, and what a plan makes of them."""

import enum

import msgspec

from lab.errors import UsageError
from lab.model.hold import DEFAULT_BOUND_US, Hold, Landmark
from lab.model.phase import Phase, Role
from lab.model.topology import Topology


class Target(enum.Enum):
    """Whom an NMI is sent to while a thread is held."""

    #: The thread that is held.
    HELD = "held"
    PRIMARY = "primary"
    SIBLING = "sibling"
    #: The primary of another core.
    OTHER = "other"
    #: QMP ``inject-nmi``: LINT1 of every vCPU.
    BROADCAST = "broadcast"
    #: Nobody: the hold alone.
    NONE = "none"


class Placed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thread held at one place, and an NMI sent meanwhile.

    :param at: as :class:`lab.model.hold.Hold` has it
    :param role: which thread is held, seen from ``core``
    :param phase: in which it comes to its place; the core's other threads may be further when the NMI is sent
    :param nmi: whom the NMI is sent to; PRIMARY, SIBLING and OTHER are seen from ``core``
    :param until: index of another one that has to be over first; -1 for none
    :param early: it may come to its place before the phase, and then waits there for it
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

    :raise UsageError: there is none
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
    """Return the hold that a placed NMI needs.

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


#: Which thread of a core pins a phase, and where, so that an NMI to any other can be sent meanwhile. ``before``,
#: ``window`` and ``after`` need no hold: they last until the lab goes on, or the window ends.
_PINS = {
    Phase.ARMED: (Landmark.WINDOW_OPEN, Role.PRIMARY),
    Phase.CLOSING: (Landmark.WINDOW_CLOSE, Role.PRIMARY),
    Phase.RELEASE: (Landmark.RELEASE, Role.SIBLING),
}


#: Phases in which an NMI can be sent without a hold.
UNPINNED = (Phase.BEFORE, Phase.WINDOW, Phase.AFTER)
#: Whom an NMI is sent to that is for a thread of that role.
TARGETS = {
    Role.PRIMARY: Target.PRIMARY,
    Role.SIBLING: Target.SIBLING,
    Role.OFFLINE: Target.SIBLING,
    Role.OTHER: Target.OTHER,
}


def pin_phase(phase: Phase, role: Role) -> tuple[str, Role]:
    """Return at which landmark a thread of which role is held while an NMI is sent in a phase.

    :param role: whom the NMI is for: on the way to its call-in it is held itself
    """
    if phase is Phase.GATHER:
        return Landmark.CALL_IN.value, Role.PRIMARY if role is Role.OTHER else role
    landmark, pin = _PINS[phase]
    return landmark.value, pin
