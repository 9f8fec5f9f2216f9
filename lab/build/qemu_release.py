# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU of another release of Debian, unpacked into a folder and run from there. Nothing is installed.

This QEMU comes with all its libraries and with their loader, so the host's release may be older or newer than QEMU's.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lab.build.archive import check_release, open_archive, read_table
from lab.build.cache import Progress, cached_in, make_folder, make_key
from lab.errors import HostError, ProcessError
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.paths import NAME as LAB

NAME: Final = "qemu-system-x86_64"
_KIND: Final = "qemu"
#: Root's cache is often below a folder that only root may enter, but QEMU runs as another user.
SYSTEM_CACHE: Final = Path("/var/cache") / LAB
_VERSION: Final = "version"
_PROBE_S: Final = 60.0
#: Increase this if the steps below make another folder from the same packages.
_RECIPE: Final = "1"

#: exec keeps the process that the lab started, so that the lab can end QEMU. ps(1) and the lab see the name of the
#: loader's link, so the link has QEMU's name. -L: the folders where Debian's packages install firmware.
_WRAPPER: Final = """\
#!/bin/sh
# Runs this folder's QEMU with this folder's libraries, firmware and modules.
here=$(dirname "$(readlink -f "$0")")
root=$here/root
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$here/loader/qemu-system-x86_64" --inhibit-cache --library-path "@LIBRARIES@" \\
	"$root/usr/bin/qemu-system-x86_64" \\
	-L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu" "$@"
"""


def build_qemu(release: str, progress: Progress) -> Path:
    """Fetch QEMU of a release, or find it in the cache; return the program that runs it.

    :param release: such as ``trixie-backports``
    :raise UsageError: the release does not exist
    :raise HostError: QEMU of this release is not available, or does not run here
    """
    table = read_table()
    check_release(table, release)

    def build(target: Path) -> None:
        root = target / "root"
        root.mkdir()
        with open_archive(table, release, progress) as archive:
            packages = [archive.find(name) for name in table.qemu.packages]
            for deb in archive.fetch(packages, with_dependencies=True):
                progress(f"archive: unpacking {deb.name}")
                archive.unpack(deb, root)
        _prune(root)
        _keep_links_inside(root)
        _write_programs(target, root)
        (target / _VERSION).write_text(f"{packages[0].version}\n")
        _try(target / NAME, release)

    return cached_in(_find_folder(), _KIND, make_key(_RECIPE, release, *table.qemu.packages), build, progress) / NAME


def list_fetched() -> tuple[Path, ...]:
    """Return the programs of all fetched QEMUs. Return none if the cache is not usable."""
    folders = [SYSTEM_CACHE / _KIND]
    with contextlib.suppress(HostError):
        folders.insert(0, make_folder(_KIND))
    return tuple(path for folder in folders for path in sorted(folder.glob(f"[!.]*/{NAME}")))


def _find_folder() -> Path:
    """Return a folder that QEMU can reach as any user: the cache, or the system's cache if the first is root's."""
    folder = make_folder(_KIND)
    if os.geteuid() != 0 or all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents)):
        return folder
    folder = SYSTEM_CACHE / _KIND
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise HostError(f"folder '{folder}' could not be made: {error.strerror}") from error
    return folder


def _prune(root: Path) -> None:
    """Remove the special mode bits from programs, so that no program has more rights than its user."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod((mode & 0o0755) | 0o0444)


def _keep_links_inside(root: Path) -> None:
    """Make absolute links relative. Their root is the root of a system, and this folder stands for that root."""
    for path in root.rglob("*"):
        if path.is_symlink() and path.readlink().is_absolute():
            inside = root / path.readlink().relative_to("/")
            path.unlink()
            path.symlink_to(os.path.relpath(inside, path.parent))


def _write_programs(target: Path, root: Path) -> None:
    folders = sorted({path.parent.relative_to(root).as_posix() for path in _find_libraries(root)})
    loader = next(iter(sorted(root.glob("**/ld-linux-x86-64.so.2"))), None)
    if loader is None or not (root / "usr/bin" / NAME).is_file():
        raise HostError(f"the packages of QEMU hold no {NAME} with its loader: try another release")
    (target / "loader").mkdir()
    (target / "loader" / NAME).symlink_to(os.path.relpath(loader.resolve(), target / "loader"))
    wrapper = target / NAME
    wrapper.write_text(_WRAPPER.replace("@LIBRARIES@", ":".join(f"$root/{folder}" for folder in folders)))
    wrapper.chmod(0o755)


def _find_libraries(root: Path) -> Iterable[Path]:
    """Return the libraries of the loader's folders, and the libraries of packages with a folder of their own.

    Leave out folders of modules, since QEMU opens modules by their path.
    """
    for top in ("lib", "usr/lib"):
        for pattern in ("x86_64-linux-gnu/*.so*", "x86_64-linux-gnu/pulseaudio/*.so*"):
            yield from (root / top).glob(pattern)


def _try(program: Path, release: str) -> None:
    try:
        proc.run([program, "--version"], deadline=Deadline.after(_PROBE_S))
    except ProcessError as error:
        raise HostError(f"QEMU of {release} does not run here: {error.output.strip()[-300:]}") from error
