# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns whose guests panic, hang, reboot, lose their SSH server or flood their consoles: each trial counts once."""

import hashlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from faulty_guest import FLOODS, HANGS, HUNG, LOSES_SSH, PANICS, REBOOTS, SOUND, make_faulty_cache, spoil_payload
from leftovers import Leftovers
from test_campaign import check_store, count, finish, read_spec, run_lab, start_lab, wait_until

from conftest import find_images, find_kernel
from lab.build.images import ImageSet
from lab.campaign.database import open_reader
from lab.campaign.definition import CampaignSpec, Limits, Part, choose_trial
from lab.campaign.loop import Result
from lab.campaign.reader import read_records, summarise
from lab.campaign.sitting import INLINE, Watch, Where, start_campaign
from lab.errors import GuestGone
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.model.boot import Boot
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Outcome, TrialRecord
from lab.trial.opening import BOOT_S, open_session
from lab.trial.pool import MAX_FAILED_BOOTS

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

FAULTS = (FLOODS, PANICS, HANGS, REBOOTS, LOSES_SSH)
TRIALS = 10
#: What a process takes for one trial's evidence, and no more for the next.
GROWTH_MIB = 96
#: The console's last MiB, cleaned, is the largest part of a trial's evidence.
EVIDENCE_MIB = 8


@pytest.fixture
def left() -> Iterator[Leftovers]:
    with Leftovers() as left:
        yield left


def choose_seed() -> int:
    """Return a campaign's seed that has one trial of each fault, the flood first, between and before sound ones."""
    parts = tuple(Part(name=name, scenario=Scenario(mechanism=name)) for name in (SOUND, *FAULTS))
    for seed in itertools.count(1):
        spec = CampaignSpec(summary="", seed=seed, parts=parts, limits=Limits(trials=TRIALS))
        order = [choose_trial(spec, number).part.name for number in range(1, TRIALS + 1)]
        faults = [name for name in order if name != SOUND]
        if sorted(faults) == sorted(FAULTS) and faults[0] == FLOODS and order[0] == order[2] == order[-1] == SOUND:
            return seed
    raise AssertionError


def write_faulty(path: Path, seed: int) -> Path:
    lines = ['summary = "faults"', f"seed = {seed}", "[limits]", f"trials = {TRIALS}", "retries = 0"]
    lines.append("keep_passes_one_in = 1")
    for name in (SOUND, *FAULTS):
        shape = 'topology = "1x1x2", stretch_us = [2000, 4000]'
        lines += ["[[scenarios]]", f'name = "{name}"', f'scenario = {{ mechanism = "{name}", {shape} }}']
    path.write_text("\n".join(lines))
    return path


class Memory:
    """The most that each process of a lab has had resident. A context manager."""

    def __init__(self, find: Callable[[], list[psutil.Process]]) -> None:
        self._find = find
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most: Counter[int] = Counter()

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            for process in self._find():
                try:
                    self.most[process.pid] = max(self.most[process.pid], process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def is_clean(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


def test_guests_that_fail_cost_their_own_trials_alone(tmp_path: Path, left: Leftovers, images: ImageSet) -> None:
    folder, cache = tmp_path / "out", tmp_path / "cache"
    make_faulty_cache(images, cache)
    words = ("start", write_faulty(tmp_path / "night.toml", choose_seed()), "--out", folder, "--workers", "1")

    def find_labs() -> list[psutil.Process]:
        return [each for each in left.find_processes() if each.name().startswith("python")]

    with start_lab(left, *words, XDG_CACHE_HOME=str(cache)) as lab:
        wait_until(lambda: count(folder) >= 1 or lab.poll() is not None, "a trial to be stored")
        first = {process.pid: process.memory_info().rss for process in find_labs()}
        with Memory(find_labs) as memory:
            finish(lab)
    assert lab.returncode == 1
    check_store(folder, list(range(1, TRIALS + 1)))
    left.check(folder)
    (summary,) = summarise(folder)
    assert (summary.state, summary.done) == ("finished", TRIALS)
    check_outcomes(folder)
    grown = {pid: (memory.most[pid] - rss) / 2**20 for pid, rss in first.items()}
    assert max(grown.values()) < GROWTH_MIB, grown
    check_clean(folder, run_lab(left, "status", folder).stdout)


def check_outcomes(folder: Path) -> None:
    """Assert that a fault is told by its name, and that all others ran on guests that came after."""
    spec = read_spec(folder)
    by_part: dict[str, list[TrialRecord]] = {}
    for record in read_records(folder):
        by_part.setdefault(choose_trial(spec, record.trial).part.name, []).append(record)
    assert {name: len(records) for name, records in by_part.items()} == {
        SOUND: TRIALS - len(FAULTS),
        **dict.fromkeys(FAULTS, 1),
    }
    for record in (*by_part[SOUND], *by_part[FLOODS]):
        # A busy host may starve one, and what floods its own log cannot be asked for all of it.
        assert record.outcome in (Outcome.PASS, Outcome.INVALID), record
        assert record.bucket == "", record
    for name, bucket in (
        (PANICS, "kernel panic: sysrq triggered crash"),
        (REBOOTS, "unexpected reboot"),
        (HANGS, f"stall in {HUNG}"),
    ):
        (record,) = by_part[name]
        assert record.bucket == bucket, record
        # A host that starves the guest is at fault where it stopped answering, and nobody is accused.
        assert record.outcome is Outcome.FAIL or "for a host CPU" in record.reason or "did not run" in record.reason
    (lost,) = by_part[LOSES_SSH]
    assert (lost.outcome, lost.bucket) == (Outcome.ERROR, "lost connection")


def check_clean(folder: Path, status: str) -> None:
    """Assert that nothing of what a guest said can harm whoever reads it, or fill a disk."""
    assert is_clean(status)
    with open_reader(folder) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                assert all(is_clean(cell) for cell in row if isinstance(cell, str)), (table, row)
    trials = list((folder / "trials").iterdir())
    assert len(trials) == TRIALS
    # What is no text is told by its code.
    assert any("\\x" in path.read_text() for path in folder.glob("trials/*/**/console.log")), "no guest wrote garbage"
    for trial in trials:
        files = [path for path in trial.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < EVIDENCE_MIB << 20
        for path in files:
            if path.suffix == ".json" or path.name == "console.log":
                assert is_clean(path.read_text()), path


def empty_initramfs(images: ImageSet, folder: Path) -> ImageSet:
    """Boot without any user space: the kernel panics."""
    path = folder / "initramfs"
    path.write_bytes(b"")
    return msgspec.structs.replace(images, initramfs=path, initramfs_sha256=hashlib.sha256(b"").hexdigest())


def noise_in_kernel(images: ImageSet, folder: Path) -> ImageSet:
    """Boot a bzImage that does not unpack: it halts, and has nothing to say it with."""
    path = folder / "bzImage"
    path.write_bytes(spoil_payload(images.kernel.read_bytes()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return msgspec.structs.replace(images, kernel=path, kernel_sha256=digest)


NEVER_BOOTS = pytest.mark.parametrize(
    ("spoil", "told"), [(empty_initramfs, "Kernel panic"), (noise_in_kernel, "halted all of its 2 vCPUs")]
)


@NEVER_BOOTS
def test_a_guest_that_never_boots_is_known_long_before_its_deadline(
    tmp_path: Path, images: ImageSet, spoil: Callable[[ImageSet, Path], ImageSet], told: str
) -> None:
    shape = Topology(1, 1, 2)
    with admit(shape.vcpus, Deadline.after(600)):
        begun = time.monotonic()
        spoiled, kernel = spoil(images, tmp_path), find_kernel("linux-6.1")
        with (
            pytest.raises(GuestGone, match=told),
            open_session(spoiled, kernel, Boot(base="linux-6.1", topology=shape)),
        ):
            pytest.fail("it booted")
        assert time.monotonic() - begun < BOOT_S / 3


@NEVER_BOOTS
def test_a_kernel_that_never_boots_is_an_error_with_its_last_words_and_others_go_on(
    tmp_path: Path, images: ImageSet, spoil: Callable[[ImageSet, Path], ImageSet], told: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    short: dict[str, Any] = {"topology": Topology(1, 1, 2), "stretch_us": (2_000, 4_000)}
    parts = tuple(Part(name=name, scenario=Scenario(mechanism=name, **short)) for name in ("upstream", SOUND))
    spec = CampaignSpec(summary="a test", seed=5, parts=parts, limits=Limits(trials=10, retries=0))
    planned = [choose_trial(spec, number).part.name for number in range(1, 11)]
    assert planned.count("upstream") > MAX_FAILED_BOOTS
    images_of = {"linux-6.1": images, "linux-6.12": spoil(find_images("linux-6.12"), tmp_path)}
    result = start_campaign(folder, spec, lambda _: images_of, Where(workers=INLINE), Watch())
    assert result == Result(finished=True, why="all 10 trials are done")
    check_store(folder, list(range(1, 11)))
    records = {record.trial: record for record in read_records(folder)}
    dead = [records[number] for number, name in enumerate(planned, 1) if name == "upstream"]
    assert {record.outcome for record in dead} == {Outcome.ERROR}
    assert all(told in record.reason for record in dead[:MAX_FAILED_BOOTS]), dead
    assert all("not tried again" in record.reason for record in dead[MAX_FAILED_BOOTS:]), dead
    assert {records[number].outcome for number, name in enumerate(planned, 1) if name == SOUND} <= {
        Outcome.PASS,
        Outcome.INVALID,
    }
