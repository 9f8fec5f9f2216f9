# SPDX-License-Identifier: GPL-2.0-or-later
"""That an observer saw no WRMSR counts only where it is known to have looked; and how a kernel's taint is cleared."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.errors import DeadlineError, EvidenceError, GuestError, UsageError
from lab.guest.ending import EndLatch
from lab.guest.memory import GuestMemory
from lab.guest.nmi import AimedInjector
from lab.host.deadline import Deadline
from lab.model.boot import Boot
from lab.model.evidence import EventKind, ObserverEvent, ObserverEvidence, Sent
from lab.model.topology import Topology
from lab.trial import pool
from lab.trial.file_check import check_watched

SENT = tuple(Sent(index=-1, vcpu=vcpu, send_ns=1000 + vcpu, reply_ns=2000) for vcpu in (0, 1))


def saw(*entries: tuple[int, int], kind: EventKind = EventKind.NMI_ENTRY, lost: int = 0, windows: int = 0) -> Any:
    events = tuple(
        ObserverEvent(seq=seq, mono_ns=mono_ns, tsc=0, kind=kind, vcpu=vcpu, load=0, pc=0, symbol="")
        for seq, (vcpu, mono_ns) in enumerate(entries)
    )
    return ObserverEvidence(events=events, windows=(), records_lost=lost, windows_lost=windows, gaps_ns=())


def test_each_vcpus_nmi_shows_that_the_observer_looked() -> None:
    check_watched(saw((1, 1500), (0, 1500)), SENT)


@pytest.mark.parametrize(
    ("observer", "sentence"),
    [
        (saw(), "did not see the NMI that vCPU 0 was sent"),
        (saw((0, 1500)), "did not see the NMI that vCPU 1 was sent"),
        (saw((0, 1500), (1, 900)), "did not see the NMI that vCPU 1 was sent"),
        (saw((0, 1500), (1, 1500), kind=EventKind.EARLY), "did not see the NMI that vCPU 0 was sent"),
        (saw((0, 1500), (1, 1500), lost=3), "the observer lost 3 records and 0 windows"),
        (saw((0, 1500), (1, 1500), windows=1), "the observer lost 0 records and 1 windows"),
    ],
)
def test_an_observer_that_may_have_missed_some_is_no_witness(observer: ObserverEvidence, sentence: str) -> None:
    with pytest.raises(EvidenceError, match=sentence):
        check_watched(observer, SENT)


@contextlib.contextmanager
def opened(*replies: bytes) -> Iterator[tuple[GuestMemory, list[bytes]]]:
    ours, theirs = socket.socketpair()
    seen: list[bytes] = []

    def serve() -> None:
        for reply in replies:
            seen.append(theirs.recv(4096))
            theirs.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    with EndLatch() as latch, ours, theirs:
        yield GuestMemory(AimedInjector(ours, Topology(1, 2, 2), latch).qtest), seen


def test_a_number_is_written_where_the_kernel_lies_in_memory() -> None:
    with opened(b"OK\n", b"OK\n") as (memory, seen):
        memory.write_kernel(0xFFFFFFFF81234568, 0, 8, Deadline.after(10))
        memory.write_kernel(0xFFFFFFFF80000000, 0x7F, 1, Deadline.after(10))
    assert seen == [b"writeq 0x1234568 0x0\n", b"writeb 0x0 0x7f\n"]


def test_a_write_that_is_refused_or_never_answered() -> None:
    with opened(b"FAIL nothing there\n") as (memory, _):
        with pytest.raises(GuestError, match="FAIL nothing there"):
            memory.write_kernel(0xFFFFFFFF81234568, 0, 8, Deadline.after(10))
        with pytest.raises(DeadlineError, match="a write at 0xffffffff81234568"):
            memory.write_kernel(0xFFFFFFFF81234568, 0, 8, Deadline.after(0.05))


@pytest.mark.parametrize(("address", "size"), [(0x1234568, 8), (0xFFFFFFFF81234568, 3), (0xFFFFFFFF81234568, 0)])
def test_what_cannot_be_written_is_not_sent(address: int, size: int) -> None:
    with opened() as (memory, seen), pytest.raises(UsageError, match="allowed are 1, 2, 4 or 8 at 0xffffffff80000000"):
        memory.write_kernel(address, 0, size, Deadline.after(10))
    assert seen == []


class FakeSession:
    usable = True


@pytest.fixture
def booted(monkeypatch: pytest.MonkeyPatch) -> tuple[pool.WarmGuest, list[str]]:
    told: list[str] = []

    @contextlib.contextmanager
    def open_session(*_: Any) -> Iterator[Any]:
        told.append("boots")
        yield FakeSession()
        told.append("ends")

    monkeypatch.setattr(pool, "open_session", open_session)
    images: Any = None
    return pool.WarmGuest(images, images, Boot(base="linux-6.1", topology=Topology(1, 1, 2)), lambda _: None), told


def test_a_guest_serves_blocks_until_one_fails(
    booted: tuple[pool.WarmGuest, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, told = booted
    with guest.serve() as first, contextlib.suppress(AssertionError):
        pass
    with pytest.raises(AssertionError), guest.serve() as second:
        raise AssertionError  # a case's own, which says nothing of the guest
    assert first is second
    assert told == ["boots"]
    with pytest.raises(GuestError), guest.serve():
        raise GuestError("it hangs")
    assert told == ["boots", "ends"]
    with guest.serve():
        monkeypatch.setattr(FakeSession, "usable", False)
    assert told == ["boots", "ends", "boots", "ends"]
