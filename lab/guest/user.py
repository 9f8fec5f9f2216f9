# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom a guest's QEMU runs as, which under KVM depends on its device."""

import contextlib
import stat
from pathlib import Path
from typing import Final

from lab.guest.config import Accelerator
from lab.host.user import User, find_unprivileged

_KVM: Final = Path("/dev/kvm")


def choose_user(accelerator: Accelerator) -> User | None:
    """Return whom QEMU runs as: under KVM another user than the lab's only where its device is open to all."""
    if accelerator is Accelerator.KVM:
        with contextlib.suppress(OSError):
            mode = _KVM.stat().st_mode
            if mode & stat.S_IROTH and mode & stat.S_IWOTH:
                return find_unprivileged()
        return None
    return find_unprivileged()
