# SPDX-License-Identifier: GPL-2.0-or-later
"""One program of the guest's at the end of one SSH channel, which stays open.

paramiko measures its timeouts by the wall clock. If somebody sets this clock forward by a day while a program answers,
paramiko would time out, and the trial would show a guest that does not answer. So the lab gives paramiko no timeout;
this module limits all waits.
"""

import contextlib
import threading
from collections.abc import Iterator

import paramiko

from lab.errors import DeadlineError, GuestError, GuestGone
from lab.guest.ending import EndLatch
from lab.guest.lines import EXIT_NEWS_S
from lab.host.deadline import Deadline

_CHUNK_BYTES = 1 << 16
#: Stands for "no timeout" where None means paramiko's own timeout.
NEVER_S = float("inf")


class GuestChannel:
    """A program and its channel. The program starts when the channel is first used, and again after a failure.

    A use that runs past its deadline loses its channel. The next use gets a new channel.

    :param command: starts the program
    """

    def __init__(self, transport: paramiko.Transport, ending: EndLatch, command: str) -> None:
        self._transport = transport
        self._ending = ending
        self._command = command
        self._channel: paramiko.Channel | None = None
        self._readable = threading.Event()

    def open(self, deadline: Deadline) -> paramiko.Channel:
        """Open the channel if it is not open, and return it; raises paramiko's errors."""
        if self._channel is None or self._channel.closed:
            with cutting(self._transport, deadline):
                channel = self._transport.open_session(timeout=NEVER_S)
                channel.set_combine_stderr(True)
                self._readable = threading.Event()
                channel.in_buffer.set_event(self._readable)
                channel.exec_command(self._command)
            self._channel = channel
        return self._channel

    @contextlib.contextmanager
    def using(self, what: str, deadline: Deadline) -> Iterator[None]:
        """Turn what paramiko raises inside into the lab's errors, and drop the channel then.

        :param what: what the lab waits for
        :raise GuestGone: the guest or the program ended
        :raise DeadlineError: the deadline passed
        :raise GuestError: the program answered nonsense (a ValueError inside)
        """
        try:
            yield
        except ValueError as error:
            self._drop()
            raise GuestError(f"the guest answered nonsense, while waiting for {what}") from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            self._drop()
            raise make_ssh_error(self._ending, error, deadline, what) from error

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of some data; to be used inside :meth:`using`."""
        channel = self.open(deadline)
        # What fits into the channel is sent without a wait.
        fits = len(data) <= min(_CHUNK_BYTES // 4, channel.out_window_size)
        with contextlib.nullcontext() if fits else cutting(self._transport, deadline):
            channel.settimeout(None)
            channel.sendall(data)

    def receive(self, deadline: Deadline) -> bytes:
        """Return what came since the last call, at least one byte; to be used inside :meth:`using`."""
        channel = self._channel
        if channel is None:
            raise EOFError("the program is not running")
        if not self._readable.wait(deadline.remaining_s):
            raise TimeoutError
        data = channel.recv(_CHUNK_BYTES)
        if not data:
            raise EOFError("the program closed its output")
        return data

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with (
                contextlib.suppress(paramiko.SSHException, EOFError, OSError),
                cutting(self._transport, Deadline.after(EXIT_NEWS_S)),
            ):
                channel.close()


@contextlib.contextmanager
def cutting(transport: paramiko.Transport, deadline: Deadline) -> Iterator[None]:
    """Break a connection once the deadline has passed, since some of paramiko's waits have no other end."""
    timer = threading.Timer(deadline.remaining_s, cut, [transport])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def cut(transport: paramiko.Transport) -> None:
    """Break a connection at once, and wake all threads that wait for the connection."""
    with contextlib.suppress(OSError):
        transport.sock.shutdown(2)


def make_ssh_error(ending: EndLatch, error: Exception, deadline: Deadline, what: str) -> GuestError:
    """Return the error for a broken connection: the guest's end if any, else the deadline, else the failure."""
    if isinstance(error, TimeoutError) or deadline.expired:
        end = ending.seen
        if end is None:
            return DeadlineError(f"deadline reached while waiting for {what}")
    else:
        end = ending.wait(deadline.within(EXIT_NEWS_S))
    seen = end.reason if end else f"the SSH connection broke ({error or type(error).__name__})"
    return GuestGone(f"{seen}, while waiting for {what}")
