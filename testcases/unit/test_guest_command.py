# SPDX-License-Identifier: GPL-2.0-or-later
from pathlib import Path

import msgspec

from lab.guest.command import InheritedFds, command_line
from lab.guest.spec import Accelerator, GuestSpec
from lab.spec.topology import Topology

SPEC = GuestSpec(qemu=Path("/q/qemu"), topology=Topology(2, 3, 2), kernel=Path("/k/bzImage"), initrd=Path("/i/initrd"))
FDS = InheritedFds(monitor=5, nmi_monitor=6, qtest=7, console=9)


def test_every_word_of_the_default_machine() -> None:
    # fmt: off
    assert command_line(SPEC, FDS) == (
        "/q/qemu",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-action", "panic=none",
        "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine", "q35",
        "-accel", "tcg,thread=multi",
        "-cpu", "Skylake-Server,-hypervisor",
        "-smp", "12,sockets=2,cores=3,threads=2",
        "-m", "256",
        "-chardev", "socket,id=monitor,fd=5",
        "-mon", "chardev=monitor,mode=control",
        "-chardev", "socket,id=nmi,fd=6",
        "-mon", "chardev=nmi,mode=control",
        "-chardev", "socket,id=aim,fd=7",
        "-object", "qtest,id=qtest,chardev=aim,log=none",
        "-chardev", "socket,id=console,fd=9",
        "-serial", "chardev:console",
        "-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
        "-device", "pvpanic-pci",
        "-kernel", "/k/bzImage",
        "-initrd", "/i/initrd",
        "-append", "console=ttyS0 nokaslr apic_extnmi=all tsc=reliable panic=-1 printk.time=1 log_buf_len=4M",
    )
    # fmt: on


def test_what_a_spec_changes() -> None:
    spec = msgspec.structs.replace(
        SPEC,
        memory_mib=512,
        cpu="Haswell,-hypervisor",
        kernel_args=("nosmt", "lpj=4000"),
        plugin="/o/oracle.so,landmarks=/o/marks",
        accelerator=Accelerator.KVM,
    )
    plain, words = command_line(SPEC, FDS), command_line(spec, FDS)
    assert set(words) - set(plain) == {
        "512",
        "Haswell,-hypervisor",
        "-plugin",
        "/o/oracle.so,landmarks=/o/marks",
        "kvm",
        "console=ttyS0 nokaslr apic_extnmi=all tsc=reliable panic=-1 printk.time=1 log_buf_len=4M nosmt lpj=4000",
    }
    assert words[words.index("-plugin") + 1] == "/o/oracle.so,landmarks=/o/marks"
