# SPDX-License-Identifier: GPL-2.0-or-later
"""What else goes wrong while a trial runs: it costs that trial, is told for what it is, and leaves nothing behind.

A machine by itself, without trials, is in test_guest.py. A jump of the host's clock is not tried: the lab cannot make
one without changing the time of all else on the host, and reads CLOCK_MONOTONIC only, which does not jump.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from oopses import JUMP_TO_SELF, overwrite

from lab.build.images import ImageSet
from lab.errors import GuestError, HostError
from lab.evidence.folder import read_evidence
from lab.guest import dump
from lab.guest.config import DEFAULT_MEMORY_MIB
from lab.guest.dump import DUMPS, MAX_DUMP_MIB
from lab.guest.machine import Machine
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.host.run_dir import PARENT, PREFIX
from lab.judge import judge
from lab.judge.bucket import find_bucket
from lab.kernelimage.vmlinux import Kernel
from lab.model.boot import Boot
from lab.model.evidence import Ending
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Outcome, Verdict
from lab.trial import session as session_module
from lab.trial.opening import BOOTS, open_session
from lab.trial.record import keep_trial
from lab.trial.session import Kept, Session
from lab.trial.stall import REGISTERS

pytestmark = pytest.mark.e2e

BOOT = Boot(base="linux-6.1", topology=Topology(1, 1, 2))
SCENARIO = Scenario(mechanism="nmi-siblings", topology=BOOT.topology, stretch_us=(10_000, 20_000))
ADMISSION_S = 600.0
#: Enough for a load, and short enough to wait for.
SHORT_S = 8.0
#: ``push $0; push $0; lidt (%rsp); int3``: an exception that nobody can take is a reset.
TRIPLE_FAULT = bytes.fromhex("6a006a000f011c24cc")
LOAD_BEGINS = "Attempting late microcode loading"


def soon() -> Deadline:
    return Deadline.after(60)


@contextlib.contextmanager
def leaving_nothing() -> Iterator[None]:
    """See that neither processes, threads, descriptors nor folders of this lab's remain."""
    threads = set(threading.enumerate())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    folders = {path for path in PARENT.glob(f"{PREFIX}*") if path.stat().st_uid == os.geteuid()}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in children]
    assert [child.name() for child in left] == []
    assert {thread.name for thread in set(threading.enumerate()) - threads} <= {"spawner"}
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    # Other labs on this host make folders at the same time: ours are those that this process holds the lock of.
    mine = {path for path in PARENT.glob(f"{PREFIX}*") if path not in folders and is_locked_by_us(path)}
    assert mine == set()


def is_locked_by_us(path: Path) -> bool:
    try:
        inode = (path / "in-use").stat().st_ino
    except OSError:
        return False
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "FLOCK" in line]
    return any(words[-3].endswith(f":{inode}") and int(words[-4]) == os.getpid() for words in held)


@contextlib.contextmanager
def opened(images: ImageSet, kernel: Kernel) -> Iterator[Session]:
    with (
        leaving_nothing(),
        admit(BOOT.topology.vcpus, Deadline.after(ADMISSION_S)),
        open_session(images, kernel, BOOT) as session,
    ):
        yield session


@contextlib.contextmanager
def once_it_loads(machine: Machine, act: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread of its own as soon as the load begins."""
    mark = machine.console.mark()

    def wait_and_act() -> None:
        with contextlib.suppress(GuestError):
            machine.console.wait_for(LOAD_BEGINS, soon(), since=mark)
            act()

    thread = threading.Thread(target=wait_and_act, name="fault")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def run(session: Session, mechanism: str = SCENARIO.mechanism) -> tuple[Kept, Verdict, str]:
    """Run one trial; returns what was kept, the verdict and the bucket."""
    scenario = msgspec.structs.replace(SCENARIO, mechanism=mechanism)
    kept = session.run_trial(scenario, draw_plan(scenario, 3))
    verdict = judge(kept.evidence)
    return kept, verdict, find_bucket(kept.evidence, verdict)


def is_starved(verdict: Verdict) -> bool:
    """Whether a busy host, and nothing else, kept the lab from accusing anybody."""
    reason = next(one.reason for one in verdict.invariants if one.name == "within-deadline")
    return verdict.outcome is Outcome.INVALID and ("did not run for" in reason or "for a host CPU" in reason)


def test_a_qemu_that_is_killed_accuses_nobody(images: ImageSet, kernel: Kernel) -> None:
    with opened(images, kernel) as session:
        with once_it_loads(session.machine, lambda: os.kill(session.machine.pid, signal.SIGKILL)):
            kept, verdict, bucket = run(session)
        assert kept.evidence.ending is Ending.LAB
        assert verdict.outcome is Outcome.ERROR
        assert "SIGKILL" in verdict.reason
        assert bucket == ""
        assert not session.usable


#: Ends itself so many times, and is the real one from then on.
CRASHES = """#!/bin/sh
if [ "$(wc -c < {count})" -lt {times} ]; then
	printf x >> {count}
	sleep 1
	kill -ABRT $$
fi
exec {qemu} "$@"
"""


@contextlib.contextmanager
def crashing(images: ImageSet, times: int) -> Iterator[ImageSet]:
    """Yield images whose QEMU dies in its first boots, as QEMU 10.0 does now and then by an assertion of its own."""
    with tempfile.TemporaryDirectory(prefix="crashes.") as folder:
        # QEMU runs as an ordinary user.
        Path(folder).chmod(0o777)
        count, program = Path(folder, "count"), Path(folder, "qemu")
        count.touch()
        count.chmod(0o666)
        program.write_text(CRASHES.format(count=count, times=times, qemu=images.qemu.path))
        program.chmod(0o755)
        yield msgspec.structs.replace(images, qemu=msgspec.structs.replace(images.qemu, path=program))


def test_a_qemu_that_crashes_while_its_guest_boots_is_started_again(images: ImageSet, kernel: Kernel) -> None:
    with crashing(images, BOOTS - 1) as spoilt, opened(spoilt, kernel) as session:
        _, verdict, _ = run(session)
    assert verdict.outcome in (Outcome.PASS, Outcome.INVALID), verdict.reason


def test_a_qemu_that_crashes_each_time_is_given_up(images: ImageSet, kernel: Kernel) -> None:
    with (
        crashing(images, BOOTS) as spoilt,
        pytest.raises(GuestError, match="QEMU was ended by SIGABRT"),
        opened(spoilt, kernel),
    ):
        pass


def test_a_qemu_that_is_stopped_costs_the_deadline_and_accuses_nobody(
    images: ImageSet, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "TRIAL_S", SHORT_S)
    with opened(images, kernel) as session:
        with once_it_loads(session.machine, lambda: os.kill(session.machine.pid, signal.SIGSTOP)):
            kept, verdict, bucket = run(session)
        assert kept.evidence.ending is Ending.DEADLINE
        assert verdict.outcome is Outcome.INVALID
        assert bucket == "QEMU does not answer"
        # Its memory is shared with the lab, so what its vCPUs did last is known all the same.
        assert kept.evidence.stall is not None
        assert "deadline" in kept.evidence.stall.problem
        assert [vcpu.vcpu for vcpu in kept.evidence.stall.vcpus] == [0, 1]
        assert all(vcpu.pc and vcpu.interrupts is None for vcpu in kept.evidence.stall.vcpus)
        assert REGISTERS not in kept.raw
        assert not session.usable


def test_a_guest_that_hangs_is_asked_where(
    images: ImageSet, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session_module, "TRIAL_S", SHORT_S)
    with opened(images, kernel) as session:
        run(session, "stop-machine")
        # Reached by all CPUs in stop_machine(), with interrupts off.
        overwrite(session.machine, kernel, "__reload_late", JUMP_TO_SELF, soon())
        kept, verdict, bucket = run(session, "stop-machine")
    assert kept.evidence.ending is Ending.DEADLINE
    assert verdict.outcome is Outcome.FAIL or is_starved(verdict)
    assert bucket == "stall in __reload_late"
    assert verdict.stall == tuple(f"vCPU {vcpu} at __reload_late+0x0, interrupts off" for vcpu in (0, 1))
    assert b"CPU#1" in kept.raw[REGISTERS]
    keep_trial(tmp_path / "trial", kept, 1, "trial")
    assert read_evidence(tmp_path / "trial") == kept.evidence
    assert (tmp_path / "trial" / REGISTERS).stat().st_size > 1_000


@pytest.mark.parametrize("name", ["memory.kdump", "memory.elf"])
def test_a_guest_that_hangs_leaves_its_memory(
    images: ImageSet, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(session_module, "TRIAL_S", SHORT_S)
    if name == "memory.elf":
        # As a QEMU that was built without zlib.
        monkeypatch.setattr(dump, "_FORMATS", {"elf": name})
    with opened(images, kernel) as session:
        run(session, "stop-machine")
        session.dump_mib = MAX_DUMP_MIB
        overwrite(session.machine, kernel, "__reload_late", JUMP_TO_SELF, soon())
        kept, verdict, bucket = run(session, "stop-machine")
        assert not session.usable
    assert bucket == "stall in __reload_late"
    memory = kept.raw[name]
    assert verdict.stall[-1] == f"memory: {name}, {len(memory) / (1 << 20):.1f} MiB"
    if name == "memory.elf":
        assert memory.startswith(b"\x7fELF")
        assert b"Linux version 6.1." in memory
        assert len(memory) > DEFAULT_MEMORY_MIB << 20
    else:
        # Flattened, as makedumpfile(8) writes to what it cannot seek in: its own header, and that of each piece.
        assert memory.startswith(b"makedumpfile\0")
        assert b"KDUMP   " in memory[:8_192]
        assert len(memory) < DEFAULT_MEMORY_MIB << 19
    keep_trial(tmp_path / "trial", kept, 1, "trial")
    assert read_evidence(tmp_path / "trial") == kept.evidence
    assert (tmp_path / "trial" / name).read_bytes() == memory
    assert kept.evidence.stall is not None
    without = msgspec.structs.replace(kept.evidence.stall, memory="")
    again = judge(msgspec.structs.replace(kept.evidence, stall=without))
    assert msgspec.structs.replace(again, stall=verdict.stall) == verdict


def test_a_memory_that_is_too_large_is_told_and_changes_nothing(
    images: ImageSet, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "TRIAL_S", SHORT_S)
    with opened(images, kernel) as session:
        run(session, "stop-machine")
        session.dump_mib = 1
        overwrite(session.machine, kernel, "__reload_late", JUMP_TO_SELF, soon())
        kept, verdict, bucket = run(session, "stop-machine")
    assert bucket == "stall in __reload_late"
    assert verdict.outcome is Outcome.FAIL or is_starved(verdict)
    assert verdict.stall[-1] == "memory: no dump: it has more than the 1 MiB that are allowed"
    assert not DUMPS & set(kept.raw)


def test_a_guest_that_panics_has_its_title(images: ImageSet, kernel: Kernel) -> None:
    with opened(images, kernel) as session:
        overwrite(session.machine, kernel, "apply_microcode_intel", bytes.fromhex("31c0488b00"), soon())
        session.machine.shell.run("echo 1 >/proc/sys/kernel/panic_on_oops", soon())
        kept, verdict, bucket = run(session)
    assert kept.evidence.ending is Ending.PANIC
    assert verdict.outcome is Outcome.FAIL or is_starved(verdict)
    assert bucket == "BUG: kernel NULL pointer dereference in apply_microcode_intel"
    assert kept.evidence.console_report


def test_a_guest_that_resets_has_its_title(images: ImageSet, kernel: Kernel) -> None:
    with opened(images, kernel) as session:
        overwrite(session.machine, kernel, "apply_microcode_intel", TRIPLE_FAULT, soon())
        kept, verdict, bucket = run(session)
    assert kept.evidence.ending is Ending.GONE
    assert verdict.outcome is Outcome.FAIL or is_starved(verdict)
    assert bucket == "unexpected reboot"


def test_a_guest_without_its_ssh_server_is_a_lost_connection(images: ImageSet, kernel: Kernel) -> None:
    with opened(images, kernel) as session:
        run(session)
        session.machine.shell.run("(sleep 1; killall -9 dropbear) >/dev/null 2>&1 &", soon())
        give_up = soon()
        ending = Ending.COMPLETE
        while ending is Ending.COMPLETE:
            give_up.check("the SSH server to be gone")
            kept, verdict, bucket = run(session)
            ending = kept.evidence.ending
        assert verdict.outcome is Outcome.ERROR
        assert bucket == "lost connection"


def test_a_guest_that_floods_its_console_with_garbage_is_judged(
    images: ImageSet, kernel: Kernel, tmp_path: Path
) -> None:
    with opened(images, kernel) as session:
        run(session)
        garbage = "dd if=/dev/urandom bs=900 count=1 of=/dev/kmsg; dd if=/dev/urandom of=/dev/console bs=4k count=4"
        session.machine.shell.run(f"(while :; do {garbage}; done) >/dev/null 2>&1 & echo $! >/tmp/noise", soon())
        kept, verdict, _ = run(session)
        session.machine.shell.run("kill $(cat /tmp/noise)", soon())
        assert kept.evidence.ending is Ending.COMPLETE
        assert verdict.outcome in (Outcome.PASS, Outcome.INVALID)
        assert kept.evidence.guest is not None
        shown = (*kept.evidence.console_tail, *kept.evidence.guest.dmesg)
        assert all(line.isprintable() for line in shown)
        keep_trial(tmp_path / "trial", kept, 1, "trial")
        assert read_evidence(tmp_path / "trial") == kept.evidence


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_is_told_and_leaves_no_half_evidence(images: ImageSet, kernel: Kernel, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], timeout=10)
    if mounted.returncode != 0:
        pytest.skip("this host does not let its root mount anything")
    try:
        with opened(images, kernel) as session:
            kept, _, _ = run(session)
            large = msgspec.structs.replace(kept, raw={**kept.raw, "large.bin": bytes(2 << 20)})
            with pytest.raises(HostError, match=r"could not be written.*[Nn]o space"):
                keep_trial(small / "trial", large, 1, "trial")
            assert list(small.iterdir()) == []
            assert session.usable
            keep_trial(small / "trial", kept, 1, "trial")
            assert read_evidence(small / "trial") == kept.evidence
    finally:
        subprocess.run(["umount", small], timeout=10, check=True)


def test_a_cache_that_is_cleared_costs_running_guests_nothing(images: ImageSet, kernel: Kernel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    copies = {
        name: Path(shutil.copy(getattr(images, name), cache)) for name in ("kernel", "vmlinux", "initramfs", "observer")
    }
    copied = msgspec.structs.replace(images, **copies)
    with opened(copied, kernel) as session:
        shutil.rmtree(cache)
        for _ in range(2):
            kept, verdict, _ = run(session)
            assert kept.evidence.ending is Ending.COMPLETE
            assert verdict.outcome in (Outcome.PASS, Outcome.INVALID)
    with (
        leaving_nothing(),
        pytest.raises((HostError, GuestError), match=r"initrd|could not be read"),
        opened(copied, kernel),
    ):
        pytest.fail("it booted from nothing")
