# SPDX-License-Identifier: GPL-2.0-or-later
"""What an ELF file says of itself: shared libraries it needs, the build it comes from. Nothing is run to find out."""

import re
import struct
from pathlib import Path
from typing import BinaryIO

import msgspec
from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment, NoteSegment

from lab.errors import BuildError

#: What glibc's loader of Debian and its like searches, after those that /etc/ld.so.conf names.
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
#: Elf64_Nhdr, see elf(5): sizes of name and descriptor, type; both follow, each filled up to four bytes.
_NOTE = struct.Struct("<III")
_NT_GNU_BUILD_ID = 3
#: ``Linux version 6.1.2 (who@where) (compiler) #1 SMP ...`` (init/version.c); the compiler is not in a setup header.
_BANNER = re.compile(rb"Linux version ([!-~]+ \([!-~]*\)) \([ -~]*\) (#[ -~]*)\n")


class Needs(msgspec.Struct, frozen=True):
    """What one ELF file asks for: its loader ('' when static) and its libraries by soname."""

    loader: str
    libraries: tuple[str, ...]


def read_needs(path: Path) -> Needs:
    """Read PT_INTERP and DT_NEEDED.

    :raise BuildError: not a readable ELF file
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
    """Return the GNU build id in hex, or nothing when there is none, or what is read is no ELF file."""
    try:
        for segment in ELFFile(source).iter_segments():
            if isinstance(segment, NoteSegment):
                for note in segment.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        return str(note["n_desc"])
    except (ELFError, ValueError, KeyError, AttributeError, struct.error):
        return ""
    return ""


def parse_build_id(notes: bytes) -> str:
    """Return the GNU build id in hex from an ELF note section, as /sys/kernel/notes is one; nothing without one."""
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


def read_kernel_version(vmlinux: BinaryIO) -> str:
    """Return a kernel's version as the setup header of its bzImage has it, from linux_banner; nothing without one."""
    try:
        for section in ELFFile(vmlinux).iter_sections():
            loaded = section["sh_type"] == "SHT_PROGBITS" and section["sh_flags"] & _SHF_ALLOC
            if loaded and (match := _BANNER.search(section.data())):
                return f"{match[1].decode()} {match[2].decode()}"
    except (ELFError, ValueError, KeyError, AttributeError, struct.error):
        return ""
    return ""


def find_libraries(program: Path) -> tuple[Path, ...]:
    """Return all libraries that a program needs, directly and through others, its loader left out.

    :raise BuildError: one is nowhere on the loader's paths
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
    """Read ld.so.conf: a folder a line, ``include PATTERN``, comments after ``#``; an absent file names none."""
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
