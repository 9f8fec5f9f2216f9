# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's agent (images/agent): reads and writes the guest's files, many in one round trip.

A shell under TCG takes some 20 ms for each program that it starts; the agent starts none. All that it answers is
untrusted: its size is bounded, and an answer of another form is an error.
"""

import enum
import os
import struct
from collections.abc import Sequence

import msgspec
import paramiko

from lab.errors import GuestError, UsageError
from lab.guest.channel import GuestChannel
from lab.guest.ending import EndLatch
from lab.host.deadline import Deadline

#: Where the initramfs has it.
AGENT_PATH = "/bin/mclab-agent"
#: Of one step, in each direction; images/agent/agent.c has the same.
MAX_STEP_BYTES = 8 << 20
MAX_STEPS = 256
#: Of one answer: no question needs more than a log and some small files.
MAX_ANSWER_BYTES = 2 * MAX_STEP_BYTES
_MAX_PATH_BYTES = 4095

#: Numbers of agent.c: 32 bits, x86's order.
_NUMBER = struct.Struct("<I")
_STEP = struct.Struct("<III")
_HEAD = struct.Struct("<II")
#: Linux's largest errno (MAX_ERRNO).
_MAX_ERRNO = 4095


class StepKind(enum.IntEnum):
    """What the agent can do; numbers of ``enum step_kind``."""

    READ = 0
    WRITE = 1
    PUT = 2
    REMOVE = 3
    LOG = 4
    TAKE_LOG = 5


class Step(msgspec.Struct, frozen=True):
    """One thing for the agent to do.

    :param means: what it means when the step fails; empty where the file's name says enough
    """

    kind: StepKind
    path: str = ""
    data: bytes = b""
    means: str = ""

    @property
    def text(self) -> str:
        """The step in words."""
        if self.kind in (StepKind.LOG, StepKind.TAKE_LOG):
            return "read the kernel's log"
        verb = "write" if self.kind is StepKind.PUT else self.kind.name.lower()
        return f"{verb} '{self.path[:80]}'"


class Answer(msgspec.Struct, frozen=True):
    """What came of one step.

    :param errno: 0 for success
    :param data: what was read, also what was read before an error
    """

    errno: int
    data: bytes = b""

    @property
    def problem(self) -> str:
        """The error in words, empty for success."""
        return os.strerror(self.errno) if self.errno else ""


def read(path: str) -> Step:
    """Read a whole file."""
    return Step(StepKind.READ, path)


def write(path: str, data: bytes, means: str = "") -> Step:
    """Write to a file that is there, as a shell's ``>`` does. Short data reach a file of sysfs at once."""
    return Step(StepKind.WRITE, path, data, means)


def put(path: str, data: bytes) -> Step:
    """Write a file, and make it where there is none."""
    return Step(StepKind.PUT, path, data)


def remove(path: str) -> Step:
    """Remove a file. A file that is not there is no error."""
    return Step(StepKind.REMOVE, path)


#: Read the kernel's log, each line with its level: ``<6>[    1.234567] text``.
LOG = Step(StepKind.LOG)
#: Read the kernel's log, and leave the log empty.
TAKE_LOG = Step(StepKind.TAKE_LOG)


class GuestAgent:
    """The agent at the end of one SSH channel. Requests run one at a time."""

    def __init__(self, transport: paramiko.Transport, ending: EndLatch, command: str = f"exec {AGENT_PATH}") -> None:
        self._channel = GuestChannel(transport, ending, command)

    def ask(self, steps: Sequence[Step], deadline: Deadline) -> tuple[Answer, ...]:
        """Have steps taken in order, also after a step that failed, and return what came of each.

        :raise UsageError: there are too many steps, or one is too large
        :raise GuestGone: the guest or the agent ended
        :raise DeadlineError: no answer came before the deadline; the agent may still be at a step
        :raise GuestError: the answer has another form
        """
        request = _pack(steps)
        received = bytearray()
        with self._channel.using(f"the guest to {steps[0].text}", deadline):
            self._channel.send(request, deadline)
            while len(received) < _NUMBER.size or len(received) < _NUMBER.size + _read_length(received):
                if deadline.expired:
                    raise TimeoutError
                received += self._channel.receive(deadline)
            return _unpack(bytes(received), len(steps))

    def ask_all(self, steps: Sequence[Step], deadline: Deadline) -> tuple[bytes, ...]:
        """Have steps taken of which none may fail, and return what they read; raises as :meth:`ask` does.

        :raise GuestError: one failed
        """
        answers = self.ask(steps, deadline)
        for step, answer in zip(steps, answers, strict=True):
            if answer.errno:
                raise GuestError(f"{step.means or f'the guest could not {step.text}'}: {answer.problem}")
        return tuple(answer.data for answer in answers)


def _pack(steps: Sequence[Step]) -> bytes:
    if not 0 < len(steps) <= MAX_STEPS:
        raise UsageError(f"a request to the guest's agent has {len(steps)} steps: allowed are 1 to {MAX_STEPS}")
    parts = [_NUMBER.pack(len(steps))]
    for step in steps:
        path = os.fsencode(step.path)
        if len(path) > _MAX_PATH_BYTES or b"\0" in path or len(step.data) > MAX_STEP_BYTES:
            raise UsageError(
                f"a step of the guest's agent has a path of {len(path)} bytes and {len(step.data)} bytes of data:"
                f" allowed are {_MAX_PATH_BYTES}, no NUL, and {MAX_STEP_BYTES}"
            )
        parts += [_STEP.pack(step.kind, len(path), len(step.data)), path, step.data]
    return b"".join(parts)


def _read_length(received: bytearray) -> int:
    (length,) = _NUMBER.unpack_from(received)
    if length > MAX_ANSWER_BYTES:
        raise ValueError(f"an answer of {length} bytes")
    return int(length)


def _unpack(received: bytes, steps: int) -> tuple[Answer, ...]:
    """Return the answers to a number of steps; raises ValueError for anything else."""
    answers = []
    at = _NUMBER.size
    for _ in range(steps):
        if at + _HEAD.size > len(received):
            raise ValueError("an answer that is too short")
        errno, length = _HEAD.unpack_from(received, at)
        at += _HEAD.size
        if errno > _MAX_ERRNO or at + length > len(received):
            raise ValueError(f"errno {errno} with {length} bytes")
        answers.append(Answer(errno, received[at : at + length]))
        at += length
    if at != len(received):
        raise ValueError("an answer that is too long")
    return tuple(answers)
