# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C while a lab waits for vCPUs that another one holds: it ends at once, and has begun nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from leftovers import Leftovers
from test_campaign import PATIENCE_S, check_store, count, finish, run_lab, start_lab, wait_until, write_campaign

from lab.campaign.reader import summarise
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.host.paths import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

#: Workers take some seconds to close; who waits for vCPUs would take until somebody gives them back.
AT_ONCE_S = 30
TRIAL = ("--mechanism", "nmi-self", "--topology", "1x1x2")
#: A shell that starts tests in the background has them ignore SIGINT, and every program they start.
LAB = ("env", "--default-signal=INT", sys.executable, "-m", "lab.cli")


@pytest.fixture
def left() -> Iterator[Leftovers]:
    with Leftovers() as left:
        yield left


@contextlib.contextmanager
def all_vcpus() -> Iterator[None]:
    with admit(os.cpu_count() or 1, Deadline.after(PATIENCE_S)):
        yield


def is_waiting(process: subprocess.Popen[str]) -> bool:
    """Say whether a lab, or a worker of its, waits for vCPUs: it has the file open by which they queue up."""
    for each in (process.pid, *child_pids(process.pid)):
        with contextlib.suppress(OSError):
            if any(entry.readlink().name == "gate" for entry in Path(f"/proc/{each}/fd").iterdir()):
                return True
    return False


def child_pids(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = [int(word) for word in (task / "children").read_text().split()]
            found += [each for child in children for each in (child, *child_pids(child))]
    return found


@pytest.mark.parametrize(("workers", "ask"), [("0", "Ctrl-C"), ("1", "Ctrl-C"), ("1", "stop")])
def test_a_campaign_that_waits_for_vcpus_ends_at_once(tmp_path: Path, left: Leftovers, workers: str, ask: str) -> None:
    folder = tmp_path / "out"
    file = write_campaign(tmp_path, trials=200)
    with start_lab(left, "start", file, "--out", folder, "--workers", workers) as lab:
        wait_until(lambda: count(folder) >= 1, "a trial to be stored")
        with all_vcpus():
            wait_until(lambda: is_waiting(lab), "the campaign to wait for vCPUs")
            done = count(folder)
            begun = time.monotonic()
            if ask == "stop":
                assert run_lab(left, "stop", folder).returncode == 0
            else:
                lab.send_signal(signal.SIGINT)
            _, said = finish(lab)
            assert time.monotonic() - begun < AT_ONCE_S
            left.check(folder)
        assert lab.returncode in (0, 1)
        assert ("it was told to stop" if ask == "stop" else "it was interrupted") in said
    (summary,) = summarise(folder)
    # The last trial that ran may have been on its way to the store.
    assert (summary.state, summary.done) in {("stopped", done), ("stopped", done + 1)}
    if ask == "Ctrl-C":
        until = summary.done + 2
        assert run_lab(left, "resume", folder, "--trials", str(until), "--workers", workers).returncode in (0, 1)
        check_store(folder, list(range(1, until + 1)))
        left.check(folder)


def test_an_hour_that_is_over_ends_a_wait_for_vcpus(tmp_path: Path, left: Leftovers) -> None:
    folder = tmp_path / "out"
    with all_vcpus():
        words = ("start", write_campaign(tmp_path, trials=3), "--out", folder, "--workers", "0", "--for", "2s")
        with start_lab(left, *words) as lab:
            finish(lab)
    assert lab.returncode == 1
    (summary,) = summarise(folder)
    assert (summary.state, summary.done) == ("finished", 0)
    assert "minutes are over" in summary.why
    left.check(folder)


def run_words(folder: Path) -> tuple[str, ...]:
    return ("run", "--trials", "2", *TRIAL, "--out", str(folder))


def trial_words(folder: Path) -> tuple[str, ...]:
    return ("trial", *TRIAL, "--out", str(folder))


def sweep_words(folder: Path) -> tuple[str, ...]:
    return ("sweep", *TRIAL, "--out", str(folder))


@pytest.mark.parametrize("words", [run_words, trial_words, sweep_words])
def test_a_command_that_waits_for_vcpus_ends_at_once(
    tmp_path: Path, left: Leftovers, words: Callable[[Path], tuple[str, ...]]
) -> None:
    folder = tmp_path / "out"
    with all_vcpus():
        lab = subprocess.Popen(
            (*LAB, *words(folder)), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=left.environment
        )
        try:
            wait_until(lambda: is_waiting(lab), "the lab to wait for vCPUs")
            begun = time.monotonic()
            lab.send_signal(signal.SIGINT)
            _, said = finish(lab)
            assert time.monotonic() - begun < AT_ONCE_S
        finally:
            lab.kill()
            lab.communicate()
        left.check_no_process()
    assert lab.returncode == 130
    assert said.splitlines()[-1].startswith("lab: interrupted: no guest is left")
    assert left.find_folders() == []
