# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds: where one vCPU is kept for a moment, so that an NMI is provably pending there when it runs on."""

import enum
import re
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.model.phase import Phase


class Landmark(enum.Enum):
    """Places that can be named without knowing the kernel; the values are those of lab.model.evidence.EventKind."""

    LOAD_BEGIN = "load-begin"
    CALL_IN = "call-in"
    SELF_NMI = "self-nmi"
    IPI_NMI = "ipi-nmi"
    WAIT_LOOP = "wait-loop"
    NMI_ENTRY = "nmi-entry"
    #: The core's WRMSR 0x79 is the next instruction.
    WINDOW_OPEN = "window-open"
    #: It has been executed, and the next block has not begun.
    WINDOW_CLOSE = "window-close"
    RELEASE = "release"
    LOAD_END = "load-end"


LANDMARKS: Final = {each.value: each for each in Landmark}

#: Whichever block the vCPU begins.
ANY_BLOCK: Final = "any-block"

#: What images/observer/observer_shm.h has room for.
MAX_HOLDS: Final = 16
#: A tenth of a second is a hundred times what an NMI takes to be sent and acknowledged.
DEFAULT_BOUND_US: Final = 100_000
#: All holds of a trial together: 6.1 panics when a rendezvous takes a second, and the window needs some of it.
MAX_HELD_US: Final = 500_000
MAX_ARRIVAL: Final = 2**32 - 1

_ADDRESS: Final = re.compile(r"0x[0-9a-f]{1,16}")
_SYMBOL: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_.]*(\+0x[0-9a-f]{1,8})?")


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """One hold of a plan.

    :param at: a landmark's name, ``function+0x10``, or an address as ``0x...``: that of a block's first instruction;
        or ANY_BLOCK
    :param vcpu: who is held
    :param phase: its arrivals count in this phase of its core only, None for all
    :param arrival: at which it is held, 1 for the first
    :param bound_us: after which it goes on unasked
    :param until: index of another hold, which has to be reached and over before this one is let go; -1 for none
    :param early: its arrivals count from the load's begin on, and where the one that is meant comes before the phase,
        the vCPU is kept there until that begins
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

    :raise UsageError: it has none that is allowed
    """
    if at not in LANDMARKS and at != ANY_BLOCK and _ADDRESS.fullmatch(at) is None and _SYMBOL.fullmatch(at) is None:
        raise UsageError(
            f"place {at[:80]!r} is neither a landmark ({', '.join(LANDMARKS)}), nor {ANY_BLOCK}, nor function+0x..,"
            " nor 0x.."
        )


def check_holds(holds: tuple[Hold, ...]) -> None:
    """Refuse holds that the observer cannot take or that a kernel would not survive.

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
        # Nobody is watched outside a load, and its last landmark is the first of the phase behind it.
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
