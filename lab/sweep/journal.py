# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sweep leaves: ``sweep.jsonl``, first what was asked, then one line per block that was found and point tried.

Lines are only ever appended, each trial's together and synced before the next trial begins: a sweep that was killed
goes on with exactly the points that have no line, and its last line, if it was cut short, counts for nothing.
"""

import contextlib
import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from lab.errors import EvidenceError, HostError, UsageError
from lab.evidence.folder import RUN_MARKER
from lab.host.files import append_whole
from lab.host.lock import try_lock
from lab.model.phase import Phase, Role
from lab.model.placed import Placed
from lab.model.sweep import Block, Point, Rank, SweepAsk, Visit
from lab.model.verdict import Outcome

JOURNAL: Final = "sweep.jsonl"
#: A journal's line has a few hundred bytes, its first one a few more.
MAX_LINE_BYTES: Final = 64 * 1024
#: Of another form, the lines mean something else.
JOURNAL_VERSION: Final = 2


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """The first line.

    :param kernel_sha256: of the kernel that is booted: points of another one are others
    :param qemu_sha256: of QEMU's program, which decides where blocks begin; empty in a journal of an older lab
    """

    version: int
    lab_version: str
    ask: SweepAsk
    kernel_sha256: str
    qemu_sha256: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True, tag="found"):
    """A block that a thread came to, or came to more often than known.

    :param count: how often in one load, the most that was seen
    :param lead: where that load was given NMIs, in order: maybe the thread comes there only after those
    :param last: which thread had been made the last to call in
    :param before: how often the thread had come there before that phase, in that load
    :param masked: only NMIs of the sweep led there, and no further one can enter in their handler: it is no point
    """

    role: Role
    phase: Phase
    pc: int
    symbol: str
    count: int
    lead: tuple[Visit, ...] = ()
    last: Role | None = None
    before: int = 0
    masked: bool = False

    @property
    def block(self) -> Block:
        """Which one."""
        return Block(self.role, self.phase, self.pc)


class Dry(msgspec.Struct, frozen=True, kw_only=True, tag="dry"):
    """A load without an NMI, which shows what blocks there are.

    :param broken: its required invariants that were broken
    """

    outcome: Outcome
    reason: str
    broken: tuple[str, ...] = ()
    evidence: str = ""


class Tried(msgspec.Struct, frozen=True, kw_only=True, tag="tried"):
    """A point that is done with.

    :param outcome: PASS or FAIL where it was tried, else that of the last attempt
    :param asked: which arrival the point was when it was first tried
    :param arrival: at which it was tried in the end; 1 also where it was stopped somewhere in a loop that it spins in
        before the phase, to be there as that begins
    :param attempts: how many trials it took
    :param lead: where NMIs were sent before, in the same load
    :param placed: all holds of its last attempt: what a scenario needs to try it again
    :param entered: the block that began next was the NMI handler's
    :param broken: required invariants that were broken
    :param evidence: of a FAIL: its folder, relative to that of the sweep
    """

    role: Role
    phase: Phase
    pc: int
    rank: Rank
    outcome: Outcome
    reason: str
    asked: int
    arrival: int
    attempts: int
    lead: tuple[Visit, ...] = ()
    placed: tuple[Placed, ...] = ()
    entered: bool = False
    broken: tuple[str, ...] = ()
    evidence: str = ""

    @property
    def point(self) -> Point:
        """Which one."""
        return Point(Block(self.role, self.phase, self.pc), self.rank)

    @property
    def was_tried(self) -> bool:
        """Whether it shows something."""
        return self.outcome in (Outcome.PASS, Outcome.FAIL)


class Broke(msgspec.Struct, frozen=True, kw_only=True, tag="broke"):
    """A load that broke something though its thread did not come to the point that it was to try: one for each point.

    :param placed: its holds, of which some were reached, or none
    :param broken: required invariants that were broken
    :param evidence: its folder, relative to that of the sweep
    """

    role: Role
    phase: Phase
    pc: int
    rank: Rank
    reason: str
    placed: tuple[Placed, ...]
    broken: tuple[str, ...]
    evidence: str


class Uncovered(msgspec.Struct, frozen=True, kw_only=True, tag="uncovered"):
    """What a load's cover has not: there may be points that nobody knows of.

    :param blocks: that found no place in the observer's table
    """

    blocks: int


Line = Begun | Found | Dry | Tried | Broke | Uncovered


class Journal:
    """Writes one sweep's lines. A context manager: only one process may write a folder at a time.

    :param begun: what its first line is, or must be
    :param resume: go on with the lines that are there
    :ivar lines: those that were there
    """

    def __init__(self, folder: Path, begun: Begun, resume: bool) -> None:
        self.folder = folder
        self.lines: tuple[Line, ...] = ()
        self._begun = begun
        self._resume = resume
        self._sink: FileIO | None = None

    def __enter__(self) -> "Journal":
        """Take the folder.

        :raise UsageError: another process sweeps there, or what is there is another sweep
        :raise HostError: no space, or not writable
        """
        with contextlib.ExitStack() as undo:
            try:
                (self.folder / RUN_MARKER).touch()
                # Without a buffer, which would still hold the rest of a line after a write that failed.
                sink = undo.enter_context(open(self.folder / JOURNAL, "ab", buffering=0))
                if not try_lock(sink.fileno()):
                    raise UsageError(f"another sweep is writing to '{self.folder}': name another folder")
                there, whole = read_lines(self.folder) if self._resume else ((), 0)
                os.ftruncate(sink.fileno(), whole)
            except OSError as error:
                raise self._cannot_write(error) from error
            if there and there[0] != self._begun:
                raise UsageError(
                    f"the sweep in '{self.folder}' is another one, or its kernel or QEMU has changed: it cannot go on"
                )
            self._sink, self.lines = sink, there[1:]
            if not there:
                self.append(self._begun)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def append(self, *lines: Line) -> None:
        """Add lines, and return once the disk has them.

        :raise HostError: no space, or not writable; the lines before stay whole
        """
        assert self._sink is not None, "a journal is written inside its with block"
        try:
            append_whole(self._sink, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> HostError:
        return HostError(f"sweep folder '{self.folder}' could not be written: {error.strerror or error}")


def read_lines(folder: Path) -> tuple[tuple[Line, ...], int]:
    """Read a sweep's lines, and how many bytes those have that are whole.

    :raise UsageError: the folder holds no sweep, or a damaged one
    """
    path = folder / JOURNAL
    lines: list[Line] = []
    whole = 0
    decoder = msgspec.json.Decoder(Line)
    try:
        with open(path, "rb") as source:
            while line := source.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                    break
                lines.append(decoder.decode(line))
                whole += len(line)
                if isinstance(lines[-1], Begun) is not (len(lines) == 1):
                    raise EvidenceError("it is no line of a sweep at that place")
    except FileNotFoundError:
        raise UsageError(f"'{folder}' holds no sweep: {JOURNAL} is missing") from None
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, EvidenceError, ValueError, RecursionError) as error:
        raise UsageError(f"'{path}': line {max(1, len(lines))} cannot be read ({error})") from error
    begun = lines[0] if lines else None
    if isinstance(begun, Begun) and begun.version != JOURNAL_VERSION:
        raise UsageError(f"'{path}' is of version {begun.version}: this lab reads {JOURNAL_VERSION}")
    return tuple(lines), whole


def read_begun(folder: Path) -> Begun:
    """Return what the sweep in a folder was asked.

    :raise UsageError: the folder holds no sweep, or a damaged one
    """
    lines, _ = read_lines(folder)
    if not lines or not isinstance(lines[0], Begun):
        raise UsageError(f"'{folder}' holds no sweep: {JOURNAL} has no line")
    return lines[0]
