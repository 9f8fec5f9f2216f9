# SPDX-License-Identifier: GPL-2.0-or-later
from pathlib import Path

import msgspec
import pytest

from lab.guest.command import InheritedFds, command_line
from lab.guest.config import Accelerator, GuestSpec
from lab.model.qemu import Qemu
from lab.model.topology import Topology

QEMU = Qemu(path=Path("/q/qemu"), version="7.2.22 (Debian)", interface_min=0, interface_max=1, sha256="")
SPEC = GuestSpec(qemu=QEMU, topology=Topology(2, 3, 2), kernel=Path("/k/bzImage"), initrd=Path("/i/initrd"))
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
        "-cpu", "Skylake-Server,-hypervisor,ucode-rev=0x200700600000000",
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
        plugin="/o/observer.so,landmarks=/o/marks",
        accelerator=Accelerator.KVM,
    )
    plain, words = command_line(SPEC, FDS), command_line(spec, FDS)
    assert set(words) - set(plain) == {
        "512",
        "Haswell,-hypervisor",
        "-plugin",
        "/o/observer.so,landmarks=/o/marks",
        "kvm",
        "console=ttyS0 nokaslr apic_extnmi=all tsc=reliable panic=-1 printk.time=1 log_buf_len=4M nosmt lpj=4000",
    }
    assert words[words.index("-plugin") + 1] == "/o/observer.so,landmarks=/o/marks"


BY_OPTION = ("-accel", "tcg,thread=multi", "-singlestep")
BY_PROPERTY = ("-accel", "tcg,thread=multi,one-insn-per-tb=on")
MON = ("-mon", "chardev=nmi,mode=control")
MONITOR = ("-object", "monitor-qmp,id=nmi-qmp,chardev=nmi")


@pytest.mark.parametrize(
    ("version", "parts"),
    [
        ("7.2.22", (BY_OPTION, MON)),
        ("8.0.5", (BY_OPTION, MON)),
        ("8.1.0", (BY_PROPERTY, MON)),
        ("10.0.13", (BY_PROPERTY, MON)),
        ("11.1.3", (BY_PROPERTY, MONITOR)),
    ],
)
def test_each_release_is_told_in_its_own_words(version: str, parts: tuple[tuple[str, ...], ...]) -> None:
    qemu = msgspec.structs.replace(QEMU, version=version)
    words = command_line(msgspec.structs.replace(SPEC, qemu=qemu, stepped=True), FDS)
    for part in parts:
        first = words.index(part[-1]) - len(part) + 1
        assert words[first : first + len(part)] == part
    plain = command_line(msgspec.structs.replace(SPEC, qemu=qemu), FDS)
    assert not {BY_OPTION[-1], BY_PROPERTY[-1]} & set(plain)
