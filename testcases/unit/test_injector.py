# SPDX-License-Identifier: GPL-2.0-or-later
"""The injector beside a load that is played to it: what it sends when, whom it lets go in which order, how it ends."""

import contextlib
import queue
import time
from collections.abc import Iterator

import pytest

from lab.errors import DeadlineError, GuestError
from lab.host.deadline import Deadline
from lab.model.evidence import EventKind
from lab.model.hold import Hold
from lab.model.phase import Phase
from lab.model.plan import Injection, Plan
from lab.model.scenario import Aim
from lab.observer.link import LinkMessage
from lab.trial.injection import InjectionThread
from lab.trial.schedule import Overhead

TRIAL_S = 5.0


class PlayedLink:
    """The observer's end: tells what the test puts, and notes what the injector does."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._messages: queue.Queue[LinkMessage] = queue.Queue()

    def tell(self, kind: EventKind, *, core: int = 0, detail: int = 0) -> None:
        now_ns = time.monotonic_ns()
        self._messages.put(
            LinkMessage(kind=kind, vcpu=2 * core, core=core, detail=detail, seq=1, mono_ns=now_ns, load=1)
        )

    def hear(self, deadline: Deadline) -> LinkMessage:
        try:
            return self._messages.get(timeout=max(deadline.remaining_s, 0.001))
        except queue.Empty:
            raise DeadlineError("nothing was heard") from None

    def let_go(self, hold: int) -> None:
        self.done.append(f"let {hold} go")

    def announce(self, nmis: int) -> None:
        if nmis:
            self.done.append(f"announce {nmis}")

    @contextlib.contextmanager
    def sending(self, *, announced: bool = False) -> Iterator[None]:
        self.done.append("announced" if announced else "sending")
        yield


class PlayedMachine:
    """Both of a machine's injectors at once."""

    def __init__(self, link: PlayedLink, *, refuses: bool = False) -> None:
        self.aimed = self.broadcast = self
        self._link = link
        self._refuses = refuses

    def inject(self, vcpu: int, deadline: Deadline) -> tuple[int, int]:
        deadline.check("the acknowledgement")
        if self._refuses:
            raise GuestError("refused")
        self._link.done.append(f"NMI to {vcpu}")
        now_ns = time.monotonic_ns()
        return now_ns, now_ns + 1


def make(
    *injections: Injection, holds: tuple[Hold, ...] = (), refuses: bool = False, trial_s: float = TRIAL_S
) -> tuple[PlayedLink, InjectionThread]:
    link = PlayedLink()
    plan = Plan(seed=1, stretch_us=(1_000, 1_000), injections=injections, holds=holds)
    machine = PlayedMachine(link, refuses=refuses)
    thread = InjectionThread(machine, link, plan, Overhead(1_000), Deadline.after(trial_s))  # type: ignore[arg-type]
    return link, thread


def to(vcpu: int, *, hold: int = -1, phase: Phase | None = None, at_ppm: int = 0, core: int = 0) -> Injection:
    return Injection(at_ppm=at_ppm, aim=Aim.SIBLING, vcpu=vcpu, hold=hold, phase=phase, core=core)


def at(place: str = "call-in", *, until: int = -1, arrival: int = 1) -> Hold:
    return Hold(at=place, vcpu=1, until=until, arrival=arrival)


def test_a_hold_ends_once_its_nmis_are_acknowledged() -> None:
    link, thread = make(to(1, hold=0), to(3, hold=0), holds=(at(),))
    with thread:
        link.tell(EventKind.LOAD_BEGIN)
        link.tell(EventKind.HELD)
    assert link.done == ["sending", "NMI to 1", "sending", "NMI to 3", "let 0 go"]
    assert [sent.index for sent in thread.log.sent] == [0, 1]
    assert thread.log.problem == ""


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_a_hold_outlasts_the_one_that_it_waits_for_whichever_is_reached_first(order: tuple[int, ...]) -> None:
    link, thread = make(*(to(each, hold=each) for each in range(3)), holds=(at(until=1), at(until=2), at()))
    with thread:
        link.tell(EventKind.LOAD_BEGIN)
        for which in order:
            link.tell(EventKind.HELD, detail=which)
    assert [each for each in link.done if each.startswith("let")] == ["let 2 go", "let 1 go", "let 0 go"]
    assert [each for each in link.done if each.startswith("NMI")] == [f"NMI to {which}" for which in order]


def test_a_hold_that_is_told_of_again_or_that_nobody_planned_sends_nothing() -> None:
    link, thread = make(to(1, hold=0), to(1, hold=1), holds=(at(), at()))
    with thread:
        link.tell(EventKind.LOAD_BEGIN)
        for which in (0, 0, 7, 2**32 - 1, 0, 1):
            link.tell(EventKind.HELD, detail=which)
    thread.check()
    assert [each for each in link.done if each.startswith("NMI")] == ["NMI to 1"] * 2
    assert thread.log.problem == ""


def test_a_hold_that_is_not_reached_ends_with_the_load_and_is_named() -> None:
    link, thread = make(to(1, hold=1), holds=(at(until=1), at("release", arrival=3)))
    began_s = time.monotonic()
    with thread:
        link.tell(EventKind.LOAD_BEGIN)
        link.tell(EventKind.HELD, detail=0)
        link.tell(EventKind.LOAD_END)
    assert time.monotonic() - began_s < TRIAL_S - 1
    assert link.done == []
    said = "0 of 1 NMIs were sent: vCPU 1 did not come to hold 1, at release, for the 3. time"
    assert thread.log.problem == said


def test_a_load_that_never_begins_is_not_waited_for() -> None:
    _, thread = make(to(1), to(1, hold=0), holds=(at(),))
    began_s = time.monotonic()
    with thread:
        pass
    assert time.monotonic() - began_s < TRIAL_S - 1
    assert "waiting for the observer's load-begin" in thread.log.problem


def test_a_load_that_never_ends_is_given_up_at_the_deadline() -> None:
    link, thread = make(to(1, phase=Phase.AFTER), trial_s=0.3)
    thread._thread.start()
    link.tell(EventKind.LOAD_BEGIN)
    thread._thread.join(5)
    assert not thread._thread.is_alive()
    assert thread.log.problem.startswith("0 of 1 NMIs were sent:")


def test_phases_without_a_hold_are_sent_at_their_edges() -> None:
    link, thread = make(
        to(0, phase=Phase.BEFORE),
        to(1, phase=Phase.WINDOW),
        to(2, phase=Phase.AFTER),
        to(3, phase=Phase.WINDOW, at_ppm=500_000, core=1),
    )
    thread.send_before()
    assert link.done == ["sending", "NMI to 0"]
    with thread:
        link.tell(EventKind.LOAD_BEGIN)
        link.tell(EventKind.WINDOW_OPEN)
        link.tell(EventKind.WINDOW_OPEN, core=1)
        time.sleep(0.1)
        link.tell(EventKind.LOAD_END)
    assert sorted(link.done[2:-2]) == sorted(
        ["announce 1", "announced", "NMI to 1", "announce 1", "announced", "NMI to 3"]
    )
    assert link.done[-2:] == ["sending", "NMI to 2"]
    assert thread.log.problem == ""


def test_an_nmi_for_a_window_that_never_opens_is_missed() -> None:
    link, thread = make(to(1, phase=Phase.WINDOW, core=1))
    with thread:
        link.tell(EventKind.LOAD_BEGIN)
        link.tell(EventKind.WINDOW_OPEN)
        link.tell(EventKind.LOAD_END)
    assert thread.log.problem == "0 of 1 NMIs were sent: the load ended before the time of the next NMI"


def test_an_nmi_that_is_refused_ends_the_plan_with_its_reason() -> None:
    link, thread = make(to(1, hold=0), holds=(at(),), refuses=True)
    with thread:
        link.tell(EventKind.LOAD_BEGIN)
        link.tell(EventKind.HELD)
    thread.check()
    assert thread.log.problem == "0 of 1 NMIs were sent: refused"
