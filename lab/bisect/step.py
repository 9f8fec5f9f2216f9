# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bisection asks for, and what one commit showed. Each is a file in the bisection's folder."""

import enum
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from lab.errors import EvidenceError
from lab.host.files import write_whole
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome

ASKED: Final = "bisect.json"
STEPS: Final = "steps"
_MAX_BYTES: Final = 4 * 2**20

T = TypeVar("T")


class Standing(enum.Enum):
    """What a commit is."""

    GOOD = "good"
    BAD = "bad"
    #: It does not build, or its trials showed nothing.
    SKIPPED = "skipped"
    #: The lab or the host failed. Nothing is known of this commit or of later ones.
    ABORTED = "aborted"


#: What a step ends with, for ``git bisect run``: from 128 on it gives up.
STATUS: Final = {Standing.GOOD: 0, Standing.BAD: 1, Standing.SKIPPED: 125, Standing.ABORTED: 200}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A bisection, as it is asked for.

    :param tree: top folder of the git tree
    :param good: a commit, as ``bad``
    :param trials: of each commit; a commit is good if all of them PASS
    :param retries: further trials of a commit, in place of INVALID ones
    :param seed: from which the seeds of a commit's trials follow, the same for each commit
    :param config: path of a fragment of configuration, empty for none
    :param qemu: path, empty for the default
    """

    tree: str
    good: str
    bad: str
    scenario: Scenario
    trials: int
    retries: int
    seed: int
    config: str = ""
    qemu: str = ""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One trial of a commit.

    :param evidence: its folder, relative to the bisection's
    """

    outcome: Outcome
    seed: int
    reason: str
    evidence: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one commit showed.

    :param kernel: folder of what was built, empty for nothing
    """

    commit: str
    standing: Standing
    reason: str
    kernel: str = ""
    trials: tuple[Tried, ...] = ()

    @property
    def proof(self) -> str:
        """The evidence to look at: of the trial that decided."""
        return self.trials[-1].evidence if self.trials else ""


def weigh(trials: tuple[Tried, ...], wanted: int) -> tuple[Standing, str] | None:
    """Say what trials show of their commit, and why; None while more are needed.

    :param wanted: trials that must PASS
    """
    for each in trials:
        if each.outcome is Outcome.ERROR:
            return Standing.ABORTED, f"ERROR: {each.reason}"
    failed = next((each for each in trials if each.outcome is Outcome.FAIL), None)
    if failed is not None:
        return Standing.BAD, f"FAIL: {failed.reason}"
    passed = sum(each.outcome is Outcome.PASS for each in trials)
    return (Standing.GOOD, f"{passed} trials PASS") if passed >= wanted else None


def write_asked(folder: Path, asked: Asked) -> None:
    """Note what is asked for."""
    write_whole(folder / ASKED, msgspec.json.format(msgspec.json.encode(asked)))


def read_asked(folder: Path) -> Asked:
    """Return what is asked for.

    :raise EvidenceError: the folder is none of a bisection, or is damaged
    """
    return _read(folder / ASKED, Asked)


def write_step(folder: Path, step: Step) -> None:
    """Note what a commit showed."""
    write_whole(find_step(folder, step.commit), msgspec.json.format(msgspec.json.encode(step)))


def read_step(folder: Path, commit: str) -> Step | None:
    """Return what a commit showed; None if it was not tried, or a try of it was aborted.

    :raise EvidenceError: the note is damaged
    """
    path = find_step(folder, commit)
    step = _read(path, Step) if path.is_file() else None
    return step if step is not None and step.standing is not Standing.ABORTED else None


def find_step(folder: Path, commit: str) -> Path:
    """Return where a commit's note is; its evidence is in the folder of the same name."""
    return folder / STEPS / f"{commit}.json"


def _read(path: Path, kind: type[T]) -> T:
    try:
        with open(path, "rb") as source:
            return msgspec.json.decode(source.read(_MAX_BYTES), type=kind)
    except OSError as error:
        raise EvidenceError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EvidenceError(f"'{path}' is none of this lab's: {error}") from error
