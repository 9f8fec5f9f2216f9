# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures for cases on real guests.

``images`` are built once and shared by all workers and checkouts, ``guest`` is a warm guest of the worker's own (and
``guests`` gives one of each machine),
``trial`` runs one late load in it, judges it and keeps the evidence. Workers may be many: guests run only as the host's
vCPU budget admits them (lab.host.admission).
"""

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.build.images import ImageSet, build_images
from lab.build.kernel import DEFAULT_BASE, build_recipe, find_recipe
from lab.spec.boot import Boot
from lab.spec.evidence import Evidence
from lab.spec.plan import draw_plan
from lab.spec.scenario import Scenario
from lab.spec.topology import Topology
from lab.spec.verdict import Finding, TrialRecord, Verdict
from lab.trial.given import GivenKernel, build_around, take_kernel
from lab.trial.pool import WarmGuest
from lab.trial.record import keep_trial
from lab.witness.kernel import Kernel, read_kernel

#: Whose source shows what a kernel that users bring may be.
UNPATCHED = {"stock-before-6.7": "linux-6.1", "stock-since-6.7": "linux-6.12"}

_EVIDENCE = pytest.StashKey[list[Path]]()


def pytest_xdist_auto_num_workers() -> int:
    """One worker per host CPU; what guests they may run beside each other is decided by vCPUs, at run time."""
    return os.cpu_count() or 1


@functools.cache
def find_images(base: str) -> ImageSet:
    """Build a kernel's images, or find them in the cache."""
    return build_around(find_unpatched(base), print) if base in UNPATCHED else build_images(print, base)


@functools.cache
def find_unpatched(base: str) -> GivenKernel:
    """Build a kernel without our patches in the kept tree of one with them, and take it as if a user had brought it."""
    built = build_recipe(find_recipe(UNPATCHED[base]).unpatched, print)
    return take_kernel(built.image, built.vmlinux)


@functools.cache
def find_kernel(base: str) -> Kernel:
    """Read a kernel's functions and code."""
    return read_kernel(find_images(base).vmlinux)


@pytest.fixture(scope="session")
def images() -> ImageSet:
    """All that a guest is booted from, built or found in the cache."""
    return find_images(DEFAULT_BASE)


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The default kernel's functions and code."""
    return find_kernel(DEFAULT_BASE)


@pytest.fixture(scope="session")
def guests() -> Iterator[Callable[[Boot], WarmGuest]]:
    """A warm guest of each machine, made when it is asked for."""
    with contextlib.ExitStack() as stack:
        warm: dict[Boot, WarmGuest] = {}

        def find(boot: Boot) -> WarmGuest:
            if boot not in warm:
                made = WarmGuest(find_images(boot.base), find_kernel(boot.base), boot, print)
                warm[boot] = stack.enter_context(made)
            return warm[boot]

        yield find


@pytest.fixture(scope="session")
def guest(guests: Callable[[Boot], WarmGuest]) -> WarmGuest:
    """The warm guest of the default kernel, with two cores of two threads each."""
    return guests(Boot(base=DEFAULT_BASE, topology=Topology(1, 2, 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One trial that a case has run."""

    evidence: Evidence
    verdict: Verdict
    record: TrialRecord
    folder: Path

    def finding(self, name: str) -> Finding:
        """What was found of one invariant."""
        return self.record.invariants[name]


Trial = Callable[..., Tried]


@pytest.fixture
def trial(guests: Callable[[Boot], WarmGuest], tmp_path: Path, request: pytest.FixtureRequest) -> Trial:
    """Run one trial: ``trial("nmi-self", seed=3, nmis=8)``; further names are fields of lab.spec.scenario.Scenario."""
    folders: list[Path] = []
    request.node.stash[_EVIDENCE] = folders

    def run(mechanism: str, *, seed: int = 1, **fields: Any) -> Tried:
        scenario = Scenario(mechanism=mechanism, **fields)
        scenario.check()
        kept = guests(scenario.boot).run_trial(scenario, draw_plan(scenario, seed), keep_files=True)
        folder = tmp_path / f"trial-{len(folders):03}"
        folders.append(folder)
        verdict, record = keep_trial(folder, kept, len(folders), str(folder))
        return Tried(evidence=kept.evidence, verdict=verdict, record=record, folder=folder)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Name the evidence of a case that failed; what a guest said must not reach the terminal unclean."""
    report = yield
    folders = item.stash.get(_EVIDENCE, [])
    if call.when == "call" and report.failed and folders:
        report.sections.append(("evidence", "\n".join(f"lab judge {folder}" for folder in folders)))
    return report
