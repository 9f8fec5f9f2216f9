# SPDX-License-Identifier: GPL-2.0-or-later
"""A shell in the guest that stays open, so that a command costs a message instead of a login."""

import base64
import re
import secrets
import shlex

import msgspec
import paramiko

from lab.errors import GuestError, UsageError
from lab.guest.channel import GuestChannel
from lab.guest.ending import EndLatch
from lab.host.deadline import Deadline

#: Maximum output of one command that is kept. The shell reads and drops the rest.
MAX_OUTPUT_BYTES = 8 << 20
#: Maximum size of one script. A script travels as one word of the shell.
MAX_SCRIPT_BYTES = 4 << 20

#: Words that can end the shell or change the shell for the next script. Only a script with such a word gets a subshell:
#: the fork costs 3 to 5 ms under TCG, and the rest of a command costs 1 ms.
_ENDS_SHELL = re.compile(r"\b(?:cd|exec|exit|return|set|trap|ulimit|umask)\b")

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
        self._channel = GuestChannel(transport, ending, "exec sh")

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
        nonce = secrets.token_hex(16)
        # eval limits a syntax error to the script. Without "command", sh would end at a syntax error. The nonce is in
        # two words, so that a shell that prints its input does not print the marker.
        body = (
            f"( eval {shlex.quote(script)} )" if _ENDS_SHELL.search(script) else f"command eval {shlex.quote(script)}"
        )
        line = f"{{ {body}; }} </dev/null 2>&1; printf '\\n%s%s %d\\n' {nonce[:16]} {nonce[16:]} $?\n".encode()
        output = _Output(nonce)
        with self._channel.using(f"the guest to run '{script.strip().partition(chr(10))[0][:60]}'", deadline):
            self._channel.send(line, deadline)
            while True:
                result = output.feed(self._channel.receive(deadline))
                if result is not None:
                    return result
                if deadline.expired:
                    raise TimeoutError

    def put(self, path: str, data: bytes, deadline: Deadline) -> None:
        """Write a small file in the guest.

        :raise GuestError: the guest could not write the file
        :raise UsageError: the data are too large; for other errors see run()
        """
        text = base64.encodebytes(data).decode()
        result = self.run(f"base64 -d >{shlex.quote(path)} <<'END'\n{text}END\n", deadline)
        if result.status != 0:
            raise GuestError(f"the guest could not write '{path}': {result.stdout[:200]!r}")

    def open(self, deadline: Deadline) -> None:
        """Start the shell if it does not run; raises paramiko's errors."""
        self._channel.open(deadline)
