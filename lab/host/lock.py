# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks on open files and folders (flock(2)). The kernel releases a lock when its owner ends, for whatever reason."""

import fcntl


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take a lock if it is free now, and return True if it was free. Closing the descriptor releases the lock.

    :param shared: several owners may have the lock at once, if each takes it as shared
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_lock(descriptor: int) -> None:
    """Wait for a lock that others keep for moments only, and take it. Closing the descriptor releases the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
