# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole bisection: both ends are tried, then ``git bisect run`` tries commits between them.

Git starts a program for each commit (lab/cli/bisect_step.py). That program reads what is asked from the bisection's
folder, and leaves a note there. A commit with a note is not tried again, so a killed bisection goes on where it was.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

import lab
from lab.bisect.history import (
    Range,
    ask,
    is_bisecting,
    list_parents,
    list_suspects,
    make_command,
    make_environment,
    read_subject,
    reset,
)
from lab.bisect.step import STEPS, Asked, Standing, Step, read_asked, read_step, write_asked
from lab.errors import EvidenceError, LabError, UsageError
from lab.evidence.folder import refuse_output
from lab.host import proc

LOG: Final = "git-bisect.log"
#: How a step's last line begins.
SAID: Final = "lab: "
#: A step ends its guest and its compilers, and writes what it has.
STOP_S: Final = 20.0
_POLL_S: Final = 0.5
_LOG_TAIL_BYTES: Final = 4_096


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """A commit that was tried."""

    commit: str
    subject: str
    step: Step


class Bisected(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a bisection.

    :param first_bad: None if it could not be told; ``suspects`` are then the commits of which one is
    :param before: of its parents, the last one that was seen to be good; None as above
    :param tried: all commits that were tried, in the order in which they were
    """

    first_bad: Commit | None
    before: Commit | None
    suspects: tuple[str, ...]
    tried: tuple[Commit, ...]
    reason: str


def claim(folder: Path, asked: Asked) -> bool:
    """Take a folder for a bisection, and say whether the folder holds the same bisection, which was not finished.

    :raise UsageError: the folder holds something else
    """
    found = None
    with contextlib.suppress(EvidenceError):
        found = read_asked(folder)
    if found is not None and found != asked:
        raise UsageError(f"output folder '{folder}' is of another bisection: name an empty or new one")
    if found is None:
        if any(folder.iterdir()):
            raise refuse_output(folder)
        write_asked(folder, asked)
    (folder / STEPS).mkdir(exist_ok=True)
    return found is not None


def recover(folder: Path, root: Path) -> None:
    """End what a killed bisection of this folder left in the tree.

    :raise UsageError: git refuses
    """
    with contextlib.suppress(EvidenceError):
        if Path(read_asked(folder).tree) == root and is_bisecting(root):
            reset(root)


def make_step_command(folder: Path) -> tuple[str, ...]:
    """Return the program that tries the commit that is checked out. The tree's own files must not shadow modules."""
    return (sys.executable, "-P", "-m", "lab.cli.bisect_step", str(folder))


def bisect(folder: Path, between: Range, tell: Callable[[str], None], step: Sequence[str] = ()) -> Bisected:
    """Find the first bad commit. The tree has checked out in the end what it had in the beginning.

    :param folder: taken by :func:`claim`
    :param step: the program that tries a commit, with its first words
    :raise UsageError: the good commit is bad, or the bad one is good
    :raise LabError: a step was aborted, or git failed
    """
    words = tuple(step) or make_step_command(folder)
    runner = _Runner(folder, between.root, words, tell)
    try:
        ask(between.root, "bisect", "start", problem=f"'{between.root}' cannot be bisected")
        for commit, wanted in ((between.bad, Standing.BAD), (between.good, Standing.GOOD)):
            found = runner.try_end(commit, wanted)
            if found.standing is Standing.SKIPPED:
                return _conclude(folder, between, (), f"the {wanted.value} commit cannot be judged: {found.reason}")
        for word, commit in (("bad", between.bad), ("good", between.good)):
            ask(between.root, "bisect", word, commit, problem=f"'{between.root}' cannot be bisected")
        suspects = list_suspects(between.root)
        if len(suspects) > 1:
            runner.run_bisect()
            suspects = list_suspects(between.root)
    finally:
        # Git may have been interrupted before it began.
        if is_bisecting(between.root):
            reset(between.root)
    reason = "" if len(suspects) == 1 else f"{len(suspects)} commits are left, and all but the bad one were skipped"
    return _conclude(folder, between, suspects, reason)


def _conclude(folder: Path, between: Range, suspects: tuple[str, ...], reason: str) -> Bisected:
    root = between.root
    paths = sorted((folder / STEPS).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    steps = (read_step(folder, path.stem) for path in paths)
    tried = tuple(
        Commit(commit=each.commit, subject=read_subject(root, each.commit), step=each) for each in steps if each
    )
    known = {each.commit: each for each in tried}
    first = known.get(suspects[0]) if len(suspects) == 1 else None
    good = (known.get(parent) for parent in list_parents(root, first.commit)) if first is not None else iter(())
    before = next((each for each in good if each is not None and each.step.standing is Standing.GOOD), None)
    return Bisected(first_bad=first, before=before, suspects=suspects, tried=tried, reason=reason)


class _Runner:
    """Runs git and steps, which end with this process however it ends."""

    def __init__(self, folder: Path, root: Path, step: tuple[str, ...], tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._root = root
        self._step = step
        self._tell = tell
        #: Where the log of the program that runs now begins: a bisection that goes on adds to its log.
        self._begin = 0

    def try_end(self, commit: str, wanted: Standing) -> Step:
        """Try one end of the range.

        :raise UsageError: it is the contrary of what the user says
        :raise LabError: the step was aborted
        """
        problem = f"'{self._root}' cannot check out {commit}"
        ask(self._root, "checkout", "--quiet", "--detach", commit, problem=problem)
        self._run(self._step)
        found = read_step(self._folder, commit)
        if found is None:
            raise LabError(f"the bisection was aborted: {self._explain()} (log: {self._folder / LOG})")
        if found.standing not in (wanted, Standing.SKIPPED):
            raise UsageError(f"--{wanted.value} {commit[:12]} is {found.standing.value}: {found.reason}")
        return found

    def run_bisect(self) -> None:
        """Have git try commits until it knows.

        :raise LabError: a step was aborted
        """
        status = self._run(make_command(self._root, "bisect", "run", *self._step))
        # Git ends with 2 if only skipped commits are left, which the caller sees by the suspects.
        if status not in (0, 2):
            raise LabError(f"the bisection was aborted: {self._explain()} (log: {self._folder / LOG})")

    def _run(self, words: Sequence[str]) -> int:
        package = str(Path(lab.__file__).parents[1])
        environment = {**make_environment(), "PYTHONPATH": package}
        with contextlib.suppress(FileNotFoundError):
            self._begin = (self._folder / LOG).stat().st_size
        with (
            _open_lifeline() as lifeline,
            open(self._folder / LOG, "ab") as log,
            proc.start_process(
                [*words, str(lifeline.reader)],
                cwd=self._root,
                env=environment,
                pass_fds=(lifeline.reader,),
                stdout=log,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_POLL_S)
                    self._tell((self._read_lines() or ["starting"])[-1])
            except BaseException:
                lifeline.cut()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
                raise
            return process.returncode

    def _read_lines(self) -> list[str]:
        with contextlib.suppress(OSError), open(self._folder / LOG, "rb") as source:
            source.seek(max(self._begin, os.fstat(source.fileno()).st_size - _LOG_TAIL_BYTES))
            return [line for line in source.read().decode(errors="backslashreplace").splitlines() if line.strip()]
        return []

    def _explain(self) -> str:
        """Return what a step said last. Git's own last lines say only that git stopped."""
        lines = self._read_lines()
        said = [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
        return (said or lines or ["no output"])[-1]


class _Lifeline:
    """A pipe that nobody writes to. Its reader sees the end when the writer is gone, also by SIGKILL."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()

    def cut(self) -> None:
        """Tell the reader that it is over."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


@contextlib.contextmanager
def _open_lifeline() -> Iterator[_Lifeline]:
    lifeline = _Lifeline()
    try:
        yield lifeline
    finally:
        lifeline.cut()
        os.close(lifeline.reader)
