# SPDX-License-Identifier: GPL-2.0-or-later
"""One point in time, made at the top and passed down, so that nested waits never add up to more than promised."""

import time

from lab.errors import DeadlineError

NS_PER_S = 1_000_000_000


class Deadline:
    """A moment on CLOCK_MONOTONIC by which everything below must be done."""

    def __init__(self, at_ns: int) -> None:
        self.at_ns = at_ns

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Make a deadline that many seconds from now."""
        return cls(time.monotonic_ns() + int(seconds * NS_PER_S))

    @property
    def remaining_s(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, (self.at_ns - time.monotonic_ns()) / NS_PER_S)

    @property
    def expired(self) -> bool:
        """Whether the moment has passed."""
        return time.monotonic_ns() >= self.at_ns

    def within(self, seconds: float) -> "Deadline":
        """Return the earlier of this deadline and one that many seconds from now."""
        return Deadline(min(self.at_ns, Deadline.after(seconds).at_ns))

    def check(self, what: str) -> None:
        """Raise once the moment has passed.

        :param what: what is being waited for, for the message
        :raise DeadlineError: it has
        """
        if self.expired:
            raise DeadlineError(f"deadline reached while waiting for {what}")
