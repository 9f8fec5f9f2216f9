# SPDX-License-Identifier: GPL-2.0-or-later
"""The user QEMU runs as. Under KVM, the user depends on the permissions of KVM's device."""

import contextlib
import stat
from pathlib import Path
from typing import Final

from lab.guest.config import Accelerator
from lab.host.user import User, find_unprivileged

_KVM: Final = Path("/dev/kvm")


def choose_user(accelerator: Accelerator) -> User | None:
    """Return the user QEMU runs as. Under KVM, QEMU keeps the lab's user unless every user may open KVM's device."""
    if accelerator is Accelerator.KVM:
        with contextlib.suppress(OSError):
            mode = _KVM.stat().st_mode
            if mode & stat.S_IROTH and mode & stat.S_IWOTH:
                return find_unprivileged()
        return None
    return find_unprivileged()
