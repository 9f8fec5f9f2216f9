# SPDX-License-Identifier: GPL-2.0-or-later
"""Write files completely or not at all, read small files, and hash files."""

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path

from lab.errors import HostError, UsageError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the whole content or no file.

    :raise HostError: the disk is full, or the file is not writable
    """
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(descriptor, "wb") as sink:
            sink.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            if name:
                Path(name).unlink()
        raise HostError(f"'{path}' could not be written: {error.strerror or error}") from error


def read_text(path: Path, max_bytes: int, what: str) -> str:
    """Return the text of a file that a user named.

    :param max_bytes: largest size that is allowed
    :param what: the purpose of the file, for errors
    :raise UsageError: the file is not readable, is too large, or is not UTF-8
    """
    try:
        with open(path, "rb") as source:
            data = source.read(max_bytes + 1)
    except OSError as error:
        raise UsageError(f"{what} '{path}' cannot be read: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise UsageError(f"{what} '{path}' is too large: allowed are {max_bytes} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{what} '{path}' is not UTF-8 text") from None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex.

    :raise HostError: the file is not readable
    """
    try:
        with open(path, "rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as error:
        raise HostError(f"'{path}' could not be read: {error.strerror or error}") from error


def append_whole(sink: io.FileIO, data: bytes) -> None:
    """Append whole lines to a file, and return when they are on the disk. If they do not fit, remove the written part.

    After an interrupt, no partial line remains either. Once all bytes are written, the lines stay.

    :raise OSError: the disk is full, or the file is not writable; the old content stays complete
    """
    rest = data
    begin = -1
    try:
        begin = os.fstat(sink.fileno()).st_size
        while rest:
            rest = rest[sink.write(rest) :]
        os.fsync(sink.fileno())
    except BaseException as error:
        if begin >= 0 and (rest or isinstance(error, OSError)):
            with contextlib.suppress(OSError):
                os.ftruncate(sink.fileno(), begin)
        raise
