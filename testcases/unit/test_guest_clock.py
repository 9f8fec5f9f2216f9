# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose clock runs away makes a second of the kernel's last some milliseconds."""

import re
import time

import pytest

from lab.errors import EvidenceError, GuestUnfit
from lab.guest.shell import GuestShell, ShellResult
from lab.host.deadline import Deadline
from lab.judge.clocks import MAX_OFF
from lab.trial.guest_clock import MAX_RATE, MIN_RATE, ClockReading, check_rate, read_clock, read_clock_later

MS = 1_000_000


def reading(before_ms: int, after_ms: int, guest_ms: int) -> ClockReading:
    return ClockReading(before_ns=before_ms * MS, after_ns=after_ms * MS, guest_ns=guest_ms * MS)


@pytest.mark.parametrize(
    ("second", "fit"),
    [
        (reading(1_300, 1_304, 300), True),
        (reading(1_300, 1_304, 306), True),
        # A fifth too fast, and too slow.
        (reading(1_300, 1_304, 360), False),
        (reading(1_300, 1_304, 240), False),
        # Thirty times as fast, and a third of it.
        (reading(1_300, 1_304, 9_000), False),
        (reading(1_300, 1_304, 100), False),
        # It answered late, and may have read its clock at any time between.
        (reading(1_300, 9_000, 5_000), True),
        (reading(1_300, 9_000, 300), True),
    ],
)
def test_a_clock_that_goes_as_the_hosts_is_fit(second: ClockReading, *, fit: bool) -> None:
    first = reading(1_000, 1_002, 0)
    if fit:
        check_rate(first, second)
        return
    with pytest.raises(GuestUnfit, match="its TSC was calibrated on a host that did not let it run"):
        check_rate(first, second)


def test_a_guest_that_boots_is_within_what_the_judge_allows() -> None:
    """Otherwise each of its trials would be INVALID, for as long as it serves."""
    assert 1 - MAX_OFF < MIN_RATE < 1 < MAX_RATE < 1 + MAX_OFF


class Guest(GuestShell):
    """Answers with its clock, which goes at a rate of its own; its first answers take their time."""

    def __init__(self, rate: float, slow: int = 0, says: str = "now at {} nsecs\n") -> None:
        self._rate = rate
        self._slow = slow
        self._says = says
        self.asked = 0

    def run(self, script: str, deadline: Deadline) -> ShellResult:  # noqa: ARG002
        assert "/proc/timer_list" in script
        self.asked += 1
        now = round(time.monotonic_ns() * self._rate)
        if self.asked <= self._slow:
            time.sleep(0.05)
        return ShellResult(0, self._says.format(now).encode())


@pytest.mark.parametrize("rate", [1.2, 0.8])
@pytest.mark.parametrize("slow", [0, 3])
def test_a_clock_that_is_off_by_a_fifth_is_unfit_also_where_answers_are_slow(rate: float, slow: int) -> None:
    guest, soon = Guest(rate, slow), Deadline.after(30)
    first = read_clock(guest, soon)
    with pytest.raises(GuestUnfit):
        check_rate(first, read_clock_later(guest, first, soon))
    fit = Guest(1.0, slow)
    first = read_clock(fit, soon)
    check_rate(first, read_clock_later(fit, first, soon))


@pytest.mark.parametrize("said", ["", "now at x nsecs\n", "sh: /proc/timer_list: no such file\n"])
def test_a_guest_that_shows_no_clock_is_told(said: str) -> None:
    with pytest.raises(EvidenceError, match=re.escape("/proc/timer_list of the guest says")):
        read_clock(Guest(1.0, says=said), Deadline.after(5))
