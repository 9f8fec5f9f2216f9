# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether KVM can be used: tried by booting a guest, since /dev/kvm may open and still never boot a Linux."""

import os
from pathlib import Path
from typing import Final

from lab.build import initramfs
from lab.build.cache import make_folder
from lab.build.doctor import Check
from lab.errors import GuestError, HostError
from lab.guest.config import Accelerator, GuestSpec
from lab.guest.machine import start_guest
from lab.host.deadline import Deadline
from lab.host.run_dir import make_run_dir
from lab.model.qemu import Qemu
from lab.model.topology import Topology
from lab.trial.keys import make_guest_keys

KVM_DEVICE: Final = "/dev/kvm"
#: Under KVM a guest is up in a second where it boots at all.
PROBE_S: Final = 15.0
_NAME: Final = "kvm"


def _find_newest(kind: str, name: str) -> Path | None:
    """Return a file of the entry built last; probing must not start a build."""
    entries = sorted(make_folder(kind).glob(f"[!.]*/{name}"), key=lambda path: path.stat().st_mtime_ns)
    return entries[-1] if entries else None


def try_kvm(qemu: Qemu | None) -> Check:
    """Boot a guest under KVM. Never a lack: the lab runs under TCG, and KVM has no observer.

    :param qemu: what to boot it on, None where there is none
    """
    if qemu is None:
        return Check(name=_NAME, ok=True, found="not tried: there is no QEMU")
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Check(name=_NAME, ok=True, found=f"not used: {KVM_DEVICE} is not there or not open to you")
    kernel = _find_newest("kernel", "bzImage")
    initrd = _find_newest("initramfs", initramfs.NAME)
    if kernel is None or initrd is None:
        return Check(name=_NAME, ok=True, found="not tried: no images are built yet (lab build)")
    spec = GuestSpec(
        qemu=qemu,
        topology=Topology(1, 1, 2),
        kernel=kernel,
        initrd=initrd,
        cpu="host",
        accelerator=Accelerator.KVM,
    )
    try:
        with make_run_dir() as run_dir, start_guest(spec, make_guest_keys(), run_dir, Deadline.after(PROBE_S)):
            return Check(name=_NAME, ok=True, found="boots a guest; there is no observer under it")
    except (GuestError, HostError) as error:
        return Check(name=_NAME, ok=True, found=f"not usable: {str(error).splitlines()[0]}")
