# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line, as a pure function of what is asked for."""

from typing import Final

import msgspec

from lab.guest.config import GuestSpec
from lab.model.qemu import name_monitor

#: nokaslr: the observer's landmarks are link-time addresses. apic_extnmi=all: without it inject-nmi reaches CPU 0 only.
#: tsc=reliable: without the hypervisor bit the clocksource watchdog would distrust an emulated TSC. panic=-1: a panic
#: resets at once, which -no-reboot turns into an end.
#: log_buf_len: for thousands of loads. Once the log is full, how far a printk() has to push its tail differs from
#: load to load.
KERNEL_ARGS = (
    "console=ttyS0",
    "nokaslr",
    "apic_extnmi=all",
    "tsc=reliable",
    "panic=-1",
    "printk.time=1",
    "log_buf_len=4M",
)

#: Where QEMU's user network puts a guest that nobody configured otherwise, which images/initramfs/init relies on.
GUEST_SSH_PORT = 22

#: The guest is hostile, so QEMU keeps no right it can do without. ``spawn`` denies new processes, and threads made in
#: any way but pthread_create()'s, so vCPU threads and those of a plugin still start; ``resourcecontrol`` denies
#: changing priorities and affinity, which neither MTTCG nor plugins nor user networking do. The price is that
#: ``exec:`` migration kills QEMU.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


#: The version since which ``-singlestep`` is ``one-insn-per-tb`` (its release notes; the option is gone in 9.0).
STEPPED_BY_PROPERTY: Final = (8, 1)


class InheritedFds(msgspec.Struct, frozen=True, kw_only=True):
    """QEMU's ends of the socket pairs it inherits; nobody else can open them and no path can be raced for."""

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
    """Return the words that start the guest."""
    topology = spec.topology
    smp = f"{topology.vcpus},sockets={topology.sockets},cores={topology.cores},threads={topology.threads}"
    # fmt: off
    return (
        str(spec.qemu.path),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        # QEMU's default is to stop a guest at its pvpanic write, which in NMI context comes before the panic's text
        # has been printed; the event is sent all the same, and the reset that follows ends QEMU.
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
        # Not -qtest: in 7.2 that takes no chardev of another name than its own. log=none: else each command is logged.
        "-chardev", f"socket,id=aim,fd={fds.qtest}",
        "-object", "qtest,id=qtest,chardev=aim,log=none",
        "-chardev", f"socket,id=console,fd={fds.console}",
        "-serial", "chardev:console",
        # Port 0: the kernel picks a free one, so that parallel guests cannot race for it; `info usernet` tells which.
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
