# SPDX-License-Identifier: GPL-2.0-or-later
"""The injector: sends a plan's NMIs from the moment the oracle sees the load begin, and keeps the log."""

import contextlib
import threading
import time
from types import TracebackType

import msgspec

from lab.errors import DeadlineError, GuestError, HostError
from lab.guest.machine import Machine
from lab.host.deadline import Deadline
from lab.spec.evidence import EventKind, InjectionLog, Sent
from lab.spec.plan import PPM, Injection, Plan
from lab.spec.scenario import Aim
from lab.witness.oracle.link import OracleLink

#: How long the thread may take to notice that its deadline has passed.
JOIN_S = 10.0
#: How long to listen for the load at a time, before asking whether one can still come.
LISTEN_S = 0.5
#: The least share of a plan's NMIs that is sent while windows are open.
MIN_WINDOW_PPM = 500_000
_NS_PER_US = 1_000
_NS_PER_S = 1_000_000_000


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


class InjectionThread:
    """Runs one plan beside the load command. A context manager; the log is whole once it is left.

    It has the oracle's link for itself until then.

    How long a load's rendezvous takes depends on the host, how long its windows last on the plan. Times that a plan
    draws for the windows and what follows are counted from the first window's opening, not from what the rendezvous
    was thought to take: else a slow host shifts them all before the windows, a quick one behind them. What is left for
    the rendezvous when the first window opens is sent at once.
    """

    def __init__(self, machine: Machine, link: OracleLink, plan: Plan, overhead: Overhead, deadline: Deadline) -> None:
        self._machine = machine
        self._link = link
        self._plan = plan
        self._overhead = overhead
        self._window_us = max(plan.stretch_us)
        self._deadline = deadline
        self._begin_ns = 0
        self._opened_ns = 0
        self._sent: list[Sent] = []
        self._problem = ""
        self._defect: Exception | None = None
        self._load_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="injector", daemon=True)

    def __enter__(self) -> "InjectionThread":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._load_over.set()
        self._thread.join(self._deadline.remaining_s + JOIN_S)
        assert not self._thread.is_alive(), "every wait of the injector ends at its deadline"

    def check(self) -> None:
        """Raise what went wrong in the lab's own code.

        :raise HostError: the injector has a defect
        """
        if self._defect is not None:
            raise HostError(f"the injector failed: {self._defect!r}") from self._defect

    @property
    def log(self) -> InjectionLog:
        """What was sent."""
        span_ns = (self._overhead.total_us + self._window_us) * _NS_PER_US
        return InjectionLog(begin_ns=self._begin_ns, span_ns=span_ns, sent=tuple(self._sent), problem=self._problem)

    @property
    def opened_ns(self) -> int:
        """When the first window opened; 0 when no NMI had to wait for that."""
        return self._opened_ns

    def _run(self) -> None:
        try:
            self._begin_ns = self._wait_for(EventKind.LOAD_BEGIN)
            for index, injection in enumerate(self._plan.injections):
                after_ns, from_opening = place(injection.at_ppm, self._overhead, self._window_us)
                if not from_opening:
                    self._wait_before_opening(self._begin_ns + after_ns)
                else:
                    self._opened_ns = self._opened_ns or self._wait_for(EventKind.WINDOW_OPEN)
                    self._wait_until(self._opened_ns + after_ns)
                self._send(index, injection)
        except GuestError as error:
            self._problem = f"{len(self._sent)} of {len(self._plan.injections)} NMIs were sent: {error}"
        except Exception as error:  # a defect of the lab must end as ERROR, not as a silent thread
            self._defect = error

    def _wait_for(self, kind: EventKind) -> int:
        while True:
            over = self._load_over.is_set()
            try:
                return self._link.wait_for(kind, self._deadline.within(LISTEN_S)).mono_ns
            except DeadlineError:
                # The command that was to load has ended: what the thread waits for cannot come any more.
                if over or self._deadline.expired:
                    raise

    def _wait_before_opening(self, at_ns: int) -> None:
        """Wait for a time, but not beyond the first window's opening: else what is due in it would come too late."""
        self._deadline.check("the time of the next NMI")
        delay_s = (at_ns - time.monotonic_ns()) / _NS_PER_S
        if delay_s > 0 and not self._opened_ns:
            with contextlib.suppress(DeadlineError):
                self._opened_ns = self._link.wait_for(EventKind.WINDOW_OPEN, self._deadline.within(delay_s)).mono_ns

    def _wait_until(self, at_ns: int) -> None:
        self._deadline.check("the time of the next NMI")
        delay_ns = min(at_ns, self._deadline.at_ns) - time.monotonic_ns()
        if delay_ns > 0:
            time.sleep(delay_ns / _NS_PER_S)

    def _send(self, index: int, injection: Injection) -> None:
        aimed = injection.aim is not Aim.BROADCAST
        injector = self._machine.aimed if aimed else self._machine.broadcast
        with self._link.sending():
            send_ns, reply_ns = injector.inject(injection.vcpu, self._deadline)
        self._sent.append(Sent(index=index, vcpu=injection.vcpu, send_ns=send_ns, reply_ns=reply_ns))
