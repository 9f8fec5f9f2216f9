# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run is for its page, and how it is read from the files that an older lab left of it.

``run.json`` says what was asked for, ``records.jsonl`` holds one trial a line. Records were only ever appended: a run
that was killed has all of them but, at worst, its last line.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from lab.campaign.run_folder import RECORDS, RUN
from lab.errors import EvidenceError
from lab.expected.expect import QUIET, Expected
from lab.mechanisms.mechanism import Expectation
from lab.model.evidence import Images
from lab.model.scenario import Scenario
from lab.model.verdict import TrialRecord

#: What is left to describe a run besides its records: no run of ours comes near it.
MAX_RUN_BYTES = 1024 * 1024
#: A record with every invariant and 16 CPUs' durations under 1000 NMIs stays below.
MAX_RECORD_BYTES = 1024 * 1024


class MechanismAsked(msgspec.Struct, frozen=True, kw_only=True):
    """One mechanism of a run, as it was described when the run began.

    :param caught_by: of a control: the invariants of which one must be seen broken
    :param why: why this is expected of it in the run's scenario, empty where it is in every one
    """

    name: str
    summary: str
    expectation: Expectation
    caught_by: tuple[str, ...] = (QUIET,)
    why: str = ""

    @property
    def expected(self) -> Expected:
        """What its records are held against."""
        return Expected(self.expectation, self.caught_by, self.why)


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a run, and on what it ran.

    :param started: wall-clock time, ISO 8601
    :param command: the words of the command line
    :param trials_asked: over all mechanisms
    :param scenario: what all trials share; its mechanism is one of those asked for
    :param images: of each kernel that was booted
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
    images: tuple[Images, ...]
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


def read_old_run(folder: Path) -> Run:
    """Read a run that an older lab wrote.

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
