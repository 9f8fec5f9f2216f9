# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest ended, known at once to everybody who waits for it."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import msgspec

from lab.errors import GuestGone
from lab.host.deadline import Deadline
from lab.model.evidence import Ending

#: A guest can print any number of panics; the first few tell all there is.
MAX_REPORTS = 16
#: How many of them the reason quotes: QEMU's event says that it was a panic, the console says which.
QUOTED_REPORTS = 2


class GuestEnd(msgspec.Struct, frozen=True):
    """What was seen of a guest's end.

    :param kind: PANIC or GONE; LAB where the guest had no part in it
    :param reason: who saw what, in words
    """

    kind: Ending
    reason: str


class EndLatch:
    """Set once, by whichever witness sees the end first: console, QMP, or the process's exit.

    Later reports refine it: a panic outranks the exit that follows from it, whoever is heard first.
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
        """Return a descriptor that turns readable at the end, for poll(2); it is not to be read."""
        return self._fd

    @property
    def seen(self) -> GuestEnd | None:
        """How the guest ended, None while it has not."""
        with self._lock:
            if not self._reports:
                return None
            panics = [report for report in self._reports if report.kind is Ending.PANIC]
            told = (panics or self._reports)[:QUOTED_REPORTS]
            return GuestEnd(told[0].kind, "; ".join(report.reason for report in told))

    def report(self, kind: Ending, reason: str) -> None:
        """Tell that the guest has ended, and wake all who wait."""
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
        """Ignore reports from now on: what follows is the lab's own doing."""
        with self._lock:
            self._sealed = True

    def check(self, what: str) -> None:
        """Raise once the guest has ended.

        :param what: what is being waited for, for the message
        :raise GuestGone: it has
        """
        end = self.seen
        if end is not None:
            raise GuestGone(f"{end.reason}, while waiting for {what}")

    def wait(self, deadline: Deadline) -> GuestEnd | None:
        """Wait for the end; None when the deadline came first."""
        self._event.wait(deadline.remaining_s)
        return self.seen

    @contextlib.contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have a function called once at the end, at once if that has been; it runs in any thread and must not block.

        It may still run while the block is being left.
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
