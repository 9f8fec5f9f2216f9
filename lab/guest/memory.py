# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes to the guest's memory from outside, while the guest runs."""

from typing import Final

from lab.errors import GuestError, UsageError
from lab.guest.lines import LineChannel
from lab.host.deadline import Deadline

#: The kernel's image is mapped at this address (__START_KERNEL_map). Without KASLR, an address of the image minus this
#: base is the physical address.
KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
#: qtest's name of the command that writes so many bytes.
_COMMANDS: Final = {1: "writeb", 2: "writew", 4: "writel", 8: "writeq"}


class GuestMemory:
    """Write numbers to the kernel's data and code, through qtest."""

    def __init__(self, qtest: LineChannel) -> None:
        self._qtest = qtest

    def write_kernel(self, address: int, value: int, size: int, deadline: Deadline) -> None:
        """Write a number in one store, at an address of the kernel. The guest must run without KASLR.

        :param address: address in the kernel's image, from its symbols
        :param size: in bytes: 1, 2, 4 or 8
        :raise UsageError: the address is not in the kernel's image, or the size is not one of these
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
