# SPDX-License-Identifier: GPL-2.0-or-later
"""A host's wall clock that is set by a day, forth and back, while a campaign runs on it: nothing depends on it."""

import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from leftovers import Leftovers
from test_campaign import SOUND, check_store, count, find_workers, finish, start_lab, wait_until, write_campaign

from lab.campaign.database import open_reader
from lab.campaign.reader import read_records, summarise
from lab.model.verdict import Outcome

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

SHIM = Path(__file__).parent / "clock_step.c"
DAY_S = 86_400
TRIALS = 14
#: Shorter than most trials, so that no wait of one is spared.
STEP_EVERY_S = 0.15


class Clock:
    """The wall clock of all programs that are started with its environment."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "step"
        self.set_by(0)
        shim = folder / "clock_step.so"
        subprocess.run(("gcc", "-O2", "-shared", "-fPIC", "-o", shim, SHIM, "-ldl"), check=True, timeout=60)
        self.environment = {"LD_PRELOAD": str(shim), "CLOCK_STEP": str(self._file)}

    def set_by(self, seconds: int) -> None:
        with open(self._file, "r+b" if self._file.exists() else "xb") as sink:
            sink.write(struct.pack("=q", seconds))


@pytest.fixture
def clock() -> Iterator[Clock]:
    # QEMU is to have that clock as well, and runs as a user who may not look into a test's own folder.
    folder = Path(tempfile.mkdtemp(prefix="clock-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield Clock(folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def left() -> Iterator[Leftovers]:
    with Leftovers() as left:
        yield left


def test_the_clock_of_these_tests_can_be_set(clock: Clock) -> None:
    def ask() -> tuple[float, float]:
        code = "import time; print(time.time(), time.monotonic())"
        words = (sys.executable, "-c", code)
        told = subprocess.run(words, env=clock.environment, capture_output=True, text=True, check=True, timeout=60)
        wall, monotonic = map(float, told.stdout.split())
        return wall - time.time(), monotonic - time.monotonic()

    for step_s in (DAY_S, -DAY_S, 0):
        clock.set_by(step_s)
        for moved, asked in zip(ask(), (step_s, 0), strict=True):
            assert abs(moved - asked) < 60


def keep_stepping(clock: Clock, steps_s: tuple[int, ...], done: Callable[[], bool], what: str) -> None:
    """Set the clock again and again until something is done, and leave it at the first of the steps."""
    at = 0

    def look() -> bool:
        nonlocal at
        at += 1
        clock.set_by(steps_s[at % len(steps_s)])
        time.sleep(STEP_EVERY_S)
        return done()

    wait_until(look, what)
    clock.set_by(steps_s[0])


def test_a_campaign_does_not_notice_a_clock_that_is_set(tmp_path: Path, left: Leftovers, clock: Clock) -> None:
    """Its time is its own, no trial ends by a deadline that has not come, and a worker that is new is let in."""
    folder = tmp_path / "out"
    file = write_campaign(tmp_path, SOUND, trials=TRIALS, retries=0)
    begun = time.monotonic()
    words = ("start", file, "--out", folder, "--workers", "1", "--for", "6h")
    with start_lab(left, *words, **clock.environment) as lab:
        wait_until(lambda: count(folder) >= 1, "a trial to be stored")
        (worker,) = find_workers(left)
        keep_stepping(clock, (DAY_S, 0), lambda: count(folder) >= 5, "trials under a clock that goes forth")
        keep_stepping(clock, (-DAY_S, 0), lambda: count(folder) >= 9, "trials under a clock that goes back")
        # It was not taken for dead either.
        assert find_workers(left) == [worker]
        worker.kill()
        done = count(folder)
        wait_until(lambda: count(folder) > done, "a trial on a worker that joins a day before")
        finish(lab)
    took_s = time.monotonic() - begun
    assert lab.returncode in (0, 1)
    (summary,) = summarise(folder)
    assert (summary.state, summary.done, summary.sittings) == ("finished", TRIALS, 1)
    assert 0 < summary.ran_s < took_s
    assert summary.trials_per_h > TRIALS / took_s * 3_600
    check_store(folder, list(range(1, TRIALS + 1)))
    records = list(read_records(folder))
    assert [record.reason for record in records if record.outcome not in (Outcome.PASS, Outcome.INVALID)] == []
    # A busy host may starve a trial, and then says how; what is of the clock says that something did not answer.
    assert not [record.reason for record in records if "deadline" in record.reason or "connection" in record.reason]
    with open_reader(folder) as connection:
        order = [number for (number,) in connection.execute("SELECT number FROM trials ORDER BY rowid")]
        ((shortest_s, longest_s),) = connection.execute("SELECT min(took_s), max(took_s) FROM attempts")
    assert order == list(range(1, TRIALS + 1))
    assert 0 < shortest_s <= longest_s < took_s
    left.check(folder)
