# SPDX-License-Identifier: GPL-2.0-or-later
"""When the NMIs of a plan are due, as the load goes on."""

import heapq
from typing import Final

import msgspec

from lab.model.phase import Phase
from lab.model.plan import PPM, Injection, Plan

#: The least share of a plan's NMIs that is sent while windows are open.
MIN_WINDOW_PPM: Final = 500_000
_NS_PER_US: Final = 1_000


class Overhead(msgspec.Struct, frozen=True):
    """What a load is thought to take beside its longest window: until the first one opens, and after the longest."""

    before_us: int
    after_us: int = 0

    @property
    def total_us(self) -> int:
        """Both together."""
        return self.before_us + self.after_us


def place(at_ppm: int, overhead: Overhead, window_us: int) -> tuple[int, bool]:
    """Return when an NMI is due, in nanoseconds, and whether since the first window opened instead of the load's begin.

    A load has three parts, and each gets NMIs by its length; but the windows at least MIN_WINDOW_PPM of them: where a
    mechanism takes CPUs down and brings them up again, they are a small part of the load, and the one that matters.

    :param at_ppm: when, in parts per million of the load
    :param window_us: how long the longest window is to last
    """
    before_ppm, window_ppm = 0, PPM
    if overhead.total_us:
        share_ppm = window_us * PPM // (overhead.total_us + window_us)
        window_ppm = max(share_ppm, MIN_WINDOW_PPM) if window_us else 0
        before_ppm = (PPM - window_ppm) * overhead.before_us // overhead.total_us
    if at_ppm < before_ppm:
        return at_ppm * overhead.before_us * _NS_PER_US // before_ppm, False
    if at_ppm < before_ppm + window_ppm:
        return (at_ppm - before_ppm) * window_us * _NS_PER_US // window_ppm, True
    into_ppm, after_ppm = at_ppm - before_ppm - window_ppm, PPM - before_ppm - window_ppm
    return (window_us + into_ppm * overhead.after_us // after_ppm) * _NS_PER_US, True


class Schedule:
    """The NMIs of one plan that no hold waits for: told what the load does, it says which are due.

    :param overhead: what the load is thought to take beside its longest window
    """

    def __init__(self, plan: Plan, overhead: Overhead) -> None:
        self._plan = plan
        self._due: list[tuple[int, int]] = []
        self._begun_ns: int | None = None
        self._opened = False
        self._rendezvous_ns = overhead.before_us * _NS_PER_US
        self._window_ns = max(plan.stretch_us) * _NS_PER_US
        window_us = max(plan.stretch_us)
        timed = [(index, each) for index, each in enumerate(plan.injections) if each.hold < 0]
        drawn = {index: place(each.at_ppm, overhead, window_us) for index, each in timed if each.phase is None}
        self._from_begin = [(after_ns, index) for index, (after_ns, late) in drawn.items() if not late]
        self._from_opening = [(after_ns, index) for index, (after_ns, late) in drawn.items() if late]
        self._by_phase = [(index, each) for index, each in timed if each.phase is not None]

    @property
    def next_ns(self) -> int | None:
        """When the next one is due, CLOCK_MONOTONIC; None when that is not known yet."""
        return self._due[0][0] if self._due else None

    def take_before(self) -> tuple[int, ...]:
        """Return those that are meant for the time before the load."""
        return tuple(index for index, _ in self._take(Phase.BEFORE))

    def take_due(self, now_ns: int) -> tuple[int, ...]:
        """Return those that are due by now, each once, in order of time."""
        due = []
        while self._due and self._due[0][0] <= now_ns:
            due.append(heapq.heappop(self._due)[1])
        return tuple(due)

    def begin(self, at_ns: int) -> None:
        """The load has begun."""
        self._begun_ns = at_ns if self._begun_ns is None else self._begun_ns
        for after_ns, index in self._from_begin:
            heapq.heappush(self._due, (at_ns + after_ns, index))
        self._from_begin = []

    def open(self, core: int, at_ns: int) -> int:
        """A core's window has opened: with the first one, what is left for the rendezvous has to go somewhere else.

        It is spread over the window in proportion: sent at once, it would all be at the window's beginning.

        :return: how many are meant for this window, which must not close before they are sent
        """
        if not self._opened:
            self._opened = True
            self._due = [(self._spread(due_ns, at_ns), index) for due_ns, index in self._due]
            heapq.heapify(self._due)
            for after_ns, index in self._from_opening:
                heapq.heappush(self._due, (at_ns + after_ns, index))
            self._from_opening = []
        meant = self._take(Phase.WINDOW, core)
        for index, each in meant:
            heapq.heappush(self._due, (at_ns + self._into_window_ns(each), index))
        return len(meant)

    def end(self, at_ns: int) -> None:
        """The load has ended."""
        for index, _ in self._take(Phase.AFTER):
            heapq.heappush(self._due, (at_ns, index))

    def _spread(self, due_ns: int, opened_ns: int) -> int:
        """Return where in the window is what was due in the rest of a rendezvous that took less than was thought."""
        begun_ns = opened_ns if self._begun_ns is None else self._begun_ns
        thought_ns = begun_ns + self._rendezvous_ns
        if not opened_ns < due_ns < thought_ns:
            return min(due_ns, opened_ns)
        return opened_ns + (due_ns - opened_ns) * self._window_ns // (thought_ns - opened_ns)

    def _take(self, phase: Phase, core: int | None = None) -> list[tuple[int, Injection]]:
        """Take out those of a phase, of one core or of all: a load may tell of the same edge again."""
        taken = [one for one in self._by_phase if one[1].phase is phase and core in (None, one[1].core)]
        self._by_phase = [one for one in self._by_phase if one not in taken]
        return taken

    def _into_window_ns(self, injection: Injection) -> int:
        return injection.at_ppm * self._plan.stretch_us[injection.core] * _NS_PER_US // PPM
