# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds. A hold stops one vCPU at a place for a moment. An NMI is then provably pending when the vCPU goes on."""

import enum
import re
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.model.phase import Phase


class Landmark(enum.Enum):
    """Places that have a name in every kernel. The values are those of lab.model.evidence.EventKind."""

    LOAD_BEGIN = "load-begin"
    CALL_IN = "call-in"
    SELF_NMI = "self-nmi"
    IPI_NMI = "ipi-nmi"
    WAIT_LOOP = "wait-loop"
    NMI_ENTRY = "nmi-entry"
    #: The core's WRMSR 0x79 is the next instruction.
    WINDOW_OPEN = "window-open"
    #: The WRMSR has executed, and the next block has not begun.
    WINDOW_CLOSE = "window-close"
    RELEASE = "release"
    LOAD_END = "load-end"


LANDMARKS: Final = {each.value: each for each in Landmark}

#: The next block that the vCPU begins, at any address.
ANY_BLOCK: Final = "any-block"

#: The number of holds that fit into images/observer/observer_shm.h.
MAX_HOLDS: Final = 16
#: A tenth of a second. The send and the acknowledgement of an NMI take a hundredth of this time.
DEFAULT_BOUND_US: Final = 100_000
#: The limit for all holds of a trial together. 6.1 panics when a rendezvous takes one second, and the window needs a
#: part of this second.
MAX_HELD_US: Final = 500_000
MAX_ARRIVAL: Final = 2**32 - 1

_ADDRESS: Final = re.compile(r"0x[0-9a-f]{1,16}")
_SYMBOL: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_.]*(\+0x[0-9a-f]{1,8})?")


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """One hold of a plan.

    :param at: a landmark's name, ``function+0x10``, an address as ``0x...``, or ANY_BLOCK; an address is the first
        instruction of a block
    :param vcpu: the vCPU that stops
    :param phase: visits count only in this phase of the vCPU's core; None counts visits in all phases
    :param arrival: the visit at which the vCPU stops, 1 for the first visit
    :param bound_us: the vCPU goes on by itself after this time, in microseconds
    :param until: index of another hold; this hold ends only after the other hold was reached and is over; -1 for none
    :param early: visits count from the load's begin on; if the selected visit comes before the phase, the vCPU stays
        there until the phase begins
    """

    at: str
    vcpu: int
    phase: Phase | None = None
    arrival: int = 1
    bound_us: int = DEFAULT_BOUND_US
    until: int = -1
    early: bool = False


def check_place(at: str) -> None:
    """Check the form of a place's name.

    :raise UsageError: the form is not allowed
    """
    if at not in LANDMARKS and at != ANY_BLOCK and _ADDRESS.fullmatch(at) is None and _SYMBOL.fullmatch(at) is None:
        raise UsageError(
            f"place {at[:80]!r} is neither a landmark ({', '.join(LANDMARKS)}), nor {ANY_BLOCK}, nor function+0x..,"
            " nor 0x.."
        )


def check_holds(holds: tuple[Hold, ...]) -> None:
    """Refuse holds that the observer cannot take or that a kernel does not survive.

    :raise UsageError: the text names the hold and what is allowed
    """
    if len(holds) > MAX_HOLDS:
        raise UsageError(f"{len(holds)} holds are too many: allowed are {MAX_HOLDS}")
    for index, hold in enumerate(holds):
        check_place(hold.at)
        if not 1 <= hold.arrival <= MAX_ARRIVAL:
            raise UsageError(f"hold {index}: arrival is {hold.arrival}: allowed is 1 to {MAX_ARRIVAL}")
        if not 1 <= hold.bound_us <= MAX_HELD_US:
            raise UsageError(f"hold {index}: bound is {hold.bound_us} us: allowed is 1 to {MAX_HELD_US} us")
        # The observer watches no thread outside a load. The last landmark of a load is the first landmark of phase
        # ``after``.
        if hold.phase is Phase.BEFORE or (hold.phase is Phase.AFTER and hold.at != Landmark.LOAD_END.value):
            raise UsageError(f"hold {index}: phase is {hold.phase.value}: allowed is gather to release")
        if not (hold.until == -1 or (0 <= hold.until < len(holds) and hold.until != index)):
            raise UsageError(f"hold {index}: until is {hold.until}: allowed is the number of another hold, or -1")
        if hold.early and hold.phase is None:
            raise UsageError(f"hold {index}: early is true: without a phase there is nothing to be early for")
    total_us = sum(hold.bound_us for hold in holds)
    if total_us > MAX_HELD_US:
        raise UsageError(
            f"the bounds of all holds add up to {total_us} us: allowed is {MAX_HELD_US} us,"
            " since the 6.1 rendezvous panics when a thread has waited for one second"
        )
    _check_order(holds)


def _check_order(holds: tuple[Hold, ...]) -> None:
    for index in range(len(holds)):
        seen, at = set(), index
        while at != -1:
            if at in seen:
                raise UsageError(f"hold {index} waits for itself to be over, by way of hold {holds[at].until}")
            seen.add(at)
            at = holds[at].until
