# SPDX-License-Identifier: GPL-2.0-or-later
"""The properties of an ELF file: the shared libraries that it needs, and its build. Nothing in it is executed."""

import struct
from pathlib import Path
from typing import BinaryIO

import msgspec
from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment, NoteSegment

from lab.errors import BuildError

#: Folders that glibc's loader of Debian and similar systems searches after those of /etc/ld.so.conf.
DEFAULT_FOLDERS = (
    Path("/lib/x86_64-linux-gnu"),
    Path("/usr/lib/x86_64-linux-gnu"),
    Path("/lib64"),
    Path("/usr/lib64"),
    Path("/lib"),
    Path("/usr/lib"),
)
LOADER_CONFIG = Path("/etc/ld.so.conf")

_SHF_ALLOC = 0x2
#: Elf64_Nhdr, see elf(5): size of name, size of descriptor, type. Name and descriptor follow, each padded to four
#: bytes.
_NOTE = struct.Struct("<III")
_NT_GNU_BUILD_ID = 3


class Needs(msgspec.Struct, frozen=True):
    """The needs of one ELF file: its loader ('' if static), and its libraries by soname."""

    loader: str
    libraries: tuple[str, ...]


def read_needs(path: Path) -> Needs:
    """Read PT_INTERP and DT_NEEDED.

    :raise BuildError: the file is not a readable ELF file
    """
    try:
        with open(path, "rb") as source:
            loader, libraries = "", []
            for segment in ELFFile(source).iter_segments():
                if isinstance(segment, InterpSegment):
                    loader = segment.get_interp_name()
                elif isinstance(segment, DynamicSegment):
                    # pyelftools adds the attribute to each tag at run time
                    libraries += [tag.needed for tag in segment.iter_tags("DT_NEEDED")]  # type: ignore[attr-defined]
    except (OSError, ELFError) as error:
        raise BuildError(f"initramfs: '{path}' could not be read as an ELF file: {error}") from error
    return Needs(loader, tuple(libraries))


def read_build_id(source: BinaryIO) -> str:
    """Return the GNU build id in hex; empty if the file has none, or is not an ELF file."""
    try:
        return find_build_id(ELFFile(source))
    except (ELFError, ValueError, KeyError, AttributeError, struct.error):
        return ""


def find_build_id(elf: ELFFile) -> str:
    """Return the GNU build id in hex; empty if there is none.

    A kernel that runs on Xen, too, has notes of Xen's with the same type, before it.
    """
    segments = (segment for segment in elf.iter_segments() if isinstance(segment, NoteSegment))
    return next((found for segment in segments if (found := parse_build_id(segment.data()))), "")


def parse_build_id(notes: bytes) -> str:
    """Return the GNU build id in hex from an ELF note section, such as /sys/kernel/notes; empty without a build id."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_bytes, desc_bytes, kind = _NOTE.unpack_from(notes, at)
        name_at = at + _NOTE.size
        desc_at = name_at + _align(name_bytes)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_bytes] == b"GNU\0":
            return notes[desc_at : desc_at + desc_bytes].hex()
        at = desc_at + _align(desc_bytes)
    return ""


def _align(size: int) -> int:
    return (size + 3) & ~3


def find_libraries(program: Path) -> tuple[Path, ...]:
    """Return all libraries that a program needs, directly and through other libraries, without its loader.

    :raise BuildError: a library is in none of the loader's folders
    """
    folders = (*_read_config(LOADER_CONFIG), *DEFAULT_FOLDERS)
    loader = Path(read_needs(program).loader).name
    found: dict[str, Path] = {}
    waiting = [program]
    while waiting:
        user = waiting.pop()
        for name in read_needs(user).libraries:
            if name in found or name == loader:
                continue
            path = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if path is None:
                raise BuildError(f"initramfs: library '{name}', which '{user}' needs, is not on the loader's paths")
            found[name] = path
            waiting.append(path)
    return tuple(found[name] for name in sorted(found))


def _read_config(path: Path) -> tuple[Path, ...]:
    """Read ld.so.conf: one folder per line, ``include PATTERN``, comments after ``#``. A missing file is empty."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ()
    folders: list[Path] = []
    for line in lines:
        words = line.split("#")[0].split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                place = Path(pattern) if pattern.startswith("/") else path.parent / pattern
                for included in sorted(place.parent.glob(place.name)):
                    folders += _read_config(included)
        elif words:
            folders.append(Path(words[0]))
    return tuple(folders)
