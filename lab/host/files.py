# SPDX-License-Identifier: GPL-2.0-or-later
"""Files written whole or not at all, and named by content."""

import contextlib
import hashlib
import tempfile
from pathlib import Path

from lab.errors import HostError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees either all of it or none.

    :raise HostError: no space, or not writable
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


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex.

    :raise HostError: it could not be read
    """
    try:
        with open(path, "rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as error:
        raise HostError(f"'{path}' could not be read: {error.strerror or error}") from error
