# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache of build results. The name of an entry is the SHA-256 of all inputs of the build.

An entry is a folder ``<cache>/<kind>/<key>/``. A build fills ``.<key>.<random>.tmp`` and renames it, so a visible entry
is complete. One builder per key has the lock of ``.<key>.lock``. A ``.tmp`` folder whose lock is free is the leftover
of a killed build.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.errors import HostError
from lab.host.deadline import Deadline
from lab.host.files import hash_file, write_whole
from lab.host.lock import try_lock
from lab.host.paths import find_cache

Progress = Callable[[str], None]

#: In each entry: the hash of each of its files, in the format of sha256sum(1).
SUMS = "SHA256SUMS"
#: More than a cold kernel build on one slow core. A process that keeps a lock for longer has hung.
MAX_WAIT_S = 2 * 3600.0
_POLL_S = 0.1


def make_key(*parts: str | bytes) -> str:
    """Return the SHA-256 of all inputs of a build.

    The length precedes each input, so one input never equals two inputs.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


def read_tree(root: Path) -> tuple[tuple[str, bool, bytes], ...]:
    """Return name, executable bit and content of each file below a folder of images/, in order of name.

    Leave out the files of editors and version control (dot files, ``~``).

    :raise HostError: a file is not readable
    """
    try:
        return tuple(
            (path.relative_to(root).as_posix(), os.access(path, os.X_OK), path.read_bytes())
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith(".") and not path.name.endswith("~")
        )
    except OSError as error:
        raise HostError(f"'{error.filename}' could not be read: {error.strerror}") from error


def key_tree(root: Path) -> str:
    """Return the hash of a folder of images/: of all names and contents in it."""
    words: list[str | bytes] = []
    for name, executable, data in read_tree(root):
        words += [name, "x" if executable else "-", data]
    return make_key(*words)


def hash_once(path: Path) -> str:
    """Return the SHA-256 of a big file outside the cache. The cache remembers the hash until the file changes.

    :raise HostError: the file is not readable
    """
    try:
        status = path.stat()
    except OSError as error:
        raise HostError(f"'{path}' could not be read: {error.strerror}") from error
    memo = make_folder("hashes") / make_key(str(path), f"{status.st_size} {status.st_mtime_ns} {status.st_ino}")
    with contextlib.suppress(OSError):
        known = memo.read_text()
        if len(known) == hashlib.sha256().digest_size * 2:
            return known
    found = hash_file(path)
    write_whole(memo, found.encode())
    return found


def find_log(kind: str, key: str) -> Path:
    """Return the path of a build's log. The log remains after a failed build."""
    return make_folder("logs") / f"{kind}-{key[:16]}.log"


def cached(kind: str, key: str, build: Callable[[Path], None], progress: Progress) -> Path:
    """Return the folder of an entry. Build the entry first if it does not exist.

    :param kind: one word for the thing: name of the folder, and of the thing in messages
    :param key: from :func:`make_key`, over all inputs of the build
    :param build: fills the empty folder that it receives
    :raise HostError: the disk is full, or another build of the same entry hung; a recipe may also raise BuildError
    """
    return cached_in(make_folder(kind), kind, key, build, progress)


def cached_in(folder: Path, kind: str, key: str, build: Callable[[Path], None], progress: Progress) -> Path:
    """Do the same as :func:`cached` in an existing folder outside the cache."""
    entry = folder / key
    if entry.is_dir():
        return entry
    try:
        with locked(folder / f".{key}.lock", kind, progress):
            if not entry.is_dir():
                _remove_leftovers(folder, key)
                _build_entry(Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".tmp", dir=folder)), entry, build)
    except OSError as error:
        where = error.filename or folder
        raise HostError(f"the {kind} could not be built, '{where}': {error.strerror or error}") from error
    return entry


def read_sums(entry: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of an entry at the time of the build.

    :raise HostError: the entry is damaged
    """
    try:
        lines = (entry / SUMS).read_text().splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise HostError(f"cache entry '{entry}' is damaged: remove it and build again") from error


def make_folder(name: str) -> Path:
    """Return a folder of the cache, and make it if needed.

    :raise HostError: the folder cannot be made
    """
    folder = find_cache() / name
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise HostError(f"cache folder '{folder}' could not be made: {error.strerror}") from error
    return folder


@contextlib.contextmanager
def locked(path: Path, kind: str, progress: Progress) -> Iterator[int]:
    """Take a lock for the block, and yield its descriptor.

    The lock lasts until this process and all processes that inherit the descriptor end. A build passes the descriptor
    to make. So for other builds it ends with its last compiler, even if the lab was killed and its compilers still run.

    :raise HostError: another process kept the lock for longer than any build takes
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not try_lock(descriptor):
            progress(f"{kind}: waiting for another build of the same")
            deadline = Deadline.after(MAX_WAIT_S)
            while not try_lock(descriptor):  # flock(2) has no timeout.
                if deadline.expired:
                    raise HostError(f"another build of the same {kind} has held '{path}' for two hours")
                time.sleep(_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _build_entry(temporary: Path, entry: Path, build: Callable[[Path], None]) -> None:
    try:
        temporary.chmod(0o755)
        build(temporary)
        _seal(temporary)
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Hash the files and write them to the disk.

    After a power cut, a rename may otherwise survive without its files' data.
    """
    sums = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sums.append(f"{hash_file(path)}  {path.relative_to(folder).as_posix()}\n")
        with open(path, "rb") as source:
            os.fsync(source.fileno())
    write_whole(folder / SUMS, "".join(sums).encode())


def _remove_leftovers(folder: Path, key: str) -> None:
    """Remove the leftovers of killed builds. The caller has the lock of ``key``.

    A compiler of a killed build may still write to a folder, so that the removal fails. A later build removes that
    folder.
    """
    for path in folder.glob(".*.tmp"):
        owner = path.name.split(".")[1]
        if owner == key or not _is_locked(folder / f".{owner}.lock"):
            shutil.rmtree(path, ignore_errors=True)


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)
