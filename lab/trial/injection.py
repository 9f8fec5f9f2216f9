# SPDX-License-Identifier: GPL-2.0-or-later
"""The injector: sends a plan's NMIs as the observer tells what the load does, lets held vCPUs go, and keeps the log."""

import threading
import time
from types import TracebackType

from lab.errors import DeadlineError, GuestError, HostError
from lab.guest.machine import Machine
from lab.host.deadline import Deadline
from lab.model.evidence import EventKind, InjectionLog, Sent
from lab.model.phase import Phase
from lab.model.plan import Plan
from lab.model.scenario import Aim
from lab.observer.link import LinkMessage, ObserverLink
from lab.trial.schedule import Overhead, Schedule

#: How long the thread may take to notice that its deadline has passed.
JOIN_S = 10.0
#: How long to listen for the load at a time, before asking whether one can still come.
LISTEN_S = 0.5
_NS_PER_US = 1_000
_NS_PER_S = 1_000_000_000


class InjectionThread:
    """Runs one plan beside the load command. A context manager; the log is whole once it is left.

    It has the observer's link for itself until then.

    How long a load's rendezvous takes depends on the host, how long its windows last on the plan. Times that a plan
    draws for the windows and what follows are counted from the first window's opening, not from what the rendezvous
    was thought to take: else a slow host shifts them all before the windows, a quick one behind them. What is left for
    the rendezvous when the first window opens is spread over the window.

    A vCPU that comes to its hold is told of by the observer; its NMIs are sent, and it is let go once they are
    acknowledged, and the hold that it is to outlast is over.
    """

    def __init__(
        self, machine: Machine, link: ObserverLink, plan: Plan, overhead: Overhead, deadline: Deadline
    ) -> None:
        self._machine = machine
        self._link = link
        self._plan = plan
        self._overhead = overhead
        self._window_us = max(plan.stretch_us)
        self._deadline = deadline
        self._begin_ns = 0
        self._opened_ns = 0
        self._ended_ns = 0
        self._sent: list[Sent] = []
        self._problem = ""
        self._defect: Exception | None = None
        self._load_over = threading.Event()
        self._schedule = Schedule(plan, overhead)
        self._reached: set[int] = set()
        self._over: set[int] = set()
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
        """When the first window opened; 0 when the thread did not hear of it."""
        return self._opened_ns

    @property
    def ended_ns(self) -> int:
        """When the load ended; 0 when the thread did not hear of it."""
        return self._ended_ns

    def send_before(self) -> None:
        """Send what is due before the load command; to be called before it and before the thread starts.

        :raise GuestError: the guest ended, or an NMI was refused
        """
        for index in self._schedule.take_before():
            self._send(index)

    def _run(self) -> None:
        try:
            while not self._is_done():
                message = self._hear()
                if message is not None:
                    self._take(message)
                self._send_due()
        except GuestError as error:
            self._problem = f"{len(self._sent)} of {len(self._plan.injections)} NMIs were sent: {error}"
        except Exception as error:  # a defect of the lab must end as ERROR, not as a silent thread
            self._defect = error

    def _is_done(self) -> bool:
        all_sent = len(self._sent) == len(self._plan.injections)
        return bool(self._begin_ns) and all_sent and len(self._over) == len(self._plan.holds)

    def _hear(self) -> LinkMessage | None:
        """Wait for the observer's next message, or for the next NMI's time."""
        due_ns = self._schedule.next_ns
        over = self._load_over.is_set()
        self._deadline.check("the time of the next NMI")
        wait_s = LISTEN_S if due_ns is None else (due_ns - time.monotonic_ns()) / _NS_PER_S
        if wait_s <= 0:
            return None
        try:
            return self._link.hear(self._deadline.within(min(wait_s, LISTEN_S)))
        except DeadlineError:
            # The command that was to load has ended: what is not due by now cannot come any more.
            if self._deadline.expired or (over and due_ns is None):
                raise DeadlineError(self._tell_missing()) from None
            return None

    def _tell_missing(self) -> str:
        waiting = sorted(set(range(len(self._plan.holds))) - self._reached)
        if not self._begin_ns:
            return "deadline reached while waiting for the observer's load-begin"
        if waiting:
            hold = self._plan.holds[waiting[0]]
            return f"vCPU {hold.vcpu} did not come to hold {waiting[0]}, at {hold.at}, for the {hold.arrival}. time"
        return "the load ended before the time of the next NMI"

    def _take(self, message: LinkMessage) -> None:
        match message.kind:
            case EventKind.LOAD_BEGIN:
                self._begin_ns = self._begin_ns or message.mono_ns
                self._schedule.begin(message.mono_ns)
            case EventKind.WINDOW_OPEN:
                self._opened_ns = self._opened_ns or message.mono_ns
                self._link.announce(self._schedule.open(message.core, message.mono_ns))
            case EventKind.LOAD_END:
                self._ended_ns = self._ended_ns or message.mono_ns
                self._schedule.end(message.mono_ns)
            case EventKind.HELD:
                self._serve_hold(message.detail)

    def _serve_hold(self, reached: int) -> None:
        if reached in self._reached or reached >= len(self._plan.holds):
            return  # the judge tells of it: no NMI is sent twice
        self._reached.add(reached)
        for index, injection in enumerate(self._plan.injections):
            if injection.hold == reached:
                self._send(index)
        progress = True
        while progress:
            ready = [
                index for index in self._reached - self._over if self._plan.holds[index].until in (-1, *self._over)
            ]
            for index in ready:
                self._link.let_go(index)
                self._over.add(index)
            progress = bool(ready)

    def _send_due(self) -> None:
        for index in self._schedule.take_due(time.monotonic_ns()):
            self._send(index)

    def _send(self, index: int) -> None:
        injection = self._plan.injections[index]
        aimed = injection.aim is not Aim.BROADCAST
        injector = self._machine.aimed if aimed else self._machine.broadcast
        announced = injection.phase is Phase.WINDOW and injection.hold < 0
        with self._link.sending(announced=announced):
            send_ns, reply_ns = injector.inject(injection.vcpu, self._deadline)
        self._sent.append(Sent(index=index, vcpu=injection.vcpu, send_ns=send_ns, reply_ns=reply_ns))
