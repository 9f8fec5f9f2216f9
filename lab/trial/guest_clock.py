# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a guest's clock goes as the host's does.

Linux measures the TSC's rate at boot against a timer that is emulated (native_calibrate_cpu_early()). On a host that
keeps the guest from running meanwhile the result can be wrong by far, and "tsc=reliable" has the kernel believe it ever
after: then a second of the rendezvous lasts some milliseconds, and a sound mechanism panics. By how much a guest that
serves is off is measured in each load (lab.judge.clocks).
"""

import re
import time
from typing import Final

import msgspec

from lab.errors import EvidenceError, GuestUnfit
from lab.guest.shell import GuestShell
from lab.guest.text import clean_lines
from lab.host.deadline import Deadline

#: Between two readings, at least.
MIN_SPAN_NS: Final = 250_000_000
#: How far from the host's the rate may be: less than the judge allows (lab.judge.clocks.MAX_OFF).
MAX_RATE: Final = 1.03
MIN_RATE: Final = 0.97
#: A guest reads its clock at some time before it has answered. That may be so much of the time between two readings, or
#: the clock is read again,
MAX_DOUBT: Final = 0.01
#: so often: on a host that is busy all the time, what is known by then must do.
READINGS: Final = 12
#: Of one moment: the quickest answer tells the most.
TRIES: Final = 5
#: The third line is "now at 1234567890 nsecs", by CLOCK_MONOTONIC of the guest (kernel/time/timer_list.c).
_ASK: Final = '{ read -r _; read -r _; read -r now; } </proc/timer_list && echo "$now"'
_NOW: Final = re.compile(r"now at (?P<ns>[0-9]{1,18}) nsecs", re.ASCII)
_NS_PER_S: Final = 1_000_000_000


class ClockReading(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's CLOCK_MONOTONIC, and the host's before it was asked for and after it came."""

    before_ns: int
    after_ns: int
    guest_ns: int


def read_clock(shell: GuestShell, deadline: Deadline) -> ClockReading:
    """Return of several readings the one that took the guest the least time to answer.

    :raise EvidenceError: the guest shows something else
    """
    readings = [_read_once(shell, deadline) for _ in range(TRIES)]
    return min(readings, key=lambda reading: reading.after_ns - reading.before_ns)


def _read_once(shell: GuestShell, deadline: Deadline) -> ClockReading:
    before_ns = time.monotonic_ns()
    said = clean_lines(shell.run(_ASK, deadline).stdout)
    after_ns = time.monotonic_ns()
    match = _NOW.fullmatch(said[0]) if said else None
    if match is None:
        raise EvidenceError(f"/proc/timer_list of the guest says {' '.join(said)[:80]!r}, and no time")
    return ClockReading(before_ns=before_ns, after_ns=after_ns, guest_ns=int(match["ns"]))


def read_clock_later(shell: GuestShell, first: ClockReading, deadline: Deadline) -> ClockReading:
    """Read the guest's clock again, once it can be compared; raises as :func:`read_clock` does."""
    span_ns = MIN_SPAN_NS
    for _ in range(READINGS):
        time.sleep(max(0, first.after_ns + span_ns - time.monotonic_ns()) / _NS_PER_S)
        second = read_clock(shell, deadline)
        if _find_doubt(first, second) <= MAX_DOUBT:
            break
        span_ns += MIN_SPAN_NS
    return second


def check_rate(first: ClockReading, second: ClockReading) -> None:
    """Compare how far both clocks went between two readings. Pure.

    The host's times bound when the guest read its own, so a slow answer makes the bounds wider and accuses nobody.

    :raise GuestUnfit: the guest's clock goes at another rate, whatever the guest was kept from running
    """
    went_ns = second.guest_ns - first.guest_ns
    least_ns, most_ns = second.before_ns - first.after_ns, second.after_ns - first.before_ns
    if went_ns / most_ns > MAX_RATE or went_ns / max(least_ns, 1) < MIN_RATE:
        raise GuestUnfit(
            f"the guest's clock went {went_ns / _NS_PER_S:.3f} s while the host's went {most_ns / _NS_PER_S:.3f} s:"
            " its TSC was calibrated on a host that did not let it run"
        )


def _find_doubt(first: ClockReading, second: ClockReading) -> float:
    """Return what share of the time between two readings may not have been between them."""
    most_ns = second.after_ns - first.before_ns
    return (most_ns - (second.before_ns - first.after_ns)) / most_ns
