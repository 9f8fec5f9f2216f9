# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs from outside the guest, to all vCPUs or to one."""

import select
import socket
import time
from typing import Protocol

from lab.errors import DeadlineError, GuestError, GuestGone
from lab.guest.ending import EndLatch
from lab.guest.qmp import EXIT_NEWS_S, QmpChannel
from lab.host.deadline import Deadline
from lab.spec.topology import Topology

#: Bound of one injection where the caller gives none; the slowest seen was 14 ms.
INJECT_S = 5.0

#: Where a write from outside is a message-signalled interrupt (SDM 3A 11.11): the APIC id in bits 12 to 19, and data
#: whose delivery mode in bits 8 to 10 is NMI.
MSI_BASE = 0xFEE00000
MSI_NMI = 0x400

ALL_VCPUS = -1
#: A qtest reply is one short line.
MAX_REPLY_BYTES = 4096


class Injector(Protocol):
    """Sends NMIs."""

    def inject(self, vcpu: int, deadline: Deadline | None = None) -> tuple[int, int]:
        """Send one NMI, and wait until QEMU has set it pending.

        :param vcpu: whom, or ALL_VCPUS
        :return: CLOCK_MONOTONIC ns before the command was written and after its reply was read
        :raise GuestError: it cannot be sent so
        :raise GuestGone: the guest ended
        :raise DeadlineError: no reply came
        """


class BroadcastInjector:
    """QMP ``inject-nmi``: pulls LINT1 of every vCPU's APIC, which an offline one has masked."""

    def __init__(self, qmp: QmpChannel) -> None:
        self._qmp = qmp

    def inject(self, vcpu: int = ALL_VCPUS, deadline: Deadline | None = None) -> tuple[int, int]:
        """Send one NMI to all; see Injector."""
        if vcpu != ALL_VCPUS:
            raise GuestError(f"inject-nmi reaches all vCPUs, it cannot be aimed at vCPU {vcpu}")
        return self._qmp.execute_timed("inject-nmi", deadline=deadline or Deadline.after(INJECT_S))


class AimedInjector:
    """An MSI write through qtest: one vCPU, also an offline one. Never for a vCPU that waits for its SIPI."""

    def __init__(self, end: socket.socket, topology: Topology, ending: EndLatch) -> None:
        self._end = end
        self._topology = topology
        self._ending = ending
        self._commands = tuple(
            f"writel {MSI_BASE + (topology.apic_id(vcpu) << 12):#x} {MSI_NMI:#x}\n".encode()
            for vcpu in range(topology.vcpus)
        )
        self._received = b""
        self._unanswered = 0
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._poll.register(ending, select.POLLIN)

    def inject(self, vcpu: int, deadline: Deadline | None = None) -> tuple[int, int]:
        """Send one NMI to one vCPU; see Injector."""
        if not 0 <= vcpu < len(self._commands):
            raise GuestError(f"vCPU {vcpu} is none of the guest's {len(self._commands)}")
        deadline = deadline or Deadline.after(INJECT_S)
        what = f"qtest's reply to an NMI for vCPU {vcpu}"
        self._ending.check(what)
        command = self._commands[vcpu]
        send_ns = time.monotonic_ns()
        try:
            # Blocking is not possible: a command is far smaller than the socket's buffer, or the send fails.
            self._end.send(command, socket.MSG_DONTWAIT)
        except OSError as error:
            raise self._explain(deadline, what) from error
        self._unanswered += 1
        # Replies come in the order of commands; one given up on is still to be read.
        while self._unanswered:
            reply = self._read_line(deadline, what)
            reply_ns = time.monotonic_ns()
            self._unanswered -= 1
        if reply != b"OK":
            raise GuestError(f"qtest replied {reply[:80]!r} to an NMI for vCPU {vcpu}")
        return send_ns, reply_ns

    def _read_line(self, deadline: Deadline, what: str) -> bytes:
        while b"\n" not in self._received:
            ready = dict(self._poll.poll(deadline.remaining_s * 1000))
            self._ending.check(what)
            if not ready:
                raise DeadlineError(f"deadline reached while waiting for {what}")
            try:
                data = self._end.recv(MAX_REPLY_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._explain(deadline, what) from error
            if not data or len(self._received) > MAX_REPLY_BYTES:
                raise self._explain(deadline, what)
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _explain(self, deadline: Deadline, what: str) -> GuestGone:
        end = self._ending.wait(deadline.within(EXIT_NEWS_S))
        return GuestGone(f"{end.reason if end else 'the qtest channel broke'}, while waiting for {what}")
