# SPDX-License-Identifier: GPL-2.0-or-later
"""One point in time. The top level makes it and passes it down, so nested waits never exceed the promised time."""

import time

from lab.errors import DeadlineError

NS_PER_S = 1_000_000_000


class Deadline:
    """A moment on CLOCK_MONOTONIC. All work below must be done by this moment."""

    def __init__(self, at_ns: int) -> None:
        self.at_ns = at_ns

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Return a deadline ``seconds`` from now."""
        return cls(time.monotonic_ns() + int(seconds * NS_PER_S))

    @property
    def remaining_s(self) -> float:
        """Return the seconds left, never less than zero."""
        return max(0.0, (self.at_ns - time.monotonic_ns()) / NS_PER_S)

    @property
    def expired(self) -> bool:
        """Return True if the moment has passed."""
        return time.monotonic_ns() >= self.at_ns

    def within(self, seconds: float) -> "Deadline":
        """Return this deadline, or a deadline ``seconds`` from now, whichever is earlier."""
        return Deadline(min(self.at_ns, Deadline.after(seconds).at_ns))

    def check(self, what: str) -> None:
        """Raise an error if the moment has passed.

        :param what: what the caller waits for, for the message
        :raise DeadlineError: the moment has passed
        """
        if self.expired:
            raise DeadlineError(f"deadline reached while waiting for {what}")
