# SPDX-License-Identifier: GPL-2.0-or-later
"""Defects made in real guests, and what the console then shows.

``python testcases/oopses.py`` writes one console log per defect to unit/data/console, where the unit tests read them.
It needs no kernel of its own: a function that nobody else calls is overwritten from outside while the guest runs.
"""

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from elftools.elf.elffile import ELFFile

from lab.build.images import ImageSet, build_images
from lab.build.qemu import find_qemu
from lab.errors import GuestGone
from lab.guest.config import BOOT_REVISION, PLATFORMS, SIGNATURE, GuestSpec
from lab.guest.machine import Machine, start_guest
from lab.guest.nmi import ALL_VCPUS
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.host.run_dir import make_run_dir
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.microcode.update import firmware_name, make_update
from lab.model.topology import Topology
from lab.trial.keys import make_guest_keys

DATA: Final = Path(__file__).parent / "unit/data/console"
TOPOLOGY: Final = Topology(1, 1, 2)
BOOT_S: Final = 120.0
ADMISSION_S: Final = 600.0
#: A detector that was told to look after two or three seconds has looked by then.
SHOW_S: Final = 60.0
#: How long a report may take to be printed to its end.
SETTLE_S: Final = 2.0
#: Longer than any report; what follows it is not wanted.
MAX_LINES: Final = 120

#: What shows /proc/version, which the lab never reads.
VICTIM: Final = "version_proc_show"
#: Elsewhere than where the shell runs, and without waiting for it: not every oops lets its task end.
TOUCH: Final = "taskset 2 cat /proc/version >/dev/null 2>&1 &"

JUMP_TO_SELF: Final = b"\xeb\xfe"
UD2: Final = b"\x0f\x0b"
#: ``struct bug_entry``: where from here, which file, which line, flags; bit 0 says that it only warns.
_BUG_ENTRY: Final = struct.Struct("<iiHH")
_WARNS: Final = 1
#: A function with a BUG().
BUGGY: Final = "slow_virt_to_phys"


class Defect(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong.

    :param name: of its log
    :param shown: what the console shows once it has
    :param command: what the shell runs; it may be the last thing that it does
    :param code: what the victim is overwritten with
    :param victim: the function
    :param inject: send an NMI to all
    :param update: give the guest a microcode file that can be loaded
    """

    name: str
    shown: str
    command: str
    code: Callable[[ImageSet, Kernel], bytes] | None = None
    victim: str = VICTIM
    inject: bool = False
    update: bool = False


def _plain(code: bytes) -> Callable[[ImageSet, Kernel], bytes]:
    return lambda _images, _kernel: code


def _load_from(address: int) -> Callable[[ImageSet, Kernel], bytes]:
    """``movabs $address, %rax; mov (%rax), %rax``."""
    return _plain(b"\x48\xb8" + struct.pack("<Q", address) + b"\x48\x8b\x00")


def _jump(kernel: Kernel, before: bytes, target: int) -> bytes:
    """Return code that ends in a jump."""
    at = kernel.find(VICTIM).start + len(before) + 5
    return before + b"\xe9" + struct.pack("<i", target - at)


def _sleep(_images: ImageSet, kernel: Kernel) -> bytes:
    """``mov $1000000, %edi; jmp msleep``: uninterruptible."""
    return _jump(kernel, b"\xbf" + struct.pack("<I", 1_000_000), kernel.find("msleep").start)


def _warn(_images: ImageSet, kernel: Kernel) -> bytes:
    """``__warn(NULL, 0, version_proc_show + 4, TAINT_WARN, NULL, NULL)`` in place of a return."""
    code = b"\x31\xff\x31\xf6\x48\xba" + struct.pack("<Q", kernel.find(VICTIM).start + 4)
    code += b"\xb9" + struct.pack("<I", 9) + b"\x45\x31\xc0\x45\x31\xc9"
    return _jump(kernel, code, kernel.find("__warn").start)


def _bug(images: ImageSet, kernel: Kernel) -> bytes:
    """Jump to a BUG() of the kernel's own."""
    with open(images.vmlinux, "rb") as source:
        table = ELFFile(source).get_section_by_name("__bug_table")
        assert table is not None
        start, entries = int(table["sh_addr"]), list(_BUG_ENTRY.iter_unpack(table.data()))
    places = (
        start + index * _BUG_ENTRY.size + entry[0] for index, entry in enumerate(entries) if not entry[3] & _WARNS
    )
    function = kernel.find(BUGGY)
    return _jump(kernel, b"", next(place for place in places if function.start <= place < function.end))


_SYSCTL: Final = "/proc/sys/kernel"

DEFECTS: Final = (
    Defect(name="panic-by-sysrq", shown="Kernel panic - not syncing", command="echo c >/proc/sysrq-trigger"),
    Defect(
        name="backtraces-by-sysrq",
        shown="NMI backtrace for cpu 1",
        command="echo 2000000000 >/sys/kernel/debug/x86/nmi_longest_ns; echo l >/proc/sysrq-trigger",
    ),
    Defect(name="invalid-opcode", shown="end trace", command=TOUCH, code=_plain(UD2)),
    Defect(name="null-dereference", shown="end trace", command=TOUCH, code=_load_from(0)),
    Defect(name="page-fault", shown="end trace", command=TOUCH, code=_load_from(0xFFFF_C950_0000_0000)),
    Defect(name="general-protection", shown="end trace", command=TOUCH, code=_load_from(0xDEAD_0000_0000_0000)),
    Defect(name="divide-by-zero", shown="end trace", command=TOUCH, code=_plain(b"\x31\xc9\x31\xd2\xf7\xf1")),
    Defect(name="bug", shown="end trace", command=TOUCH, code=_bug),
    Defect(name="warning", shown="end trace", command=TOUCH, code=_warn),
    Defect(
        name="panic-on-oops",
        shown="Kernel panic - not syncing",
        command=f"echo 1 >{_SYSCTL}/panic_on_oops; {TOUCH}",
        code=_load_from(0),
    ),
    Defect(
        name="soft-lockup",
        shown="soft lockup.*",
        command=f"echo 1 >{_SYSCTL}/watchdog_thresh; {TOUCH}",
        code=_plain(JUMP_TO_SELF),
    ),
    Defect(
        name="rcu-stall",
        shown="detected stall",
        command=f"echo 0 >{_SYSCTL}/soft_watchdog; echo 3 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout;"
        + TOUCH,
        code=_plain(JUMP_TO_SELF),
    ),
    Defect(
        name="hung-task",
        shown="blocked for more than",
        command=f"echo 2 >{_SYSCTL}/hung_task_timeout_secs; {TOUCH}",
        code=_sleep,
    ),
    Defect(name="unknown-nmi", shown="Dazed and confused", command="true", inject=True),
    Defect(
        name="unknown-nmi-panic",
        shown="Kernel panic - not syncing",
        command=f"echo 1 >{_SYSCTL}/unknown_nmi_panic",
        inject=True,
    ),
    Defect(
        name="slow-nmi-handler",
        shown="took too long",
        command="echo 1 >/sys/kernel/debug/x86/nmi_longest_ns; echo 1 >/sys/kernel/debug/microcode_lab/armed",
        inject=True,
    ),
    Defect(
        name="update-timeout",
        shown="Kernel panic - not syncing",
        command="echo 1 >/sys/devices/system/cpu/microcode/reload",
        code=_plain(JUMP_TO_SELF),
        victim="apply_microcode_intel",
        update=True,
    ),
)


def overwrite(machine: Machine, kernel: Kernel, victim: str, code: bytes, deadline: Deadline) -> None:
    """Overwrite the beginning of a function while the guest runs."""
    start = kernel.find(victim).start
    padded = code + b"\x90" * (-len(code) % 8)
    for offset in range(0, len(padded), 8):
        machine.memory.write_kernel(start + offset, int.from_bytes(padded[offset : offset + 8], "little"), 8, deadline)


def provoke(images: ImageSet, kernel: Kernel, defect: Defect) -> tuple[str, ...]:
    """Boot a guest, have the defect happen, and return what its console showed of it."""
    spec = GuestSpec(qemu=images.qemu, topology=TOPOLOGY, kernel=images.kernel, initrd=images.initramfs)
    with (
        admit(TOPOLOGY.vcpus, Deadline.after(ADMISSION_S)),
        make_run_dir() as run_dir,
        start_guest(spec, make_guest_keys(), run_dir, Deadline.after(BOOT_S)) as machine,
    ):
        deadline = Deadline.after(SHOW_S)
        if defect.update:
            update = make_update(SIGNATURE, PLATFORMS, BOOT_REVISION + 1)
            machine.shell.put(f"/lib/firmware/intel-ucode/{firmware_name(SIGNATURE)}", update, deadline)
        if defect.code is not None:
            overwrite(machine, kernel, defect.victim, defect.code(images, kernel), deadline)
        mark = machine.console.mark()
        try:
            machine.shell.run(defect.command, deadline)
            if defect.inject:
                machine.broadcast.inject(ALL_VCPUS, deadline)
            machine.console.wait_for(defect.shown, deadline, since=mark)
            machine.latch.wait(Deadline.after(SETTLE_S))
        except GuestGone:
            # It is what was asked for; whether it is the right one, the console says.
            machine.wait_settled(Deadline.after(SETTLE_S))
        return machine.console.part(mark).lines


def main() -> None:
    images = build_images(lambda _: None, find_qemu())
    kernel = read_kernel(images.vmlinux)
    for defect in DEFECTS:
        if sys.argv[1:] and defect.name not in sys.argv[1:]:
            continue
        lines = provoke(images, kernel, defect)[:MAX_LINES]
        (DATA / f"{defect.name}.txt").write_text("".join(f"{line}\n" for line in lines))
        sys.stderr.write(f"{defect.name}: {len(lines)} lines\n")


if __name__ == "__main__":
    main()
