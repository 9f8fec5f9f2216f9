# SPDX-License-Identifier: GPL-2.0-or-later
"""A git tree of Linux that belongs to the user. The lab reads the tree, and never writes to it or to its index."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lab.build.compiler import ENVIRONMENT
from lab.errors import DeadlineError, HostError, ProcessError, UsageError
from lab.host import proc
from lab.host.deadline import Deadline

#: A cold scan of all of Linux on a slow disk takes half a minute.
MAX_GIT_S = 300.0

#: No setting of the user may run a program or hide a file, and no command may refresh the tree's index.
_ENVIRONMENT = {
    **ENVIRONMENT,
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
}
_SETTINGS = (
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
    "core.untrackedCache=false",
    "core.quotePath=false",
)

#: The first lines of Linux's Makefile.
_VERSION = re.compile(rb"^VERSION = \d+\nPATCHLEVEL = \d+$", re.MULTILINE)
_MAX_MAKEFILE_BYTES = 1_000_000


class NotOfGit(UsageError):
    """Git has no commit of a folder. What the folder holds may be a tree of Linux all the same."""


class GitTree(msgspec.Struct, frozen=True):
    """One state of a tree.

    :param root: top folder of the tree, without links in its path
    :param commit: the commit of HEAD
    :param dirty: some files differ from the commit, or are untracked and not ignored
    :param names: all files that are not ignored, as bytes that :func:`os.fsdecode` made text
    """

    root: Path
    commit: str
    dirty: bool
    names: tuple[str, ...]


def read_git_tree(folder: Path) -> GitTree:
    """Read the state of a git tree of Linux.

    :raise NotOfGit: the folder is no git tree, or has no commit
    :raise UsageError: the folder is no tree of Linux, or git cannot read it
    :raise HostError: git does not run
    """
    if not folder.is_dir():
        raise UsageError(f"tree '{folder}' is not a folder")
    root = folder.resolve()
    try:
        top = _ask(root, ["rev-parse", "--show-toplevel"], f"tree '{folder}' is not a git tree").rstrip(b"\n")
    except UsageError as error:
        raise NotOfGit(str(error)) from error
    if Path(os.fsdecode(top)) != root:
        raise NotOfGit(f"tree '{folder}' is only a part of the git tree '{os.fsdecode(top)}': name that")
    check_linux(folder, root)
    commit = read_commit(root)
    status = ["status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal", "--ignore-submodules=all"]
    changed = _ask(root, status, f"git cannot tell the state of '{folder}'")
    listed = _ask(
        root,
        ["ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        f"git cannot list the files of '{folder}'",
    )
    names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
    return GitTree(root=root, commit=commit, dirty=bool(changed), names=tuple(sorted(names)))


def read_commit(root: Path) -> str:
    """Return the commit of HEAD.

    :raise NotOfGit: the tree has no commit yet
    """
    problem = f"tree '{root}' has no commit yet"
    try:
        return _ask(root, ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"], problem).decode().strip()
    except UsageError as error:
        raise NotOfGit(str(error)) from error


def check_linux(tree: Path, root: Path) -> None:
    """Check that a folder is the top of Linux's source.

    :param tree: as the user named it
    :raise UsageError: it is not
    """
    makefile = root / "Makefile"
    text = b""
    if makefile.is_file() and (root / "Kconfig").is_file():
        with open(makefile, "rb") as source:
            text = source.read(_MAX_MAKEFILE_BYTES)
    if _VERSION.search(text) is None:
        raise UsageError(f"tree '{tree}' is not one of Linux: it has no Kconfig beside a Makefile with its VERSION")


def _ask(root: Path, words: Sequence[str], problem: str) -> bytes:
    settings = [word for setting in (f"safe.directory={root}", *_SETTINGS) for word in ("-c", setting)]
    try:
        return proc.read(["git", "-C", root, *settings, *words], env=_ENVIRONMENT, deadline=Deadline.after(MAX_GIT_S))
    except ProcessError as error:
        said = error.output.strip().splitlines()[-1:]
        raise UsageError(": ".join((problem, *said))) from error
    except DeadlineError as error:
        raise HostError(f"{problem}: git took longer than {MAX_GIT_S:.0f} s") from error
