# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a guest. All waits learn of the end at once."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import msgspec

from lab.errors import GuestGone
from lab.host.deadline import Deadline
from lab.model.evidence import Ending

#: A guest can print any number of panics. The first few contain all the information.
MAX_REPORTS = 16
#: The reason quotes this many reports: QEMU's event says that there was a panic, and the console says which panic.
QUOTED_REPORTS = 2


class GuestEnd(msgspec.Struct, frozen=True):
    """What the lab saw of a guest's end.

    :param kind: PANIC or GONE; LAB if the guest did not cause the end
    :param reason: who saw what, in words
    """

    kind: Ending
    reason: str


class EndLatch:
    """A latch that the first report of the end sets: from the console, from QMP, or from the process's exit.

    Later reports refine the first: a panic outranks the exit that the panic causes, in whatever order they arrive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: list[GuestEnd] = []
        self._subscribers: dict[int, Callable[[], None]] = {}
        self._next = 0
        self._event = threading.Event()
        self._sealed = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __enter__(self) -> "EndLatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.seal()
        os.close(self._fd)

    def fileno(self) -> int:
        """Return a descriptor for poll(2) that becomes readable at the end. Do not read from this descriptor."""
        return self._fd

    @property
    def seen(self) -> GuestEnd | None:
        """How the guest ended; None while it runs."""
        with self._lock:
            if not self._reports:
                return None
            panics = [report for report in self._reports if report.kind is Ending.PANIC]
            told = (panics or self._reports)[:QUOTED_REPORTS]
            return GuestEnd(told[0].kind, "; ".join(report.reason for report in told))

    def report(self, kind: Ending, reason: str) -> None:
        """Report that the guest has ended, and wake all waits."""
        with self._lock:
            if self._sealed or len(self._reports) >= MAX_REPORTS:
                return
            self._reports.append(GuestEnd(kind, reason))
            callbacks = list(self._subscribers.values())
            self._subscribers.clear()
            os.eventfd_write(self._fd, 1)
            self._event.set()
        for callback in callbacks:
            callback()

    def seal(self) -> None:
        """Ignore all later reports, since the lab itself causes what follows."""
        with self._lock:
            self._sealed = True

    def check(self, what: str) -> None:
        """Raise an error if the guest has ended.

        :param what: what the caller waits for, for the message
        :raise GuestGone: the guest has ended
        """
        end = self.seen
        if end is not None:
            raise GuestGone(f"{end.reason}, while waiting for {what}")

    def wait(self, deadline: Deadline) -> GuestEnd | None:
        """Wait for the end; return None if the deadline passed first."""
        self._event.wait(deadline.remaining_s)
        return self.seen

    @contextlib.contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call a function once at the end of the guest, or at once if the guest has ended already.

        The function runs in any thread and must not block. It may still run while the caller leaves the block.
        """
        with self._lock:
            ended = self._event.is_set()
            key, self._next = self._next, self._next + 1
            if not ended:
                self._subscribers[key] = callback
        if ended:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._subscribers.pop(key, None)
