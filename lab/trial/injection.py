# SPDX-License-Identifier: GPL-2.0-or-later
"""The injector: sends a plan's NMIs from the moment the oracle sees the load begin, and keeps the log."""

import threading
import time
from types import TracebackType

from lab.errors import DeadlineError, GuestError
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

    :param span_us: how long the load is thought to take
    """

    def __init__(self, machine: Machine, link: OracleLink, plan: Plan, span_us: int, deadline: Deadline) -> None:
        self._machine = machine
        self._link = link
        self._plan = plan
        self._span_ns = span_us * _NS_PER_US
        self._deadline = deadline
        self._begin_ns = 0
        self._sent: list[Sent] = []
        self._problem = ""
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

    @property
    def log(self) -> InjectionLog:
        """What was sent."""
        return InjectionLog(
            begin_ns=self._begin_ns, span_ns=self._span_ns, sent=tuple(self._sent), problem=self._problem
        )

    def _run(self) -> None:
        try:
            self._begin_ns = self._wait_for_begin()
            for index, injection in enumerate(self._plan.injections):
                self._wait_until(self._begin_ns + injection.at_ppm * self._span_ns // PPM)
                self._send(index, injection)
        except GuestError as error:
            self._problem = f"{len(self._sent)} of {len(self._plan.injections)} NMIs were sent: {error}"
        except Exception as error:  # a defect of the lab must end as ERROR, not as a silent thread
            self._problem = f"the injector failed: {error!r}"

    def _wait_for_begin(self) -> int:
        while True:
            over = self._load_over.is_set()
            try:
                return self._link.wait_for(EventKind.LOAD_BEGIN, self._deadline.within(LISTEN_S)).mono_ns
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
