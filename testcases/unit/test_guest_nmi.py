# SPDX-License-Identifier: GPL-2.0-or-later
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from lab.errors import DeadlineError, GuestError, GuestGone
from lab.guest.ending import EndLatch
from lab.guest.nmi import ALL_VCPUS, AimedInjector, BroadcastInjector
from lab.host.deadline import Deadline
from lab.model.evidence import Ending
from lab.model.topology import Topology

SMALL = Topology(1, 2, 2)


@contextlib.contextmanager
def opened(topology: Topology = SMALL) -> Iterator[tuple[AimedInjector, socket.socket, EndLatch]]:
    ours, theirs = socket.socketpair()
    with EndLatch() as latch, ours, theirs:
        yield AimedInjector(ours, topology, latch), theirs, latch


def answer(end: socket.socket, *replies: bytes) -> list[bytes]:
    """Reply to one command, in pieces; returns where the command will be found."""
    seen: list[bytes] = []

    def serve() -> None:
        seen.append(end.recv(4096))
        for reply in replies:
            end.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    return seen


@pytest.mark.parametrize(
    ("topology", "vcpu", "command"),
    [
        (SMALL, 0, b"writel 0xfee00000 0x400\n"),
        (SMALL, 3, b"writel 0xfee03000 0x400\n"),
        # three cores need two bits, so the second socket begins at APIC id 8
        (Topology(2, 3, 2), 6, b"writel 0xfee08000 0x400\n"),
    ],
)
def test_an_nmi_goes_to_the_apic_id_of_its_vcpu(topology: Topology, vcpu: int, command: bytes) -> None:
    with opened(topology) as (aimed, qemu, _):
        seen = answer(qemu, b"O", b"K\n")
        before = time.monotonic_ns()
        send_ns, reply_ns = aimed.inject(vcpu, Deadline.after(10))
        assert before <= send_ns < reply_ns <= time.monotonic_ns()
        assert seen == [command]


def test_a_reply_given_up_on_is_not_taken_for_the_next_one() -> None:
    with opened() as (aimed, qemu, _):
        with pytest.raises(DeadlineError, match="vCPU 1"):
            aimed.inject(1, Deadline.after(0.05))
        qemu.recv(4096)
        qemu.sendall(b"FAIL for the first\n")
        answer(qemu, b"OK\n")
        aimed.inject(2, Deadline.after(10))


def test_a_refusal_and_a_vcpu_that_does_not_exist() -> None:
    with opened() as (aimed, qemu, _):
        answer(qemu, b"FAIL Unknown command\n")
        with pytest.raises(GuestError, match="FAIL"):
            aimed.inject(1, Deadline.after(10))
        for vcpu in (-1, 4):
            with pytest.raises(GuestError, match=f"vCPU {vcpu}"):
                aimed.inject(vcpu)


def test_the_guests_end_ends_the_wait_at_once() -> None:
    with opened() as (aimed, _, latch):
        threading.Timer(0.05, latch.report, [Ending.GONE, "QEMU was ended by SIGKILL"]).start()
        begin = time.monotonic()
        with pytest.raises(GuestGone, match="SIGKILL"):
            aimed.inject(1, Deadline.after(60))
        assert time.monotonic() - begin < 10
        with pytest.raises(GuestGone, match="SIGKILL"):
            aimed.inject(1)


def test_a_closed_channel_is_a_guest_gone() -> None:
    with opened() as (aimed, qemu, _):
        qemu.close()
        with pytest.raises(GuestGone, match="closed the channel"):
            aimed.inject(1, Deadline.after(10))


@pytest.mark.parametrize("reply", [b"x" * 100_000, b"\n"])
def test_nonsense_is_no_reply(reply: bytes) -> None:
    with opened() as (aimed, qemu, _):
        answer(qemu, reply)
        with pytest.raises(GuestError):
            aimed.inject(1, Deadline.after(10))


GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE", "data": {"return": 1}}\r\n'
DONE = b'{"return": {}}\r\n'


@contextlib.contextmanager
def connected() -> Iterator[tuple[BroadcastInjector, socket.socket]]:
    ours, theirs = socket.socketpair()
    with EndLatch() as latch, ours, theirs:
        broadcast = BroadcastInjector(ours, latch)
        theirs.sendall(GREETING)
        seen = answer(theirs, DONE)
        broadcast.connect(Deadline.after(10))
        assert seen == [b'{"execute": "qmp_capabilities"}\n']
        yield broadcast, theirs


def test_a_broadcast_is_told_from_events() -> None:
    with connected() as (broadcast, qemu):
        seen = answer(qemu, EVENT, EVENT + DONE[:5], DONE[5:])
        before = time.monotonic_ns()
        send_ns, reply_ns = broadcast.inject(ALL_VCPUS, Deadline.after(10))
        assert before <= send_ns < reply_ns <= time.monotonic_ns()
        assert seen == [b'{"execute": "inject-nmi"}\n']


def test_a_refused_broadcast_and_one_that_is_aimed() -> None:
    with connected() as (broadcast, qemu):
        answer(qemu, b'{"error": {"class": "GenericError", "desc": "no"}}\r\n')
        with pytest.raises(GuestError, match="GenericError"):
            broadcast.inject(ALL_VCPUS, Deadline.after(10))
        with pytest.raises(GuestError, match="vCPU 1"):
            broadcast.inject(1)
        answer(qemu, b"nonsense\n")
        with pytest.raises(GuestError, match="nonsense"):
            broadcast.inject(ALL_VCPUS, Deadline.after(10))


def test_a_greeting_that_never_comes_ends_at_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    with EndLatch() as latch, ours, theirs, pytest.raises(DeadlineError, match="qmp_capabilities"):
        BroadcastInjector(ours, latch).connect(Deadline.after(0.05))
