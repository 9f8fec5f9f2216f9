# SPDX-License-Identifier: GPL-2.0-or-later
"""Files for a QEMU that runs as another user. QEMU inherits the open files, and finds them by /proc/self/fd.

So QEMU does not need access to the folders above these files, such as root's home. The run folder stays private to the
lab: QEMU cannot put a file there that the lab would read.
"""

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final

from lab.errors import HostError
from lab.host.user import User

_CHUNK_BYTES: Final = 1 << 20
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class HandedFiles:
    """The files that QEMU inherits. A context manager; leave it once QEMU has started.

    :param user: the user QEMU will run as; None for the lab's own user, who opens files by their paths
    """

    def __init__(self, user: User | None) -> None:
        self.user = user
        self._descriptors: list[int] = []

    def __enter__(self) -> "HandedFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors that QEMU must inherit under the same numbers."""
        return tuple(self._descriptors)

    def hand(self, path: Path, *, writable: bool = False) -> Path:
        """Return the path by which QEMU opens a file.

        :param writable: the file belongs to the lab, and QEMU gets the right to write to it
        :raise HostError: the lab itself cannot open the file
        """
        if self.user is None:
            return path
        try:
            descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            self._descriptors.append(descriptor)
            if writable:
                os.fchown(descriptor, self.user.uid, self.user.gid)
            elif not os.fstat(descriptor).st_mode & stat.S_IROTH:
                descriptor = self._copy(descriptor, path.name)
        except OSError as error:
            raise HostError(f"'{path}' could not be read: {error.strerror or error}") from error
        return Path(f"/proc/self/fd/{descriptor}")

    def _copy(self, source: int, name: str) -> int:
        """Return a copy in memory. Each process that inherits the copy can open it, and no process can change it."""
        copy = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._descriptors.append(copy)
        while os.sendfile(copy, source, None, _CHUNK_BYTES):
            pass
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
        return copy
