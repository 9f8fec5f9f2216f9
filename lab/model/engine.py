# SPDX-License-Identifier: GPL-2.0-or-later
"""How the engine, the part of a CPU that takes microcode updates, treats the one that a load brings."""

import enum


class Engine(enum.Enum):
    """What becomes of a sound update.

    For the first a kernel may have an engine of ours; the second is what an emulator does that ignores the write. All
    others need an engine in the observer (docs/explanation/qemu.md).
    """

    #: The core has the update's revision.
    TAKES = "takes"
    #: The core keeps its revision.
    REFUSES = "refuses"
    #: The core keeps its revision, and the WRMSR raises #GP.
    FAULTS = "faults"
    #: The core has another revision afterwards than the update's header names.
    OTHER_REVISION = "other-revision"
    #: Core 0 takes it, all others refuse it.
    ONE_CORE = "one-core"
    #: All cores take it, and a feature bit of CPUID is another one afterwards.
    CPUID_CHANGES = "cpuid-changes"


#: By which every core has the revision of a sound update's header afterwards.
EFFECTIVE = (Engine.TAKES, Engine.CPUID_CHANGES)


def is_taken_by(engine: Engine, core: int) -> bool:
    """Say whether a core has the revision of a sound update's header afterwards."""
    return engine in EFFECTIVE or (engine is Engine.ONE_CORE and core == 0)
