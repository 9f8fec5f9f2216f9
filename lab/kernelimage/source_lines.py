# SPDX-License-Identifier: GPL-2.0-or-later
"""Source lines of addresses in a kernel, by addr2line(1). They need a vmlinux with debug information."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lab.errors import DeadlineError, HostError, ProcessError
from lab.host import proc
from lab.host.deadline import Deadline

#: A vmlinux has half a gigabyte of debug information.
ADDR2LINE_S: Final = 120.0


def find_source_lines(vmlinux: Path, addresses: Iterable[int]) -> dict[int, str]:
    """Return ``file:line`` of each address with a known line; empty if vmlinux has no debug information."""
    wanted = sorted(set(addresses))
    if not wanted:
        return {}
    words = ["addr2line", "-e", str(vmlinux), *(f"{address:#x}" for address in wanted)]
    try:
        said = proc.run(words, deadline=Deadline.after(ADDR2LINE_S)).splitlines()
    except (HostError, ProcessError, DeadlineError):
        return {}
    return parse_source_lines(wanted, said)


def parse_source_lines(addresses: Iterable[int], said: Iterable[str]) -> dict[int, str]:
    """Read the output of addr2line, one line per address.

    Accepted: ``arch/x86/kernel/nmi.c:345``, with or without ``(discriminator 2)`` behind it. ``??:0``, ``??:?`` and a
    line number of ``?`` or 0 mean that addr2line does not know the address.
    """
    lines = {}
    for address, line in zip(addresses, said, strict=False):
        place = line.partition(" (")[0].strip()
        file, _, number = place.rpartition(":")
        if file and not file.startswith("??") and number.isdecimal() and int(number):
            lines[address] = place
    return lines
