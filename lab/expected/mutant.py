# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants: deliberate defects that show whether the lab notices a defect.

A mutant is a patch. Trailers at the end of its message describe the mutant. A mutant of a kernel must be caught as
FAIL, by the invariant that the mutant breaks. A mutant of a witness or of the lab itself says nothing about a kernel.
Such a mutant must end as INVALID.
"""

import enum
import re
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.mechanisms.table import find_mechanism
from lab.model.qemu import MAX_LEVEL, MIN_LEVEL
from lab.model.scenario import Scenario
from lab.model.scenario_file import parse_scenario
from lab.model.verdict import Outcome

_TRAILER: Final = re.compile(
    r"^(?P<key>Breaks|Caught-by|Scenario|Ends-in|Least-interface): (?P<value>\S.*)$", re.MULTILINE
)
_NEEDED: Final = ("Breaks", "Caught-by", "Scenario")
#: The form of a mutant's name. The name becomes the name of folders.
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


#: Trials after which a mutant that was not caught is taken for a survivor.
DEFAULT_TRIALS = 100


class Subject(enum.Enum):
    """The part that a mutant breaks."""

    KERNEL = "kernel"
    #: The TCG plugin.
    OBSERVER = "observer"
    #: The lab's own side: the NMIs that the lab sends, and the source of its landmarks.
    LAB = "lab"


class Tampering(enum.Enum):
    """What the lab's own side does wrong on purpose."""

    #: QEMU is asked for its status in place of each NMI.
    NEVER_SENT = "NMIs are never sent"
    #: The same, but for the last NMI of each plan.
    ONLY_LAST_SENT = "only the last NMI is sent"
    #: The landmarks are those of a kernel with the same functions at other addresses.
    STALE_LANDMARKS = "landmarks of another kernel"


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """One mutant.

    :param base: name of the kernel on which the mutant is tried; a mutant of a kernel is a patch of this kernel
    :param breaks: the defect, in one line
    :param caught_by: names of invariants; a mutant of a kernel must break at least one of them; with any other mutant
        at least one of them must no longer hold
    :param scenario: the scenario in which the mutant is tried; the kernel without the mutant is sound in this scenario
    :param ends_in: FAIL, or INVALID where the defect is not in a kernel
    :param least_interface: of QEMU's plugin interface; no witness sees the defect with an older interface
    :param tampering: of a mutant without a patch
    """

    name: str
    subject: Subject
    base: str
    breaks: str
    caught_by: tuple[str, ...]
    scenario: Scenario
    ends_in: Outcome = Outcome.FAIL
    least_interface: int = MIN_LEVEL
    tampering: Tampering | None = None


def parse_mutant(text: str, name: str, subject: Subject) -> Mutant:
    """Read the description of a mutant from the message of its patch.

    Accepted: ``Breaks: ...``, ``Caught-by: NAME, NAME``, and ``Scenario: KEY = VALUE; KEY = VALUE``. ``Scenario`` may
    appear several times, and its keys are those of a scenario file. A mutant of a witness inside the kernel also has
    ``Ends-in: INVALID``. ``Least-interface: 4`` names the plugin interface from which on a witness sees the
    defect.

    :param name: name of the file, without its ending
    :raise UsageError: the text is not such a message; the error names the mutant and the trailer
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"mutant '{name}': a name is small letters, digits and single dashes")
    message = text.partition("\n---\n")[0]
    found: dict[str, str] = {}
    for match in _TRAILER.finditer(message):
        key, value = match["key"], match["value"].strip()
        if key in found and key != "Scenario":
            raise UsageError(f"mutant '{name}': trailer '{key}' is there twice")
        found[key] = f"{found[key]}; {value}" if key in found else value
    for key in _NEEDED:
        if key not in found:
            raise UsageError(f"mutant '{name}': trailer '{key}' is missing")
    lines = [f'summary = "{name}"', *(part.strip() for part in found["Scenario"].split(";"))]
    scenario = parse_scenario("\n".join(lines), f"mutant {name}", name).scenario
    return Mutant(
        name=name,
        subject=subject,
        base=find_mechanism(scenario.mechanism).base,
        breaks=found["Breaks"],
        caught_by=tuple(part.strip() for part in found["Caught-by"].split(",")),
        scenario=scenario,
        ends_in=_read_end(name, subject, found.get("Ends-in", "")),
        least_interface=_read_interface(name, found.get("Least-interface", str(MIN_LEVEL))),
    )


def _read_interface(name: str, said: str) -> int:
    allowed = [str(level) for level in range(MIN_LEVEL, MAX_LEVEL + 1)]
    if said not in allowed:
        raise UsageError(
            f"mutant '{name}': trailer 'Least-interface' is '{said[:60]}': allowed is {allowed[0]} to {allowed[-1]}"
        )
    return int(said)


def _read_end(name: str, subject: Subject, said: str) -> Outcome:
    if said not in ("", Outcome.INVALID.value):
        raise UsageError(f"mutant '{name}': trailer 'Ends-in' is '{said[:60]}': allowed is INVALID, or no such trailer")
    return Outcome.FAIL if subject is Subject.KERNEL and not said else Outcome.INVALID
