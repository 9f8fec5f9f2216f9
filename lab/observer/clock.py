# SPDX-License-Identifier: GPL-2.0-or-later
"""From the host's TSC to CLOCK_MONOTONIC, by moments at which the observer read both."""

import bisect
from collections.abc import Iterable


class TscClock:
    """A line through pairs of readings.

    Between two pairs it runs straight; beyond the outermost it goes on at the mean rate of all.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Take pairs of (TSC, CLOCK_MONOTONIC ns); those that do not rise in both are of no use and left out."""
        self._tscs: list[int] = []
        self._times_ns: list[int] = []
        for tsc, mono_ns in sorted(pairs):
            if tsc > 0 and (not self._tscs or (tsc > self._tscs[-1] and mono_ns > self._times_ns[-1])):
                self._tscs.append(tsc)
                self._times_ns.append(mono_ns)

    def time_ns(self, tsc: int) -> int:
        """Return the time of a TSC reading, 0 for the reading 0 or when there are not two pairs to go by."""
        if tsc == 0 or len(self._tscs) < 2:
            return 0
        after = bisect.bisect_right(self._tscs, tsc)
        if after in (0, len(self._tscs)):
            end = min(after, len(self._tscs) - 1)
            return self._times_ns[end] + self._scale(tsc - self._tscs[end], 0, len(self._tscs) - 1)
        return self._times_ns[after - 1] + self._scale(tsc - self._tscs[after - 1], after - 1, after)

    def duration_ns(self, cycles: int) -> int:
        """Return how long that many cycles take at the mean rate, 0 when there are not two pairs to go by."""
        return self._scale(cycles, 0, len(self._tscs) - 1) if len(self._tscs) > 1 else 0

    def _scale(self, cycles: int, first: int, last: int) -> int:
        return cycles * (self._times_ns[last] - self._times_ns[first]) // (self._tscs[last] - self._tscs[first])
