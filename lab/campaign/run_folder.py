# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of a run: claimed for a new one, and cleared of an earlier one on request alone, also of an older lab."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from lab.campaign.database import NAME, STOP, TRIALS
from lab.errors import HostError, UsageError
from lab.evidence.folder import RUN_MARKER, claim_output, holds_only_evidence, is_marked, refuse_output

#: Of an older lab: what was asked for, and a record of a trial on each line.
RUN: Final = "run.json"
RECORDS: Final = "records.jsonl"
#: Which lab.report.page writes.
PAGE: Final = "index.html"

_STORE: Final = tuple(f"{NAME}{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))
_FILES: Final = frozenset((RUN_MARKER, RUN, RECORDS, PAGE, STOP, *_STORE))
_TRIAL: Final = re.compile(r"[0-9]{5,}(-[a-z0-9-]+)?", re.ASCII)
_ATTEMPT: Final = re.compile(r"attempt-[0-9]+", re.ASCII)
#: What a lab that was killed leaves of something it was writing or removing: a dot, its name, and what tempfile adds.
_HALF: Final = re.compile(r"\.(.+)\.[a-z0-9_]{8}", re.ASCII)


def claim_run_output(path: Path, replace: bool) -> Path:
    """Return the folder a user wants a run in: new or empty, or that of an earlier run which is to be replaced.

    Nothing is removed yet: :func:`clear_run` does, once no other process can begin a run there.

    :raise UsageError: as :func:`lab.evidence.folder.claim_output`
    :raise HostError: as :func:`lab.evidence.folder.claim_output`
    """

    def check(folder: Path) -> None:
        if not is_marked(folder):
            raise refuse_output(folder)
        if not replace:
            raise UsageError(
                f"output folder '{folder}' holds a run: name an empty or new one, or replace that run with --replace"
            )
        _check_replaceable(folder)

    return claim_output(path, check)


def clear_run(folder: Path, replace: bool) -> None:
    """Make a folder that of a new run, which its caller has locked: marked, and without what an earlier run left.

    :raise UsageError: it holds a run that is not to be replaced, or something that is none
    :raise HostError: it cannot be written
    """
    try:
        # The marker comes first, so that a run killed at once still leaves a folder known as ours.
        (folder / RUN_MARKER).touch()
        if replace:
            _check_replaceable(folder)
            _remove_run(folder)
        elif any(entry.name != RUN_MARKER for entry in folder.iterdir()):
            raise UsageError(f"another run has been written to '{folder}': name another folder")
    except OSError as error:
        raise HostError(f"run folder '{folder}' could not be written: {error.strerror or error}") from error


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder in which something is that no run left.

    :raise UsageError: it names what that is
    """
    for entry in sorted(folder.iterdir()):
        half = _HALF.fullmatch(entry.name)
        name = half[1] if half else entry.name
        if name == TRIALS and _is_folder(entry):
            foreign = None if half else _find_foreign_trial(entry)
        else:
            foreign = None if name in _FILES and entry.is_file() and not entry.is_symlink() else entry
        if foreign is not None:
            raise UsageError(
                f"run folder '{folder}' holds '{foreign.relative_to(folder)}', which the lab did not leave: move it"
                " away, or name another folder (nothing was removed)"
            )


def _remove_run(folder: Path) -> None:
    """Remove what a run left, but for its marker."""
    for entry in folder.iterdir():
        if entry.name == TRIALS:
            # Given away in one step, since a lab killed on the way would leave folders that are no evidence any more.
            attic = Path(tempfile.mkdtemp(prefix=f".{TRIALS}.", dir=folder))
            shutil.rmtree(entry.rename(attic / TRIALS))
            attic.rmdir()
        elif entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != RUN_MARKER:
            entry.unlink()


def _find_foreign_trial(trials: Path) -> Path | None:
    for entry in sorted(trials.iterdir()):
        half = _HALF.fullmatch(entry.name)
        known = _TRIAL.fullmatch(half[1] if half else entry.name) is not None and _is_folder(entry)
        if not known or not (half or holds_only_evidence(entry) or _holds_only_attempts(entry)):
            return entry
    return None


def _holds_only_attempts(trial: Path) -> bool:
    for entry in trial.iterdir():
        half = _HALF.fullmatch(entry.name)
        known = _ATTEMPT.fullmatch(half[1] if half else entry.name) is not None and _is_folder(entry)
        if not known or not (half or holds_only_evidence(entry)):
            return False
    return True


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
