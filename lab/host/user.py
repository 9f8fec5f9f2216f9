# SPDX-License-Identifier: GPL-2.0-or-later
"""The user QEMU runs as. Guests are hostile, so a lab that runs as root starts QEMU as nobody.

The lab changes the user before it executes QEMU. QEMU's own ``-runas`` is not usable: QEMU enters its sandbox first,
and the sandbox forbids the change. So QEMU never has a right of root, and may read and write only the files that the
lab passes to it.
"""

import functools
import os
import pwd
from typing import Final

import msgspec

from lab.errors import DeadlineError, HostError
from lab.host import proc
from lab.host.deadline import Deadline

NAME: Final = "nobody"
#: The id to use if the host has no user of that name.
_FALLBACK_ID: Final = 65534
_PROBE_S: Final = 10.0


class User(msgspec.Struct, frozen=True):
    """The user a program runs as, by number."""

    uid: int
    gid: int

    @property
    def words(self) -> tuple[str, ...]:
        """Return the options for setpriv(1): no other groups, and no way back to the old rights."""
        return (f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--no-new-privs")


def find_unprivileged() -> User | None:
    """Return the user QEMU runs as; None if QEMU keeps the lab's user.

    QEMU keeps the lab's user if that user is not root, or if root cannot change to another user.
    """
    return _probe() if os.geteuid() == 0 else None


def describe_user() -> str:
    """Describe the user QEMU runs as in a few words."""
    if os.geteuid() != 0:
        return "you, who are not root"
    return f"{NAME}, though the lab is root" if find_unprivileged() else f"root: this host lets root become no {NAME}"


@functools.cache
def _probe() -> User | None:
    try:
        entry = pwd.getpwnam(NAME)
        user = User(entry.pw_uid, entry.pw_gid)
    except KeyError:
        user = User(_FALLBACK_ID, _FALLBACK_ID)
    try:
        proc.run(["setpriv", *user.words, "--", "true"], deadline=Deadline.after(_PROBE_S))
    except (HostError, DeadlineError):
        return None
    return user
