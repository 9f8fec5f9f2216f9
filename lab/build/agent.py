# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's agent: images/agent, compiled for the guest's user space."""

from pathlib import Path

from lab.build.cache import Progress, cached, find_log, key_tree, make_key
from lab.build.compiler import COMPILER, ENVIRONMENT, read_versions
from lab.errors import BuildError, ProcessError
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.paths import IMAGES

NAME = "agent"
SOURCES = IMAGES / "agent"

#: No build id: the linker would put the paths of the build into it.
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-s", "-Wl,--build-id=none")
#: Limit for one small file on a busy host.
_COMPILE_S = 120.0


def build_agent(progress: Progress) -> Path:
    """Compile the agent, or find it in the cache; return the program.

    :raise BuildError: it does not compile; the text names the log
    """
    key = make_key(key_tree(SOURCES), *read_versions(), *_FLAGS)

    def build(target: Path) -> None:
        progress("agent: compiling")
        log = find_log("agent", key)
        log.write_bytes(b"")
        try:
            proc.run(
                [COMPILER, *_FLAGS, "agent.c", "-o", target / NAME],
                cwd=SOURCES,
                env=ENVIRONMENT,
                log=log,
                deadline=Deadline.after(_COMPILE_S),
            )
        except ProcessError as error:
            told = [line for line in error.output.splitlines() if "error:" in line] or [str(error)]
            raise BuildError(f"agent: {told[0].strip()} (log: {log})") from error

    return cached("agent", key, build, progress) / NAME
