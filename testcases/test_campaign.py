# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns on real guests that are stopped, killed and deprived: nothing is lost, doubled or left behind."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil
import pytest
from leftovers import Leftovers

from conftest import find_images
from lab.build.images import ImageSet
from lab.campaign.database import NAME, open_reader
from lab.campaign.definition import CampaignSpec, Limits, Part, choose_trial
from lab.campaign.loop import Result
from lab.campaign.reader import read_records, summarise
from lab.campaign.sitting import INLINE, Watch, Where, start_campaign
from lab.evidence.folder import read_evidence, read_verdict
from lab.host.deadline import Deadline
from lab.host.paths import ROOT, find_cache
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Outcome

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

T = TypeVar("T")

#: A shell that starts tests in the background has them ignore SIGINT, and every program they start.
LAB = ("env", "--default-signal=INT", sys.executable, "-m", "lab.cli", "campaign")
#: Other workers may hold the host's vCPUs, or be building.
PATIENCE_S = 400
SOUND = '{ mechanism = "nmi-self", topology = "1x1x2", stretch_us = [2000, 4000] }'
CONTROL = '{ mechanism = "stop-machine", topology = "1x1x2", stretch_us = [10000, 20000] }'


def write_campaign(folder: Path, *scenarios: str, **limits: object) -> Path:
    path = folder / "night.toml"
    lines = ['summary = "a test"', "seed = 5", "[limits]", *(f"{key} = {value}" for key, value in limits.items())]
    for scenario in scenarios or (SOUND,):
        lines += ["[[scenarios]]", f"scenario = {scenario}"]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def left() -> Iterator[Leftovers]:
    with Leftovers() as left:
        yield left


def run_lab(left: Leftovers, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*LAB, *map(str, words)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=left.environment,
    )


@contextlib.contextmanager
def start_lab(left: Leftovers, *words: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    lab = subprocess.Popen(
        (*LAB, *map(str, words)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**left.environment, **environment},
    )
    try:
        yield lab
    finally:
        lab.kill()
        lab.communicate()


def finish(lab: subprocess.Popen[str]) -> tuple[str, str]:
    return lab.communicate(timeout=PATIENCE_S)


def wait_until(done: Callable[[], T], what: str) -> T:
    deadline = Deadline.after(PATIENCE_S)
    while not (found := done()):
        deadline.check(what)
        time.sleep(0.02)
    return found


def count(folder: Path) -> int:
    if not (folder / NAME).is_file():
        return 0
    with contextlib.suppress(Exception), open_reader(folder) as connection:
        return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])
    return 0


def check_store(folder: Path, numbers: list[int], evidence: Path | None = None) -> None:
    """Assert that exactly these trials are there, once and whole, each the one that its number means.

    :param evidence: what the names of evidence are relative to, in place of the folder
    """
    records = list(read_records(folder))
    assert [record.trial for record in records] == numbers
    spec = read_spec(folder)
    for record in records:
        chosen = choose_trial(spec, record.trial)
        assert (record.mechanism, record.seed) == (chosen.part.scenario.mechanism, chosen.plan.seed)
        assert record.invariants or record.outcome is Outcome.ERROR
    with open_reader(folder) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tried = connection.execute("SELECT number, count(*) FROM attempts GROUP BY number ORDER BY number").fetchall()
        wanted = connection.execute("SELECT number, attempts FROM trials ORDER BY number").fetchall()
        kept = {name for (name,) in connection.execute("SELECT evidence FROM trials WHERE evidence <> ''")}
    assert tried == wanted
    assert {f"trials/{path.name}" for path in ((evidence or folder) / "trials").glob("*")} == kept


def read_spec(folder: Path) -> CampaignSpec:
    with open_reader(folder) as connection:
        (text,) = connection.execute("SELECT spec FROM campaigns").fetchone()
    return msgspec.json.decode(text, type=CampaignSpec)


def find_workers(left: Leftovers) -> list[psutil.Process]:
    return left.find_processes("lab.campaign.worker")


def find_guests(left: Leftovers) -> list[psutil.Process]:
    # Before it is QEMU, the process is setpriv(1) with the same words.
    return [each for each in left.find_processes("qemu-system") if each.name().startswith("qemu")]


@contextlib.contextmanager
def start_cluster(left: Leftovers, folder: Path, workers: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a scheduler and workers as their users do, with a cache of their own as on another host."""
    folder.mkdir()
    environment = {**left.environment, "XDG_CACHE_HOME": str(folder)}
    facts = folder / "scheduler.json"

    def start(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            (sys.executable, "-m", "dask", *words, "--no-dashboard"),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    started = []
    try:
        started.append(start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(facts)))
        wait_until(lambda: facts.is_file() and facts.stat().st_size, "the scheduler to listen")
        address = msgspec.json.decode(facts.read_bytes())["address"]
        options = ("--nthreads", "1", "--resources", "vcpus=2", "--memory-limit", "0", "--local-directory", str(folder))
        started += [start("worker", address, *options) for _ in range(workers)]
        yield address, started[0]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def copy_cache(images: ImageSet, cache: Path) -> None:
    """Copy what a campaign needs into a cache of its own, which a test may clear."""
    shared = find_cache()
    for path in (images.kernel, images.initramfs, images.observer):
        name = path.parent.relative_to(shared)
        shutil.copytree(path.parent, cache / shared.name / name)


def test_workers_of_a_scheduler_are_sent_images_and_its_end_loses_nothing(
    tmp_path: Path, left: Leftovers, images: ImageSet
) -> None:
    """The campaign's cache is cleared as it runs, so that its workers' own is all that is left on their host."""
    folder, cluster, cache = tmp_path / "out", tmp_path / "cluster", tmp_path / "cache"
    file = write_campaign(tmp_path, trials=9, trials_per_guest=1)
    copy_cache(images, cache)
    with start_cluster(left, cluster, 2) as (address, scheduler):
        words = ("start", file, "--out", folder, "--scheduler", address)
        with start_lab(left, *words, XDG_CACHE_HOME=str(cache)) as lab:
            wait_until(lambda: count(folder) >= 1, "a trial to be stored")
            shutil.rmtree(cache)
            received = cluster / find_cache().name / "received"
            wait_until(lambda: received.is_dir() and len(list(received.iterdir())) == 4, "images to be sent")
            done = count(folder)
            wait_until(lambda: count(folder) > done, "a trial on what was sent")
            scheduler.kill()
            _, said = finish(lab)
        assert lab.returncode == 2
        assert "scheduler is gone" in said
    left.check_no_process()
    (summary,) = summarise(folder)
    assert summary.state == "stopped"
    with open_reader(folder) as connection:
        known = {digest for (digest,) in connection.execute("SELECT sha256 FROM images")}
    # QEMU is each host's own, and never sent.
    assert {path.name for path in received.iterdir()} == known - {images.qemu.sha256}
    assert run_lab(left, "resume", folder, "--workers", "1").returncode in (0, 1)
    check_store(folder, list(range(1, 10)))
    left.check(folder)


def test_a_scheduler_that_is_not_there_or_not_fit_is_refused(tmp_path: Path, left: Leftovers) -> None:
    file = write_campaign(tmp_path, trials=1)
    refused = run_lab(left, "start", file, "--out", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:1")
    assert (refused.returncode, refused.stderr.splitlines()[-1][:60]) == (
        2,
        "lab: scheduler 'tcp://127.0.0.1:1' cannot be used: Timed out"[:60],
    )
    left.check(tmp_path / "out")


def test_a_campaign_that_is_killed_is_resumed_to_exactly_its_trials(tmp_path: Path, left: Leftovers) -> None:
    folder = tmp_path / "out"
    file = write_campaign(tmp_path, SOUND, CONTROL, trials=10, retries=0)
    with start_lab(left, "start", file, "--out", folder, "--workers", "2") as lab:
        wait_until(lambda: count(folder) >= 2, "two trials to be stored")
        lab.send_signal(signal.SIGKILL)
        lab.wait(10)
    left.check_no_process()
    before = [record.trial for record in read_records(folder)]
    assert 2 <= len(before) < 10
    assert summarise(folder)[0].state == "killed"
    resumed = run_lab(left, "resume", folder, "--json")
    assert resumed.returncode in (0, 1), resumed.stderr
    told = msgspec.json.decode(resumed.stdout, type=dict[str, Any])
    assert (told["state"], told["done"], told["planned"], told["sittings"]) == ("finished", 10, 10, 2)
    check_store(folder, list(range(1, 11)))
    left.check(folder)


def test_a_killed_worker_and_a_killed_qemu_cost_nothing_but_time(tmp_path: Path, left: Leftovers) -> None:
    folder = tmp_path / "out"
    file = write_campaign(tmp_path, trials=30)
    with start_lab(left, "start", file, "--out", folder, "--workers", "2") as lab:
        wait_until(lambda: count(folder) >= 1, "a trial to be stored")
        workers = find_workers(left)
        assert len(workers) == 2
        # Of two workers one is in the middle of a trial: the guest's.
        (busy, *_) = wait_until(lambda: find_guests(left), "a guest to run")
        killed = busy.parent()
        assert killed is not None
        assert killed.pid in {worker.pid for worker in workers}
        killed.kill()
        done = count(folder)
        wait_until(lambda: count(folder) > done, "another trial to be stored")
        for guest in find_guests(left):
            with contextlib.suppress(psutil.NoSuchProcess):
                guest.kill()
        finish(lab)
    assert lab.returncode in (0, 1)
    (summary,) = summarise(folder)
    assert (summary.state, summary.done) == ("finished", 30)
    check_store(folder, list(range(1, 31)))
    left.check(folder)


def test_a_campaign_is_stopped_after_its_running_trials_and_goes_on(tmp_path: Path, left: Leftovers) -> None:
    folder = tmp_path / "out"
    with start_lab(left, "start", write_campaign(tmp_path, trials=200), "--out", folder, "--workers", "1") as lab:
        wait_until(lambda: count(folder) >= 1, "a trial to be stored")
        told = run_lab(left, "stop", folder)
        assert told.returncode == 0, told.stderr
        _, said = finish(lab)
    assert "it was told to stop" in said
    left.check(folder)
    (summary,) = summarise(folder)
    assert summary.state == "stopped"
    assert 1 <= summary.done < 200
    check_store(folder, list(range(1, summary.done + 1)))
    not_there = run_lab(left, "stop", folder)
    assert (not_there.returncode, "no campaign runs" in not_there.stderr) == (2, True)
    listed = run_lab(left, "list", tmp_path, "--json")
    assert [each["done"] for each in msgspec.json.decode(listed.stdout)["campaigns"]] == [summary.done]
    assert run_lab(left, "resume", folder, "--trials", str(summary.done + 1), "--workers", "0").returncode in (0, 1)
    check_store(folder, list(range(1, summary.done + 2)))
    left.check(folder)


def test_one_interrupt_finishes_the_running_trials_and_two_end_them(tmp_path: Path, left: Leftovers) -> None:
    folder = tmp_path / "out"
    with start_lab(left, "start", write_campaign(tmp_path, trials=50), "--out", folder, "--workers", "1") as lab:
        wait_until(lambda: count(folder) >= 1, "a trial to be stored")
        lab.send_signal(signal.SIGINT)
        _, said = finish(lab)
    assert "Ctrl-C again" in said
    assert lab.returncode in (0, 1)
    left.check(folder)
    done = count(folder)
    check_store(folder, list(range(1, done + 1)))
    with start_lab(left, "resume", folder, "--workers", "1") as lab:
        wait_until(lambda: count(folder) > done, "another trial to be stored")
        wait_until(lambda: left.find_processes("qemu-system"), "a guest to be there")
        lab.send_signal(signal.SIGINT)
        lab.send_signal(signal.SIGINT)
        time.sleep(0.2)
        lab.send_signal(signal.SIGINT)
        begun = time.monotonic()
        finish(lab)
        assert time.monotonic() - begun < 60
    assert lab.returncode == 130
    left.check(folder)
    check_store(folder, list(range(1, count(folder) + 1)))


def test_it_ends_at_so_many_failures_which_are_tried_again(tmp_path: Path, left: Leftovers) -> None:
    folder = tmp_path / "out"
    file = write_campaign(tmp_path, CONTROL, retries=1, keep_passes_one_in=0)
    ran = run_lab(left, "start", file, "--until-failure", "1", "--out", folder, "--workers", "1", "--json")
    (summary,) = summarise(folder)
    assert msgspec.json.decode(ran.stdout, type=dict[str, Any])["state"] == summary.state == "finished"
    assert "have ended in FAIL" in summary.why
    (failure,) = summary.newest
    assert failure.attempts == 2
    assert 1 <= failure.failed <= 2
    attempts = sorted(path.name for path in (folder / failure.evidence).iterdir())
    assert attempts[0] == "attempt-1"
    assert (
        read_evidence(folder / failure.evidence / "attempt-1").plan.seed
        == choose_trial(read_spec(folder), failure.number).plan.seed
    )
    assert read_verdict(folder / failure.evidence / "attempt-1").outcome is Outcome.FAIL
    alone = run_lab(left, "trial", folder, str(failure.number), "--out", tmp_path / "alone", "--json")
    told = msgspec.json.decode(alone.stdout, type=dict[str, Any])
    assert (told["mechanism"], told["seed"]) == (
        "stop-machine",
        choose_trial(read_spec(folder), failure.number).plan.seed,
    )
    left.check(folder)


def test_evidence_beyond_its_room_is_dropped_and_counted(tmp_path: Path, left: Leftovers) -> None:
    folder = tmp_path / "out"
    file = write_campaign(tmp_path, CONTROL, SOUND, trials=3, retries=0, evidence_mib=0, keep_passes_one_in=1)
    run_lab(left, "start", file, "--out", folder, "--workers", "0")
    (summary,) = summarise(folder)
    assert summary.done == 3
    assert (summary.evidence, summary.evidence_bytes) == ({"dropped": 3}, 0)
    check_store(folder, [1, 2, 3])
    left.check(folder)


def test_a_kernel_that_never_boots_costs_its_own_trials_alone(tmp_path: Path, images: ImageSet) -> None:
    """QEMU ends at once with what is no kernel: each try is an ERROR within seconds, and other machines go on."""
    bad = tmp_path / "bzImage"
    bad.write_bytes(b"no kernel at all" * 1_000)
    digest = subprocess.run(("sha256sum", bad), capture_output=True, text=True, check=True).stdout.split()[0]
    broken = msgspec.structs.replace(find_images("linux-6.12"), kernel=bad, kernel_sha256=digest)
    short: dict[str, Any] = {"topology": Topology(1, 1, 2), "stretch_us": (2_000, 4_000)}
    spec = CampaignSpec(
        summary="a test",
        seed=5,
        parts=(
            Part(name="broken", scenario=Scenario(mechanism="upstream", **short), weight=3),
            Part(name="sound", scenario=Scenario(mechanism="nmi-self", **short)),
        ),
        limits=Limits(trials=12, retries=0),
    )
    begun = time.monotonic()
    (tmp_path / "out").mkdir()
    result = start_campaign(
        tmp_path / "out", spec, lambda _: {"linux-6.1": images, "linux-6.12": broken}, Where(workers=INLINE), Watch()
    )
    assert result == Result(finished=True, why="all 12 trials are done")
    took_s = time.monotonic() - begun
    planned = [choose_trial(spec, number).part.name for number in range(1, 13)]
    assert set(planned) == {"broken", "sound"}
    parts = {part.name: part.outcomes for part in summarise(tmp_path / "out")[0].parts}
    assert parts["broken"] == {"ERROR": planned.count("broken")}
    assert sum(parts["sound"].values()) == planned.count("sound")
    assert "ERROR" not in parts["sound"]
    with open_reader(tmp_path / "out") as connection:
        (longest_s,) = connection.execute("SELECT max(took_s) FROM attempts WHERE outcome = 'ERROR'").fetchone()
    assert longest_s < took_s
    check_store(tmp_path / "out", list(range(1, 13)))
    record = next(each for each in read_records(tmp_path / "out") if each.outcome is Outcome.ERROR)
    assert "QEMU" in record.reason or "console" in record.reason


@contextlib.contextmanager
def mount_small(folder: Path, size_kib: int) -> Iterator[None]:
    """Put a small disk at a folder, as only root can."""
    folder.mkdir()
    if subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder), check=False).returncode:
        pytest.skip("needs root, to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(("umount", folder), check=True)


def test_a_full_disk_ends_it_with_one_sentence_and_loses_nothing(tmp_path: Path, left: Leftovers) -> None:
    folder = tmp_path / "small" / "out"
    file = write_campaign(tmp_path, trials=40, keep_passes_one_in=1, evidence_mib=0)
    with mount_small(folder.parent, 512):
        run_lab(left, "start", file, "--trials", "2", "--out", folder, "--workers", "0")
        (before,) = summarise(folder)
        assert before.done == 2
        filler = folder.parent / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as sink:
            while True:
                sink.write(b"x" * 4_096)
        ended = run_lab(left, "resume", folder, "--trials", "40", "--workers", "1")
        assert ended.returncode == 2
        sentence = ended.stderr.splitlines()[-1]
        assert sentence.startswith("lab: ")
        assert "full" in sentence or "No space left" in sentence
        left.check_no_process()
        filler.unlink()
        resumed = run_lab(left, "resume", folder, "--trials", "4", "--workers", "1")
        assert resumed.returncode in (0, 1), resumed.stderr
        check_store(folder, list(range(1, 5)))
        left.check(folder)


def test_two_campaigns_share_a_host_and_a_stopped_qemu_holds_up_neither(tmp_path: Path, left: Leftovers) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    file = write_campaign(tmp_path, trials=20, retries=0)
    with (
        start_lab(left, "start", file, "--out", one, "--workers", "1") as first,
        start_lab(left, "start", file, "--out", two, "--workers", "1") as second,
    ):
        wait_until(lambda: count(one), "a trial of the first to be stored")
        guest = wait_until(lambda: find_guests(left), "a guest to be there")[0]
        guest.suspend()
        # One of the two waits for it now, for longer than this takes.
        refused = [run_lab(left, "resume", folder) for folder in (one, two)]
        assert 2 in {each.returncode for each in refused}
        for each in refused:
            assert each.returncode != 2 or "another lab runs a campaign" in each.stderr
        finish(first)
        finish(second)
    for folder in (one, two):
        assert summarise(folder)[0].state == "finished"
        check_store(folder, list(range(1, 21)))
        left.check(folder)
