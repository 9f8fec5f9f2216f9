# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns on a host that gives no guest: bounded, stored, explained."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evidence_builder import Load
from report_samples import IMAGES, make_evidence

from lab.build.kernel import DEFAULT_BASE
from lab.campaign.run_store import RunStore, read_run
from lab.campaign.runner import NOT_MET, Ran, describe_run, run_trials
from lab.errors import DeadlineError, GuestGone, HostError
from lab.evidence.folder import read_evidence
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome, TrialRecord
from lab.report.page import write_report
from lab.trial import pool
from lab.trial.pool import WarmGuest, WarmGuests
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


def campaign(folder: Path, trials: int, told: list[str] | None = None) -> tuple[Ran, list[TrialRecord]]:
    info = describe_run(("lab", "run"), SCENARIOS, trials, 7, (IMAGES,))
    seen: list[TrialRecord] = []
    tell = (told if told is not None else []).append
    with (
        RunStore(folder, info) as store,
        WarmGuests({DEFAULT_BASE: NO_IMAGES}, {DEFAULT_BASE: NO_IMAGES}, tell) as guests,
    ):
        ran = run_trials(guests, store, SCENARIOS, trials, 7, seen.append)
        store.finish(ran.exit_status)
    return ran, seen


@pytest.mark.parametrize("boots", ["d", "l", "dl"])
def test_three_guests_in_a_row_that_do_not_boot_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boots: str
) -> None:
    boot(monkeypatch, boots)
    ran, seen = campaign(tmp_path / "run", trials=20)
    assert len(ran.records) == len(seen) == 3
    assert ran.exit_status == NOT_MET
    assert "stopped after 3 of 40" in ran.stopped
    assert ("QEMU ended with status 1" if boots == "d" else "waiting for SSH") in ran.stopped
    assert str(tmp_path / "run" / ran.records[-1].evidence) in ran.stopped
    assert "\n" not in ran.stopped
    run = read_run(tmp_path / "run")
    assert run.records == ran.records
    assert {record.outcome for record in run.records} == {Outcome.ERROR}
    assert (run.info.finished, run.info.exit_status) == (True, NOT_MET)
    assert write_report(tmp_path / "run").exists()
    if boots == "d":
        last = read_evidence(tmp_path / "run" / ran.records[-1].evidence)
        assert last.console_tail == ("console: Kernel panic - no init",)


def test_a_guest_between_them_lets_a_run_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot(monkeypatch, "ddbddb")
    ran, _ = campaign(tmp_path / "run", trials=3)
    assert len(ran.records) == 6
    assert ran.stopped == ""
    assert [record.outcome is Outcome.ERROR for record in ran.records] == [True, True, False] * 2


def test_a_host_whose_vcpus_are_never_free_gives_error_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot(monkeypatch, "b")
    monkeypatch.setattr(pool, "ADMISSION_S", 0.05)
    with admit(os.cpu_count() or 1, Deadline.after(5)):
        ran, _ = campaign(tmp_path / "run", trials=20)
    assert [record.outcome for record in ran.records] == [Outcome.ERROR] * 3
    assert "vCPUs to be free" in ran.stopped
    assert write_report(tmp_path / "run").exists()


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


def test_a_host_that_fails_ends_a_run_with_its_records_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot(monkeypatch, "b")
    kept = iter([Kept(make_evidence(), {}), Kept(make_evidence(), {})])

    def run_trial(*_: object, **__: object) -> Kept:
        try:
            return next(kept)
        except StopIteration:
            raise HostError("no space") from None

    monkeypatch.setattr(FakeSession, "run_trial", run_trial)
    with pytest.raises(HostError, match="no space"):
        campaign(tmp_path / "run", trials=20)
    assert len(read_run(tmp_path / "run").records) == 2
