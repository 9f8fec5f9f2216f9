# SPDX-License-Identifier: GPL-2.0-or-later
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from lab.errors import DeadlineError, GuestError, GuestGone
from lab.guest.ending import EndLatch
from lab.guest.qmp import QmpChannel
from lab.host.deadline import Deadline
from lab.model.evidence import Ending

VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian 1:7.2"}
STAMP = {"seconds": 1, "microseconds": 2}

Answer = Callable[["FakeQemu", object], None]


class FakeQemu:
    """The other end of a monitor: answers each command as its script says."""

    def __init__(self, end: socket.socket, answers: "Mapping[str, Answer]") -> None:
        self.end = end
        self.answers = answers
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def send(self, message: object) -> None:
        self.end.sendall(json.dumps(message).encode() + b"\r\n")

    def serve(self) -> None:
        # Like QEMU, told one command from the next by their braces: the client sends no line ends.
        text, decoder = "", json.JSONDecoder()
        with contextlib.suppress(OSError):
            self.send({"QMP": {"version": VERSION, "capabilities": []}})
            while data := self.end.recv(4096):
                text = (text + data.decode()).lstrip()
                while text:
                    try:
                        message, end = decoder.raw_decode(text)
                    except ValueError:
                        break
                    text = text[end:].lstrip()
                    self.answers.get(message["execute"], succeed)(self, message.get("id"))


def succeed(qemu: FakeQemu, id_: object) -> None:
    qemu.send({"return": {}, "id": id_})


def stay_silent(_qemu: FakeQemu, _id: object) -> None:
    pass


@contextlib.contextmanager
def opened(**answers: Answer) -> Iterator[tuple[QmpChannel, EndLatch]]:
    ours, theirs = socket.socketpair()
    named = {name.replace("_", "-"): answer for name, answer in answers.items()}
    with EndLatch() as latch, QmpChannel(ours, latch) as qmp:
        FakeQemu(theirs, named).thread.start()
        qmp.connect(Deadline.after(10))
        yield qmp, latch
    theirs.close()
    assert "qmp" not in [thread.name for thread in threading.enumerate()]


def test_a_command_returns_its_result() -> None:
    with opened(query_status=lambda qemu, id_: qemu.send({"return": {"status": "running"}, "id": id_})) as (qmp, _):
        assert qmp.execute("query-status", deadline=Deadline.after(10)) == {"status": "running"}
        assert qmp.qemu_version == "7.2.22 (Debian 1:7.2)"


def test_a_refusal_says_what_was_refused() -> None:
    def refuse(qemu: FakeQemu, id_: object) -> None:
        qemu.send({"error": {"class": "GenericError", "desc": "no such thing"}, "id": id_})

    with opened(stop=refuse) as (qmp, _), pytest.raises(GuestError, match=r"'stop'.*no such thing"):
        qmp.execute("stop", deadline=Deadline.after(10))


def test_silence_ends_at_the_deadline_and_a_late_reply_harms_nothing() -> None:
    late: list[object] = []

    def first(_qemu: FakeQemu, id_: object) -> None:
        late.append(id_)

    def second(qemu: FakeQemu, id_: object) -> None:
        qemu.send({"return": "late", "id": late[0]})
        qemu.send({"return": "own", "id": id_})

    with opened(stop=first, cont=second) as (qmp, _):
        with pytest.raises(DeadlineError, match="'stop'"):
            qmp.execute("stop", deadline=Deadline.after(0.1))
        assert qmp.execute("cont", deadline=Deadline.after(10)) == "own"


@pytest.mark.parametrize(
    ("name", "kind"), [("SHUTDOWN", Ending.GONE), ("RESET", Ending.GONE), ("GUEST_PANICKED", Ending.PANIC)]
)
def test_an_ending_event_ends_a_wait_at_once(name: str, kind: Ending) -> None:
    def end(qemu: FakeQemu, _id: object) -> None:
        qemu.send({"event": name, "data": {"reason": "guest-reset"}, "timestamp": STAMP})

    with opened(stop=end) as (qmp, latch):
        begin = time.monotonic()
        with pytest.raises(GuestGone, match=f"{name}.*guest-reset"):
            qmp.execute("stop", deadline=Deadline.after(60))
        assert time.monotonic() - begin < 10
        assert latch.seen is not None
        assert latch.seen.kind is kind
        with pytest.raises(GuestGone, match=name):
            qmp.execute("cont", deadline=Deadline.after(60))


def test_what_the_host_did_is_not_the_guests() -> None:
    def end(qemu: FakeQemu, _id: object) -> None:
        qemu.send({"event": "SHUTDOWN", "data": {"guest": False, "reason": "host-signal"}, "timestamp": STAMP})

    with opened(stop=end) as (qmp, latch):
        with pytest.raises(GuestGone, match="host-signal"):
            qmp.execute("stop", deadline=Deadline.after(60))
        assert latch.seen is not None
        assert latch.seen.kind is Ending.LAB


def test_an_end_seen_by_another_witness_ends_a_wait_at_once() -> None:
    with opened(stop=stay_silent) as (qmp, latch):
        threading.Timer(0.05, latch.report, [Ending.PANIC, "the console showed a panic"]).start()
        begin = time.monotonic()
        with pytest.raises(GuestGone, match="the console showed a panic"):
            qmp.execute("stop", deadline=Deadline.after(60))
        assert time.monotonic() - begin < 10


def test_a_closed_monitor_is_a_guest_gone() -> None:
    def hang_up(qemu: FakeQemu, _id: object) -> None:
        qemu.end.shutdown(socket.SHUT_RDWR)

    with opened(stop=hang_up) as (qmp, _):
        with pytest.raises(GuestGone, match="QMP"):
            qmp.execute("stop", deadline=Deadline.after(20))
        with pytest.raises(GuestGone):
            qmp.execute("cont", deadline=Deadline.after(20))


def test_a_monitor_that_never_greets_is_closed_cleanly() -> None:
    ours, theirs = socket.socketpair()
    with theirs, EndLatch() as latch:
        with QmpChannel(ours, latch) as qmp, pytest.raises(DeadlineError, match="greeting"):
            qmp.connect(Deadline.after(0.1))
        assert "qmp" not in [thread.name for thread in threading.enumerate()]
        assert ours.fileno() == -1
