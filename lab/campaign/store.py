# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run leaves: ``run.json`` says what was asked for, ``records.jsonl`` holds one trial a line.

Records are only ever appended, each synced before the next trial begins: a run that was killed keeps all of them but,
at worst, its last line.
"""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from lab.errors import EvidenceError, HostError, UsageError
from lab.host.files import write_whole
from lab.spec.evidence import Images
from lab.spec.mechanism import Expectation
from lab.spec.scenario import Scenario
from lab.spec.verdict import TrialRecord
from lab.trial.folder import RUN_MARKER

RUN = "run.json"
RECORDS = "records.jsonl"

#: What is left to describe a run besides its records: no run of ours comes near it.
MAX_RUN_BYTES = 1024 * 1024
#: A record with every invariant and 16 CPUs' durations under 1000 NMIs stays below.
MAX_RECORD_BYTES = 1024 * 1024


class MechanismAsked(msgspec.Struct, frozen=True, kw_only=True):
    """One mechanism of a run, as it was described when the run began."""

    name: str
    summary: str
    expectation: Expectation


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a run, and on what it ran.

    :param started: wall-clock time, ISO 8601
    :param command: the words of the command line
    :param trials_asked: over all mechanisms
    :param scenario: what all trials share; its mechanism is one of those asked for
    :param host: facts about the host by name, such as ``cores`` and ``qemu``
    :param finished: the run came to its own end
    :param exit_status: with which it ended, None before
    """

    lab_version: str
    started: str
    command: tuple[str, ...]
    mechanisms: tuple[MechanismAsked, ...]
    trials_asked: int
    scenario: Scenario
    images: Images | None
    host: dict[str, str]
    finished: bool = False
    exit_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it was read.

    :param torn: 1 when the last line was cut short and left out, else 0
    """

    info: RunInfo
    records: tuple[TrialRecord, ...]
    torn: int


class RunStore:
    """Writes one run into a folder; a run that is there already is replaced.

    A context manager: only one process may write a folder at a time.
    """

    def __init__(self, folder: Path, info: RunInfo) -> None:
        self.folder = folder
        self._info = info
        self._sink: BinaryIO | None = None

    def __enter__(self) -> "RunStore":
        """Take the folder and begin with no records.

        :raise UsageError: another process writes a run there
        :raise HostError: no space, or not writable
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The marker comes first, so that a run killed at once still leaves a folder known as ours.
            (self.folder / RUN_MARKER).touch()
            sink = open(self.folder / RECORDS, "ab")
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sink.truncate(0)
            write_whole(self.folder / RUN, msgspec.json.format(msgspec.json.encode(self._info)))
        except BlockingIOError:
            sink.close()
            raise UsageError(f"another run is writing to '{self.folder}': name another folder") from None
        except OSError as error:
            sink.close()
            raise self._cannot_write(error) from error
        except HostError:
            sink.close()
            raise
        self._sink = sink
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def append(self, record: TrialRecord) -> None:
        """Add a record, and return once the disk has it.

        :raise HostError: no space, or not writable; the records before it stay whole
        """
        assert self._sink is not None, "a store is written inside its with block"
        begin = self._sink.tell()
        try:
            self._sink.write(msgspec.json.encode(record) + b"\n")
            self._sink.flush()
            os.fsync(self._sink.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._sink.fileno(), begin)
            raise self._cannot_write(error) from error

    def finish(self, exit_status: int) -> None:
        """Note that the run came to its own end.

        :raise HostError: no space, or not writable
        """
        self._info = msgspec.structs.replace(self._info, finished=True, exit_status=exit_status)
        write_whole(self.folder / RUN, msgspec.json.format(msgspec.json.encode(self._info)))

    def _cannot_write(self, error: OSError) -> HostError:
        return HostError(f"run folder '{self.folder}' could not be written: {error.strerror or error}")


def read_run(folder: Path) -> Run:
    """Read a run, also one that is still being written.

    :raise EvidenceError: the folder holds no run, or a damaged one
    """
    info = _read_info(folder)
    asked = {mechanism.name for mechanism in info.mechanisms}
    records: list[TrialRecord] = []
    decoder = msgspec.json.Decoder(TrialRecord)
    path = folder / RECORDS
    torn = 0
    try:
        with open(path, "rb") as source:
            while line := source.readline(MAX_RECORD_BYTES):
                if not line.endswith(b"\n") and len(line) < MAX_RECORD_BYTES:
                    torn = 1
                    break
                record = decoder.decode(line)
                if record.mechanism not in asked:
                    raise EvidenceError(f"'{path}': line {len(records) + 1} is of a mechanism that {RUN} does not list")
                records.append(record)
    except FileNotFoundError:
        raise EvidenceError(f"'{folder}' is no run of the lab: {RECORDS} is missing") from None
    except OSError as error:
        raise EvidenceError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EvidenceError(f"'{path}': line {len(records) + 1} is no record of a trial ({error})") from error
    return Run(info=info, records=tuple(records), torn=torn)


def _read_info(folder: Path) -> RunInfo:
    path = folder / RUN
    try:
        with open(path, "rb") as source:
            data = source.read(MAX_RUN_BYTES + 1)
    except FileNotFoundError:
        raise EvidenceError(f"'{folder}' is no run of the lab: {RUN} is missing") from None
    except OSError as error:
        raise EvidenceError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_RUN_BYTES:
        raise EvidenceError(f"'{path}' has more than {MAX_RUN_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=RunInfo)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EvidenceError(f"'{path}' does not describe a run of this lab ({error})") from error
