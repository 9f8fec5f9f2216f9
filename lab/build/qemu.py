# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU that guests run on: the QEMU that the user named, or the first on PATH. The lab checks that it is fit.

The cache keeps a QEMU's answers about itself until the QEMU's files change.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from lab.build import probe
from lab.build.cache import Progress, hash_once, make_folder, make_key
from lab.build.qemu_release import list_fetched
from lab.errors import DeadlineError, HostError, UsageError
from lab.host.files import write_whole
from lab.host.user import NAME as NOBODY
from lab.host.user import User, find_unprivileged
from lab.model.qemu import MAX_LEVEL, MIN_LEVEL, Qemu, read_release

NAME: Final = "qemu-system-x86_64"
OPTION: Final = "--qemu"
VARIABLE: Final = "MCLAB_QEMU"
INSTALL: Final = "apt-get install qemu-system-x86"
MIN_RELEASE: Final = (7, 2)

_TARGET: Final = "x86_64"
_PROBES: Final = "qemu-probes"
_ANOTHER: Final = f"name another one with {OPTION} PATH or {VARIABLE}"


class _Stamp(msgspec.Struct, frozen=True):
    """The properties of a file when the lab examined it."""

    path: Path
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "_Stamp":
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)


class _Memo(msgspec.Struct, frozen=True, kw_only=True):
    """The cache's record of a QEMU.

    :param uid: the user that QEMU ran as; -1 for the lab's own user
    :param stamps: of the file that was started, and of the program itself
    """

    qemu: Qemu
    uid: int
    stamps: tuple[_Stamp, ...]


def find_qemu(given: Path | None = None, progress: Progress = lambda _: None) -> Qemu:
    """Return the QEMU that guests run on: the given QEMU, or the QEMU of MCLAB_QEMU, or the first on PATH.

    :raise UsageError: the QEMU that the user named is not fit; the text says why
    :raise HostError: there is no QEMU, or the first on PATH is not fit
    """
    path, named = _choose(given)
    try:
        return examine_qemu(path, progress)
    except HostError as error:
        if not named:
            raise
        raise UsageError(f"{named}: {error}") from error


def find_same_qemu(sha256: str, given: Path | None = None, progress: Progress = lambda _: None) -> Qemu:
    """Return the given QEMU, or a QEMU of this host with a known hash, or else the default QEMU.

    Raises the same errors as :func:`find_qemu`.

    :param sha256: of the program; empty if the hash is not known
    """
    chosen = None
    if given is None and sha256:
        chosen = next((each for each in _list_fit(progress) if each.sha256 == sha256), None)
    return chosen or find_qemu(given, progress)


def match_qemu(wanted: Qemu, progress: Progress = lambda _: None) -> Qemu:
    """Return this host's copy of a QEMU. A guest's lab may run on another host than the lab that chose the QEMU.

    :raise HostError: this host has no copy
    """
    if wanted.path.exists():
        with contextlib.suppress(HostError):
            found = examine_qemu(wanted.path, progress)
            if found.sha256 == wanted.sha256:
                return found
    for found in _list_fit(progress):
        if found.sha256 == wanted.sha256:
            return found
    raise HostError(f"this host has no QEMU that is {wanted.identity}: install it, or set {VARIABLE} to its path here")


def list_paths(given: Path | None = None) -> tuple[Path, ...]:
    """Return all QEMUs that the host seems to have, the default QEMU first. Do not check whether they are fit."""
    named = [given] if given is not None else []
    variable = os.environ.get(VARIABLE, "")
    named += [Path(variable)] if variable else []
    folders = [Path(each) for each in os.environ.get("PATH", "").split(os.pathsep)]
    on_path = [folder / NAME for folder in folders if folder.is_absolute()]
    known = [memo.qemu.path for memo in _read_memos()]
    absolute = [Path(os.path.abspath(each)) for each in named]  # noqa: PTH100  a link stays what it is called
    there = [each for each in (*on_path, *list_fetched(), *known) if os.access(each, os.X_OK) and each.is_file()]
    # One file may be on PATH under several names, since /bin is /usr/bin.
    found: dict[str, Path] = {}
    for each in (*absolute, *there):
        found.setdefault(os.path.realpath(each), each)
    return tuple(found.values())


def examine_qemu(path: Path, progress: Progress = lambda _: None) -> Qemu:
    """Return the properties of a QEMU, after a check that it is fit.

    :param path: absolute
    :raise HostError: the QEMU is not fit; the text names it, and says why and what is allowed
    """
    user = find_unprivileged()
    _check_file(path, user)
    memo = _recall(path, user)
    if memo is not None:
        return memo.qemu
    try:
        return _probe(path, user, progress)
    except DeadlineError as error:
        raise HostError(f"QEMU '{path}' is not usable: {error}") from error


def _choose(given: Path | None) -> tuple[Path, str]:
    """Return a path and the option or variable that named it; an empty name for the first on PATH."""
    variable = os.environ.get(VARIABLE, "")
    named = given if given is not None else Path(variable) if variable else None
    if named is not None:
        absolute = Path(os.path.abspath(named))  # noqa: PTH100  a link stays what it is called
        return absolute, OPTION if given is not None else VARIABLE
    found = shutil.which(NAME)
    if found is None:
        raise HostError(f"'{NAME}' is not on PATH; mend it with: {INSTALL}, or name one with {OPTION} or {VARIABLE}")
    return Path(os.path.abspath(found)), ""  # noqa: PTH100


def _list_fit(progress: Progress) -> Iterator[Qemu]:
    for path in list_paths():
        with contextlib.suppress(HostError):
            yield examine_qemu(path, progress)


def _check_file(path: Path, user: User | None) -> None:
    """Refuse a file that its user clearly cannot execute, before the lab starts it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise HostError(f"QEMU '{path}' {why}: name the file of a {NAME}") from error
    if stat.S_ISDIR(mode):
        raise HostError(f"QEMU '{path}' is a folder: name the file of a {NAME} in it")
    if not stat.S_ISREG(mode):
        raise HostError(f"QEMU '{path}' is no regular file: name the file of a {NAME}")
    if not os.access(path, os.X_OK):
        raise HostError(f"QEMU '{path}' is not executable: allow it with 'chmod +x', or {_ANOTHER}")
    closed = _find_closed(path, user)
    if closed:
        raise HostError(f"QEMU '{path}' is not usable: {closed}")


def _find_closed(path: Path, user: User | None) -> str:
    """Return why another user cannot execute a file, and how to allow it; empty if the modes show no reason."""
    if user is None:
        return ""
    for folder in reversed(path.resolve().parents):
        if not _may(folder, user, stat.S_IXOTH):
            return (
                f"the lab is root and runs QEMU as {NOBODY}, who may not enter '{folder}':"
                f" move QEMU to where all may, or allow it with 'chmod o+x {folder}'"
            )
    if not _may(path, user, stat.S_IXOTH) or not _may(path, user, stat.S_IROTH):
        return f"the lab is root and runs QEMU as {NOBODY}, who may not execute it: allow it with 'chmod o+rx {path}'"
    return ""


def _may(path: Path, user: User, others: int) -> bool:
    """Return True if a mode grants a right to a user without supplementary groups.

    The right is given as that of others.
    """
    status = path.stat()
    right = others << 6 if status.st_uid == user.uid else others << 3 if status.st_gid == user.gid else others
    return bool(status.st_mode & right)


def _probe(path: Path, user: User | None, progress: Progress) -> Qemu:
    version, answer = probe.ask_version(path, user)
    if version is None or read_release(version) == (0, 0):
        raise HostError(f"'{path}' is no system emulator of QEMU: to --version it says '{answer.first}'; name a {NAME}")
    least = ".".join(map(str, MIN_RELEASE))
    if read_release(version) < MIN_RELEASE:
        raise HostError(f"QEMU '{path}' is {version}, which is too old: {least} or newer is needed; {_ANOTHER}")
    interfaces, answer = probe.ask_interfaces(path, user, progress)
    if interfaces is None:
        raise HostError(
            f"QEMU '{path}' takes no plugins, and says '{answer.last}':"
            f" use a QEMU built with --enable-plugins; {_ANOTHER}"
        )
    low, high = interfaces
    if low > MAX_LEVEL or high < MIN_LEVEL:
        new = "new" if low > MAX_LEVEL else "old"
        raise HostError(
            f"QEMU '{path}' is {version}, which is too {new}: it takes plugins of interface {low} to {high},"
            f" and the observer speaks {MIN_LEVEL} to {MAX_LEVEL}; {_ANOTHER}"
        )
    program = _check_itself(path, min(high, MAX_LEVEL), user, progress)
    answer = probe.try_start(path, read_release(version), user)
    if answer.status != 0:
        whom = f" as {NOBODY}" if user is not None else ""
        raise HostError(f"QEMU '{path}' does not start the lab's kind of machine{whom}: '{answer.last}'")
    qemu = Qemu(path=path, version=version, interface_min=low, interface_max=high, sha256=hash_once(program))
    _keep(qemu, program, user)
    return qemu


def _check_itself(path: Path, level: int, user: User | None, progress: Progress) -> Path:
    """Refuse a QEMU of another kind, and return the program's file."""
    told, answer = probe.ask_itself(path, level, user, progress)
    if told is None:
        raise HostError(f"QEMU '{path}' does not load a plugin of interface {level}: '{answer.last}'")
    if not told.system or told.target != _TARGET:
        kind = "machines" if told.system else "programs"
        raise HostError(f"QEMU '{path}' emulates {kind} of {told.target}: machines of {_TARGET} are needed; {_ANOTHER}")
    if not told.same_process:
        raise HostError(f"'{path}' starts QEMU as a process of its own: have the script end in 'exec'")
    return told.program


def _find_memo(path: Path, user: User | None) -> Path:
    return make_folder(_PROBES) / make_key(str(path), str(_uid(user)), probe.key_probe())


def _uid(user: User | None) -> int:
    return -1 if user is None else user.uid


def _keep(qemu: Qemu, program: Path, user: User | None) -> None:
    with contextlib.suppress(OSError):
        memo = _Memo(qemu=qemu, uid=_uid(user), stamps=(_Stamp.of(qemu.path), _Stamp.of(program)))
        write_whole(_find_memo(qemu.path, user), msgspec.json.encode(memo, enc_hook=str))


def _recall(path: Path, user: User | None) -> _Memo | None:
    """Return the record of a QEMU if its files are unchanged and its user can still reach its program."""
    memo = _read_memo(_find_memo(path, user))
    if memo is None or memo.qemu.path != path or not all(_is_as_it_was(each) for each in memo.stamps):
        return None
    return None if any(_find_closed(each.path, user) for each in memo.stamps) else memo


def _is_as_it_was(stamp: _Stamp) -> bool:
    try:
        return _Stamp.of(stamp.path) == stamp
    except OSError:
        return False


def _read_memo(path: Path) -> _Memo | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Memo, dec_hook=lambda kind, value: kind(value))
    except (OSError, msgspec.MsgspecError):
        return None


def _read_memos() -> Iterator[_Memo]:
    try:
        paths = sorted(make_folder(_PROBES).glob("[!.]*"))
    except HostError:
        # Whoever needs the cache reports that the cache is not usable.
        return
    for path in paths:
        memo = _read_memo(path)
        if memo is not None:
            yield memo
