# SPDX-License-Identifier: GPL-2.0-or-later
"""The observer: images/observer, compiled into the plugin that QEMU loads."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.build.cache import Progress, cached, find_log, key_tree, make_folder, make_key
from lab.build.compiler import COMPILER, ENVIRONMENT, read_versions
from lab.errors import BuildError, ProcessError
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.paths import IMAGES

NAME = "observer.so"
SOURCES = IMAGES / "observer"

_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread")
#: patch must not guess where a hunk belongs in the file.
_PATCH = ("patch", "-p1", "--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "--reject-file=-")
#: Limit for a few thousand lines of C on a busy host.
_MAX_COMPILE_S = 300.0


def build_observer(progress: Progress, level: int, patch: Path | None = None) -> Path:
    """Compile the plugin, or find it in the cache; return the cache entry that contains it (NAME).

    :param level: of QEMU's plugin interface, see :attr:`lab.build.qemu.Qemu.level`
    :param patch: applied to a copy of the sources first
    :raise BuildError: the plugin does not compile; the text names the log
    """
    sources = sorted(path.name for path in SOURCES.glob("*.c"))
    if not sources:
        raise BuildError(f"observer: there is no C file in '{SOURCES}'")
    key = _make_key(level, patch)

    def build(target: Path) -> None:
        progress(f"observer: compiling for plugin interface {level}")
        log = find_log("observer", key)
        log.write_bytes(b"")
        where = SOURCES
        if patch is not None:
            where = Path(shutil.copytree(SOURCES, target / "patched"))
            _run([*_PATCH, f"--input={patch}"], where, log)
        # Compile inside the folder, so that the file contains no path of this machine.
        _run([COMPILER, *_list_flags(level), *sources, "-o", target / NAME], where, log)
        if patch is not None:
            shutil.rmtree(where)

    return cached("observer", key, build, progress)


def find_observer(level: int, patch: Path | None = None) -> Path | None:
    """Return the cache entry of a plugin of the present sources; None if there is no such entry."""
    entry = make_folder("observer") / _make_key(level, patch)
    return entry if (entry / NAME).is_file() else None


def _make_key(level: int, patch: Path | None) -> str:
    patches = [] if patch is None else [patch.read_bytes()]
    return make_key(key_tree(SOURCES), *read_versions(), *_list_flags(level), *patches)


def _list_flags(level: int) -> tuple[str, ...]:
    return (*_FLAGS, f"-DPLUGIN_API_VERSION={level}")


def _run(command: Sequence[str | os.PathLike[str]], folder: Path, log: Path) -> None:
    try:
        proc.run(command, cwd=folder, env=ENVIRONMENT, log=log, deadline=Deadline.after(_MAX_COMPILE_S))
    except ProcessError as error:
        telling = [line for line in error.output.splitlines() if "error:" in line or "FAILED" in line] or [str(error)]
        raise BuildError(f"observer: {telling[0].strip()} (log: {log})") from error
