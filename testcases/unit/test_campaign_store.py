# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of a campaign: every trial that ended is there, once and whole, whatever happens to its writer."""

import fcntl
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from night_samples import ARCHIVE, KEPT, VERDICT, make_done, make_spec, open_store

from lab.campaign.database import NAME, is_running, lock_campaign, open_reader, open_writer
from lab.campaign.merge import merge_campaigns
from lab.campaign.reader import KILLED, read_campaign_spec, read_records, summarise
from lab.campaign.retention import Retention
from lab.campaign.schema import APPLICATION_ID, MIGRATIONS, VERSION, migrate
from lab.campaign.store import Kept
from lab.errors import EvidenceError, HostError, UsageError
from lab.evidence.folder import read_evidence, read_verdict
from lab.host.paths import ROOT
from lab.model.verdict import Outcome
from lab.report.campaign_page import write_campaign_report

NOTHING = Kept()
#: Stores trials without end, and says the number of each once it is stored.
WRITER = """
import sys
from pathlib import Path
from night_samples import make_done, make_spec, open_store
from lab.campaign.store import Kept
with open_store(Path(sys.argv[1]), make_spec() if sys.argv[2] == "new" else None) as store:
    for number in store.numbers_left(2**31):
        store.add(make_done(number), Kept(), 1.0 * number)
        print(number, flush=True)
"""


def numbers(folder: Path) -> list[int]:
    with open_reader(folder) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM trials ORDER BY number")]


def test_what_is_stored_is_what_is_read(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec(trials=3)) as store:
        assert store.add(make_done(2, Outcome.FAIL, again=(Outcome.PASS, Outcome.FAIL)), NOTHING, 4.5)
        assert store.add(make_done(1), NOTHING, 5.0)
    records = list(read_records(tmp_path))
    assert [record.trial for record in records] == [1, 2]
    wanted = make_done(2, Outcome.FAIL).record
    assert records[1] == wanted
    assert wanted.invariants
    assert wanted.coverage
    (summary,) = summarise(tmp_path)
    assert (summary.state, summary.done, summary.planned, summary.ran_s) == (KILLED, 2, 3, 5.0)
    (newest,) = summary.newest
    assert (newest.number, newest.failed, newest.attempts, newest.reproduces) == (2, 2, 3, False)
    with open_reader(tmp_path) as connection:
        row = connection.execute("SELECT load_1m, steal_ppm, host, lab_version, bucket FROM trials").fetchone()
        tries = connection.execute("SELECT outcome FROM attempts WHERE number = 2 ORDER BY attempt").fetchall()
    assert row == (0.25, 1_000, "here", "0", "")
    assert tries == [("FAIL",), ("PASS",), ("FAIL",)]


def test_a_trial_is_stored_once(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        assert store.add(make_done(1), NOTHING, 1.0)
        assert not store.add(make_done(1, Outcome.FAIL), NOTHING, 2.0)
        assert store.count_outcomes() == {"sound": {"PASS": 1}}
        assert store.ran_s == 1.0


def test_numbers_left_are_the_gaps_and_then_the_rest(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        for number in (2, 5):
            store.add(make_done(number), NOTHING, 1.0)
        assert list(store.numbers_left(7)) == [1, 3, 4, 6, 7]
        assert list(store.numbers_left(3)) == [1, 3]
        assert list(itertools.islice(store.numbers_left(2**31), 4)) == [1, 3, 4, 6]


def test_a_writer_that_is_killed_loses_no_trial_and_leaves_none_half(tmp_path: Path) -> None:
    promised: list[int] = []
    for turn in range(5):
        words = (sys.executable, "-c", WRITER, str(tmp_path), "new" if turn == 0 else "old")
        path = {"PYTHONPATH": f"{ROOT}:{ROOT}/testcases/unit", "PATH": "/usr/bin:/bin"}
        writer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=path)
        assert writer.stdout is not None
        promised += [int(line) for line in itertools.islice(writer.stdout, 3)]
        # At another moment of a transaction each time.
        time.sleep(0.003 * turn)
        writer.send_signal(signal.SIGKILL)
        promised += [int(line) for line in writer.stdout if line.endswith("\n")]
        writer.wait(10)
        assert not is_running(tmp_path)
        with open_writer(tmp_path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            stored = [number for (number,) in connection.execute("SELECT number FROM trials ORDER BY number")]
        # One may have been stored whose number could not be said any more.
        assert stored[: len(promised)] == promised
        assert len(stored) - len(promised) <= 1
        promised = stored
        records = list(read_records(tmp_path))
        assert [record.trial for record in records] == stored
        assert all(record == make_done(record.trial).record for record in records)
    assert promised == list(range(1, len(promised) + 1))
    assert len(promised) >= 15


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        store.add(make_done(1), NOTHING, 1.0)
        connection = store._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(HostError, match="full") as error:
            all(store.add(make_done(number), NOTHING, 1.0 * number) for number in range(2, 500))
        assert "\n" not in str(error.value)
        last = int(store.ran_s)
        connection.execute("PRAGMA max_page_count = 1000000")
        assert next(iter(store.numbers_left(2**31))) == last + 1
        assert store.add(make_done(last + 1), NOTHING, 1.0)
    assert numbers(tmp_path) == list(range(1, last + 2))
    assert [record.trial for record in read_records(tmp_path)] == list(range(1, last + 2))


def make_older(folder: Path, version: int, number: int = 1) -> bytes:
    """Write a store as the lab of an older schema did, with a FAIL that has evidence, and return its file's bytes."""
    today = folder.with_name(f"{folder.name}-today")
    with open_store(today, make_spec()) as store:
        Retention(store, 64).keep(make_done(number, Outcome.FAIL, archive=ARCHIVE), 1.0)
    folder.mkdir(exist_ok=True)
    shutil.copytree(today / "trials", folder / "trials")
    connection = sqlite3.connect(folder / NAME, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    migrate(connection, "old", target=version)
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.execute("ATTACH ? AS new", (str(today / NAME),))
    for table in ("campaigns", "images", "sittings", "trials", "invariants", "coverage", "attempts"):
        names = ", ".join(name for _, name, *_ in connection.execute(f"PRAGMA main.table_info({table})"))
        connection.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM new.{table}")
    connection.close()
    return (folder / NAME).read_bytes()


def test_a_store_of_the_first_schema_becomes_one_of_today(tmp_path: Path) -> None:
    """What a lab of schema 1 wrote is kept, and what it did not know is told apart from zero."""
    folder = tmp_path / "old"
    make_older(folder, 1)
    connection = sqlite3.connect(folder / NAME)
    columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(trials)")}
    assert not columns & {"bucket", "load_1m", "steal_ppm"}
    connection.close()
    with open_store(folder) as store:
        assert store.add(make_done(2), NOTHING, 2.0)
    connection = sqlite3.connect(folder / NAME)
    assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
    connection.close()
    with open_reader(folder) as reader:
        rows = reader.execute("SELECT number, load_1m, steal_ppm, bucket FROM trials ORDER BY number").fetchall()
    assert rows == [(1, None, None, ""), (2, 0.25, 1_000, "")]
    assert [record.outcome for record in read_records(folder)] == [Outcome.FAIL, Outcome.PASS]


@pytest.mark.parametrize("version", range(1, VERSION))
def test_an_older_store_is_read_as_one_of_today_and_stays(tmp_path: Path, version: int) -> None:
    folder = tmp_path / "old"
    before = make_older(folder, version)
    there = sorted(path.name for path in folder.iterdir())
    (summary,) = summarise(folder)
    assert (summary.done, summary.outcomes["FAIL"], summary.newest[0].evidence) == (1, 1, "trials/00001-sound")
    assert summary.load_most == (0.0 if version == 1 else 0.25)
    assert [record.trial for record in read_records(folder)] == [1]
    assert read_campaign_spec(folder)[1] == make_spec()
    with open_reader(folder) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM trials")
    assert ((folder / NAME).read_bytes(), sorted(path.name for path in folder.iterdir())) == (before, there)
    write_campaign_report(folder)
    assert (folder / NAME).read_bytes() == before


def test_an_older_store_is_merged_with_one_of_today_and_stays(tmp_path: Path) -> None:
    before = make_older(tmp_path / "old", 1)
    (tmp_path / "both").mkdir()
    with open_store(tmp_path / "new", make_spec(seed=8)) as store:
        store.add(make_done(1), NOTHING, 1.0)
    merged = merge_campaigns([tmp_path / "old", tmp_path / "new"], tmp_path / "both", lambda _: None)
    assert (merged.campaigns, merged.trials) == (2, 2)
    old, new = read_records(tmp_path / "both")
    assert (old.outcome, new.outcome) == (Outcome.FAIL, Outcome.PASS)
    assert read_evidence(tmp_path / "both" / old.evidence / "attempt-1") == KEPT.evidence
    assert (tmp_path / "old" / NAME).read_bytes() == before


def test_an_older_store_in_a_folder_that_may_not_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_older(tmp_path / "old", 1)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert summarise(tmp_path / "old")[0].done == 1
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == [NAME, "trials"]


def test_a_folder_of_campaigns_lists_older_ones(tmp_path: Path) -> None:
    make_older(tmp_path / "old", 1)
    words = (sys.executable, "-m", "lab.cli", "campaign", "list", str(tmp_path), "--json")
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert {each["folder"] for each in msgspec.json.decode(told.stdout)["campaigns"]} == {
        str(tmp_path / "old"),
        str(tmp_path / "old-today"),
    }


def test_a_migration_that_fails_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    migrate(connection, "old", target=1)
    broken = (MIGRATIONS[0], (MIGRATIONS[1][0], "ALTER TABLE nothing ADD COLUMN x TEXT"))
    monkeypatch.setattr("lab.campaign.schema.MIGRATIONS", broken)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, "old")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert "load_1m" not in {name for _, name, *_ in connection.execute("PRAGMA table_info(trials)")}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("PRAGMA user_version = 1", "no store of a campaign"),
        ("CREATE TABLE x (y)", "no store of a campaign"),
        (
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION + 1}",
            f"schema version {VERSION + 1}: this lab reads 1 to {VERSION}; use a later lab$",
        ),
        (f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 99", "schema version 99"),
    ],
)
def test_files_that_are_no_store_of_today_are_refused(tmp_path: Path, make: str, words: str) -> None:
    connection = sqlite3.connect(tmp_path / NAME)
    connection.executescript(make)
    connection.close()
    with pytest.raises(EvidenceError, match=words):
        summarise(tmp_path)
    with pytest.raises(EvidenceError, match=words), open_writer(tmp_path):
        pass


def test_an_older_store_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    """A migration that cannot be done says so, and an empty file is no campaign."""
    connection = sqlite3.connect(tmp_path / NAME)
    connection.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1; CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(EvidenceError, match="cannot be read: no such table: trials"):
        summarise(tmp_path)
    (tmp_path / NAME).write_bytes(b"")
    with pytest.raises(EvidenceError, match="is empty: it is no store of a campaign"):
        summarise(tmp_path)


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no database at all" * 100)
    with pytest.raises(EvidenceError, match="cannot be read"):
        summarise(tmp_path)
    with pytest.raises(EvidenceError, match="damaged"), open_writer(tmp_path):
        pass


def test_two_writers_of_one_folder_are_refused(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()):
        assert is_running(tmp_path)
        with pytest.raises(UsageError, match="another lab runs a campaign"), open_store(tmp_path):
            pass
        # Readers come and go meanwhile.
        assert summarise(tmp_path)[0].state == "running"
    assert not is_running(tmp_path)


def test_whoever_looks_is_no_writer_and_stops_none(tmp_path: Path) -> None:
    """Several look at a time, and a writer waits for them, as long as they take."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # one that looks, and was stopped meanwhile
    assert not is_running(tmp_path)
    leave = threading.Timer(0.2, os.close, (descriptor,))
    leave.start()
    with lock_campaign(tmp_path):
        assert is_running(tmp_path)
    leave.join()


def test_two_who_look_do_not_see_each_other_run(tmp_path: Path) -> None:
    seen: list[bool] = []

    def look() -> None:
        seen.extend(is_running(tmp_path) for _ in range(2_000))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(seen) == 4_000
    assert not any(seen)


def test_reading_leaves_nothing_beside_the_store(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        store.add(make_done(1), NOTHING, 1.0)
    summarise(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_strings_of_guests_are_data(tmp_path: Path) -> None:
    evil = "'); DROP TABLE trials; --"
    done = make_done(1)
    done = msgspec.structs.replace(done, record=msgspec.structs.replace(done.record, reason=evil))
    with open_store(tmp_path, make_spec()) as store:
        store.add(done, NOTHING, 1.0)
    assert [each.reason for each in read_records(tmp_path)] == [evil]


def evidence_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "trials").iterdir())


def test_failures_take_the_room_of_passes_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 1)
        assert retention.keep(make_done(1, archive=ARCHIVE), 1.0)
        size = retention.size
        assert size == sum(path.stat().st_size for path in (tmp_path / "trials").rglob("*") if path.is_file())
        retention._limit = 2 * size + size // 2
        retention.keep(make_done(2, archive=ARCHIVE), 1.0)
        retention.keep(make_done(3, archive=ARCHIVE), 1.0)  # a pass takes nobody's room
        assert evidence_of(tmp_path) == ["00001-sound", "00002-sound"]
        retention.keep(make_done(4, Outcome.FAIL, archive=ARCHIVE), 1.0)
        assert evidence_of(tmp_path) == ["00002-sound", "00004-sound"]
        retention.keep(make_done(5, Outcome.INVALID, archive=ARCHIVE), 1.0)
        retention.keep(make_done(6, Outcome.FAIL, archive=ARCHIVE), 1.0)
        assert evidence_of(tmp_path) == ["00004-sound", "00005-sound"]
        retention.keep(make_done(7), 1.0)
        assert retention.size == 2 * size <= retention._limit
    (summary,) = summarise(tmp_path)
    assert summary.evidence == {"kept": 2, "dropped": 4, "sampled-out": 1}
    assert summary.evidence_bytes == 2 * size
    kept = tmp_path / "trials" / "00004-sound" / "attempt-1"
    assert read_evidence(kept) == KEPT.evidence
    assert read_verdict(kept) == VERDICT
    assert (kept / "state.txt").read_bytes() == KEPT.raw["state.txt"]


def test_evidence_that_no_trial_names_is_removed_by_the_next_sitting(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        Retention(store, 10).keep(make_done(1, Outcome.FAIL, archive=ARCHIVE), 1.0)
    shutil.copytree(tmp_path / "trials" / "00001-sound", tmp_path / "trials" / "00002-sound")
    with open_store(tmp_path) as store:
        Retention(store, 10)
    assert evidence_of(tmp_path) == ["00001-sound"]


@pytest.mark.parametrize("archive", [b"nothing of ours", ARCHIVE[:-9], ARCHIVE[:50] + b"xx" + ARCHIVE[52:]])
def test_evidence_that_came_back_broken_is_refused(tmp_path: Path, archive: bytes) -> None:
    with open_store(tmp_path, make_spec()) as store, pytest.raises(EvidenceError, match="came back"):
        Retention(store, 10).keep(make_done(1, archive=archive), 1.0)


def test_stores_of_one_campaign_are_joined_trial_by_trial(tmp_path: Path) -> None:
    one, two, other, target = (tmp_path / name for name in ("one", "two", "other", "all"))
    with open_store(one, make_spec()) as store:
        Retention(store, 10).keep(make_done(1, Outcome.FAIL, archive=ARCHIVE), 1.0)
    shutil.copytree(one, two)
    with open_store(one) as store:
        store.add(make_done(2), NOTHING, 2.0)
    with open_store(two) as store:
        store.add(make_done(3), NOTHING, 3.0)
    with open_store(other, make_spec(seed=9)) as store:
        Retention(store, 10).keep(make_done(1, Outcome.FAIL, archive=ARCHIVE), 1.0)
    target.mkdir()
    merged = merge_campaigns([one, two, other], target, lambda _: None)
    assert (merged.campaigns, merged.trials, merged.twice) == (2, 4, 1)
    first, second = summarise(target)
    assert (first.seed, first.done, second.seed, second.done) == (7, 3, 9, 1)
    assert [record.trial for record in read_records(target)] == [1, 2, 3, 1]
    for record in read_records(target):
        if record.outcome is Outcome.FAIL:
            assert read_evidence(target / record.evidence / "attempt-1") == KEPT.evidence
    with open_writer(target) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    with pytest.raises(UsageError, match="several"), open_store(target):
        pass


def test_evidence_of_a_foreign_store_cannot_choose_its_place(tmp_path: Path) -> None:
    with open_store(tmp_path / "one", make_spec()) as store:
        store.add(make_done(1, Outcome.FAIL), Kept(folder="trials/../../etc", size=1, state="kept"), 1.0)
    (tmp_path / "all").mkdir()
    with pytest.raises(EvidenceError, match="no place of ours"):
        merge_campaigns([tmp_path / "one"], tmp_path / "all", lambda _: None)
    assert list((tmp_path / "all").iterdir()) == []
