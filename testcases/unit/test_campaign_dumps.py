# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of guests' memory give way to evidence: to any failure's, before any pass, and whenever the lab is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from night_samples import ARCHIVE, KEPT, VERDICT, make_done, make_spec, open_store

from lab.campaign.job import pack_evidence
from lab.campaign.reader import read_records, summarise
from lab.campaign.retention import Retention
from lab.evidence.folder import read_evidence, read_verdict
from lab.guest.dump import DUMPS
from lab.host.paths import ROOT
from lab.judge import judge
from lab.model.evidence import Ending, Stall
from lab.model.verdict import Outcome
from lab.trial.session import Kept

FAIL, PASS = Outcome.FAIL, Outcome.PASS
LIMIT_BYTES = 1 << 20
#: Stores a failure that needs the room of an earlier one's dump, and is killed at a moment of that.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from night_samples import make_done, open_store
from test_campaign_dumps import noisy
from lab.campaign import retention
from lab.campaign.store import CampaignStore
from lab.model.verdict import Outcome
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
with open_store(Path(sys.argv[1])) as store:
    kept = retention.Retention(store, 1)
    if sys.argv[2] == "before":
        CampaignStore.add = die
    add = store.add
    def add_and_die(*words):
        assert add(*words)
        die()
    if sys.argv[2] == "after":
        store.add = add_and_die
    kept.keep(make_done(3, Outcome.FAIL, archive=noisy(200_000)), 1.0)
"""


def stalled(size: int) -> bytes:
    """Return the evidence of a guest that stopped answering, with a dump of so many bytes."""
    evidence = msgspec.structs.replace(
        KEPT.evidence, ending=Ending.DEADLINE, stall=Stall(vcpus=(), memory="memory.kdump, so large")
    )
    return pack_evidence(Kept(evidence, {"memory.kdump": b"K" * size, "registers.txt": b"r"}), judge(evidence))


def noisy(size: int) -> bytes:
    return pack_evidence(Kept(KEPT.evidence, {"noise.txt": b"n" * size}), VERDICT)


def find_dumps(folder: Path) -> list[int]:
    return sorted(int(path.parts[-3][:5]) for path in (folder / "trials").rglob("*") if path.name in DUMPS)


def measure(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "trials").rglob("*") if path.is_file())


def check_sizes(folder: Path, retention: Retention | None = None) -> None:
    """The store names what is there, by its size, and nothing else is there."""
    with open_store(folder) as store:
        if retention is None:
            retention = Retention(store, 1)
        listed = store.list_evidence()
    for _, name, size, _ in listed:
        assert size == sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()) > 0
        for attempt in (folder / name).iterdir():
            read_evidence(attempt)
            read_verdict(attempt)
    assert sum(size for _, _, size, _ in listed) == measure(folder) == retention.size <= LIMIT_BYTES
    assert summarise(folder)[0].evidence_bytes == retention.size


def test_an_earlier_dump_goes_before_passes_and_before_a_failure_is_dropped(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 1)
        retention.keep(make_done(1, PASS, archive=ARCHIVE), 1.0)
        retention.keep(make_done(2, FAIL, archive=stalled(800_000)), 1.0)
        assert find_dumps(tmp_path) == [2]
        retention.keep(make_done(3, FAIL, archive=noisy(300_000)), 1.0)
        assert find_dumps(tmp_path) == []
        assert [number for number, *_ in store.list_evidence()] == [1, 2, 3]
    check_sizes(tmp_path, retention)
    slim = tmp_path / next(record.evidence for record in read_records(tmp_path) if record.trial == 2) / "attempt-1"
    assert (slim / "registers.txt").read_bytes() == b"r"
    told = read_evidence(slim).stall
    assert told is not None
    assert told.memory == "no dump: there was no room for it"
    assert read_verdict(slim).stall == ("memory: no dump: there was no room for it",)


def test_the_oldest_dump_goes_and_no_more_than_have_to(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 1)
        for number in (4, 2, 3):
            retention.keep(make_done(number, FAIL, archive=stalled(300_000)), 1.0)
    with open_store(tmp_path) as store:
        # Another sitting finds the dumps of earlier ones.
        retention = Retention(store, 1)
        retention.keep(make_done(5, FAIL, archive=noisy(200_000)), 1.0)
        assert find_dumps(tmp_path) == [3, 4]
        retention.keep(make_done(6, FAIL, archive=noisy(500_000)), 1.0)
        assert find_dumps(tmp_path) == []
    check_sizes(tmp_path, retention)


def test_no_pass_and_no_earlier_dump_goes_for_a_dump(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 1)
        retention.keep(make_done(1, PASS, archive=noisy(200_000)), 1.0)
        retention.keep(make_done(2, FAIL, archive=stalled(300_000)), 1.0)
        retention.keep(make_done(3, FAIL, archive=stalled(900_000)), 1.0)
        assert [number for number, *_ in store.list_evidence()] == [1, 2, 3]
        assert find_dumps(tmp_path) == [2]
    check_sizes(tmp_path, retention)
    slim = tmp_path / "trials" / "00003-sound" / "attempt-1"
    assert read_verdict(slim).stall == ("memory: no dump: there was no room for it",)


def test_passes_go_once_no_dump_is_left_and_take_no_dump_themselves(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 1)
        retention.keep(make_done(1, PASS, archive=noisy(300_000)), 1.0)
        retention.keep(make_done(2, FAIL, archive=stalled(600_000)), 1.0)
        retention.keep(make_done(3, PASS, archive=noisy(300_000)), 1.0)
        assert [number for number, *_ in store.list_evidence()] == [1, 2]
        assert find_dumps(tmp_path) == [2]
        retention.keep(make_done(4, FAIL, archive=noisy(900_000)), 1.0)
        assert [number for number, *_ in store.list_evidence()] == [2, 4]
    assert find_dumps(tmp_path) == []
    check_sizes(tmp_path, retention)


def test_what_has_no_room_anyway_costs_no_dump(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 1)
        retention.keep(make_done(1, FAIL, archive=stalled(500_000)), 1.0)
        retention.keep(make_done(2, FAIL, archive=noisy(1_100_000)), 1.0)
        assert [number for number, *_ in store.list_evidence()] == [1]
    assert find_dumps(tmp_path) == [1]
    check_sizes(tmp_path, retention)


@pytest.mark.parametrize("alter", ["cut", "add", "remove"])
def test_evidence_that_somebody_altered_stays_and_ends_no_campaign(tmp_path: Path, alter: str) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 1)
        retention.keep(make_done(1, FAIL, archive=stalled(500_000)), 1.0)
        folder = tmp_path / "trials" / "00001-sound"
        if alter == "cut":
            os.truncate(folder / "attempt-1" / "memory.kdump", 5)
        elif alter == "add":
            (folder / "attempt-1" / "NOTES").write_text("mine")
        else:
            folder.rename(tmp_path / "mine")
        before = sorted(path.name for path in folder.rglob("*"))
        assert retention.keep(make_done(2, FAIL, archive=noisy(600_000)), 1.0)
        assert [name for _, name, *_ in store.list_evidence()] == ["trials/00001-sound"]
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert [path.name for path in (tmp_path / "trials").iterdir() if path.name != "00001-sound"] == []
    assert summarise(tmp_path)[0].evidence == {"kept": 1, "dropped": 1}


@pytest.mark.parametrize(("moment", "dumps"), [("before", [2]), ("after", [])])
def test_a_lab_that_is_killed_meanwhile_keeps_both_or_neither(tmp_path: Path, moment: str, dumps: list[int]) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 1)
        retention.keep(make_done(1, PASS, archive=ARCHIVE), 1.0)
        retention.keep(make_done(2, FAIL, archive=stalled(850_000)), 1.0)
    path = {"PYTHONPATH": f"{ROOT}:{ROOT}/testcases/unit", "PATH": "/usr/bin:/bin"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], cwd=ROOT, env=path, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    # The dump is there still, whatever the store says; the next sitting removes what nobody names.
    assert find_dumps(tmp_path) == [2]
    assert len(list((tmp_path / "trials").iterdir())) == 4
    check_sizes(tmp_path)
    assert find_dumps(tmp_path) == dumps
    assert [record.trial for record in read_records(tmp_path)] == ([1, 2] if dumps else [1, 2, 3])
