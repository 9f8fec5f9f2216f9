# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a folder that may come from anywhere: regular files only, bounded, and by names that the caller chose."""

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from lab.errors import EvidenceError

T = TypeVar("T")


class ForeignFolder:
    """A folder held open, so that all files are read from one folder even if its name is given away meanwhile.

    A context manager. Everything it finds wrong is an :class:`lab.errors.EvidenceError` of one sentence.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __enter__(self) -> "ForeignFolder":
        """Open the folder.

        :raise EvidenceError: it is no folder, or not readable
        """
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise self.refuse("it is no folder, or not readable") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def refuse(self, what: str) -> EvidenceError:
        """Return the error that says why this folder cannot be read."""
        return EvidenceError(f"evidence folder '{self.path}' cannot be read: {what}")

    def list_names(self) -> set[str]:
        """Return the names of all that the folder holds.

        :raise EvidenceError: it cannot be listed
        """
        try:
            with os.scandir(self._descriptor) as entries:
                return {entry.name for entry in entries}
        except OSError as error:
            raise self.refuse("it cannot be listed") from error

    def read(self, name: str, limit: int) -> bytes:
        """Read a regular file whole; a link is not followed, and O_NONBLOCK keeps a FIFO from blocking for ever.

        :param limit: the most bytes it may have
        :raise EvidenceError: it is missing, no regular file, too large or not readable
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with open(os.open(name, flags, dir_fd=self._descriptor), "rb") as source:
                status = os.fstat(source.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise self.refuse(f"{name} is not a regular file")
                if status.st_size > limit:
                    raise self.refuse(f"{name} has {status.st_size} bytes, of which at most {limit} are read")
                return source.read(limit)
        except FileNotFoundError:
            raise self.refuse(f"{name} is missing") from None
        except OSError as error:
            raise self.refuse(f"{name} is not a readable regular file") from error

    def decode(self, name: str, data: bytes, kind: type[T]) -> T:
        """Return what a file's JSON says, held to a type.

        :raise EvidenceError: it is no JSON, or of another type
        """
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self.refuse(f"{name} is not what this lab writes ({error})") from error
