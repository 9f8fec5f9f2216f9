# SPDX-License-Identifier: GPL-2.0-or-later
"""Opens what lies below one folder by the path of a URL, and nothing else: no link is followed, at no level.

Files of an evidence folder come from guests. So a browser gets them as text, whatever their names say.
"""

import contextlib
import html
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote, unquote_to_bytes

import msgspec

from lab.evidence.folder import MANIFEST
from lab.report.text import clean

INDEX: Final = "index.html"
#: No path of the lab comes near these.
MAX_PATH_BYTES: Final = 2_000
MAX_PARTS: Final = 16
#: A listing is for a reader.
MAX_LISTED: Final = 2_000
_TEXT: Final = "text/plain; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"
_BYTES: Final = "application/octet-stream"
_KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    **dict.fromkeys((".csv", ".json", ".log", ".toml", ".txt", ".xml"), _TEXT),
}
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Refused(Exception):
    """There is nothing to serve by this path. The caller need not know why."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    :param kind: for Content-Type
    :param size: in bytes
    :param source: of the content; None where ``data`` is the content
    :param moved: the path ended without the slash of a folder
    """

    kind: str
    size: int
    source: BinaryIO | None = None
    data: bytes = b""
    moved: bool = False


def split_path(target: str) -> tuple[str, ...]:
    """Return the names of a URL's path, which is empty for the top folder.

    :param target: as the request has it
    :raise Refused: the path leads out of the folder, or is no path of files
    """
    path = target.partition("?")[0].partition("#")[0]
    if not path.startswith("/") or len(path) > MAX_PATH_BYTES:
        raise Refused
    parts = [part for part in unquote_to_bytes(path).split(b"/") if part]
    if len(parts) > MAX_PARTS or any(part in (b".", b"..") or b"\0" in part or b"\\" in part for part in parts):
        raise Refused
    return tuple(os.fsdecode(part) for part in parts)


@contextlib.contextmanager
def open_served(root: Path, target: str) -> Iterator[Served]:
    """Open what a URL's path names below a folder, for the block.

    :raise Refused: there is no such file or folder, or it is neither, or a link
    """
    parts = split_path(target)
    with contextlib.ExitStack() as stack:
        try:
            served = _open(stack, root, parts, slash=target.partition("?")[0].endswith("/"))
        except (OSError, ValueError):
            raise Refused from None
        yield served


def _open(stack: contextlib.ExitStack, root: Path, parts: tuple[str, ...], slash: bool) -> Served:
    """Go down from folder to folder by descriptors: what is looked at is what is opened."""
    folder = _enter(stack, os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    hostile = False
    for part in parts[:-1]:
        folder = _enter(stack, os.open(part, _FOLDER, dir_fd=folder))
        hostile = hostile or _is_evidence(folder)
    name = parts[-1] if parts else "."
    found = _enter(stack, os.open(name, _FILE, dir_fd=folder))
    if stat.S_ISDIR(os.fstat(found).st_mode):
        if not slash:
            return Served(kind=_TEXT, size=0, moved=True)
        index = None if hostile or (parts and _is_evidence(found)) else _open_index(found)
        if index is None:
            data = _list(found, "/".join(parts))
            return Served(kind=_HTML, size=len(data), data=data)
        name, found = INDEX, _enter(stack, index)
    elif parts and slash:
        raise Refused
    status = os.fstat(found)
    if not stat.S_ISREG(status.st_mode):
        raise Refused
    source = stack.enter_context(os.fdopen(os.dup(found), "rb"))
    return Served(kind=_find_kind(name, hostile), size=status.st_size, source=source)


def _open_index(folder: int) -> int | None:
    try:
        return os.open(INDEX, _FILE, dir_fd=folder)
    except OSError:
        return None


def _enter(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _is_evidence(folder: int) -> bool:
    try:
        os.stat(MANIFEST, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def _find_kind(name: str, hostile: bool) -> str:
    suffix = Path(name).suffix.lower()
    if hostile:
        return _TEXT if _KINDS.get(suffix) == _TEXT or suffix in (".html", ".svg", ".js", ".css") else _BYTES
    return _HTML if suffix == ".html" else _KINDS.get(suffix, _BYTES)


def _list(folder: int, title: str) -> bytes:
    with os.scandir(folder) as entries:
        names = sorted(f"{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}" for entry in entries)
    shown = [name for name in names if not name.startswith(".")]
    lines = [
        f'<li><a href="./{quote(os.fsencode(name))}">{html.escape(clean(name))}</a>' for name in shown[:MAX_LISTED]
    ]
    more = f"<p>{len(shown) - MAX_LISTED} more are left out." if len(shown) > MAX_LISTED else ""
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(clean(title))}</title>"
    return f"{head}<h1>{html.escape(clean(title))}</h1><ul>{''.join(lines)}</ul>{more}".encode(errors="replace")
