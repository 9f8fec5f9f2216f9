# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line, as a pure function of the guest's specification."""

from typing import Final

import msgspec

from lab.guest.config import GuestSpec
from lab.model.qemu import name_monitor

#: nokaslr: the observer's landmarks are link-time addresses. apic_extnmi=all: without this option, inject-nmi reaches
#: only CPU 0. tsc=reliable: without the hypervisor bit, the clocksource watchdog would distrust an emulated TSC.
#: panic=-1: a panic resets the guest at once, and -no-reboot turns the reset into an end. log_buf_len: room for
#: thousands of loads. Once the log is full, the distance that a printk() has to push the tail differs from load to
#: load.
KERNEL_ARGS = (
    "console=ttyS0",
    "nokaslr",
    "apic_extnmi=all",
    "tsc=reliable",
    "panic=-1",
    "printk.time=1",
    "log_buf_len=4M",
)

#: Port of the guest's SSH server. QEMU forwards to the address that its user network gives a guest without other
#: configuration; images/initramfs/init relies on this address.
GUEST_SSH_PORT = 22

#: The guest is hostile, so QEMU keeps only the rights that it needs. ``spawn`` denies new processes, and threads that
#: pthread_create() does not make; so vCPU threads and threads of a plugin still start. ``resourcecontrol`` denies
#: changes of priorities and affinity; MTTCG, plugins and user networking make no such changes. One restriction follows:
#: ``exec:`` migration kills QEMU.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


#: In this version and later, ``-singlestep`` is the property ``one-insn-per-tb`` (QEMU's release notes). QEMU 9.0 has
#: no ``-singlestep``.
STEPPED_BY_PROPERTY: Final = (8, 1)


class InheritedFds(msgspec.Struct, frozen=True, kw_only=True):
    """QEMU's ends of the socket pairs that QEMU inherits.

    No other process can open them, and there is no path to race for.
    """

    monitor: int
    nmi_monitor: int
    qtest: int
    console: int


def _accelerate(spec: GuestSpec) -> tuple[str, ...]:
    accelerator = spec.accelerator.value
    if not spec.stepped:
        return ("-accel", accelerator)
    if spec.qemu.release >= STEPPED_BY_PROPERTY:
        return ("-accel", f"{accelerator},one-insn-per-tb=on")
    return ("-accel", accelerator, "-singlestep")


def command_line(spec: GuestSpec, fds: InheritedFds) -> tuple[str, ...]:
    """Return the words of the command that starts the guest."""
    topology = spec.topology
    smp = f"{topology.vcpus},sockets={topology.sockets},cores={topology.cores},threads={topology.threads}"
    # fmt: off
    return (
        str(spec.qemu.path),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        # By default, QEMU stops a guest at its write to pvpanic. In NMI context this write comes before the kernel
        # prints the panic's text. With none, QEMU still sends the event, and the reset that follows ends QEMU.
        "-action", "panic=none",
        "-display", "none",
        "-sandbox", SANDBOX,
        "-machine", "q35",
        *_accelerate(spec),
        "-cpu", spec.cpu,
        "-smp", smp,
        "-m", str(spec.memory_mib),
        "-chardev", f"socket,id=monitor,fd={fds.monitor}",
        *name_monitor(spec.qemu.release, "monitor"),
        "-chardev", f"socket,id=nmi,fd={fds.nmi_monitor}",
        *name_monitor(spec.qemu.release, "nmi"),
        # Not -qtest: QEMU 7.2 accepts only a chardev with its own name there. log=none: otherwise QEMU logs each
        # command.
        "-chardev", f"socket,id=aim,fd={fds.qtest}",
        "-object", "qtest,id=qtest,chardev=aim,log=none",
        "-chardev", f"socket,id=console,fd={fds.console}",
        "-serial", "chardev:console",
        # Port 0: the kernel picks a free port, so parallel guests cannot race for a port. `info usernet` shows the
        # port.
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:{GUEST_SSH_PORT}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
        "-device", "pvpanic-pci",
        *(("-plugin", spec.plugin) if spec.plugin else ()),
        "-kernel", str(spec.kernel),
        "-initrd", str(spec.initrd),
        "-append", " ".join((*KERNEL_ARGS, *spec.kernel_args)),
    )
    # fmt: on
