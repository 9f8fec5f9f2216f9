# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of all vCPUs of a guest that no longer answers. QEMU may still answer, or be stuck itself."""

import re
from typing import Final

import msgspec

from lab.guest.qmp import QmpChannel
from lab.host.deadline import Deadline

#: QEMU answers within milliseconds, or never.
ASK_S: Final = 3.0
#: QEMU prints about 3 KiB per vCPU.
MAX_TEXT_CHARS: Final = 256 << 10
#: RFLAGS.IF, SDM 1 3.4.3.
_INTERRUPTS: Final = 1 << 9

#: QEMU prints ``CPU#1``, and then among others ``RIP=ffffffff81357cc3 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0
#: HLT=1``; or ``EIP=000fd09a EFL=00000002`` for a vCPU that is not in 64-bit mode.
_HEAD: Final = re.compile(r"^CPU#(\d{1,4})\s*$", re.ASCII | re.MULTILINE)
_RIP: Final = re.compile(
    r"^[RE]IP=([0-9a-f]{1,16}) (?:RFL|EFL)=([0-9a-f]{1,16}) .{0,100}?\bHLT=([01])", re.ASCII | re.MULTILINE
)


class VcpuRegisters(msgspec.Struct, frozen=True, kw_only=True):
    """The registers of one vCPU that the lab needs.

    :param interrupts: the vCPU accepts interrupts
    """

    vcpu: int
    rip: int
    halted: bool
    interrupts: bool


def read_registers(qmp: QmpChannel, deadline: Deadline) -> str:
    """Stop the guest for good, and return QEMU's text about the registers of all vCPUs.

    The guest must stop because QEMU updates RIP only between chains of translated blocks. For a vCPU that loops in one
    chain, RIP would be from long ago.

    :raise GuestGone: the guest ended
    :raise DeadlineError: QEMU did not answer
    :raise GuestError: QEMU refused
    """
    qmp.execute("stop", deadline=deadline)
    text = qmp.execute("human-monitor-command", {"command-line": "info registers -a"}, deadline=deadline)
    return str(text)[:MAX_TEXT_CHARS]


def is_halted(qmp: QmpChannel, vcpus: int, deadline: Deadline) -> bool:
    """Return True if only an NMI can make a vCPU run again: all vCPUs are halted, with interrupts off.

    A kernel that cannot be unpacked ends in this state, and prints nothing on its console. The guest keeps running
    during the check, since the registers of a halted vCPU are up to date.

    :raise GuestGone: the guest ended
    :raise DeadlineError: QEMU did not answer
    :raise GuestError: QEMU refused
    """
    text = qmp.execute("human-monitor-command", {"command-line": "info registers -a"}, deadline=deadline)
    found = parse_registers(str(text)[:MAX_TEXT_CHARS])
    return len(found) == vcpus and all(each.halted and not each.interrupts for each in found)


def parse_registers(text: str) -> tuple[VcpuRegisters, ...]:
    """Parse the text of ``info registers -a``, in order of vCPUs. Leave out vCPUs whose text is not readable."""
    heads = list(_HEAD.finditer(text))
    found = {}
    for at, head in enumerate(heads):
        end = heads[at + 1].start() if at + 1 < len(heads) else len(text)
        match = _RIP.search(text, head.end(), end)
        if match is not None:
            found[int(head[1])] = VcpuRegisters(
                vcpu=int(head[1]),
                rip=int(match[1], 16),
                halted=match[3] == "1",
                interrupts=bool(int(match[2], 16) & _INTERRUPTS),
            )
    return tuple(found[vcpu] for vcpu in sorted(found))
