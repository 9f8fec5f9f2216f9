# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's memory, written from outside while it runs."""

from typing import Final

from lab.errors import GuestError, UsageError
from lab.guest.lines import LineChannel
from lab.host.deadline import Deadline

#: Where the kernel's image is mapped from (__START_KERNEL_map); without KASLR what lies at an address of it lies at the
#: rest in memory.
KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
#: What qtest calls a write of so many bytes.
_COMMANDS: Final = {1: "writeb", 2: "writew", 4: "writel", 8: "writeq"}


class GuestMemory:
    """Writes numbers to the kernel's data and code, through qtest."""

    def __init__(self, qtest: LineChannel) -> None:
        self._qtest = qtest

    def write_kernel(self, address: int, value: int, size: int, deadline: Deadline) -> None:
        """Write a number in one store where the kernel of a guest without KASLR has it.

        :param address: of the kernel's image, from its symbols
        :param size: in bytes: 1, 2, 4 or 8
        :raise UsageError: it is no address of the kernel's image, or of another size
        :raise GuestError: QEMU refused
        :raise GuestGone: the guest ended
        :raise DeadlineError: no reply came
        """
        if address < KERNEL_MAP or size not in _COMMANDS:
            raise UsageError(f"{size} bytes at {address:#x}: allowed are 1, 2, 4 or 8 at {KERNEL_MAP:#x} or above")
        what = f"qtest's reply to a write at {address:#x}"
        command = f"{_COMMANDS[size]} {address - KERNEL_MAP:#x} {value:#x}\n"
        reply = self._qtest.exchange(command.encode(), deadline, what)
        if reply.line != b"OK":
            raise GuestError(f"qtest replied {reply.line[:80]!r} to a write at {address:#x}")
