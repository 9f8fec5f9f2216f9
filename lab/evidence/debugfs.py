# SPDX-License-Identifier: GPL-2.0-or-later
"""Parsers for the patched kernel's own records in ``/sys/kernel/debug/microcode_lab/``.

The lab never trusts these files.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile

from lab.errors import EvidenceError
from lab.model.evidence import CpuLedger, CpuState, RendezvousState
from lab.model.topology import MAX_VCPUS

_PAIR = re.compile(r"([a-z_]{1,32})=(\S{1,64})", re.ASCII)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})|0x[0-9a-f]{1,16}", re.ASCII)
_REVISION = re.compile(r"-1|0x[0-9a-f]{1,8}", re.ASCII)
_CPU = re.compile(r"CPU[0-9]{1,5}", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,20}", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
#: Range of the kernel's widest numbers, and of numbers in evidence. A number outside this range does not come from a
#: kernel.
_LEAST, _MOST = -(2**63), 2**64 - 1


def _read_pairs(line: str, what: str) -> Mapping[str, str]:
    words = line.split()
    pairs = [_PAIR.fullmatch(word) for word in words]
    if not words or None in pairs:
        raise EvidenceError(f"{what} is not of the form key=value")
    return {pair[1]: pair[2] for pair in pairs if pair is not None}


def _number(pairs: Mapping[str, str], key: str, what: str) -> int:
    value = pairs.get(key, "")
    if _NUMBER.fullmatch(value) is None or not _LEAST <= int(value, 0) <= _MOST:
        raise EvidenceError(f"{what} has no number '{key}'")
    return int(value, 0)


def _split(text: str, cpus: int, heads: int, what: str) -> list[str]:
    lines = text.splitlines()
    if not cpus <= MAX_VCPUS or len(lines) < heads + cpus:
        raise EvidenceError(f"{what} has {len(lines)} lines: {heads + cpus} are needed")
    return lines[: heads + cpus]


def _read_cpus(lines: list[str], what: str, first: int) -> Iterator[tuple[int, Mapping[str, str], str]]:
    """Yield for each CPU its number, its pairs, and a name of its line. ``first`` is the number of the first line."""
    for number, line in enumerate(lines):
        name = f"{what} line {number + first}"
        pairs = _read_pairs(line, name)
        if _number(pairs, "cpu", name) != number:
            raise EvidenceError(f"{name} is not of CPU {number}")
        yield number, pairs, name


def parse_state(text: str, cpus: int) -> RendezvousState:
    """Parse ``state``.

    Accepted format: the first line once, and the second line per CPU (broken here to fit the page)::

        load=3 mechanism=nmi-self tsc_khz=2000000 callers_left=0
        cpu=0 role=primary arrival_tsc=1 wait_begin_tsc=2 wait_end_tsc=9
          update_begin_tsc=3 update_end_tsc=8 result=0 revision=0x2

    :param cpus: number of the guest's CPUs; lines of other possible CPUs are left out
    :raise EvidenceError: the text has another form; the message names line and key
    """
    head, *lines = _split(text, cpus, 1, "state")
    first = _read_pairs(head, "state line 1")
    states = []
    for number, pairs, what in _read_cpus(lines, "state", 2):
        states.append(
            CpuState(
                cpu=number,
                role=pairs.get("role", ""),
                **{
                    key: _number(pairs, key, what)
                    for key in (
                        "arrival_tsc",
                        "wait_begin_tsc",
                        "wait_end_tsc",
                        "update_begin_tsc",
                        "update_end_tsc",
                        "result",
                        "revision",
                    )
                },
            )
        )
    return RendezvousState(
        load=_number(first, "load", "state line 1"),
        mechanism=first.get("mechanism", ""),
        tsc_khz=_number(first, "tsc_khz", "state line 1"),
        callers_left=_number(first, "callers_left", "state line 1"),
        cpus=tuple(states),
    )


def parse_ledger(text: str, cpus: int) -> tuple[CpuLedger, ...]:
    """Parse ``ledger``: per CPU ``cpu=0 nmi_ordinary=5 nmi_consumed=1 nmi_self_sent=1 nmi_dropped=0``.

    :raise EvidenceError: the text has another form
    """
    ledgers = []
    for number, pairs, what in _read_cpus(_split(text, cpus, 0, "ledger"), "ledger", 1):
        ledgers.append(
            CpuLedger(
                cpu=number,
                ordinary=_number(pairs, "nmi_ordinary", what),
                consumed=_number(pairs, "nmi_consumed", what),
                self_sent=_number(pairs, "nmi_self_sent", what),
                dropped=_number(pairs, "nmi_dropped", what),
            )
        )
    return tuple(ledgers)


def parse_nmi_row(text: str, cpus: int) -> tuple[int, ...]:
    """Parse head and NMI row of ``/proc/interrupts``, which shows only online CPUs; -1 for each other CPU.

    Accepted format::

                   CPU0       CPU2
        NMI:          5          4   Non-maskable interrupts

    :raise EvidenceError: these lines are missing, or the row does not have one count for each CPU of the head
    """
    lines = [line.split() for line in text.splitlines()]
    head = next((words for words in lines if words and all(_CPU.fullmatch(word) for word in words)), [])
    row = next((words[1:] for words in lines if words[:1] == ["NMI:"]), [])
    counts = list(takewhile(_COUNT.fullmatch, row))
    if not head or len(counts) != len(head) or any(int(count) > _MOST for count in counts):
        raise EvidenceError("/proc/interrupts has no row NMI with a count for each CPU of its head")
    shown = {int(name.removeprefix("CPU")): int(count) for name, count in zip(head, counts, strict=True)}
    if len(shown) != len(head):
        raise EvidenceError("/proc/interrupts names a CPU twice")
    return tuple(shown.get(cpu, -1) for cpu in range(cpus))


def parse_revisions(text: str, cpus: int) -> tuple[int, ...]:
    """Parse ``cpu*/microcode/version``: one ``0x2`` per line in order of CPUs, -1 for a CPU that sysfs does not show.

    A revision has 32 bits (MSR 0x8B).

    :raise EvidenceError: the text has another form
    """
    lines = text.split()
    if len(lines) != cpus or not all(map(_REVISION.fullmatch, lines)):
        raise EvidenceError(f"microcode revisions are not {cpus} numbers")
    return tuple(int(line, 0) for line in lines)


def parse_cpu_list(text: str, cpus: int) -> tuple[int, ...]:
    """Parse a list of CPUs in sysfs's form, such as ``0-2,5``.

    :raise EvidenceError: the text has another form, or names a CPU that the guest cannot have
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise EvidenceError("a list of CPUs is not of the form 0-2,5")
        first = int(match[1])
        last = int(match[2] or first)
        if not first <= last < cpus:
            raise EvidenceError(f"a list of CPUs names {first} to {last}: the guest has {cpus}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))
