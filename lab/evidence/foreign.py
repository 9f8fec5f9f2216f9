# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a folder that may come from anywhere: only regular files of limited size, by names that the caller chose."""

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from lab.errors import EvidenceError

T = TypeVar("T")


class ForeignFolder:
    """An open folder. All files come from this one folder, even if another folder gets its name meanwhile.

    A context manager. Each defect of the folder is an :class:`lab.errors.EvidenceError` of one sentence.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __enter__(self) -> "ForeignFolder":
        """Open the folder.

        :raise EvidenceError: the path is not a folder, or the folder is not readable
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
        """Return the error that says why the lab cannot read this folder."""
        return EvidenceError(f"evidence folder '{self.path}' cannot be read: {what}")

    def list_names(self) -> set[str]:
        """Return the names of all entries of the folder.

        :raise EvidenceError: the folder cannot be listed
        """
        try:
            with os.scandir(self._descriptor) as entries:
                return {entry.name for entry in entries}
        except OSError as error:
            raise self.refuse("it cannot be listed") from error

    def read(self, name: str, limit: int) -> bytes:
        """Read a regular file completely. Do not follow a link. O_NONBLOCK keeps a FIFO from blocking for ever.

        :param limit: largest size in bytes
        :raise EvidenceError: the file is missing, not regular, too large or not readable
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
        """Decode a file's JSON to a type.

        :raise EvidenceError: the data are not JSON, or have another type
        """
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self.refuse(f"{name} is not what this lab writes ({error})") from error
