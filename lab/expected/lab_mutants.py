# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutants of the lab's own side. They have no patch."""

from typing import Final

from lab.expected.mutant import Mutant, Subject, Tampering
from lab.mechanisms.table import find_mechanism
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome

_SCENARIO: Final = Scenario(mechanism="nmi-self")
_BASE: Final = find_mechanism(_SCENARIO.mechanism).base


def _make(tampering: Tampering, name: str, breaks: str, *caught_by: str) -> Mutant:
    return Mutant(
        name=name,
        subject=Subject.LAB,
        base=_BASE,
        breaks=breaks,
        caught_by=caught_by,
        scenario=_SCENARIO,
        ends_in=Outcome.INVALID,
        tampering=tampering,
    )


LAB_MUTANTS: Final = (
    _make(
        Tampering.NEVER_SENT,
        "nmis-never-sent",
        "QEMU is asked for its status in place of each NMI, and the log says that it was sent",
        "nmis-delivered",
    ),
    _make(
        Tampering.ONLY_LAST_SENT,
        "only-last-nmi-sent",
        "of each plan only the last NMI is sent, and the log says that all were",
        "nmis-delivered",
    ),
    _make(
        Tampering.STALE_LANDMARKS,
        "stale-vmlinux",
        "the landmarks are those of a kernel with one function more",
        "quiet",
        "all-waiting-before-update",
    ),
)
