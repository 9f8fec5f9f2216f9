# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's initramfs archives (cpio "newc"). The same content gives the same bytes.

Format: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import itertools
import stat
from collections.abc import Iterable

import msgspec

from lab.errors import BuildError

#: Headers, names and contents each begin at a multiple of this, counted from the start of the whole buffer.
ALIGNMENT = 4

_TRAILER = "TRAILER!!!"


class Entry(msgspec.Struct, frozen=True):
    """One file of an archive, owned by root.

    :param path: without a leading slash
    :param mode: file type and permissions, as in ``st_mode``
    :param data: content, or the target of a symbolic link
    :param device: major and minor number, for device nodes
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def make_folder(path: str, permissions: int = 0o755) -> Entry:
    """Return a folder."""
    return Entry(path, stat.S_IFDIR | permissions)


def make_file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """Return a regular file."""
    return Entry(path, stat.S_IFREG | permissions, data)


def make_link(path: str, target: str) -> Entry:
    """Return a symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def make_node(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """Return a character device."""
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def write_archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive: sorted by name, so that a folder precedes its content. Inodes count up. Times are zero.

    :raise BuildError: two entries have the same name
    """
    ordered = sorted(entries, key=lambda entry: entry.path)
    for first, second in itertools.pairwise(ordered):
        if first.path == second.path:
            raise BuildError(f"initramfs: '{first.path}' is in the archive twice")
    records = [_encode(inode, entry) for inode, entry in enumerate(ordered, start=1)]
    return b"".join((*records, _encode(0, Entry(_TRAILER, 0))))


def pad(data: bytes) -> bytes:
    """Append zeros up to the alignment. The kernel skips zeros between two archives."""
    return data + bytes(-len(data) % ALIGNMENT)


def _encode(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return pad(header + name) + pad(entry.data)
