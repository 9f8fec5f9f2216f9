# SPDX-License-Identifier: GPL-2.0-or-later
"""A short git history of a real kernel, in which one commit breaks the rendezvous on purpose.

The history is Debian's source of Linux 6.12 with the lab's engine patch, less the sources of drivers that no guest has.
All dates and names are fixed, so the commits of each host and run are the same, and each kernel of the history is built
once. It stays in the cache: to unpack the source and to commit it takes minutes.
"""

import os
import shutil
import subprocess
from pathlib import Path

from lab.build.cache import locked, make_folder
from lab.build.kernel import read_series
from lab.build.kernel_source import find_source
from lab.host.paths import IMAGES

BASE = "linux-6.12"
#: Breaks the rendezvous: the first core that is done lets the siblings of all cores go.
MUTANT = IMAGES / "mutants" / BASE / "mainline-releases-all-cores.patch"
MICROCODE = "arch/x86/kernel/cpu/microcode/core.c"

#: Folders of which tinyconfig compiles nothing. Kconfig and make still read their Kconfig files and Makefiles.
_UNUSED = (
    *("arch/[!x]*", "Documentation", "drivers/clk", "drivers/gpu", "drivers/iio", "drivers/infiniband"),
    *("drivers/media", "drivers/net/ethernet", "drivers/net/wireless", "drivers/pinctrl", "drivers/scsi"),
    *("drivers/staging", "sound", "tools/perf", "tools/testing"),
)
_SOURCES = ("[chS]", "dts", "dtsi", "json", "py", "rst", "sh", "svg", "txt", "yaml")
_IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (
        ("NAME", "microcode-nmi-lab maintainers"),
        ("EMAIL", "maintainers@microcode-nmi-lab.invalid"),
        ("DATE", "2026-11-25T21:10:00+00:00"),
    )
}
_LIMIT_S = 900


def git(tree: Path, *words: str) -> str:
    environment = {**os.environ, **_IDENTITY, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(tree), "-c", "core.autocrlf=false", "-c", "gc.auto=0", *words]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=_LIMIT_S)
    return done.stdout.decode().strip()


def make_history() -> tuple[Path, tuple[str, ...]]:
    """Return the tree and its commits, oldest first: sound, sound, broken by MUTANT, broken."""
    folder = make_folder("test-trees") / f"{BASE}-bisect"
    with locked(folder.parent / ".lock", "history to bisect", print):
        if not (folder / ".git/complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _write(folder)
            (folder / ".git/complete").touch()
    return folder, tuple(git(folder, "rev-list", "--reverse", "main").split())


def _write(tree: Path) -> None:
    left_out = [f"--exclude=*/{folder}/*.{kind}" for folder in _UNUSED for kind in _SOURCES]
    source = str(find_source(BASE, print))
    command = ["tar", "-xJf", source, "-C", str(tree), "--strip-components=1", *left_out]
    subprocess.run(command, check=True, timeout=_LIMIT_S)
    kernel = IMAGES / "kernels" / BASE
    for name in read_series(kernel):
        _apply(tree, kernel / "patches" / name)
    git(tree, "init", "--quiet", "--initial-branch=main")
    _commit(tree, "linux: Have Debian's source and the engine")
    for number, patch in enumerate((None, MUTANT, None)):
        if patch is not None:
            _apply(tree, patch)
        else:
            with open(tree / MICROCODE, "a") as core:
                core.write(f"\n/* Change {number} changes nothing. */\n")
        _commit(tree, f"x86/microcode: Change {number}")


def _apply(tree: Path, patch: Path) -> None:
    subprocess.run(["patch", "-p1", "--batch", "--forward", "-i", patch], cwd=tree, check=True, timeout=60)


def _commit(tree: Path, subject: str) -> None:
    # Debian's package has git ignore all of the source.
    git(tree, "add", "--all", "--force")
    git(tree, "commit", "--quiet", "--message", subject)
