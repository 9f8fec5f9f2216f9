# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks on open files and folders (flock(2)): the kernel takes one back however its holder ends."""

import fcntl


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take a lock if it is free now, and say whether it was; closing the descriptor gives it back.

    :param shared: beside others who take it so
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_lock(descriptor: int) -> None:
    """Take a lock that others hold for moments only; closing the descriptor gives it back."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
