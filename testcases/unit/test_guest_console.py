# SPDX-License-Identifier: GPL-2.0-or-later
import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lab.errors import DeadlineError, GuestGone
from lab.guest.console import MAX_LOG_BYTES, MAX_PENDING_BYTES, RECENT_BYTES, Console
from lab.guest.ending import EndLatch
from lab.host.deadline import Deadline
from lab.model.evidence import Ending

PANIC = b"[    1.234567][    C1] Kernel panic - not syncing: Timeout during microcode update!\r\n"


@contextlib.contextmanager
def opened(tmp_path: Path) -> Iterator[tuple[Console, socket.socket, EndLatch]]:
    ours, theirs = socket.socketpair()
    with EndLatch() as latch, ours, Console(ours, tmp_path / "console.log", latch) as console, theirs:
        yield console, theirs, latch


def test_the_log_holds_every_byte(tmp_path: Path) -> None:
    with opened(tmp_path) as (console, guest, latch):
        guest.sendall(b"one\r\n\x1b[31mtwo\x00")
        guest.close()
        assert console.wait_closed(Deadline.after(10))
        assert console.tail(10) == ("one", "two")
        assert console.tail(1) == ("two",)
        assert latch.seen is None
        assert console.dropped_bytes == 0
    assert (tmp_path / "console.log").read_bytes() == b"one\r\n\x1b[31mtwo\x00"


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_a_panic_is_seen_wherever_the_reads_fall(tmp_path: Path, size: int) -> None:
    text = b"[    0.0][    T0] Linux version 6.1.0\r\nboot\r\n" + PANIC
    with opened(tmp_path) as (console, guest, latch):
        for at in range(0, len(text), size):
            sent = console.mark() + len(text[at : at + size])
            guest.sendall(text[at : at + size])
            while console.mark() < sent:
                time.sleep(0.0001)
        end = latch.wait(Deadline.after(10))
        assert end is not None
        assert end.kind is Ending.PANIC
        assert "Timeout during microcode update!" in end.reason


@pytest.mark.parametrize("last", [PANIC.rstrip(), b"x" * MAX_PENDING_BYTES + b"\n" + PANIC])
def test_a_panic_is_seen_without_a_line_end_and_after_a_long_line(tmp_path: Path, last: bytes) -> None:
    with opened(tmp_path) as (_, guest, latch):
        guest.sendall(last)
        guest.close()
        end = latch.wait(Deadline.after(10))
        assert end is not None
        assert end.kind is Ending.PANIC


@pytest.mark.parametrize(
    "line",
    [
        b"[    0.1][    T1] NMI watchdog: Perf NMI watchdog permanently disabled",
        b"[    0.1][    T1] Kernel command line: console=ttyS0 panic=-1",
        b"sh: echo Kernel panic - not syncing",
        b"[    0.1][    C1] Uhhuh. NMI received for unknown reason 21 on CPU 1.",
        b"[    0.0][    T0] Linux version 6.1.0",
    ],
)
def test_harmless_lines_end_nothing(tmp_path: Path, line: bytes) -> None:
    with opened(tmp_path) as (console, guest, latch):
        guest.sendall(line + b"\r\n")
        guest.close()
        assert console.wait_closed(Deadline.after(10))
        assert latch.seen is None


def test_a_second_boot_is_a_reset(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, guest, latch):
        guest.sendall(b"[    0.0][    T0] Linux version 6.1.0\r\n" * 2)
        end = latch.wait(Deadline.after(10))
        assert end is not None
        assert end.kind is Ending.GONE


def test_a_trial_takes_its_own_part(tmp_path: Path) -> None:
    with opened(tmp_path) as (console, guest, _):
        guest.sendall(b"before\n")
        console.wait_for("before", Deadline.after(10))
        mark = console.mark()
        guest.sendall(b"after\n")
        assert console.wait_for("after|before", Deadline.after(10), since=mark) == "after"
        assert console.part(mark).lines == ("after",)
        assert console.part(0).lines == ("before", "after")


def test_waiting_sees_a_line_that_grows(tmp_path: Path) -> None:
    with opened(tmp_path) as (console, guest, _):
        guest.sendall(b"first\nmclab: re")
        console.wait_for("re", Deadline.after(10))
        threading.Timer(0.05, guest.sendall, [b"ady"]).start()
        assert console.wait_for("mclab: ready", Deadline.after(10)) == "mclab: ready"


def test_waiting_ends_with_the_deadline_and_at_once_with_the_guest(tmp_path: Path) -> None:
    with opened(tmp_path) as (console, guest, _):
        guest.sendall(b"something else\n")
        with pytest.raises(DeadlineError, match="ready"):
            console.wait_for("ready", Deadline.after(0.05))
        threading.Timer(0.05, guest.sendall, [PANIC]).start()
        begin = time.monotonic()
        with pytest.raises(GuestGone, match="Kernel panic"):
            console.wait_for("ready", Deadline.after(60))
        assert time.monotonic() - begin < 10


def test_a_flood_is_read_to_its_end_but_not_kept(tmp_path: Path) -> None:
    line = b"y" * 1023 + b"\n"
    count = (MAX_LOG_BYTES >> 10) + 100
    with opened(tmp_path) as (console, guest, _):
        for _ in range(count):
            guest.sendall(line)
        guest.sendall(b"the end\n")
        guest.close()
        assert console.wait_closed(Deadline.after(30))
        assert console.dropped_bytes == 100 * 1024 + len(b"the end\n")
        assert console.tail(1) == ("the end",)
        part = console.part(0)
        assert part.lost_bytes == count * 1024 + len(b"the end\n") - RECENT_BYTES
    assert (tmp_path / "console.log").stat().st_size == MAX_LOG_BYTES


def test_a_hundred_megabytes_of_garbage_take_no_memory(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(1 << 20)
    with opened(tmp_path) as (console, guest, latch):
        guest.sendall(noise * 20)
        before = psutil.Process().memory_info().rss
        for _ in range(80):
            guest.sendall(noise)
        guest.sendall(b"\n" + PANIC)
        guest.close()
        assert console.wait_closed(Deadline.after(120))
        assert psutil.Process().memory_info().rss - before < 16 << 20
        assert latch.seen is not None
        assert "Kernel panic" in console.tail(1)[0]
        assert all(line.isprintable() for line in console.part(0).lines)
    assert (tmp_path / "console.log").stat().st_size == MAX_LOG_BYTES


def test_leaving_ends_the_thread_though_the_other_end_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.guest.console.JOIN_S", 0.2)
    ours, theirs = socket.socketpair()
    with theirs, ours, EndLatch() as latch:
        with Console(ours, tmp_path / "console.log", latch):
            theirs.sendall(b"still here")
        assert "console" not in [thread.name for thread in threading.enumerate()]
