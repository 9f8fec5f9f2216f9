# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutants of the lab's own side. They have no patch."""

from typing import Final

from lab.expected.mutant import Mutant, Subject, Tampering
from lab.mechanisms.table import find_mechanism
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome

_SCENARIO: Final = Scenario(mechanism="nmi-self")
_BASE: Final = find_mechanism(_SCENARIO.mechanism).base

LAB_MUTANTS: Final = (
    Mutant(
        name="nmis-never-sent",
        subject=Subject.LAB,
        base=_BASE,
        breaks="QEMU is asked for its status in place of each NMI, and the log says that it was sent",
        caught_by=("nmis-delivered",),
        scenario=_SCENARIO,
        ends_in=Outcome.INVALID,
        tampering=Tampering.NEVER_SENT,
    ),
    Mutant(
        name="only-last-nmi-sent",
        subject=Subject.LAB,
        base=_BASE,
        breaks="of each plan only the last NMI is sent, and the log says that all were",
        caught_by=("nmis-delivered",),
        scenario=_SCENARIO,
        ends_in=Outcome.INVALID,
        tampering=Tampering.ONLY_LAST_SENT,
    ),
    Mutant(
        name="stale-vmlinux",
        subject=Subject.LAB,
        base=_BASE,
        breaks="the landmarks are those of a kernel with one function more",
        caught_by=("quiet", "all-waiting-before-update"),
        scenario=_SCENARIO,
        ends_in=Outcome.INVALID,
        tampering=Tampering.STALE_LANDMARKS,
    ),
)
