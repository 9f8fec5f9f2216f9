# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs from outside the guest, to all vCPUs or to one vCPU.

Both ways set the pending bit before they reply, even while a plugin's callback stops the target.
"""

import socket
from typing import Protocol

import msgspec

from lab.errors import GuestError
from lab.guest.ending import EndLatch
from lab.guest.lines import LineChannel
from lab.host.deadline import Deadline
from lab.model.topology import Topology

#: Limit of one injection if the caller gives none. The slowest injection on an idle host took 14 ms.
INJECT_S = 5.0

#: A write from outside to this address is a message-signalled interrupt (SDM 3A 11.11). Bits 12 to 19 of the address
#: are the APIC id; bits 8 to 10 of the data are the delivery mode, here NMI.
MSI_BASE = 0xFEE00000
MSI_NMI = 0x400

ALL_VCPUS = -1


class Injector(Protocol):
    """Sends NMIs."""

    def inject(self, vcpu: int, deadline: Deadline | None = None) -> tuple[int, int]:
        """Send one NMI, and wait until QEMU has set it pending.

        :param vcpu: the target, or ALL_VCPUS
        :return: CLOCK_MONOTONIC ns before the command was written and after its reply was read
        :raise GuestError: this injector cannot send such an NMI, or QEMU refused
        :raise GuestGone: the guest ended
        :raise DeadlineError: no reply came
        """


class BroadcastInjector:
    """QMP ``inject-nmi``: pulls LINT1 of every vCPU's APIC. An offline vCPU has LINT1 masked.

    The injector has a monitor of its own. The event loop of QmpChannel needs two changes of threads per command; on a
    busy host these doubled the time between send and reply. An NMI is proven in a window only if both times are in the
    window.
    """

    def __init__(self, end: socket.socket, ending: EndLatch) -> None:
        # The greeting is the one reply without a command. Events come on every monitor.
        self._lines = LineChannel(end, ending, is_reply=lambda line: "event" not in _decode(line), unasked=1)

    def connect(self, deadline: Deadline) -> None:
        """Read QEMU's greeting; raises the same errors as inject()."""
        self._execute("qmp_capabilities", deadline)

    def inject(self, vcpu: int = ALL_VCPUS, deadline: Deadline | None = None) -> tuple[int, int]:
        """Send one NMI to all vCPUs; see Injector."""
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
    """An MSI write through qtest: reaches one vCPU, even an offline vCPU.

    Never use it on a vCPU that waits for its SIPI.

    :ivar qtest: the channel, which can write to all of the guest's memory
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
