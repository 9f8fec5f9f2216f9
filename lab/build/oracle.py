# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle: images/oracle compiled into the plugin that QEMU loads."""

import os
from pathlib import Path

from lab.build.cache import Progress, cached, find_log, key_tree, make_key
from lab.build.compiler import COMPILER, ENVIRONMENT, read_versions
from lab.errors import BuildError, ProcessError
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.paths import IMAGES

NAME = "oracle.so"

_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread")
#: A few thousand lines of C on a busy host.
_MAX_COMPILE_S = 300.0


def build_oracle(progress: Progress) -> Path:
    """Compile the plugin, or find it in the cache, and return the cache entry that holds it (NAME).

    :raise BuildError: it does not compile; the text names the log
    """
    folder = IMAGES / "oracle"
    sources = sorted(path.name for path in folder.glob("*.c"))
    if not sources:
        raise BuildError(f"oracle: there is no C file in '{folder}'")
    key = make_key(key_tree(folder), *read_versions(), *_FLAGS)

    def build(target: Path) -> None:
        progress("oracle: compiling")
        log = find_log("oracle", key)
        log.write_bytes(b"")
        # From inside the folder, so that no path of this machine gets into the file.
        command = [COMPILER, *_FLAGS, *sources, "-o", os.fspath(target / NAME)]
        try:
            proc.run(command, cwd=folder, env=ENVIRONMENT, log=log, deadline=Deadline.after(_MAX_COMPILE_S))
        except ProcessError as error:
            telling = [line for line in error.output.splitlines() if "error:" in line] or [str(error)]
            raise BuildError(f"oracle: {telling[0].strip()} (log: {log})") from error

    return cached("oracle", key, build, progress)
