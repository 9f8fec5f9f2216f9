# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a guest's clock goes as the host's does.

Linux measures the TSC's rate at boot against a timer that is emulated (native_calibrate_cpu_early()). On a host that
keeps the guest from running meanwhile the result can be wrong by far, and "tsc=reliable" has the kernel believe it ever
after: then a second of the rendezvous lasts some milliseconds, and a sound mechanism panics.
"""

import time
from typing import Final

import msgspec

from lab.errors import EvidenceError, GuestUnfit
from lab.guest.shell import GuestShell
from lab.guest.text import clean_lines
from lab.host.deadline import Deadline

#: Of /proc/uptime.
RESOLUTION_NS: Final = 10_000_000
#: Long enough for the resolution not to count.
MIN_SPAN_NS: Final = 250_000_000
#: How far from the host's the rate may be: the kernel's limits are some ten times what a load takes.
MAX_RATE: Final = 1.25
MIN_RATE: Final = 0.8
_NS_PER_S: Final = 1_000_000_000


class ClockReading(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's uptime, and the host's CLOCK_MONOTONIC before it was asked for and after it came."""

    before_ns: int
    after_ns: int
    uptime_ns: int


def read_clock(shell: GuestShell, deadline: Deadline) -> ClockReading:
    """Read the guest's clock.

    :raise EvidenceError: the guest shows something else
    """
    before_ns = time.monotonic_ns()
    said = clean_lines(shell.run("cat /proc/uptime", deadline).stdout)
    after_ns = time.monotonic_ns()
    try:
        uptime_s = float(said[0].split()[0])
    except (IndexError, ValueError) as error:
        raise EvidenceError(
            f"/proc/uptime of the guest is {' '.join(said)[:80]!r}, and no number of seconds"
        ) from error
    return ClockReading(before_ns=before_ns, after_ns=after_ns, uptime_ns=round(uptime_s * _NS_PER_S))


def read_clock_later(shell: GuestShell, first: ClockReading, deadline: Deadline) -> ClockReading:
    """Read the guest's clock again, when enough time has passed to compare; raises as :func:`read_clock` does."""
    left_ns = first.after_ns + MIN_SPAN_NS - time.monotonic_ns()
    if left_ns > 0:
        time.sleep(left_ns / _NS_PER_S)
    return read_clock(shell, deadline)


def check_rate(first: ClockReading, second: ClockReading) -> None:
    """Compare how far both clocks went between two readings. Pure.

    The host's times bound when the guest read its own, so a slow answer makes the bounds wider and accuses nobody.

    :raise GuestUnfit: the guest's clock goes at another rate, whatever the guest was kept from running
    """
    went_ns = second.uptime_ns - first.uptime_ns
    least_ns, most_ns = second.before_ns - first.after_ns, second.after_ns - first.before_ns
    slowest = (went_ns - RESOLUTION_NS) / most_ns
    fastest = (went_ns + RESOLUTION_NS) / max(least_ns, 1)
    if slowest > MAX_RATE or fastest < MIN_RATE:
        raise GuestUnfit(
            f"the guest's clock went {went_ns / _NS_PER_S:.2f} s while the host's went {most_ns / _NS_PER_S:.2f} s:"
            " its TSC was calibrated on a host that did not let it run"
        )
