# SPDX-License-Identifier: GPL-2.0-or-later
"""Phases of a late load, and roles of a core's threads (design, section 2)."""

import enum


class Phase(enum.Enum):
    """The state of a late load, seen from one core."""

    BEFORE = "before"
    #: The load has begun, and some threads of the core have yet to call in.
    GATHER = "gather"
    #: All threads have called in, and the core's update has yet to begin.
    ARMED = "armed"
    #: The core executes the update.
    WINDOW = "window"
    #: The core's update is over, and all siblings still wait.
    CLOSING = "closing"
    #: Siblings leave.
    RELEASE = "release"
    AFTER = "after"


#: The order in which a load goes through the phases.
PHASES = tuple(Phase)


class Role(enum.Enum):
    """What a thread does in one core's update."""

    #: The thread executes the update.
    PRIMARY = "primary"
    #: The thread must stay quiet during the update.
    SIBLING = "sibling"
    #: The same as ``sibling``, but soft-offlined.
    OFFLINE = "offline"
    #: The primary of another core.
    OTHER = "other"
