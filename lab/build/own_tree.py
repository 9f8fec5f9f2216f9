# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's source of Linux in one of its forms: git tree, plain folder, tarball, Debian source package.

The lab reads it and never writes to it.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from lab.build.cache import hash_once
from lab.build.compiler import ENVIRONMENT
from lab.build.git_tree import GitTree, NotOfGit, check_linux, read_git_tree
from lab.errors import DeadlineError, HostError, ProcessError, UsageError
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.files import hash_file

#: Endings of tarballs, and the program that tar needs for each; Debian's package of it has the same name.
PACKERS: Final = {
    ".tar": "tar",
    ".tar.xz": "xz",
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.bz2": "bzip2",
    ".tar.zst": "zstd",
}
#: That package, where the name is another one.
_PACKAGES: Final = {"xz": "xz-utils"}
SOURCE_PACKAGE: Final = ".dsc"
#: Packed source of all of Linux on a slow disk.
MAX_UNPACK_S: Final = 900.0
#: What a build leaves in a folder. Git trees ignore it; make refuses to build beside it.
_PRODUCTS: Final = (".config", ".config.old", "include/config/", "include/generated/", "arch/x86/include/generated/")
_SUFFIXES: Final = (".o", ".a", ".ko", ".cmd", ".mod", ".order", ".symvers")


class PlainTree(msgspec.Struct, frozen=True):
    """A folder that git knows nothing of, or has no commit of.

    :param names: all files but what a build leaves, relative to the root
    """

    root: Path
    names: tuple[str, ...]


class SourceArchive(msgspec.Struct, frozen=True):
    """A tarball, or a Debian source package, whose other files its ``.dsc`` names by their hashes.

    :param sha256: of the named file
    """

    path: Path
    sha256: str


def read_own_tree(path: Path) -> GitTree | PlainTree | SourceArchive:
    """Return a user's source of Linux. A folder of which git has no commit is taken as it is.

    :raise UsageError: the path is none
    :raise HostError: a program is missing or failed
    """
    if path.is_dir():
        root = path.resolve()
        try:
            return read_git_tree(path)
        except NotOfGit as error:
            try:
                check_linux(path, root)
            except UsageError:
                # What git says of it tells more.
                raise error from None
            return PlainTree(root=root, names=tuple(sorted(_list_files(root))))
    if not path.is_file() or not path.name.endswith((*PACKERS, SOURCE_PACKAGE)):
        raise UsageError(
            f"tree '{path}' is not a folder, nor a tarball ({', '.join(PACKERS)}), nor a Debian source package"
            f" ({SOURCE_PACKAGE})"
        )
    return SourceArchive(path=path.resolve(), sha256=hash_once(path.resolve()))


def unpack_source(archive: SourceArchive, target: Path) -> None:
    """Unpack an archive into an empty folder.

    :raise UsageError: it cannot be unpacked, or what is in it is not Linux
    :raise HostError: a program is missing or takes too long, or it changed while it was read
    """
    with tempfile.TemporaryDirectory(prefix="unpacked.", dir=target.parent) as scratch:
        if archive.path.name.endswith(SOURCE_PACKAGE):
            inside = Path(scratch) / "source"
            # It checks the hashes of all files that the package has.
            _require("dpkg-source", "dpkg-dev", archive.path)
            _run(["dpkg-source", "--no-copy", "--extract", archive.path, inside], archive.path)
        else:
            packer = next(packer for ending, packer in PACKERS.items() if archive.path.name.endswith(ending))
            _require(packer, _PACKAGES.get(packer, packer), archive.path)
            _run(["tar", "--extract", f"--file={archive.path}", f"--directory={scratch}"], archive.path)
            inside = _find_top(Path(scratch))
        if hash_file(archive.path) != archive.sha256:
            raise HostError(f"'{archive.path}' changed while it was being read: try again")
        check_linux(archive.path, inside)
        for entry in inside.iterdir():
            entry.rename(target / entry.name)


def _find_top(folder: Path) -> Path:
    """Return the one folder at the top of what was unpacked, or that itself."""
    entries = [entry for entry in folder.iterdir() if entry.name != "pax_global_header"]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink() else folder


def _require(program: str, package: str, archive: Path) -> None:
    if shutil.which(program) is None:
        raise HostError(f"'{archive.name}' is unpacked by {program}, which is not there: apt-get install {package}")


def _run(words: Sequence[str | Path], archive: Path) -> None:
    try:
        proc.read(words, env=ENVIRONMENT, deadline=Deadline.after(MAX_UNPACK_S))
    except ProcessError as error:
        # The first complaint is the cause; what follows says that it is not recoverable.
        said = [line for line in error.output.strip().splitlines() if "error" in line.lower() or ": " in line][:1]
        raise UsageError(": ".join((f"tree '{archive}' cannot be unpacked", *said))) from error
    except DeadlineError as error:
        raise HostError(f"unpacking '{archive}' took longer than {MAX_UNPACK_S:.0f} s") from error


def _list_files(root: Path) -> Iterator[str]:
    for path in root.rglob("*"):
        inside = path.relative_to(root)
        name = str(inside)
        product = name.startswith(_PRODUCTS) or name.endswith(_SUFFIXES)
        if not product and ".git" not in inside.parts and (path.is_symlink() or path.is_file()):
            yield name
