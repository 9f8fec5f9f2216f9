# SPDX-License-Identifier: GPL-2.0-or-later
"""Worker processes of a campaign's own host: real ones, with a station that does what the trial's number says."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from night_samples import make_spec

from lab.campaign.executor import Ended
from lab.campaign.image_transfer import ImageSource
from lab.campaign.job import Broken, Job, TrialDone, Unstarted
from lab.campaign.processes import MAX_DEATHS, MAX_FILLS, ProcessExecutor
from lab.errors import HostError
from lab.host.paths import find_cache

SOUND, DIES_ONCE, ALWAYS_DIES, WAITS, NO_HOST, LACKS_ONCE, ALWAYS_LACKS, DEFECT = range(1, 9)
PATIENCE_S = 60.0
FILE = b"an image"

STATION = f"""
import os, pathlib, signal, sys, threading
from multiprocessing.connection import Connection
from night_samples import make_done
from lab.campaign.job import Missing, Unstarted
from lab.campaign.worker import serve
from lab.errors import HostError

class Station:
    def __init__(self):
        self.given_up = threading.Event()

    def is_first(self, number):
        try:
            pathlib.Path(os.environ["TRIED"], str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def run(self, job):
        number = job.number
        if number == {ALWAYS_DIES} or number == {DIES_ONCE} and self.is_first(number):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == {WAITS}:
            self.given_up.wait()
            return Unstarted(number=number)
        if number == {NO_HOST}:
            raise HostError("no space")
        if number == {DEFECT}:
            raise ZeroDivisionError("a defect")
        if number == {ALWAYS_LACKS} or number == {LACKS_ONCE} and self.is_first(number):
            return Missing(number=number, worker="w", cache="c", digests=("DIGEST",))
        return make_done(number)

    def withdraw(self, campaign):
        assert campaign == "u"
        self.given_up.set()

    def abort(self):
        self.given_up.set()

    def close(self):
        pass

with Connection(int(sys.argv[1])) as pipe:
    serve(pipe, Station())
"""


class OneFile(ImageSource):
    def __init__(self, digest: str) -> None:
        self._digest = digest

    def read(self, digest: str) -> bytes:
        assert digest == self._digest
        return FILE


@pytest.fixture
def digest() -> str:
    return hashlib.sha256(FILE).hexdigest()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str) -> tuple[str, ...]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("TRIED", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return (sys.executable, "-c", STATION.replace("DIGEST", digest))


@pytest.fixture
def executor(program: tuple[str, ...], digest: str) -> Iterator[ProcessExecutor]:
    with ProcessExecutor(2, OneFile(digest), program) as executor:
        yield executor
        workers = psutil.Process().children()
    assert all(not worker.is_running() for worker in workers)


def job(number: int) -> Job:
    return Job(campaign="u", spec=make_spec(trials=9), number=number, images={})


def wait(executor: ProcessExecutor, count: int) -> list[Ended]:
    found: list[Ended] = []
    until = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < until
        found += executor.wait(0.1)
    return found


def wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_workers_run_trials_beside_each_other(executor: ProcessExecutor) -> None:
    assert executor.capacity == 2
    executor.submit(job(WAITS))
    executor.submit(job(SOUND))
    (done,) = wait(executor, 1)
    assert isinstance(done, TrialDone)
    assert (done.number, done.record.mechanism) == (SOUND, "nmi-self")
    executor.withdraw()
    assert wait(executor, 1) == [Unstarted(number=WAITS)]


def test_a_killed_worker_costs_its_trial_one_attempt(executor: ProcessExecutor) -> None:
    executor.submit(job(DIES_ONCE))
    (done,) = wait(executor, 1)
    assert isinstance(done, TrialDone)
    executor.submit(job(SOUND))
    executor.submit(job(SOUND))
    assert len(wait(executor, 2)) == 2


def test_a_trial_with_which_all_workers_die_is_the_reason(executor: ProcessExecutor) -> None:
    executor.submit(job(ALWAYS_DIES))
    (broken,) = wait(executor, 1)
    assert isinstance(broken, Broken)
    assert f"{MAX_DEATHS - 1} others" in broken.reason


@pytest.mark.parametrize(("number", "told"), [(NO_HOST, "no space"), (DEFECT, "ZeroDivisionError: a defect")])
def test_a_host_that_fails_takes_no_trial_with_it_that_has_ended(
    executor: ProcessExecutor, number: int, told: str
) -> None:
    executor.submit(job(WAITS))
    executor.submit(job(number))
    with pytest.raises(HostError, match=told):
        wait(executor, 1)
    assert executor.capacity == 0
    executor.withdraw()
    with pytest.raises(HostError, match=told):
        executor.submit(job(SOUND))


def test_a_cache_that_was_cleared_is_filled_again(executor: ProcessExecutor, digest: str) -> None:
    executor.submit(job(LACKS_ONCE))
    (done,) = wait(executor, 1)
    assert isinstance(done, TrialDone)
    assert (find_cache() / "received" / digest).read_bytes() == FILE


def test_a_cache_that_is_cleared_for_ever_ends_the_campaign(executor: ProcessExecutor) -> None:
    executor.submit(job(ALWAYS_LACKS))
    with pytest.raises(HostError, match=f"removed {MAX_FILLS} times"):
        wait(executor, 1)


def test_a_worker_that_cannot_start_ends_the_campaign_with_its_last_words(digest: str) -> None:
    program = (sys.executable, "-c", "raise SystemExit('no module')")
    with ProcessExecutor(1, OneFile(digest), program) as executor, pytest.raises(HostError, match="no module"):
        wait(executor, 1)


PARENT = """
import sys, time
from pathlib import Path
from night_samples import make_spec
from lab.campaign.image_transfer import ImageSource
from lab.campaign.job import Job
from lab.campaign.processes import ProcessExecutor

with ProcessExecutor(2, ImageSource({}), (sys.executable, "-c", Path(sys.argv[1]).read_text())) as executor:
    executor.submit(Job(campaign="u", spec=make_spec(trials=9), number=int(sys.argv[2]), images={}))
    time.sleep(600)
"""


def test_no_worker_outlives_a_campaign_that_is_killed(program: tuple[str, ...], tmp_path: Path) -> None:
    station = tmp_path / "station.py"
    station.write_text(program[2])
    words = (sys.executable, "-c", PARENT, str(station), str(WAITS))
    where = os.pathsep.join((os.environ["PYTHONPATH"], os.fspath(Path(__file__).parents[2])))
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": where}) as parent:
        campaign = psutil.Process(parent.pid)
        with contextlib.ExitStack() as end:
            end.callback(parent.kill)
            wait_until(lambda: len([each for each in campaign.children() if "python" in each.name()]) == 2)
            workers = campaign.children()
            parent.send_signal(signal.SIGKILL)
            parent.wait()
    wait_until(lambda: not any(worker.is_running() for worker in workers))
