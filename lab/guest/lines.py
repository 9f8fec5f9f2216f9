# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands and one-line replies over a socket. No thread is in between, since injection needs low latency."""

import select
import socket
import time
from collections.abc import Callable

import msgspec

from lab.errors import DeadlineError, GuestGone
from lab.guest.ending import EndLatch
from lab.host.deadline import Deadline

#: A reply is one short line.
MAX_REPLY_BYTES = 1 << 16
#: When the channel breaks, the lab waits this long for the report of QEMU's exit, which makes a better message.
EXIT_NEWS_S = 1.0


class Reply(msgspec.Struct, frozen=True):
    """One exchange. Times are CLOCK_MONOTONIC ns, before the command was written and after its reply was read."""

    send_ns: int
    reply_ns: int
    line: bytes


class LineChannel:
    """One end of a socket pair. The other end answers every command with one line, in order.

    :param is_reply: tells replies from lines that QEMU sends by itself
    :param unasked: how many replies come before the first command
    """

    def __init__(
        self, end: socket.socket, ending: EndLatch, *, is_reply: Callable[[bytes], bool], unasked: int = 0
    ) -> None:
        self._end = end
        self._ending = ending
        self._is_reply = is_reply
        self._unanswered = unasked
        self._received = b""
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._poll.register(ending, select.POLLIN)

    def exchange(self, command: bytes, deadline: Deadline, what: str) -> Reply:
        """Send a command and read its reply.

        :param what: what the caller waits for, for the message
        :raise GuestGone: the guest ended, or closed the channel
        :raise DeadlineError: no reply came before the deadline; the channel drops a late reply
        """
        self._ending.check(what)
        send_ns = time.monotonic_ns()
        try:
            # Does not block: a command is far smaller than the socket's buffer, and the call fails if the buffer is
            # full.
            self._end.send(command, socket.MSG_DONTWAIT)
        except OSError as error:
            raise self._make_error(deadline, what) from error
        self._unanswered += 1
        while True:
            line = self._read_line(deadline, what)
            reply_ns = time.monotonic_ns()
            if self._is_reply(line):
                self._unanswered -= 1
                if not self._unanswered:
                    return Reply(send_ns, reply_ns, line)

    def _read_line(self, deadline: Deadline, what: str) -> bytes:
        while b"\n" not in self._received:
            ready = self._poll.poll(deadline.remaining_s * 1000)
            self._ending.check(what)
            if not ready:
                raise DeadlineError(f"deadline reached while waiting for {what}")
            try:
                data = self._end.recv(MAX_REPLY_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._make_error(deadline, what) from error
            if not data or len(self._received) > MAX_REPLY_BYTES:
                raise self._make_error(deadline, what)
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.rstrip(b"\r")

    def _make_error(self, deadline: Deadline, what: str) -> GuestGone:
        end = self._ending.wait(deadline.within(EXIT_NEWS_S))
        return GuestGone(f"{end.reason if end else 'QEMU closed the channel'}, while waiting for {what}")
