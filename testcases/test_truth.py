# SPDX-License-Identifier: GPL-2.0-or-later
"""What must never be called PASS: trials in which a witness was blind, or nothing happened."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from conftest import Trial
from lab.build.images import ImageSet
from lab.build.kernel import DEFAULT_BASE
from lab.errors import DeadlineError
from lab.guest.machine import Machine
from lab.guest.nmi import BroadcastInjector
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.judge import judge
from lab.kernelimage.vmlinux import Kernel
from lab.model.boot import Boot
from lab.model.evidence import Match
from lab.model.plan import Injection, Plan, draw_plan
from lab.model.scenario import Aim, Scenario
from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome, Verdict
from lab.trial.opening import open_session
from lab.trial.pool import WarmGuest
from lab.trial.session import Session

pytestmark = pytest.mark.e2e

PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_DETACH = 17
WAIT_FOR_ALL = 0x40000000

#: How often a sibling may be stopped too late.
STARVED_TRIES = 20
STOP_TRIES = 20
ANSWER_S = 0.05

SHAPE = Topology(1, 1, 2)


@contextmanager
def own_session(images: ImageSet, kernel: Kernel, **observer: int) -> Iterator[Session]:
    with (
        admit(SHAPE.vcpus, Deadline.after(600)),
        open_session(images, kernel, Boot(base=DEFAULT_BASE, topology=SHAPE), **observer) as session,
    ):
        yield session


def test_no_nmi_sent_is_no_pass(guests: Callable[[Boot], WarmGuest]) -> None:
    """A scenario that is about NMIs, and a plan that lost them."""
    scenario = Scenario(mechanism="nmi-self")
    plan = Plan(seed=1, stretch_us=(20_000, 20_000), injections=())
    verdict = judge(guests(scenario.boot).run_trial(scenario, plan).evidence)
    assert verdict.outcome is Outcome.INVALID
    assert "NMI" in verdict.reason


def test_an_injector_that_loses_its_nmis_is_no_pass(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is asked something harmless in place of inject-nmi: the log says sent, the observer sees none."""

    real = BroadcastInjector._execute

    def pretend(self: BroadcastInjector, command: str, deadline: Deadline) -> tuple[int, int]:
        return real(self, "query-status" if command == "inject-nmi" else command, deadline)

    monkeypatch.setattr(BroadcastInjector, "_execute", pretend)
    tried = trial("nmi-self")
    assert tried.record.outcome is Outcome.INVALID
    assert tried.finding("nmis-delivered") is not Finding.HELD


def test_landmarks_are_matched_by_what_the_guest_shows(trial: Trial) -> None:
    tried = trial("nmi-self")
    images = tried.evidence.images
    assert images is not None
    assert len(images.build_id) == 40
    assert images.build_id == images.guest_build_id
    assert tried.record.match is Match.GUEST
    other = msgspec.structs.replace(images, build_id=images.build_id[::-1])
    assert judge(msgspec.structs.replace(tried.evidence, images=other)).outcome is Outcome.INVALID


def test_a_lab_that_fails_before_the_load_tells_nothing_of_the_observer(images: ImageSet, kernel: Kernel) -> None:
    scenario = Scenario(mechanism="nmi-self", topology=SHAPE)
    with own_session(images, kernel) as session:
        session.machine.shell.run("umount /sys/kernel/debug", Deadline.after(ANSWER_S * 100))
        kept = session.run_trial(scenario, draw_plan(scenario, 1))
    verdict = judge(kept.evidence)
    assert kept.evidence.observer is None
    assert verdict.outcome is Outcome.ERROR
    assert {one.reason for one in verdict.invariants} == {"the lab failed before the load"}


def test_a_ring_too_small_is_no_pass(images: ImageSet, kernel: Kernel) -> None:
    scenario = Scenario(mechanism="nmi-self", topology=SHAPE)
    with own_session(images, kernel, ring_records=8) as session:
        kept = session.run_trial(scenario, draw_plan(scenario, 1))
    assert kept.evidence.observer is not None
    assert kept.evidence.observer.records_lost > 0
    assert judge(kept.evidence).outcome is Outcome.INVALID


def test_a_missing_witness_is_no_pass(trial: Trial) -> None:
    tried = trial("nmi-self")
    for witness in ("observer", "injections", "guest"):
        blind = msgspec.structs.replace(tried.evidence, **{witness: None})
        verdict = judge(blind)
        assert verdict.outcome is Outcome.INVALID, witness


class _Starver:
    """Sends its NMI while one vCPU thread is stopped by the host, and lets that go well after the window."""

    def __init__(self, machine: Machine, thread_id: int, stop_s: float) -> None:
        self._inner = machine.broadcast
        self._qmp = machine.qmp
        self._thread_id = thread_id
        self._stop_s = stop_s
        self._stopped = threading.Event()
        self.problem = ""
        self._thread = threading.Thread(target=self._stop, daemon=True)

    def inject(self, vcpu: int, deadline: Deadline | None = None) -> tuple[int, int]:
        # The tracer is the thread that attached; so the stop has one of its own, and QEMU goes on beside it.
        self._thread.start()
        assert self._stopped.wait(5), self.problem
        return self._inner.inject(vcpu, deadline)

    def join(self) -> None:
        self._thread.join(10)

    def _qemu_answers(self) -> bool:
        """A vCPU that spins takes QEMU's lock at each PAUSE; stopped with it, it keeps all of QEMU from the NMI."""
        try:
            self._qmp.execute("query-status", deadline=Deadline.after(ANSWER_S))
        except DeadlineError:
            return False
        return True

    def _stop(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for _ in range(STOP_TRIES):
            for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
                if libc.ptrace(request, self._thread_id, None, None) != 0:
                    self.problem = os.strerror(ctypes.get_errno())
                    return
            os.waitpid(self._thread_id, WAIT_FOR_ALL)
            if self._qemu_answers():
                break
            libc.ptrace(PTRACE_DETACH, self._thread_id, None, None)
        else:
            self.problem = "the vCPU held QEMU's lock each time"
            return
        self._stopped.set()
        threading.Event().wait(self._stop_s)
        libc.ptrace(PTRACE_DETACH, self._thread_id, None, None)


def test_a_sibling_that_the_host_never_ran_proves_nothing(images: ImageSet, kernel: Kernel) -> None:
    scenario = Scenario(mechanism="nmi-self", topology=SHAPE, stretch_us=(150_000, 150_000), nmis=1)
    with own_session(images, kernel) as session:
        clean = session.run_trial(scenario, _plan_in_window())
        assert judge(clean.evidence).outcome is Outcome.PASS, judge(clean.evidence).reason
        for _ in range(STARVED_TRIES):
            verdict, hit = _run_starved(session, scenario)
            assert verdict.outcome not in (Outcome.PASS, Outcome.FAIL), verdict.reason
            if hit:
                break
    assert hit, "the sibling was never stopped in time for its NMI to come into the window"
    findings = {invariant.name: invariant.finding for invariant in verdict.invariants}
    assert findings["quiet"] is Finding.UNSEEN


def _run_starved(session: Session, scenario: Scenario) -> tuple[Verdict, bool]:
    """Return the verdict, and whether the NMI came while the window was open and the sibling stopped.

    On a busy host it may take until after the window to stop the sibling where it does not hold QEMU's lock.
    """
    broadcast = session.machine.broadcast
    starver = _Starver(session.machine, session.machine.vcpu_threads(Deadline.after(5))[1], stop_s=0.4)
    session.machine.broadcast = starver
    evidence = session.run_trial(scenario, _plan_in_window()).evidence
    starver.join()
    session.machine.broadcast = broadcast
    assert evidence.injections is not None
    if not evidence.injections.sent:
        # The vCPU held QEMU's lock whenever it was stopped, or QEMU was too slow to show that it did not.
        return judge(evidence), False
    assert evidence.observer is not None
    (window,) = evidence.observer.windows
    (sent,) = evidence.injections.sent
    return judge(evidence), window.open_ns <= sent.send_ns and 0 < sent.reply_ns <= window.close_ns


def _plan_in_window() -> Plan:
    """One NMI in the middle of a window that is most of the load."""
    return Plan(seed=0, stretch_us=(150_000,), injections=(Injection(at_ppm=500_000, aim=Aim.BROADCAST, vcpu=-1),))
