# SPDX-License-Identifier: GPL-2.0-or-later
"""One machine, from boot to every kind of end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from lab.build.initramfs import make_key_archive
from lab.build.keys import make_run_keys
from lab.errors import DeadlineError, GuestError, GuestGone
from lab.guest.config import GuestKeys, GuestSpec
from lab.guest.machine import Machine, start_guest
from lab.guest.nmi import ALL_VCPUS
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.host.run_dir import make_run_dir
from lab.model.evidence import Ending
from lab.model.qemu import Qemu
from lab.model.topology import Topology

pytestmark = pytest.mark.e2e

BOOT_S = 120.0
#: Other workers' guests may have to end first.
ADMISSION_S = 600.0


class GuestImages(Protocol):
    """What the tests need of the fixture ``images``."""

    kernel: Path
    initramfs: Path
    qemu: Qemu


def make_keys() -> GuestKeys:
    keys = make_run_keys()
    return GuestKeys(
        client_key=keys.client_key,
        host_public=keys.host_public,
        archive=make_key_archive(keys.authorized_key, keys.host_key),
    )


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def booted(images: GuestImages, topology: str = "1x2x2", *kernel_args: str) -> Iterator[Machine]:
    """Boot a guest; once it is over, see that nothing of it is left."""
    threads, descriptors = set(threading.enumerate()), count_descriptors()
    spec = GuestSpec(
        qemu=images.qemu,
        topology=Topology.parse(topology),
        kernel=images.kernel,
        initrd=images.initramfs,
        kernel_args=kernel_args,
    )
    with make_run_dir() as run_dir:
        with (
            admit(spec.topology.vcpus, Deadline.after(ADMISSION_S)),
            start_guest(spec, make_keys(), run_dir, Deadline.after(BOOT_S)) as machine,
        ):
            yield machine
        assert not psutil.pid_exists(machine.pid)
    assert not run_dir.exists()
    assert {thread.name for thread in set(threading.enumerate()) - threads} <= {"spawner"}
    assert count_descriptors() <= descriptors


def soon() -> Deadline:
    return Deadline.after(60)


def count_nmis(machine: Machine) -> list[int]:
    line = machine.shell.run("grep NMI: /proc/interrupts", soon()).stdout.split()
    return [int(word) for word in line[1 : line.index(b"Non-maskable")]]


def test_a_guest_boots_and_answers_on_every_channel(images: GuestImages) -> None:
    with booted(images, "1x2x2", "mclab.test=1") as machine:
        assert machine.ending is None
        assert machine.qemu_version[0].isdigit()
        siblings = machine.shell.run("cat /sys/devices/system/cpu/cpu[0-3]/topology/thread_siblings_list", soon())
        assert siblings.stdout.split() == [b"0-1", b"0-1", b"2-3", b"2-3"]
        assert b"apic_extnmi=all" in (line := machine.shell.run("cat /proc/cmdline", soon()).stdout)
        assert b"mclab.test=1" in line
        status = machine.qmp.execute("query-status", deadline=soon())
        # Each QEMU has keys of its own beside these.
        assert isinstance(status, dict)
        assert (status["status"], status["running"]) == ("running", True)
        mark = machine.console.mark()
        # On a line of its own, whatever the kernel is about to say.
        machine.shell.run("printf '\\nmark-me\\n' >/dev/console", soon())
        assert machine.console.wait_for("mark-me", soon(), since=mark) == "mark-me"
        assert any(line.startswith("mark-me") for line in machine.console.part(mark).lines)


def test_a_broadcast_reaches_every_vcpu_and_an_aimed_nmi_only_its_own(images: GuestImages) -> None:
    with booted(images) as machine:
        before = count_nmis(machine)
        send_ns, reply_ns = machine.broadcast.inject(ALL_VCPUS, soon())
        assert send_ns < reply_ns
        everyone = count_nmis(machine)
        assert [now - then for now, then in zip(everyone, before, strict=True)] == [1, 1, 1, 1]
        for vcpu in (0, 3):
            before = count_nmis(machine)
            machine.aimed.inject(vcpu, soon())
            gained = [now - then for now, then in zip(count_nmis(machine), before, strict=True)]
            assert gained == [int(number == vcpu) for number in range(4)]


def test_an_aimed_nmi_finds_its_vcpu_where_apic_ids_have_gaps(images: GuestImages) -> None:
    with booted(images, "1x3x2") as machine:
        before = count_nmis(machine)
        machine.aimed.inject(5, soon())
        gained = [now - then for now, then in zip(count_nmis(machine), before, strict=True)]
        assert gained == [0, 0, 0, 0, 0, 1]


def test_vcpu_threads_and_what_the_host_gave_them(images: GuestImages) -> None:
    with booted(images, "1x1x2") as machine:
        threads = machine.vcpu_threads(soon())
        assert len(set(threads)) == 2
        assert all(Path(f"/proc/{machine.pid}/task/{thread}").is_dir() for thread in threads)
        before = machine.read_schedstat(threads)
        machine.shell.run("taskset 2 sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done'", soon())
        ran = [now.ran_ns - then.ran_ns for now, then in zip(machine.read_schedstat(threads), before, strict=True)]
        assert ran[1] > ran[0]


@pytest.mark.parametrize("in_nmi", [False, True])
def test_a_panic_ends_a_command_at_once_and_its_text_is_kept(images: GuestImages, in_nmi: bool) -> None:
    with booted(images) as machine:
        begin = time.monotonic()
        if in_nmi:
            # printk is deferred in NMI context, so the text comes after QEMU's event.
            machine.shell.run("echo 1 >/proc/sys/kernel/unknown_nmi_panic", soon())
            threading.Timer(0.2, machine.aimed.inject, [1]).start()
        command = "sleep 100" if in_nmi else "echo c >/proc/sysrq-trigger"
        with pytest.raises(GuestGone, match=r"(?i)panic"):
            machine.shell.run(command, Deadline.after(100))
        assert time.monotonic() - begin < 60
        machine.wait_settled(soon())
        assert machine.ending is not None
        assert machine.ending.kind is Ending.PANIC
        assert any("Kernel panic - not syncing" in line for line in machine.console.tail(200))
        with pytest.raises(GuestGone):
            machine.qmp.execute("query-status", deadline=soon())
        with pytest.raises(GuestGone):
            machine.aimed.inject(0)


def test_a_reset_is_an_end(images: GuestImages) -> None:
    with booted(images, "1x1x2") as machine:
        with pytest.raises(GuestGone, match="guest-reset"):
            machine.shell.run("reboot -f", soon())
        assert machine.ending is not None
        assert machine.ending.kind is Ending.GONE


def test_a_killed_qemu_ends_a_command_at_once(images: GuestImages) -> None:
    with booted(images, "1x1x2") as machine:
        threading.Timer(0.2, os.kill, [machine.pid, signal.SIGKILL]).start()
        begin = time.monotonic()
        with pytest.raises(GuestGone, match="SIGKILL"):
            machine.shell.run("sleep 100", Deadline.after(100))
        assert time.monotonic() - begin < 60


def test_a_stopped_qemu_costs_the_deadline_and_no_more(images: GuestImages) -> None:
    with booted(images, "1x1x2") as machine:
        os.kill(machine.pid, signal.SIGSTOP)
        attempts: tuple[Callable[[], object], ...] = (
            lambda: machine.shell.run("echo on", Deadline.after(0.5)),
            lambda: machine.shell.put("/tmp/file", bytes(2_000_000), Deadline.after(0.5)),
            lambda: machine.qmp.execute("query-status", deadline=Deadline.after(0.5)),
            lambda: machine.broadcast.inject(ALL_VCPUS, Deadline.after(0.5)),
            lambda: machine.aimed.inject(0, Deadline.after(0.5)),
        )
        for attempt in attempts:
            begin = time.monotonic()
            with pytest.raises((DeadlineError, GuestGone)):
                attempt()
            assert time.monotonic() - begin < 10
        begin = time.monotonic()
    assert time.monotonic() - begin < 10


def test_a_guest_that_cannot_boot_says_why(images: GuestImages) -> None:
    with (
        pytest.raises(GuestGone, match=r"(?s)Kernel panic.*console:.*init"),
        booted(images, "1x1x2", "rdinit=/nowhere init=/nowhere"),
    ):
        pytest.fail("it booted")


def test_a_kernel_that_qemu_does_not_take_says_why(images: GuestImages, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel")
    spec = GuestSpec(qemu=images.qemu, topology=Topology(1, 1, 2), kernel=tmp_path / "kernel", initrd=images.initramfs)
    with (
        make_run_dir() as run_dir,
        pytest.raises(GuestError, match="kernel"),
        start_guest(spec, make_keys(), run_dir, Deadline.after(BOOT_S)),
    ):
        pytest.fail("it booted")


def test_a_boot_that_takes_too_long_leaves_nothing(images: GuestImages) -> None:
    begin = time.monotonic()
    spec = GuestSpec(qemu=images.qemu, topology=Topology(1, 1, 2), kernel=images.kernel, initrd=images.initramfs)
    with (
        make_run_dir() as run_dir,
        pytest.raises(DeadlineError, match="deadline reached"),
        start_guest(spec, make_keys(), run_dir, Deadline.after(0.5)),
    ):
        pytest.fail("it booted in half a second")
    assert time.monotonic() - begin < 15
    assert not run_dir.exists()


#: A lab of its own that boots a guest, says where QEMU is, and waits to be killed.
LAB = """
import sys
from pathlib import Path
from lab.build.qemu import find_qemu
from test_guest import GuestSpec, Topology, make_keys, start_guest, Deadline
kernel, initrd, qemu, folder = map(Path, sys.argv[1:])
spec = GuestSpec(qemu=find_qemu(qemu), topology=Topology(1, 1, 2), kernel=kernel, initrd=initrd)
with start_guest(spec, make_keys(), folder, Deadline.after(120)) as machine:
    print(machine.pid, flush=True)
    sys.stdin.read()
"""


def test_a_guest_dies_with_a_lab_that_is_killed(images: GuestImages, tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    lab = subprocess.Popen(
        [sys.executable, "-c", LAB, images.kernel, images.initramfs, images.qemu.path, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'testcases'}"},
    )
    try:
        assert lab.stdout is not None
        qemu = psutil.Process(int(lab.stdout.readline()))
        assert qemu.is_running()
        lab.kill()
        lab.wait(10)
        give_up = Deadline.after(10)
        while psutil.pid_exists(qemu.pid) and qemu.status() != psutil.STATUS_ZOMBIE:
            give_up.check("QEMU to end")
            time.sleep(0.01)
    finally:
        lab.kill()
        lab.communicate()
