# SPDX-License-Identifier: GPL-2.0-or-later
"""A copy of a user's source tree that follows the tree. An unchanged file keeps the time that make looks at.

The lab reads a file again if its size, times or inode have changed, and writes the copy again if its content has
changed.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lab.build.cache import make_key
from lab.errors import UsageError
from lab.host.files import write_whole
from lab.host.paths import is_utf8

#: No source file of Linux has a tenth of this size. A larger file is a disk image or similar.
MAX_FILE_BYTES = 256 * 2**20
#: Resolution of the coarsest file systems' clocks.
_RECENT_NS = 2_000_000_000
#: A stamp that no file has, so the next build reads the file again.
_NO_STAMP = (-1, -1, -1, -1)


class Copied(msgspec.Struct, frozen=True, array_like=True):
    """One copied file.

    :param stamp: size, times and inode of the original when it was read
    :param content: hash of the file, or target of the link
    :param kind: ``x`` executable, ``-`` not executable, ``l`` a link
    """

    stamp: tuple[int, int, int, int]
    content: str
    kind: str


class Snapshot:
    """The copy in a folder, and its record in a file beside the folder. Only one process at a time may own both.

    :param account: the record's file, which is trusted; if the copy may differ from the record, the caller must remove
        it
    """

    def __init__(self, folder: Path, account: Path) -> None:
        self._folder = folder
        self._account = account
        self._copied: dict[str, Copied] = {}
        with contextlib.suppress(OSError, ValueError, msgspec.DecodeError):
            self._copied = _from_json(account.read_bytes())

    def follow(self, root: Path, names: Iterable[str]) -> str:
        """Make the copy equal to the named files of a tree, and return the hash of the whole copy.

        Leave out deleted files, links to targets outside the tree, and entries that are neither file nor link.

        :param names: relative to the tree
        :raise UsageError: a name leads out of the tree, or a file is not readable
        :raise HostError: the disk is full, or the copy is not writable
        """
        present = {}
        parents: dict[str, bool] = {}
        for name in names:
            status = _find(root, name, parents)
            if status is not None:
                present[name] = status
        try:
            for name in [name for name in self._copied if name not in present]:
                self._remove(name)
            for name, status in present.items():
                self._copy(root, name, status)
        finally:
            write_whole(self._account, _to_json(self._copied))
        words = [word for name in sorted(self._copied) for word in self._words(name)]
        return make_key(*words)

    def _words(self, name: str) -> tuple[bytes, str, str]:
        copied = self._copied[name]
        return os.fsencode(name), copied.kind, copied.content

    def _copy(self, root: Path, name: str, status: os.stat_result) -> None:
        old = self._copied.get(name)
        kind = _kind(status)
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if old is not None and old.stamp == stamp and old.kind == kind:
            return
        if time.time_ns() - status.st_mtime_ns < _RECENT_NS:
            # If somebody writes the file again before the file system's clock ticks, the stamp stays the same. So the
            # next build must read the file again.
            stamp = _NO_STAMP
        try:
            content = self._copy_link(root, name, old) if kind == "l" else self._copy_file(root, name, old, kind)
        except OSError as error:
            raise UsageError(f"'{root / name}' could not be copied: {error.strerror}") from error
        if content:
            self._copied[name] = Copied(stamp, content, kind)

    def _copy_link(self, root: Path, name: str, old: Copied | None) -> str:
        content = _read_link(root / name, root)
        if old is None or (old.content, old.kind) != (content, "l"):
            self._remove(name)
            if content:
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self._folder / name).symlink_to(content)
        return content

    def _copy_file(self, root: Path, name: str, old: Copied | None, kind: str) -> str:
        target = self._folder / name
        # Read the file once: the hash and the copy come from the same bytes, even if somebody writes to the file now.
        data = _read(root / name)
        content = hashlib.sha256(data).hexdigest()
        if old is None or (old.content, old.kind) != (content, kind):
            self._remove(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if kind == "x" else 0o644)
        return content

    def _remove(self, name: str) -> None:
        self._copied.pop(name, None)
        path = self._folder / name
        if not os.path.lexists(path):
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            # Remove all empty parents: a file may now have the name of such a folder.
            for parent in path.parents:
                if parent == self._folder:
                    break
                parent.rmdir()


def _find(root: Path, name: str, parents: dict[str, bool]) -> os.stat_result | None:
    """Return a file's status, without following links; None if the file is not part of the tree.

    :param parents: for folders seen before: True if no link leads to the folder
    """
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or ".git" in parts:
        raise UsageError(f"tree '{root}' has a file with the name {name!r}, which leads out of it")
    parent = "/".join(parts[:-1])
    if parent not in parents:
        parents[parent] = Path(os.path.realpath(root / parent)) == root / parent
    if not parents[parent]:
        return None
    try:
        status = os.lstat(root / name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(status.st_mode) and status.st_size > MAX_FILE_BYTES:
        raise UsageError(f"'{root / name}' has {status.st_size} bytes: no source file has; have git ignore it")
    return status if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode) else None


def _kind(status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "l"
    return "x" if status.st_mode & stat.S_IXUSR else "-"


def _read_link(path: Path, root: Path) -> str:
    """Return the target of a link; empty if the target is outside the tree."""
    target = str(path.readlink())
    inside = not Path(target).is_absolute() and Path(os.path.realpath(path.parent / target)).is_relative_to(root)
    return target if inside and is_utf8(target) else ""


def _read(path: Path) -> bytes:
    """Read a file that was a regular file a moment ago.

    If another entry replaced it, do not follow a link, and do not block.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as source:
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file any more", str(path))
        return source.read(MAX_FILE_BYTES)


def _to_json(names: dict[str, Copied]) -> bytes:
    # A file name may be any bytes, but JSON is text.
    return msgspec.json.encode({os.fsencode(name).decode("latin-1"): copied for name, copied in names.items()})


def _from_json(data: bytes) -> dict[str, Copied]:
    names = msgspec.json.decode(data, type=dict[str, Copied])
    return {os.fsdecode(name.encode("latin-1")): copied for name, copied in names.items()}
