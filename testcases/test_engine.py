# SPDX-License-Identifier: GPL-2.0-or-later
"""An unmodified kernel takes, or does not take, an update from the engine in the observer, on a QEMU that lets it.

QEMU 11.1 of Debian's trixie-backports is fetched and unpacked once, as for testcases/test_other_releases.py.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from conftest import find_kernel, find_unpatched
from lab.build.images import ImageSet, build_images
from lab.build.kernel import UNPATCHED
from lab.build.qemu import examine_qemu
from lab.build.qemu_release import build_qemu
from lab.errors import HostError
from lab.judge import judge
from lab.judge.finding import NEEDS_ENGINE
from lab.judge.judging import list_accused
from lab.mechanisms.table import find_mechanism
from lab.model.boot import Boot
from lab.model.engine import Engine
from lab.model.evidence import Evidence, Sees, Taken
from lab.model.plan import draw_plan
from lab.model.qemu import Qemu
from lab.model.scenario import Scenario, Siblings
from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome, Verdict
from lab.trial.given import build_around
from lab.trial.pool import WarmGuest

pytestmark = pytest.mark.e2e

RELEASE = "trixie-backports"
#: On a busy host a trial may show nothing.
SEEDS = (1, 2, 3)
EIO = 5
ENOENT = 2


@functools.cache
def find_images(base: str, qemu: Qemu) -> ImageSet:
    return build_around(find_unpatched(base), print, qemu) if base in UNPATCHED else build_images(print, qemu, base)


class Bench:
    """Warm guests on one QEMU, one at a time."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self._guest: WarmGuest | None = None
        self._boot: Boot | None = None

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        if self._guest is not None:
            self._guest.retire()

    def load(self, mechanism: str, *, seed: int = 1, outside: bool = False, **fields: Any) -> tuple[Evidence, Verdict]:
        """Run one trial, with the engine in the observer also where the kernel has one."""
        scenario = Scenario(mechanism=mechanism, **fields)
        scenario.check()
        boot = msgspec.structs.replace(scenario.boot, outside=outside or scenario.boot.outside)
        base = find_mechanism(mechanism).base
        if boot != self._boot or self._guest is None:
            self.__exit__()
            self._guest = WarmGuest(find_images(base, self._qemu), find_kernel(base), boot, print)
            self._boot = boot
        evidence = self._guest.run_trial(scenario, draw_plan(scenario, seed)).evidence
        return evidence, judge(evidence)

    def pass_once(self, mechanism: str, **fields: Any) -> tuple[Evidence, Verdict]:
        """Return the first PASS of a few trials; none of them may accuse the kernel."""
        tries = [self.load(mechanism, seed=seed, **fields) for seed in SEEDS]
        reasons = [verdict.reason for _, verdict in tries]
        assert not {verdict.outcome for _, verdict in tries} & {Outcome.FAIL, Outcome.ERROR}, reasons
        passed = [each for each in tries if each[1].outcome is Outcome.PASS]
        assert passed, reasons
        return passed[0]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    try:
        qemu = examine_qemu(build_qemu(RELEASE, lambda _: None))
    except HostError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no QEMU of {RELEASE} here: {error}")
    with Bench(qemu) as bench:
        yield bench


def find(verdict: Verdict, name: str) -> tuple[Finding, bool]:
    return next((one.finding, one.required) for one in verdict.invariants if one.name == name)


def list_taken(evidence: Evidence) -> list[Taken]:
    assert evidence.observer is not None
    assert Sees.ENGINE in evidence.observer.sees
    return [update.taken for update in evidence.observer.updates]


def test_mainline_as_it_is_takes_the_update_and_gets_a_whole_verdict(bench: Bench) -> None:
    evidence, verdict = bench.pass_once("stock-nmi")
    assert evidence.guest is not None
    assert list_taken(evidence) == [Taken.DONE, Taken.DONE]
    assert (evidence.guest.load_errno, evidence.guest.repeat_errno) == (0, ENOENT)
    assert set(evidence.guest.revisions_after) == {evidence.guest.target_revision}
    for name in (*NEEDS_ENGINE, "right-image"):
        assert find(verdict, name) == (Finding.HELD, True), name


def test_offline_siblings_come_back_with_the_revision_of_their_core(bench: Bench) -> None:
    one_core = Topology(1, 1, 2)
    evidence, verdict = bench.pass_once("stock-nmi", topology=one_core, siblings=Siblings.RETURNING)
    assert evidence.guest is not None
    assert evidence.guest.returned is not None
    assert set(evidence.guest.returned.revisions) == {evidence.guest.target_revision}
    assert find(verdict, "offline-siblings-return") == (Finding.HELD, True)


def test_the_old_rendezvous_takes_it_too_and_is_caught_by_its_siblings(bench: Bench) -> None:
    tries = [bench.load("stock-rendezvous", seed=seed) for seed in SEEDS]
    failed = [(evidence, verdict) for evidence, verdict in tries if verdict.outcome is Outcome.FAIL]
    assert failed, [verdict.reason for _, verdict in tries]
    evidence, verdict = failed[0]
    assert "quiet" in list_accused(verdict)
    assert set(list_taken(evidence)) == {Taken.DONE}
    assert find(verdict, "one-update-per-core") == (Finding.HELD, True)
    assert find(verdict, "new-revision-everywhere") == (Finding.HELD, True)


@pytest.mark.parametrize(
    ("engine", "taken"),
    [(Engine.REFUSES, Taken.REFUSED), (Engine.FAULTS, Taken.FAULT), (Engine.OTHER_REVISION, Taken.OTHER)],
)
def test_mainline_reports_an_update_that_did_not_take_effect(bench: Bench, engine: Engine, taken: Taken) -> None:
    evidence, verdict = bench.pass_once("stock-nmi", engine=engine)
    assert evidence.guest is not None
    assert set(list_taken(evidence)) == {taken}
    assert evidence.guest.load_errno == EIO
    assert evidence.guest.revisions_after == evidence.guest.revisions_before
    assert find(verdict, "errno-and-messages") == (Finding.HELD, True)


def test_mainline_reports_an_update_that_one_core_alone_took(bench: Bench) -> None:
    evidence, verdict = bench.pass_once("stock-nmi", engine=Engine.ONE_CORE)
    assert evidence.guest is not None
    assert sorted(each.value for each in list_taken(evidence)) == [Taken.DONE.value, Taken.REFUSED.value]
    assert evidence.guest.load_errno == EIO
    target, before = evidence.guest.target_revision, evidence.guest.revisions_before
    assert evidence.guest.revisions_after == (target, target, *before[2:])
    assert "load incomplete" in next(one.reason for one in verdict.invariants if one.name == "errno-and-messages")


def test_mainline_warns_that_features_have_changed(bench: Bench) -> None:
    evidence, verdict = bench.pass_once("stock-nmi", engine=Engine.CPUID_CHANGES)
    assert evidence.guest is not None
    assert evidence.observer is not None
    assert list_taken(evidence) == [Taken.DONE, Taken.DONE]
    assert evidence.observer.cpuid_missed == 0
    assert any("CPU features have changed after loading microcode" in line for line in evidence.guest.dmesg)
    assert find(verdict, "errno-and-messages") == (Finding.HELD, True)


@pytest.mark.parametrize("mechanism", ["upstream", "stop-machine"])
def test_the_engine_of_the_kernel_and_that_of_the_observer_give_one_verdict(bench: Bench, mechanism: str) -> None:
    told = []
    for outside in (False, True):
        tries = [bench.load(mechanism, seed=seed, outside=outside) for seed in SEEDS]
        shown = [verdict for _, verdict in tries if verdict.outcome is not Outcome.INVALID]
        assert shown, [verdict.reason for _, verdict in tries]
        told.append({verdict.outcome for verdict in shown})
        seen = [evidence.observer.sees for evidence, _ in tries if evidence.observer is not None]
        assert all((Sees.ENGINE in sees) is outside for sees in seen)
    assert told[0] == told[1]
    assert len(told[0]) == 1
