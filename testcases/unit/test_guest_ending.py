# SPDX-License-Identifier: GPL-2.0-or-later
import select
import threading

import pytest

from lab.errors import GuestGone
from lab.guest.ending import MAX_REPORTS, EndLatch
from lab.host.deadline import Deadline
from lab.model.evidence import Ending


def test_nothing_is_seen_before_a_report() -> None:
    with EndLatch() as latch:
        latch.check("anything")
        assert latch.seen is None
        assert latch.wait(Deadline.after(0.01)) is None
        assert select.select([latch], [], [], 0)[0] == []


def test_a_report_reaches_every_kind_of_wait() -> None:
    with EndLatch() as latch:
        called = threading.Event()
        with latch.calling(called.set):
            threading.Timer(0.05, latch.report, [Ending.GONE, "QEMU ended"]).start()
            end = latch.wait(Deadline.after(10))
            assert called.wait(10)
        assert end is not None
        assert (end.kind, end.reason) == (Ending.GONE, "QEMU ended")
        assert select.select([latch], [], [], 0)[0] == [latch]
        with pytest.raises(GuestGone, match="QEMU ended, while waiting for tea"):
            latch.check("tea")


def test_a_late_subscriber_is_called_at_once_and_one_that_left_never() -> None:
    with EndLatch() as latch:
        calls: list[str] = []
        with latch.calling(lambda: calls.append("left")):
            pass
        latch.report(Ending.GONE, "gone")
        with latch.calling(lambda: calls.append("late")):
            assert calls == ["late"]
        latch.report(Ending.GONE, "again")
        assert calls == ["late"]


def test_a_panic_outranks_the_exit_whoever_is_heard_first() -> None:
    with EndLatch() as latch:
        latch.report(Ending.GONE, "QEMU ended with status 0")
        latch.report(Ending.PANIC, "first panic")
        latch.report(Ending.PANIC, "second panic")
        assert latch.seen is not None
        assert (latch.seen.kind, latch.seen.reason) == (Ending.PANIC, "first panic; second panic")


def test_what_follows_the_seal_and_what_exceeds_the_bound_is_ignored() -> None:
    with EndLatch() as latch:
        for _ in range(MAX_REPORTS):
            latch.report(Ending.GONE, "gone")
        latch.report(Ending.PANIC, "one too many")
        assert latch.seen is not None
        assert latch.seen.kind is Ending.GONE
    with EndLatch() as latch:
        latch.seal()
        latch.report(Ending.GONE, "the lab's own doing")
        assert latch.seen is None
