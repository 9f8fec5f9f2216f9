# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs from outside the guest, to all vCPUs or to one.

Both ways set the pending bit before they reply, also while the target is held in a plugin's callback.
"""

import socket
from typing import Protocol

import msgspec

from lab.errors import GuestError
from lab.guest.ending import EndLatch
from lab.guest.lines import LineChannel
from lab.host.deadline import Deadline
from lab.model.topology import Topology

#: Bound of one injection where the caller gives none; the slowest seen on an idle host was 14 ms.
INJECT_S = 5.0

#: Where a write from outside is a message-signalled interrupt (SDM 3A 11.11): the APIC id in bits 12 to 19, and data
#: whose delivery mode in bits 8 to 10 is NMI.
MSI_BASE = 0xFEE00000
MSI_NMI = 0x400

ALL_VCPUS = -1


class Injector(Protocol):
    """Sends NMIs."""

    def inject(self, vcpu: int, deadline: Deadline | None = None) -> tuple[int, int]:
        """Send one NMI, and wait until QEMU has set it pending.

        :param vcpu: whom, or ALL_VCPUS
        :return: CLOCK_MONOTONIC ns before the command was written and after its reply was read
        :raise GuestError: it cannot be sent so, or was refused
        :raise GuestGone: the guest ended
        :raise DeadlineError: no reply came
        """


class BroadcastInjector:
    """QMP ``inject-nmi``: pulls LINT1 of every vCPU's APIC, which an offline one has masked.

    Over a monitor of its own: passing through the event loop of QmpChannel takes two changes of threads, which on a
    busy host doubled the time between send and reply, and an NMI is proven in a window only if both lie in it.
    """

    def __init__(self, end: socket.socket, ending: EndLatch) -> None:
        # The greeting is the reply that comes unasked; events come on every monitor.
        self._lines = LineChannel(end, ending, is_reply=lambda line: "event" not in _decode(line), unasked=1)

    def connect(self, deadline: Deadline) -> None:
        """Take QEMU's greeting; raises as inject() does."""
        self._execute("qmp_capabilities", deadline)

    def inject(self, vcpu: int = ALL_VCPUS, deadline: Deadline | None = None) -> tuple[int, int]:
        """Send one NMI to all; see Injector."""
        if vcpu != ALL_VCPUS:
            raise GuestError(f"inject-nmi reaches all vCPUs, it cannot be aimed at vCPU {vcpu}")
        return self._execute("inject-nmi", deadline or Deadline.after(INJECT_S))

    def _execute(self, command: str, deadline: Deadline) -> tuple[int, int]:
        reply = self._lines.exchange(b'{"execute": "%s"}\n' % command.encode(), deadline, f"QMP '{command}'")
        if "return" not in _decode(reply.line):
            raise GuestError(f"QEMU replied {reply.line[:200]!r} to '{command}'")
        return reply.send_ns, reply.reply_ns


def _decode(line: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(line, type=dict[str, object])
    except msgspec.DecodeError:
        return {}


class AimedInjector:
    """An MSI write through qtest: one vCPU, also an offline one. Never for a vCPU that waits for its SIPI.

    :ivar qtest: the channel, which writes all of the guest's memory
    """

    def __init__(self, end: socket.socket, topology: Topology, ending: EndLatch) -> None:
        self.qtest = LineChannel(end, ending, is_reply=lambda _: True)
        self._commands = tuple(
            f"writel {MSI_BASE + (topology.apic_id(vcpu) << 12):#x} {MSI_NMI:#x}\n".encode()
            for vcpu in range(topology.vcpus)
        )

    def inject(self, vcpu: int, deadline: Deadline | None = None) -> tuple[int, int]:
        """Send one NMI to one vCPU; see Injector."""
        if not 0 <= vcpu < len(self._commands):
            raise GuestError(f"vCPU {vcpu} is none of the guest's {len(self._commands)}")
        what = f"qtest's reply to an NMI for vCPU {vcpu}"
        reply = self.qtest.exchange(self._commands[vcpu], deadline or Deadline.after(INJECT_S), what)
        if reply.line != b"OK":
            raise GuestError(f"qtest replied {reply.line[:80]!r} to an NMI for vCPU {vcpu}")
        return reply.send_ns, reply.reply_ns
