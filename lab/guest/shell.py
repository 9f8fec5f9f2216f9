# SPDX-License-Identifier: GPL-2.0-or-later
"""A shell in the guest that stays open, so that a command costs a message and not a login.

paramiko measures its timeouts by the wall clock: one that is set by a day while a command runs would make it late, and
its trial one of a guest that does not answer. So paramiko is given none; all waits are bounded here.
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

#: What one command may print; more is read and dropped.
MAX_OUTPUT_BYTES = 8 << 20
#: What one command may consist of; it travels as one word of the shell.
MAX_SCRIPT_BYTES = 4 << 20

#: Words by which a script could end the shell or change it for the next one. Such a script gets a subshell, and no
#: other does: the fork costs 3 to 5 ms under TCG, where everything else costs 1.
_ENDS_SHELL = re.compile(r"\b(?:cd|exec|exit|return|set|trap|ulimit|umask)\b")

_CHUNK_BYTES = 1 << 16
#: In place of a timeout where None stands for paramiko's own.
NEVER_S = float("inf")
#: Room for the line end, the nonce, a blank, three digits and a line end.
_MARKER_BYTES = 64


class ShellResult(msgspec.Struct, frozen=True):
    """What a command did.

    :param status: its exit status
    :param stdout: what it printed, both streams in order
    :param dropped_bytes: how much more it printed than is kept
    """

    status: int
    stdout: bytes
    dropped_bytes: int = 0


class _Output:
    """Collects output up to the marker that follows a command."""

    def __init__(self, nonce: str) -> None:
        self._marker = b"\n" + nonce.encode() + b" "
        self._kept = bytearray()
        self._recent = bytearray()
        self._dropped = 0

    def feed(self, data: bytes) -> ShellResult | None:
        """Take more output; return the result once the marker's line is whole."""
        self._recent += data
        at = self._recent.find(self._marker)
        if at >= 0:
            end = self._recent.find(b"\n", at + 1)
            if end < 0:
                return None
            self._keep(at)
            status = int(self._recent[len(self._marker) : end - at])
            return ShellResult(status, bytes(self._kept), self._dropped)
        # The marker may have begun in what is held back.
        self._keep(len(self._recent) - _MARKER_BYTES)
        return None

    def _keep(self, count: int) -> None:
        if count > 0:
            room = MAX_OUTPUT_BYTES - len(self._kept)
            self._kept += self._recent[: min(count, room)]
            self._dropped += max(0, count - room)
            del self._recent[:count]


class GuestShell:
    """One ``sh`` at the end of one SSH channel; commands run one at a time, and their variables last.

    A command that outlives its deadline loses its channel; the next one gets a channel of its own.
    """

    def __init__(self, transport: paramiko.Transport, ending: EndLatch) -> None:
        self._transport = transport
        self._ending = ending
        self._channel: paramiko.Channel | None = None
        self._readable = threading.Event()

    def run(self, script: str, deadline: Deadline) -> ShellResult:
        """Run a script and wait for its end; its standard input is empty.

        :raise UsageError: the script is too long or holds a NUL
        :raise GuestGone: the guest ended, or the shell did
        :raise DeadlineError: the script did not end in time; it may still run
        """
        if "\0" in script or len(script) > MAX_SCRIPT_BYTES:
            raise UsageError(
                f"a script for the guest has {len(script)} characters: allowed are {MAX_SCRIPT_BYTES}, no NUL"
            )
        what = f"the guest to run '{script.strip().partition(chr(10))[0][:60]}'"
        nonce = secrets.token_hex(16)
        # eval, so that a syntax error is the script's alone, and "command", without which sh would end at one.
        # The nonce in two words, so that a shell that prints what it reads does not print the marker.
        body = (
            f"( eval {shlex.quote(script)} )" if _ENDS_SHELL.search(script) else f"command eval {shlex.quote(script)}"
        )
        line = f"{{ {body}; }} </dev/null 2>&1; printf '\\n%s%s %d\\n' {nonce[:16]} {nonce[16:]} $?\n".encode()
        output = _Output(nonce)
        try:
            channel = self.open(deadline)
            # What fits is sent without a wait.
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
            raise self._explain(error, deadline, what) from error

    def put(self, path: str, data: bytes, deadline: Deadline) -> None:
        """Write a small file in the guest.

        :raise GuestError: the guest could not write it
        :raise UsageError: it is too large; and otherwise as run() does
        """
        text = base64.encodebytes(data).decode()
        result = self.run(f"base64 -d >{shlex.quote(path)} <<'END'\n{text}END\n", deadline)
        if result.status != 0:
            raise GuestError(f"the guest could not write '{path}': {result.stdout[:200]!r}")

    def open(self, deadline: Deadline) -> paramiko.Channel:
        """Open the channel unless it is open, and return it; raises what paramiko does."""
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

    def _explain(self, error: Exception, deadline: Deadline, what: str) -> GuestError:
        return explain(self._ending, error, deadline, what)


@contextlib.contextmanager
def cutting(transport: paramiko.Transport, deadline: Deadline) -> Iterator[None]:
    """Break a connection once the deadline has passed: some of paramiko's waits have no other end."""
    timer = threading.Timer(deadline.remaining_s, cut, [transport])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def cut(transport: paramiko.Transport) -> None:
    """Break a connection without waiting for anything; all who wait for it are woken."""
    with contextlib.suppress(OSError):
        transport.sock.shutdown(2)


def explain(ending: EndLatch, error: Exception, deadline: Deadline, what: str) -> GuestError:
    """Say what a failure of a connection means: the guest's end first, then the deadline, then the failure itself."""
    if isinstance(error, TimeoutError) or deadline.expired:
        end = ending.seen
        if end is None:
            return DeadlineError(f"deadline reached while waiting for {what}")
    else:
        end = ending.wait(deadline.within(EXIT_NEWS_S))
    seen = end.reason if end else f"the SSH connection broke ({error or type(error).__name__})"
    return GuestGone(f"{seen}, while waiting for {what}")
