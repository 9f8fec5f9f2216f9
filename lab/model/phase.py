# SPDX-License-Identifier: GPL-2.0-or-later
"""When in a late load something happens, and to which of a core's threads (design, section 2)."""

import enum


class Phase(enum.Enum):
    """Where a late load is, seen from one core."""

    BEFORE = "before"
    #: Begun, and not all threads of the core have called in.
    GATHER = "gather"
    #: All have, and the core's update has not begun.
    ARMED = "armed"
    #: The core is being updated.
    WINDOW = "window"
    #: It has been, and no sibling has been let go.
    CLOSING = "closing"
    #: Siblings leave.
    RELEASE = "release"
    AFTER = "after"


#: In the order in which a load goes through them.
PHASES = tuple(Phase)


class Role(enum.Enum):
    """What a thread is, seen from one core's update."""

    #: It executes the update.
    PRIMARY = "primary"
    #: It has to stay quiet meanwhile.
    SIBLING = "sibling"
    #: The same, soft-offlined.
    OFFLINE = "offline"
    #: The primary of another core.
    OTHER = "other"
