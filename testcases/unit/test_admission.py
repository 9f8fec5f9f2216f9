# SPDX-License-Identifier: GPL-2.0-or-later
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.errors import DeadlineError, HostError, UsageError, Withdrawn
from lab.host import admission
from lab.host.admission import Turns, admit, find_folder
from lab.host.deadline import Deadline


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def refused(vcpus: int, budget: int) -> bool:
    try:
        with admit(vcpus, Deadline.after(0.05), budget):
            return False
    except DeadlineError:
        return True


@contextlib.contextmanager
def other_process(vcpus: int, budget: int) -> Iterator["subprocess.Popen[str]"]:
    code = (
        "import sys\nfrom lab.host.admission import admit\nfrom lab.host.deadline import Deadline\n"
        f"with admit({vcpus}, Deadline.after(30), {budget}):\n  print('in', flush=True)\n  sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_share_is_what_is_asked_for_within_the_budget() -> None:
    with admit(2, Deadline.after(5), 4) as first, admit(1, Deadline.after(5), 4) as second:
        assert (first, second) == (2, 1)
        assert refused(2, 4)
        assert not refused(1, 4)
    assert not refused(4, 4)


def test_a_guest_larger_than_the_budget_runs_alone() -> None:
    with admit(16, Deadline.after(5), 2) as share:
        assert share == 2
        assert refused(1, 2)
    with admit(1, Deadline.after(5), 2):
        assert refused(16, 2)


def test_the_default_budget_is_the_hosts_cpus() -> None:
    with admit(10_000, Deadline.after(5)) as share:
        assert share == os.cpu_count()


def test_a_refused_guest_keeps_nothing() -> None:
    with admit(1, Deadline.after(5), 3):
        assert refused(3, 3)
        assert not refused(2, 3)


def test_a_wait_that_nobody_wants_any_more_is_given_up_and_keeps_nothing() -> None:
    with (
        admit(1, Deadline.after(5), 2),
        pytest.raises(Withdrawn, match="2 vCPUs"),
        admit(2, Deadline.after(30), 2, unwanted=lambda: True),
    ):
        pytest.fail("there was none to be had")
    with admit(2, Deadline.after(5), 2, unwanted=lambda: True) as share:
        assert share == 2


def test_another_process_counts_and_gives_back_when_killed() -> None:
    with other_process(2, 2) as holder:
        assert refused(1, 2)
        holder.kill()
        with admit(2, Deadline.after(10), 2):
            pass


def test_a_large_guest_is_not_overtaken_for_ever() -> None:
    order: list[str] = []
    waiting = threading.Event()

    def large() -> None:
        waiting.set()
        with admit(2, Deadline.after(30), 2):
            order.append("large")

    def small() -> None:
        with admit(1, Deadline.after(30), 2):
            order.append("small")

    with admit(1, Deadline.after(5), 2):
        first = threading.Thread(target=large)
        first.start()
        waiting.wait(10)
        # It holds the gate from here on, so a small one cannot take the vCPU that is free.
        while not refused(1, 2):
            pass
        second = threading.Thread(target=small)
        second.start()
    first.join(30)
    second.join(30)
    assert order == ["large", "small"]


def test_many_at_once_never_exceed_the_budget() -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def guest(vcpus: int) -> None:
        for _ in range(5):
            with admit(vcpus, Deadline.after(60), 3) as share:
                with lock:
                    running[0] += share
                    most[0] = max(most[0], running[0])
                threading.Event().wait(0.002)
                with lock:
                    running[0] -= share

    threads = [threading.Thread(target=guest, args=(vcpus,)) for vcpus in (1, 2, 3, 1, 2, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert 2 <= most[0] <= 3


@pytest.mark.parametrize(("vcpus", "budget"), [(0, 2), (-1, 2), (1, 0)])
def test_numbers_below_one_are_refused(vcpus: int, budget: int) -> None:
    with pytest.raises(UsageError, match="from 1"), admit(vcpus, Deadline.after(1), budget):
        pass


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    find_folder().symlink_to(elsewhere)
    with pytest.raises(HostError, match="no folder of this user's"), admit(1, Deadline.after(1), 1):
        pass
    assert list(elsewhere.iterdir()) == []


def test_a_folder_open_to_others_is_refused() -> None:
    find_folder().mkdir()
    find_folder().chmod(0o770)
    with pytest.raises(HostError, match="mode 770"), admit(1, Deadline.after(1), 1):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused() -> None:
    find_folder().mkdir(mode=0o700)
    os.chown(find_folder(), 65534, 65534)
    with pytest.raises(HostError, match="belongs to user 65534"), admit(1, Deadline.after(1), 1):
        pass


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    find_folder().mkdir(mode=0o700)
    (find_folder() / "vcpu-0").symlink_to(tmp_path / "target")
    with pytest.raises(HostError, match="vcpu-0"), admit(1, Deadline.after(1), 1):
        pass
    assert not (tmp_path / "target").exists()


def test_without_a_runtime_folder_the_name_carries_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative", "/nowhere/at/all"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert find_folder() == Path(f"/tmp/microcode-nmi-lab-vcpus-{os.geteuid()}")


def test_a_turn_is_kept_between_uses_and_over_by_time() -> None:
    whole = os.cpu_count() or 1
    with Turns(whole, 0.2) as turns:
        for _ in range(2):
            with turns.use(Deadline.after(5)):
                assert refused(1, whole)
            assert refused(1, whole)
        with turns.use(Deadline.after(5)):
            time.sleep(0.2)
        assert not refused(1, whole)
        with turns.use(Deadline.after(5)):
            pass
    assert not refused(1, whole)


def test_a_use_that_begins_behind_its_turn_waits_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    @contextlib.contextmanager
    def count(*given: Any, **named: Any) -> Iterator[int]:
        with admit(*given, **named) as share:
            taken.append(share)
            yield share

    monkeypatch.setattr(admission, "admit", count)
    with Turns(1, 0.1) as turns:
        for pause_s in (0, 0, 0.1, 0):
            time.sleep(pause_s)
            with turns.use(Deadline.after(5)):
                pass
    assert taken == [1, 1]
