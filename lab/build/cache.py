# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache of built things, named by the SHA-256 of everything they were built from.

An entry is a folder ``<cache>/<kind>/<key>/``. It is built as ``.<key>.<random>.tmp`` and renamed into place, so what
can be seen is whole. One builder per key holds ``.<key>.lock``; a ``.tmp`` whose lock is free was left by a killed
build.
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

#: In each entry: the hash of each of its files, in the form of sha256sum(1).
SUMS = "SHA256SUMS"
#: A cold kernel build on one slow core, and then some: whoever holds a lock for longer has hung.
MAX_WAIT_S = 2 * 3600.0
_POLL_S = 0.1


def make_key(*parts: str | bytes) -> str:
    """Return the SHA-256 over all inputs of a build; each is preceded by its length, so that none can pose as two."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


def read_tree(root: Path) -> tuple[tuple[str, bool, bytes], ...]:
    """Return name, whether executable, and content of each file below a folder of images/, in order of name.

    Editors' and version control's own files (dot files, ``~``) are left out.

    :raise HostError: one cannot be read
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
    """Return the hash of a folder of images/: all names and contents in it."""
    words: list[str | bytes] = []
    for name, executable, data in read_tree(root):
        words += [name, "x" if executable else "-", data]
    return make_key(*words)


def hash_once(path: Path) -> str:
    """Return the SHA-256 of a big file outside the cache, remembered until the file changes.

    :raise HostError: it cannot be read
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
    """Return where a build writes its log, which outlives a build that failed."""
    return make_folder("logs") / f"{kind}-{key[:16]}.log"


def cached(kind: str, key: str, build: Callable[[Path], None], progress: Progress) -> Path:
    """Return the folder of an entry, built first when it is not there.

    :param kind: what it is, in one word: the name of the folder and of the thing in messages
    :param key: from :func:`make_key`, over everything that goes into it
    :param build: fills the empty folder it is given
    :raise HostError: the disk is full, or another build of the same thing hung; BuildError as the recipe raises it
    """
    return cached_in(make_folder(kind), kind, key, build, progress)


def cached_in(folder: Path, kind: str, key: str, build: Callable[[Path], None], progress: Progress) -> Path:
    """Do the same as :func:`cached` in a folder that is not in the cache; it is there already."""
    entry = folder / key
    if entry.is_dir():
        return entry
    try:
        with hold_lock(folder / f".{key}.lock", kind, progress):
            if not entry.is_dir():
                _sweep(folder, key)
                _build_entry(Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".tmp", dir=folder)), entry, build)
    except OSError as error:
        where = error.filename or folder
        raise HostError(f"the {kind} could not be built, '{where}': {error.strerror or error}") from error
    return entry


def read_sums(entry: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of an entry, as it was when built.

    :raise HostError: the entry has been damaged
    """
    try:
        lines = (entry / SUMS).read_text().splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise HostError(f"cache entry '{entry}' is damaged: remove it and build again") from error


def make_folder(name: str) -> Path:
    """Return a folder of the cache, made if need be.

    :raise HostError: it cannot be made
    """
    folder = find_cache() / name
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise HostError(f"cache folder '{folder}' could not be made: {error.strerror}") from error
    return folder


@contextlib.contextmanager
def hold_lock(path: Path, kind: str, progress: Progress) -> Iterator[int]:
    """Hold a lock, and yield its descriptor.

    It goes away with this process and those that inherit the descriptor. A build that hands it to make is over for
    others only when the last compiler is, also when the lab was killed and its compilers go on without it.

    :raise HostError: somebody else has held it for longer than any build takes
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not try_lock(descriptor):
            progress(f"{kind}: waiting for another build of the same")
            deadline = Deadline.after(MAX_WAIT_S)
            while not try_lock(descriptor):  # flock(2) has no timeout
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
    """Hash the files and bring them to the disk: a rename may otherwise survive a power cut that their data did not."""
    sums = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sums.append(f"{hash_file(path)}  {path.relative_to(folder).as_posix()}\n")
        with open(path, "rb") as source:
            os.fsync(source.fileno())
    write_whole(folder / SUMS, "".join(sums).encode())


def _sweep(folder: Path, key: str) -> None:
    """Remove what killed builds left; the lock of ``key`` is ours already.

    What cannot be removed, since a compiler of the killed build still writes there, is left to the next sweep.
    """
    for path in folder.glob(".*.tmp"):
        owner = path.name.split(".")[1]
        if owner == key or not _is_held(folder / f".{owner}.lock"):
            shutil.rmtree(path, ignore_errors=True)


def _is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)
