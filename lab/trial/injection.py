# SPDX-License-Identifier: GPL-2.0-or-later
"""The injector: sends a plan's NMIs from the moment the oracle sees the load begin, and keeps the log."""

import threading
import time
from types import TracebackType

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
_NS_PER_US = 1_000
_NS_PER_S = 1_000_000_000


class InjectionThread:
    """Runs one plan beside the load command. A context manager; the log is whole once it is left.

    It has the oracle's link for itself until then.

    A load has two parts: how long its rendezvous takes depends on the host, how long its windows last on the plan.
    Times that a plan draws for the second part are counted from the first window's opening, not from what the
    rendezvous was thought to take: else a slow host shifts them all before the windows, a quick one behind them.

    :param overhead_us: how long the rendezvous is thought to take; the longest window follows it
    """

    def __init__(self, machine: Machine, link: OracleLink, plan: Plan, overhead_us: int, deadline: Deadline) -> None:
        self._machine = machine
        self._link = link
        self._plan = plan
        self._overhead_ns = overhead_us * _NS_PER_US
        self._span_ns = self._overhead_ns + max(plan.stretch_us) * _NS_PER_US
        self._deadline = deadline
        self._begin_ns = 0
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
        return InjectionLog(
            begin_ns=self._begin_ns, span_ns=self._span_ns, sent=tuple(self._sent), problem=self._problem
        )

    def _run(self) -> None:
        try:
            self._begin_ns = self._wait_for(EventKind.LOAD_BEGIN)
            opened_ns = 0
            for index, injection in enumerate(self._plan.injections):
                after_ns = injection.at_ppm * self._span_ns // PPM
                if after_ns >= self._overhead_ns and not opened_ns:
                    opened_ns = self._wait_for(EventKind.WINDOW_OPEN)
                in_window_ns = opened_ns - self._overhead_ns + after_ns
                self._wait_until(in_window_ns if opened_ns else self._begin_ns + after_ns)
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
