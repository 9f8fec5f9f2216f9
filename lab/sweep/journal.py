# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads and writes ``sweep.jsonl``, the journal of a sweep.

The first line is the request. Then follows one line per block that a load showed and per point that a trial tried.
Writers only append lines. The lines of one trial are written together, and are on the disk before the next trial
begins. A resumed sweep tries exactly the points without a line. If the last line was cut short, the reader ignores this
line.
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
#: A journal's line has a few hundred bytes. The first line has a few more.
MAX_LINE_BYTES: Final = 64 * 1024
#: Another version means that the lines have another form and meaning.
JOURNAL_VERSION: Final = 2


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """The first line.

    :param kernel_sha256: hash of the booted kernel; another kernel has other points
    :param qemu_sha256: hash of QEMU's program, which decides where blocks begin; empty in a journal of an older lab
    """

    version: int
    lab_version: str
    ask: SweepAsk
    kernel_sha256: str
    qemu_sha256: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True, tag="found"):
    """A new block that a thread visited, or a known block with more visits than known.

    :param count: number of visits in one load, the maximum over all loads
    :param lead: the NMIs of that load, in order; the thread may visit the block only after these NMIs
    :param last: the thread that the load made the last to call in
    :param before: number of the thread's visits to the block before the phase, in that load
    :param masked: only NMIs of the sweep led to the block, and no further NMI can enter in their handler; the block has
        no points
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
        """The block of this line."""
        return Block(self.role, self.phase, self.pc)


class Dry(msgspec.Struct, frozen=True, kw_only=True, tag="dry"):
    """A load without an NMI. The load shows which blocks exist.

    :param broken: required invariants that the load broke
    """

    outcome: Outcome
    reason: str
    broken: tuple[str, ...] = ()
    evidence: str = ""


class Tried(msgspec.Struct, frozen=True, kw_only=True, tag="tried"):
    """A finished point.

    :param outcome: PASS or FAIL if the point was tried, otherwise the outcome of the last attempt
    :param asked: the number of the visit at the first attempt
    :param arrival: the number of the visit at the last attempt; also 1 if the thread stopped in a spin loop before the
        phase and waited there for the phase to begin
    :param attempts: number of trials for this point
    :param lead: the visits with earlier NMIs in the same load
    :param placed: all holds of the last attempt; a scenario needs them to try the point again
    :param entered: the next block that began was the NMI handler's
    :param broken: required invariants that the trial broke
    :param evidence: the folder of a FAIL, relative to the folder of the sweep
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
        """The point of this line."""
        return Point(Block(self.role, self.phase, self.pc), self.rank)

    @property
    def was_tried(self) -> bool:
        """Whether the point has a PASS or a FAIL."""
        return self.outcome in (Outcome.PASS, Outcome.FAIL)


class Broke(msgspec.Struct, frozen=True, kw_only=True, tag="broke"):
    """A load that broke an invariant although its thread did not reach the point. Each point has at most one such line.

    :param placed: the holds of the load; the threads reached some of them, or none
    :param broken: required invariants that the load broke
    :param evidence: the folder of the load, relative to the folder of the sweep
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
    """Blocks that are missing in a load's cover. The sweep may not know all points.

    :param blocks: number of blocks that did not fit into the observer's table
    """

    blocks: int


Line = Begun | Found | Dry | Tried | Broke | Uncovered


class Journal:
    """Writes the lines of one sweep. A context manager: only one process may write a folder at a time.

    :param begun: the first line that the journal gets or must have
    :param resume: continue with the existing lines
    :ivar lines: the existing lines, without the first line
    """

    def __init__(self, folder: Path, begun: Begun, resume: bool) -> None:
        self.folder = folder
        self.lines: tuple[Line, ...] = ()
        self._begun = begun
        self._resume = resume
        self._sink: FileIO | None = None

    def __enter__(self) -> "Journal":
        """Open the journal, and lock the journal for this process.

        :raise UsageError: another process sweeps in this folder, or the folder contains another sweep
        :raise HostError: no space, or not writable
        """
        with contextlib.ExitStack() as undo:
            try:
                (self.folder / RUN_MARKER).touch()
                # Without a buffer: a buffer would still contain the rest of a line after a failed write.
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
        """Add lines. Return when the disk has the lines.

        :raise HostError: no space, or not writable; the earlier lines stay whole
        """
        assert self._sink is not None, "a journal is written inside its with block"
        try:
            append_whole(self._sink, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> HostError:
        return HostError(f"sweep folder '{self.folder}' could not be written: {error.strerror or error}")


def read_lines(folder: Path) -> tuple[tuple[Line, ...], int]:
    """Read the lines of a sweep. Return the lines, and the number of bytes of the whole lines.

    :raise UsageError: the folder has no sweep, or a damaged sweep
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
    """Return the request of the sweep in a folder.

    :raise UsageError: the folder has no sweep, or a damaged sweep
    """
    lines, _ = read_lines(folder)
    if not lines or not isinstance(lines[0], Begun):
        raise UsageError(f"'{folder}' holds no sweep: {JOURNAL} has no line")
    return lines[0]
