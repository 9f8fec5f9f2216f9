# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a guest: QEMU, kernel, initrd, options and keys."""

import enum
from pathlib import Path

import msgspec
import paramiko

from lab.model.qemu import Qemu
from lab.model.topology import Topology

#: An Intel model that TCG can emulate and that has SMT. The kernel's microcode loader does not attach if CPUID
#: shows a hypervisor.
SIGNATURE = 0x50654
#: Since 6.16 kernels taint themselves ("old_microcode") on a CPU whose microcode is older than what their table names
#: for it, which QEMU's default of 1 is; this is what 7.3 names for 06-55-04.
BOOT_REVISION = 0x2007006
#: QEMU's platform id is 0.
PLATFORMS = 0x1
#: MSR 0x8B has the revision in its high half.
DEFAULT_CPU = f"Skylake-Server,-hypervisor,ucode-rev={BOOT_REVISION << 32:#x}"
DEFAULT_MEMORY_MIB = 256


class Accelerator(enum.Enum):
    """How QEMU executes the guest's instructions. The values are QEMU's own."""

    #: One thread per vCPU. With thread=single two vCPUs never overlap, so a stretched window would show nothing.
    TCG = "tcg,thread=multi"
    #: Without an observer: QEMU supports plugins under TCG only.
    KVM = "kvm"


class GuestSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A machine to start.

    :param qemu: the QEMU that runs the guest
    :param initrd: the archive that all runs share; the lab appends the run's keys to a copy
    :param kernel_args: words to append to the lab's own kernel command line
    :param plugin: value of QEMU's ``-plugin``, or empty for no plugin; may name the descriptor passed as
        ``observer_fd``
    :param stepped: QEMU translates one instruction at a time
    """

    qemu: Qemu
    topology: Topology
    kernel: Path
    initrd: Path
    memory_mib: int = DEFAULT_MEMORY_MIB
    cpu: str = DEFAULT_CPU
    kernel_args: tuple[str, ...] = ()
    plugin: str = ""
    accelerator: Accelerator = Accelerator.TCG
    stepped: bool = False


class GuestKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys by which the lab and one guest recognise each other.

    :param client_key: the key the lab logs in with
    :param host_public: the only host key that the lab accepts from the guest
    :param archive: a cpio archive with the guest's halves of the keys, appended to its initramfs
    """

    client_key: paramiko.PKey
    host_public: paramiko.PKey
    archive: bytes
