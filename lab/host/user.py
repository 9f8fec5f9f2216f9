# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom QEMU runs as: guests are hostile, so where the lab is root, QEMU is nobody.

The change is made before QEMU is executed: its own ``-runas`` comes after the sandbox that forbids it. So QEMU never
has a right of root's, and what it may read and write is what the lab hands to it.
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
#: Where a host has no such name.
_FALLBACK_ID: Final = 65534
_PROBE_S: Final = 10.0


class User(msgspec.Struct, frozen=True):
    """Whom a program runs as, by number."""

    uid: int
    gid: int

    @property
    def words(self) -> tuple[str, ...]:
        """What setpriv(1) is told: neither other groups nor any way back."""
        return (f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--no-new-privs")


def find_unprivileged() -> User | None:
    """Return whom QEMU is to run as; None where it stays who the lab is, who is not root or cannot be another."""
    return _probe() if os.geteuid() == 0 else None


def describe_user() -> str:
    """Say in a few words whom QEMU runs as."""
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
