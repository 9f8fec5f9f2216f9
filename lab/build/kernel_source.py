# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of a kernel: from the distribution's package, else from the cache, else from Debian's archive."""

import shutil
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from lab.build.archive import SourcePackage, Table, open_archive, read_table, why_not_fetch
from lab.build.cache import Progress, cached, make_folder, make_key
from lab.errors import HostError

#: Packages of the distribution install their source here.
SOURCES: Final = Path("/usr/src")
_KIND: Final = "kernel-source"
_VERSION: Final = "version"


class Origin(Enum):
    """The origin of a source."""

    PACKAGE = "package"
    CACHE = "cache"
    ARCHIVE = "archive"
    NOWHERE = "nowhere"


class Place(msgspec.Struct, frozen=True):
    """What the lab knows about a source without fetching it.

    :param found: in a few words
    :param mend: what to do if the source is not available
    """

    origin: Origin
    found: str
    mend: str = ""


def list_sources() -> tuple[str, ...]:
    """Return the names of the kernels whose source the lab's own kernels need, such as ``linux-6.1``."""
    return tuple(name for name, wanted in read_table().source.items() if not wanted.extra)


def find_source(base: str, progress: Progress) -> Path:
    """Return the tarball of a kernel's source. Fetch the tarball if it is neither installed nor in the cache.

    :param base: such as ``linux-6.1``
    :raise HostError: the source is not available; the text says what to do
    """
    table = read_table()
    wanted = _find_package(table, base)
    installed = SOURCES / _name_file(wanted)
    if installed.is_file():
        return installed
    try:
        return _fetch(table, wanted, progress) / _name_file(wanted)
    except HostError as error:
        raise HostError(
            f"{wanted.package} is not in {SOURCES}, and {error}; or build a tree of yours with --tree"
        ) from error


def locate_source(base: str) -> Place:
    """Return where a kernel's source is, or where the first build would fetch it from. Fetch nothing."""
    table = read_table()
    wanted = _find_package(table, base)
    installed = SOURCES / _name_file(wanted)
    if installed.is_file():
        return Place(Origin.PACKAGE, str(installed))
    kept = make_folder(_KIND) / _make_key(wanted)
    if kept.is_dir():
        return Place(Origin.CACHE, f"{(kept / _VERSION).read_text().strip()}, in the cache")
    reason = why_not_fetch(table)
    if reason:
        return Place(Origin.NOWHERE, reason, f"apt-get install {wanted.package}, or what is said there")
    return Place(Origin.ARCHIVE, f"is fetched from Debian's {wanted.release} at the first build")


def _find_package(table: Table, base: str) -> SourcePackage:
    try:
        return table.source[base]
    except KeyError:
        raise HostError(f"images/host/archive.toml has no source for '{base}'") from None


def _name_file(wanted: SourcePackage) -> str:
    return f"{wanted.package}.tar.xz"


def _make_key(wanted: SourcePackage) -> str:
    return make_key("1", wanted.package, wanted.release)


def _fetch(table: Table, wanted: SourcePackage, progress: Progress) -> Path:
    def build(target: Path) -> None:
        with open_archive(table, wanted.release, progress) as archive:
            package = archive.find(wanted.package)
            (deb,) = archive.fetch([package], with_dependencies=False)
            progress(f"archive: unpacking {package.name} {package.version}")
            unpacked = target / "unpacked"
            archive.unpack(deb, unpacked)
        (unpacked / "usr/src" / _name_file(wanted)).rename(target / _name_file(wanted))
        (target / _VERSION).write_text(f"{package.version}\n")
        shutil.rmtree(unpacked)

    return cached(_KIND, _make_key(wanted), build, progress)
