# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants: what is broken on purpose, so that it shows whether the lab would notice.

A mutant is a patch whose message ends in trailers that say what it is of. Those of a kernel must be caught as FAIL, by
the invariant that they break; those of a witness or of the lab itself show nothing of a kernel: they must end as
INVALID.
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
#: What a mutant may be called: it names folders.
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


#: Trials after which a mutant that was not caught is taken for a survivor.
DEFAULT_TRIALS = 100


class Subject(enum.Enum):
    """What is broken."""

    KERNEL = "kernel"
    #: The TCG plugin.
    OBSERVER = "observer"
    #: The lab's own side: what it sends, and what it reads landmarks from.
    LAB = "lab"


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """One mutant.

    :param base: name of the kernel that it is tried on, and with a kernel's that it is a patch of
    :param breaks: what it breaks, in one line
    :param caught_by: names of invariants: of a kernel's mutant one of them must be broken, of another's one must no
        longer hold
    :param scenario: in which it is tried; the kernel without the mutant is sound there
    :param ends_in: FAIL, or INVALID where no kernel is at fault
    :param least_interface: of QEMU's plugin interface: below it nobody sees what the mutant breaks
    """

    name: str
    subject: Subject
    base: str
    breaks: str
    caught_by: tuple[str, ...]
    scenario: Scenario
    ends_in: Outcome = Outcome.FAIL
    least_interface: int = MIN_LEVEL


def parse_mutant(text: str, name: str, subject: Subject) -> Mutant:
    """Read what a patch's message says of its mutant.

    Accepted: ``Breaks: ...``, ``Caught-by: NAME, NAME``, and ``Scenario: KEY = VALUE; KEY = VALUE`` as often as it
    takes (keys as in a scenario file); ``Ends-in: INVALID`` where the mutant is of a witness inside the kernel;
    ``Least-interface: 4`` where what it breaks shows from that plugin interface on.

    :param name: of the file, without its ending
    :raise UsageError: the text is no such message; the error names the mutant and the trailer
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
