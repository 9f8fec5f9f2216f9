# SPDX-License-Identifier: GPL-2.0-or-later
"""A shell in the guest that stays open, so that a command costs a message instead of a login.

paramiko measures its timeouts by the wall clock. If somebody sets this clock forward by a day while a command runs, the
command would time out, and its trial would show a guest that does not answer. So the lab gives paramiko no timeout;
this module limits all waits.
"""

import base64
import contextlib
import re
import secrets
import shlex
import threading
from collections.abc import Iterator

import msgspec
import paramiko

from lab.errors import DeadlineError, GuestError, GuestGone, UsageError
from lab.guest.ending import EndLatch
from lab.guest.lines import EXIT_NEWS_S
from lab.host.deadline import Deadline

#: Maximum output of one command that is kept. The shell reads and drops the rest.
MAX_OUTPUT_BYTES = 8 << 20
#: Maximum size of one script. A script travels as one word of the shell.
MAX_SCRIPT_BYTES = 4 << 20

#: Words that can end the shell or change the shell for the next script. Only a script with such a word gets a subshell:
#: the fork costs 3 to 5 ms under TCG, and the rest of a command costs 1 ms.
_ENDS_SHELL = re.compile(r"\b(?:cd|exec|exit|return|set|trap|ulimit|umask)\b")

_CHUNK_BYTES = 1 << 16
#: Stands for "no timeout" where None means paramiko's own timeout.
NEVER_S = float("inf")
#: Room for the line end, the nonce, a blank, three digits and a line end.
_MARKER_BYTES = 64


class ShellResult(msgspec.Struct, frozen=True):
    """The result of a command.

    :param status: its exit status
    :param stdout: its output, both streams in order
    :param dropped_bytes: size of the output that is not kept
    """

    status: int
    stdout: bytes
    dropped_bytes: int = 0


class _Output:
    """Collect output up to the marker that follows a command."""

    def __init__(self, nonce: str) -> None:
        self._marker = b"\n" + nonce.encode() + b" "
        self._kept = bytearray()
        self._recent = bytearray()
        self._dropped = 0

    def feed(self, data: bytes) -> ShellResult | None:
        """Take more output; return the result once the marker's line is complete."""
        self._recent += data
        at = self._recent.find(self._marker)
        if at >= 0:
            end = self._recent.find(b"\n", at + 1)
            if end < 0:
                return None
            self._keep(at)
            status = int(self._recent[len(self._marker) : end - at])
            return ShellResult(status, bytes(self._kept), self._dropped)
        # The end of the recent bytes may be the beginning of the marker.
        self._keep(len(self._recent) - _MARKER_BYTES)
        return None

    def _keep(self, count: int) -> None:
        if count > 0:
            room = MAX_OUTPUT_BYTES - len(self._kept)
            self._kept += self._recent[: min(count, room)]
            self._dropped += max(0, count - room)
            del self._recent[:count]


class GuestShell:
    """One ``sh`` at the end of one SSH channel. Commands run one at a time, and their variables stay set.

    A command that runs past its deadline loses its channel. The next command gets a new channel.
    """

    def __init__(self, transport: paramiko.Transport, ending: EndLatch) -> None:
        self._transport = transport
        self._ending = ending
        self._channel: paramiko.Channel | None = None
        self._readable = threading.Event()

    def run(self, script: str, deadline: Deadline) -> ShellResult:
        """Run a script and wait for its end; its standard input is empty.

        :raise UsageError: the script is too long or contains a NUL
        :raise GuestGone: the guest or the shell ended
        :raise DeadlineError: the script did not end before the deadline; the script may still run
        """
        if "\0" in script or len(script) > MAX_SCRIPT_BYTES:
            raise UsageError(
                f"a script for the guest has {len(script)} characters: allowed are {MAX_SCRIPT_BYTES}, no NUL"
            )
        what = f"the guest to run '{script.strip().partition(chr(10))[0][:60]}'"
        nonce = secrets.token_hex(16)
        # eval limits a syntax error to the script. Without "command", sh would end at a syntax error. The nonce is in
        # two words, so that a shell that prints its input does not print the marker.
        body = (
            f"( eval {shlex.quote(script)} )" if _ENDS_SHELL.search(script) else f"command eval {shlex.quote(script)}"
        )
        line = f"{{ {body}; }} </dev/null 2>&1; printf '\\n%s%s %d\\n' {nonce[:16]} {nonce[16:]} $?\n".encode()
        output = _Output(nonce)
        try:
            channel = self.open(deadline)
            # A line that fits into the channel is sent without a wait.
            fits = len(line) <= min(_CHUNK_BYTES // 4, channel.out_window_size)
            with contextlib.nullcontext() if fits else self._cutting(deadline):
                channel.settimeout(None)
                channel.sendall(line)
            while True:
                if not self._readable.wait(deadline.remaining_s):
                    raise TimeoutError
                data = channel.recv(_CHUNK_BYTES)
                if not data:
                    raise EOFError("the shell closed its output")
                result = output.feed(data)
                if result is not None:
                    return result
                if deadline.expired:
                    raise TimeoutError
        except ValueError as error:
            self._drop()
            raise GuestError(f"the guest's shell answered nonsense, while waiting for {what}") from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            self._drop()
            raise self._make_error(error, deadline, what) from error

    def put(self, path: str, data: bytes, deadline: Deadline) -> None:
        """Write a small file in the guest.

        :raise GuestError: the guest could not write the file
        :raise UsageError: the data are too large; for other errors see run()
        """
        text = base64.encodebytes(data).decode()
        result = self.run(f"base64 -d >{shlex.quote(path)} <<'END'\n{text}END\n", deadline)
        if result.status != 0:
            raise GuestError(f"the guest could not write '{path}': {result.stdout[:200]!r}")

    def open(self, deadline: Deadline) -> paramiko.Channel:
        """Open the channel if it is not open, and return it; raises paramiko's errors."""
        if self._channel is None or self._channel.closed:
            with self._cutting(deadline):
                channel = self._transport.open_session(timeout=NEVER_S)
                channel.set_combine_stderr(True)
                self._readable = threading.Event()
                channel.in_buffer.set_event(self._readable)
                channel.exec_command("exec sh")
            self._channel = channel
        return self._channel

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with (
                contextlib.suppress(paramiko.SSHException, EOFError, OSError),
                self._cutting(Deadline.after(EXIT_NEWS_S)),
            ):
                channel.close()

    @contextlib.contextmanager
    def _cutting(self, deadline: Deadline) -> Iterator[None]:
        with cutting(self._transport, deadline):
            yield

    def _make_error(self, error: Exception, deadline: Deadline, what: str) -> GuestError:
        return make_ssh_error(self._ending, error, deadline, what)


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
