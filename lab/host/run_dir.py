# SPDX-License-Identifier: GPL-2.0-or-later
"""Short-lived folders, one for each guest.

The lab removes a folder when its guest ends. A killed lab cannot remove its folders; the next lab does. A folder is in
use while a process has the lock (flock) on the file in it. The kernel releases the lock when this process ends, for
whatever reason.
"""

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab.errors import HostError
from lab.host.lock import take_lock, try_lock

#: A short path, since the path of a unix socket is at most 108 bytes long. The temporary folder of a test may need all
#: of them.
PARENT: Final = Path("/tmp")  # noqa: S108  each folder in it is made by mkdtemp, for this user alone
PREFIX: Final = "mclab-"
_LOCK: Final = "in-use"
_MAKER: Final = re.compile(re.escape(PREFIX) + r"([0-9]+)-.*", re.ASCII)
#: A younger folder may not be locked yet, unless the process in its name has ended.
_YOUNG_S: Final = 60.0


@contextlib.contextmanager
def make_run_dir() -> Iterator[Path]:
    """Make a folder with mode 0700 and a short path, and remove it on leaving. Remove the folders of killed labs first.

    :raise HostError: the folder cannot be made
    """
    sweep()
    try:
        path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=PARENT))
    except OSError as error:
        raise HostError(f"a run folder below {PARENT} could not be made: {error.strerror}") from error
    try:
        with _locked(path / _LOCK):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(f"'{path}' could not be made: {error.strerror}") from error
    try:
        take_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def sweep() -> None:
    """Remove those folders of this user that no process uses any more."""
    for path in PARENT.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            # If somebody set the clock back, the folder's time is in the future.
            young = abs(time.time() - status.st_mtime) < _YOUNG_S and not _is_orphan(path.name)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or young:
                continue
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if try_lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _is_orphan(name: str) -> bool:
    """Return True if the process that made a folder has ended."""
    made_by = _MAKER.fullmatch(name)
    return made_by is not None and not Path("/proc", made_by[1]).exists()
