# SPDX-License-Identifier: GPL-2.0-or-later
"""Warm guests on a host whose vCPUs are others': waits that are told, and trials that get no guest."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evidence_builder import Load

from lab.errors import DeadlineError, GuestGone
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.model.evidence import Ending
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.trial import pool
from lab.trial.pool import WarmGuest
from lab.trial.session import Kept

SCENARIOS = (Scenario(mechanism="nmi-self"), Scenario(mechanism="stop-machine"))
NO_IMAGES: Any = None
MACHINE = SCENARIOS[0].boot


class FakeSession:
    """A guest that gives the same evidence for every trial, and then is of no more use."""

    usable = False

    def run_trial(self, *_: object, **__: object) -> Kept:
        return Kept(Load().build(), {})


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


def boot(monkeypatch: pytest.MonkeyPatch, boots: str) -> None:
    """Let guests boot (b), or not, by dying (d) or by missing the deadline (l), the last for ever."""
    outcomes = iter(boots)
    last = boots[-1]

    @contextlib.contextmanager
    def open_session(*_: object) -> Iterator[FakeSession]:
        letter = next(outcomes, last)
        if letter == "d":
            raise GuestGone("QEMU ended with status 1\nconsole: Kernel panic - no init")
        if letter == "l":
            raise DeadlineError("deadline reached while waiting for SSH")
        yield FakeSession()

    monkeypatch.setattr(pool, "open_session", open_session)


def test_a_long_wait_for_vcpus_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    boot(monkeypatch, "b")
    monkeypatch.setattr(pool, "ADMISSION_S", 1.5)
    told: list[str] = []
    share = min(4, os.cpu_count() or 1)
    with (
        admit(os.cpu_count() or 1, Deadline.after(5)),
        WarmGuest(NO_IMAGES, NO_IMAGES, MACHINE, told.append) as guest,
    ):
        guest.run_trial(SCENARIOS[0], draw_plan(SCENARIOS[0], 1))
    assert told == [f"waiting for {share} vCPUs of this host"]


def test_a_short_wait_is_not_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    boot(monkeypatch, "b")
    told: list[str] = []
    with contextlib.ExitStack() as others:
        others.enter_context(admit(os.cpu_count() or 1, Deadline.after(5)))
        threading.Timer(0.1, others.close).start()
        with WarmGuest(NO_IMAGES, NO_IMAGES, MACHINE, told.append) as guest:
            guest.run_trial(SCENARIOS[0], draw_plan(SCENARIOS[0], 1))
    assert told == ["booting a guest: linux-6.1 1x2x2"]


def test_a_host_whose_vcpus_are_never_free_ends_a_trial_without_a_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    boot(monkeypatch, "b")
    monkeypatch.setattr(pool, "ADMISSION_S", 0.05)
    with (
        admit(os.cpu_count() or 1, Deadline.after(5)),
        WarmGuest(NO_IMAGES, NO_IMAGES, MACHINE, lambda _: None) as guest,
    ):
        kept = guest.run_trial(SCENARIOS[0], draw_plan(SCENARIOS[0], 1))
    assert (guest.failed_boots, kept.evidence.ending) == (1, Ending.LAB)
    assert "vCPUs to be free" in kept.evidence.reason


@pytest.mark.parametrize(("boots", "told"), [("d", "QEMU ended with status 1"), ("l", "waiting for SSH")])
def test_a_guest_that_does_not_boot_leaves_its_last_words(
    monkeypatch: pytest.MonkeyPatch, boots: str, told: str
) -> None:
    boot(monkeypatch, boots)
    with WarmGuest(NO_IMAGES, NO_IMAGES, MACHINE, lambda _: None) as guest:
        kept = [guest.run_trial(SCENARIOS[0], draw_plan(SCENARIOS[0], seed)) for seed in range(3)][-1]
    assert guest.failed_boots == 3
    assert told in kept.evidence.reason
    assert "\n" not in kept.evidence.reason
    if boots == "d":
        assert kept.evidence.console_tail == ("console: Kernel panic - no init",)


def test_a_guest_that_boots_ends_the_count_of_those_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    boot(monkeypatch, "ddb")
    with WarmGuest(NO_IMAGES, NO_IMAGES, MACHINE, lambda _: None) as guest:
        counts = []
        for seed in range(3):
            guest.run_trial(SCENARIOS[0], draw_plan(SCENARIOS[0], seed))
            counts.append(guest.failed_boots)
    assert counts == [1, 2, 0]
