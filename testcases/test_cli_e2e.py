# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line on real guests: exit statuses, and what is left when the lab is ended early."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from lab.build.images import ImageSet
from lab.campaign.database import NAME, open_reader
from lab.campaign.reader import read_records
from lab.campaign.runs import read_run
from lab.cli.axes import read_scenario
from lab.evidence.folder import read_evidence
from lab.host.deadline import Deadline
from lab.host.paths import ROOT, SCENARIOS
from lab.host.run_dir import PREFIX
from lab.model.topology import Topology
from lab.model.verdict import EXIT_STATUS, Outcome

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

#: A shell that starts tests in the background has them ignore SIGINT, and every program they start.
LAB = ("env", "--default-signal=INT", sys.executable, "-m", "lab.cli")
#: Other workers may hold the host's vCPUs, or be building.
PATIENCE_S = 300
SEEDS = (1, 2, 3)


def run_lab(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*LAB, *words),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, **environment},
    )


def wait_until(done: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = Deadline.after(seconds)
    while not done():
        deadline.check(what)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "seeds", "outcome"),
    [
        (("--mechanism", "stop-machine"), SEEDS, Outcome.FAIL),
        (("--mechanism", "nmi-self"), SEEDS, Outcome.PASS),
        # With this seed the one NMI comes right after the load's begin, long before any window.
        (("--mechanism", "nmi-self", "--nmis", "1", "--stretch-us", "0"), (139,), Outcome.INVALID),
    ],
)
def test_a_trial_exits_by_its_outcome_and_judging_again_agrees(
    tmp_path: Path, words: tuple[str, ...], seeds: tuple[int, ...], outcome: Outcome
) -> None:
    for seed in seeds:  # on a busy host a trial may show nothing
        out = tmp_path / str(seed)
        tried = run_lab("trial", *words, "--seed", str(seed), "--out", str(out), "--json")
        if outcome is Outcome.INVALID or tried.returncode != EXIT_STATUS[Outcome.INVALID]:
            break
    assert tried.returncode == EXIT_STATUS[outcome], tried.stdout + tried.stderr
    told = msgspec.json.decode(tried.stdout, type=dict[str, Any])
    assert told["outcome"] == outcome.value
    assert {"mechanism", "seed", "invariants", "nmis", "window_us", "evidence", "reason"} <= told.keys()
    assert (told["mechanism"], told["seed"], told["evidence"]) == (words[1], seed, str(out))
    assert {"sent", "handled"} <= told["nmis"].keys()
    assert set(told["invariants"].values()) <= {"held", "broken", "unseen"}
    assert {"quiet", "harmless"} <= told["invariants"].keys()
    assert set(told["window_us"]) == {"0", "1"}
    judged = run_lab("judge", str(out), "--json")
    assert judged.returncode == tried.returncode
    assert msgspec.json.decode(judged.stdout) == told
    shown = run_lab("judge", str(out))
    assert shown.returncode == tried.returncode
    assert shown.stdout.startswith(outcome.value)


def test_a_scenario_file_and_options_beside_it_are_what_runs(tmp_path: Path) -> None:
    scenario = SCENARIOS / "stop-machine-offline.toml"
    out = tmp_path / "trial"
    tried = run_lab("trial", "--scenario", str(scenario), "--topology", "1x1x2", "--out", str(out), "--json")
    assert tried.returncode == EXIT_STATUS[Outcome.FAIL], tried.stdout + tried.stderr
    kept = read_evidence(out).scenario
    assert kept == msgspec.structs.replace(read_scenario(scenario).scenario, topology=Topology(1, 1, 2))


class Started:
    """A run that is going on, with a guest."""

    def __init__(self, process: "subprocess.Popen[str]", out: Path) -> None:
        self.process = process
        self.out = out
        wait_until(self._is_running, PATIENCE_S, "two records")
        self.guests = [
            each
            for each in psutil.Process(process.pid).children(recursive=True)
            if any("qemu-system" in word for word in each.cmdline())
        ]
        assert self.guests
        # Where QEMU is somebody else, it is handed its files open, and its command line does not name them.
        opened = (Path(each.path) for each in self.guests[0].open_files())
        self.run_dir = next(path.parent for path in opened if path.parent.name.startswith(PREFIX))
        assert self.run_dir.is_dir()

    def _is_running(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        if not (self.out / NAME).is_file():
            return False
        with contextlib.suppress(Exception), open_reader(self.out) as connection:
            return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0]) >= 2
        return False

    def list_left(self) -> list[str]:
        """Return the guests that still run, by their processes and by who else names their folder."""
        left = []
        for each in psutil.process_iter(["pid", "status", "cmdline"]):
            if each.info["status"] != psutil.STATUS_ZOMBIE:
                named = any(str(self.run_dir) in word for word in each.info["cmdline"] or ())
                if named or each in self.guests:
                    left.append(str(each))
        return left


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    out = tmp_path / "run"
    with subprocess.Popen(
        (*LAB, "run", "--mechanism", "nmi-self", "--trials", "200", "--out", str(out)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            running = Started(process, out)
            yield running
            shutil.rmtree(running.run_dir, ignore_errors=True)  # a lab that is killed cannot
        finally:
            process.kill()


def check_kept(out: Path) -> None:
    run = read_run(out)
    assert len(run.records) >= 2
    assert not run.info.finished
    for record in run.records:
        assert read_evidence(out / record.evidence).scenario.mechanism == "nmi-self"
    done = run_lab("report", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["trials"] == len(run.records)
    assert (out / "index.html").stat().st_size > 1000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_its_records_and_no_guest(started: Started, number: signal.Signals) -> None:
    begin = time.monotonic()
    started.process.send_signal(number)
    _, told = started.process.communicate(timeout=60)
    assert started.process.returncode == 130
    assert time.monotonic() - begin < 20
    assert started.list_left() == []
    assert not started.run_dir.exists()
    last = told.splitlines()[-1]
    assert last.startswith("lab: interrupted: ")
    assert f"lab report {started.out}" in last
    assert "Traceback" not in told
    run = read_run(started.out)
    assert run.torn == 0
    assert f"{len(run.records)} trials and their page are kept in '{started.out}'" in last
    assert (started.out / "index.html").is_file()
    check_kept(started.out)


def test_a_run_that_is_killed_leaves_its_records_and_no_guest(started: Started) -> None:
    started.process.kill()
    started.process.communicate(timeout=60)
    assert started.process.returncode == -signal.SIGKILL
    wait_until(lambda: started.list_left() == [], 10, "the guest to end")
    check_kept(started.out)
    # What a lab that was killed leaves can be replaced, whatever it was writing.
    done = run_lab("run", "--mechanism", "nmi-self", "--trials", "1", "--out", str(started.out), "--replace", "--json")
    assert done.returncode in (0, 1), done.stderr
    assert msgspec.json.decode(done.stdout)["trials"] == 1
    assert len(list((started.out / "trials").iterdir())) == 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anybody may read: as root the lab runs QEMU as nobody."""
    with tempfile.TemporaryDirectory(prefix="test-open-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_guest_that_never_boots_ends_a_run_early(tmp_path: Path, open_folder: Path, images: ImageSet) -> None:
    """The kernel is there and QEMU is fit, but ends at once where it is to boot."""
    assert images.kernel.exists()
    qemu = open_folder / "qemu-system-x86_64"
    qemu.write_text(
        f'#!/bin/sh\ncase "$*" in *-kernel*) echo "no such machine" >&2; exit 1 ;; esac\nexec {images.qemu.path} "$@"\n'
    )
    qemu.chmod(0o755)
    out = tmp_path / "out"
    done = run_lab("run", "--trials", "9", "--out", str(out), "--qemu", str(qemu))
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lab: the run was stopped, since no guest of any of its machines boots: trial 3: ")
    run = read_run(out)
    assert [record.outcome for record in run.records] == [Outcome.ERROR] * 3
    assert "no such machine" in " ".join(read_evidence(out / run.records[-1].evidence).console_tail)
    assert not run.info.finished
    assert f"report: {out / 'index.html'}" in done.stdout


def test_a_cell_held_to_be_sound_and_one_known_to_fail_bear_the_list_out(tmp_path: Path) -> None:
    sound = run_lab("sound", "--only", "stop-machine", "--trials", "2", "--out", str(tmp_path / "sound"), "--json")
    told = msgspec.json.decode(sound.stdout, type=dict[str, Any])
    assert sound.returncode == (0 if told["met"] else 1), sound.stderr
    assert len(told["cells"]) == 2
    for each in told["cells"]:
        assert each["outcomes"]["passed"] + each["outcomes"]["invalid"] == 1, each
        assert each["met"] is (each["outcomes"]["passed"] == 1)
    assert (tmp_path / "sound" / "index.html").exists()
    passed = sum(each["outcomes"]["passed"] for each in told["cells"])
    assert len(list((tmp_path / "sound" / "trials").glob("*"))) == 2 - passed

    words = ("--failing", "--only", "nmi-siblings", "--trials", "3")
    failing = run_lab("sound", *words, "--out", str(tmp_path / "failing"))
    assert failing.returncode == 0, failing.stdout + failing.stderr
    assert 'topology = "1x1x2", siblings = "offline"' in failing.stdout
    *_, caught = read_records(tmp_path / "failing")
    assert caught.outcome is Outcome.FAIL
    assert read_evidence(tmp_path / "failing" / caught.evidence / "attempt-1").scenario.offline_threads == (1,)
