# SPDX-License-Identifier: GPL-2.0-or-later
"""The git tree of a bisection. Unlike a build, a bisection checks out commits in the user's own tree.

``git bisect`` keeps its state in the tree. So a bisection that was killed is ended by ``git bisect reset``, by the user
or by the next bisection in the same folder of results.
"""

import os
from pathlib import Path
from typing import Final

import msgspec

from lab.build.git_tree import read_git_tree
from lab.errors import DeadlineError, HostError, ProcessError, UsageError
from lab.host import proc
from lab.host.deadline import Deadline

#: A checkout of all of Linux on a slow disk.
MAX_GIT_S: Final = 600.0
#: Subjects of commits are text of others.
MAX_SUBJECT_CHARS: Final = 200
#: If every commit left was skipped, so many are named.
MAX_CANDIDATES: Final = 100

#: The user's own settings must not change what is checked out, and no hook may run.
_SETTINGS: Final = (f"core.hooksPath={os.devnull}", "core.fsmonitor=false", "advice.detachedHead=false", "gc.auto=0")


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be bisected.

    :param good: full hash, as ``bad``
    :param commits: how many commits are bad or unknown
    """

    root: Path
    good: str
    bad: str
    commits: int


def make_environment() -> dict[str, str]:
    """Return the environment of git, which its steps inherit: the user's, without settings of the user's git."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **kept,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


def make_command(root: Path, *words: str) -> list[str]:
    """Return the words that run git in a tree."""
    settings = [word for setting in (f"safe.directory={root}", *_SETTINGS) for word in ("-c", setting)]
    return ["git", "-C", str(root), *settings, *words]


def ask(root: Path, *words: str, problem: str) -> str:
    """Run git, and return what it prints.

    :param problem: what is wrong when git refuses
    :raise UsageError: it does, with its last line
    :raise HostError: it does not run or does not end
    """
    try:
        return proc.run(make_command(root, *words), env=make_environment(), deadline=Deadline.after(MAX_GIT_S)).strip()
    except ProcessError as error:
        said = [line.removeprefix("fatal: ").removeprefix("error: ") for line in error.output.strip().splitlines()[-1:]]
        raise UsageError(": ".join((problem, *said))) from error
    except DeadlineError as error:
        raise HostError(f"{problem}: git took longer than {MAX_GIT_S:.0f} s") from error


def find_range(tree: Path, good: str, bad: str) -> Range:
    """Check a tree and two revisions of it.

    :raise UsageError: the tree is no clean tree of Linux or is being bisected, or they are no range of commits
    """
    looked = read_git_tree(tree)
    root = looked.root
    if is_bisecting(root):
        raise UsageError(f"tree '{tree}' is being bisected: 'git -C {root} bisect reset' ends that")
    if looked.dirty:
        raise UsageError(
            f"tree '{tree}' has changed or untracked files, which each step would build: commit, stash or remove them"
        )
    commits = {}
    for option, revision in (("--good", good), ("--bad", bad)):
        problem = f"{option} '{revision}' is no commit of '{tree}'"
        if not revision or revision.startswith("-"):
            raise UsageError(problem)
        commits[option] = _resolve(root, f"{revision}^{{commit}}", problem)
    first, last = commits["--good"], commits["--bad"]
    if first == last:
        raise UsageError(f"--good and --bad are the same commit {first}: there is nothing between them")
    problem = f"--good '{good}' is not an ancestor of --bad '{bad}': name a good commit that the bad one has in it"
    try:
        ask(root, "merge-base", "--is-ancestor", first, last, problem=problem)
    except UsageError:
        raise UsageError(problem) from None
    count = ask(root, "rev-list", "--count", f"{first}..{last}", problem=f"git cannot count the commits of '{tree}'")
    return Range(root=root, good=first, bad=last, commits=int(count))


def _resolve(root: Path, revision: str, problem: str) -> str:
    try:
        return ask(root, "rev-parse", "--verify", "--quiet", "--end-of-options", revision, problem=problem).split()[-1]
    except (UsageError, IndexError):
        raise UsageError(problem) from None


def is_bisecting(root: Path) -> bool:
    """Say whether a tree is being bisected."""
    path = ask(root, "rev-parse", "--git-path", "BISECT_START", problem=f"'{root}' is no git tree")
    return (root / path).exists()


def reset(root: Path) -> None:
    """End a bisection: the tree has checked out again what it had before.

    :raise UsageError: git refuses
    """
    ask(root, "bisect", "reset", problem=f"'{root}' is still being bisected, since git cannot end that")


def read_subject(root: Path, commit: str) -> str:
    """Return the first line of a commit's message."""
    found = ask(root, "show", "--no-patch", "--format=%s", commit, problem=f"'{root}' has no commit {commit}")
    return found[:MAX_SUBJECT_CHARS]


def list_parents(root: Path, commit: str) -> tuple[str, ...]:
    """Return the parents of a commit."""
    problem = f"'{root}' has no commit {commit}"
    return tuple(ask(root, "rev-list", "--max-count=1", "--parents", commit, problem=problem).split()[1:])


def list_suspects(root: Path) -> tuple[str, ...]:
    """Return the commits of which one is the first bad one, while the tree is being bisected. The bad one is first."""
    goods = ask(root, "for-each-ref", "--format=%(objectname)", "refs/bisect/good-*", problem="git has no good commits")
    words = ["rev-list", f"--max-count={MAX_CANDIDATES}", "refs/bisect/bad", "--not", *goods.split()]
    return tuple(ask(root, *words, problem="git has no bad commit").split())
