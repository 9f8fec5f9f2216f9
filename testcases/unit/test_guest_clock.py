# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose clock runs away makes a second of the kernel's last some milliseconds."""

import pytest

from lab.errors import GuestUnfit
from lab.trial.guest_clock import ClockReading, check_rate

MS = 1_000_000


def reading(before_ms: int, after_ms: int, uptime_ms: int) -> ClockReading:
    return ClockReading(before_ns=before_ms * MS, after_ns=after_ms * MS, uptime_ns=uptime_ms * MS)


@pytest.mark.parametrize(
    ("second", "fit"),
    [
        (reading(1_300, 1_310, 300), True),
        (reading(1_300, 1_310, 350), True),
        # Thirty times as fast, and a third of it.
        (reading(1_300, 1_310, 9_000), False),
        (reading(1_300, 1_310, 100), False),
        # It answered late, and may have read its clock at any time between.
        (reading(1_300, 9_000, 5_000), True),
        (reading(1_300, 9_000, 300), True),
    ],
)
def test_a_clock_that_goes_as_the_hosts_is_fit(second: ClockReading, *, fit: bool) -> None:
    first = reading(1_000, 1_010, 0)
    if fit:
        check_rate(first, second)
        return
    with pytest.raises(GuestUnfit, match="its TSC was calibrated on a host that did not let it run"):
        check_rate(first, second)
