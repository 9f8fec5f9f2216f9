# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence on a path that all hosts share: written by workers, named and counted by the campaign, never half."""

import errno
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from night_samples import ARCHIVE, KEPT, VERDICT, FakeExecutor, NoImages, make_done, make_spec

from lab.campaign import sitting
from lab.campaign.database import NAME, lock_campaign, open_reader, open_writer
from lab.campaign.definition import CampaignSpec
from lab.campaign.executor import Ended
from lab.campaign.job import Job, TrialDone
from lab.campaign.merge import merge_campaigns
from lab.campaign.reader import read_records, summarise
from lab.campaign.retention import Retention
from lab.campaign.schema import migrate
from lab.campaign.shared_evidence import INCOMING, OWNER, Staging, check_evidence_dir, claim_root
from lab.campaign.sitting import Watch, Where, resume_campaign, start_campaign
from lab.campaign.store import CampaignStore
from lab.campaign.stored import find_root
from lab.errors import EvidenceError, HostError, UsageError
from lab.evidence.folder import read_evidence, read_verdict
from lab.host.paths import ROOT
from lab.model.verdict import Outcome

#: Writes evidence of one trial after the other into one folder, and says so.
WRITER = """
import sys
from pathlib import Path
from night_samples import KEPT, VERDICT
from lab.campaign.shared_evidence import Staging
with Staging(Path(sys.argv[1]), "u") as staging:
    for index in range(1, 10_000):
        staging.write(index, KEPT, VERDICT)
        print(index, flush=True)
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a path that all hosts share."""
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def store(tmp_path: Path, shared: Path) -> Iterator[CampaignStore]:
    """Return the store of a campaign whose evidence goes to the shared path."""
    folder = tmp_path / "out"
    folder.mkdir()
    with lock_campaign(folder), open_writer(folder) as connection:
        store = CampaignStore(connection, folder)
        store.create(make_spec(), {}, str(shared))
        uid, _ = store.find()
        store.begin_sitting(1, "")
        claim_root(store.evidence, uid, folder)
        yield store


def write(store: CampaignStore, number: int, outcome: Outcome, attempts: int = 1) -> TrialDone:
    """Do what a worker does."""
    with Staging(store.evidence, store.find()[0]) as staging:
        for index in range(1, attempts + 1):
            staging.write(index, KEPT, VERDICT)
    again = (Outcome.FAIL,) * (attempts - 1)
    return msgspec.structs.replace(make_done(number, outcome, again=again), staged=staging.word)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_worker_writes_and_the_campaign_names_evicts_and_counts(store: CampaignStore, shared: Path) -> None:
    root = store.evidence
    assert root == shared / store.find()[0]
    retention = Retention(store, 1)
    retention.keep(write(store, 1, Outcome.PASS), 1.0)
    size = retention.size
    assert size == sum(path.stat().st_size for path in (root / "trials").rglob("*") if path.is_file()) > 0
    retention._limit = 2 * size + size // 2
    retention.keep(write(store, 2, Outcome.PASS), 1.0)
    retention.keep(write(store, 3, Outcome.PASS), 1.0)  # a pass takes nobody's room
    retention.keep(write(store, 4, Outcome.FAIL), 1.0)
    assert names(root / "trials") == ["00002-sound", "00004-sound"]
    retention.keep(write(store, 5, Outcome.FAIL, attempts=2), 1.0)  # it has not room enough, whatever goes
    retention.keep(make_done(6), 1.0)
    assert names(root / "trials") == ["00002-sound", "00004-sound"]
    assert names(root / INCOMING) == []
    assert names(store.folder / "trials") == []
    (summary,) = summarise(store.folder)
    assert (summary.evidence, summary.evidence_bytes) == ({"kept": 2, "dropped": 3, "sampled-out": 1}, 2 * size)
    assert summary.evidence_dir == str(root)
    kept = root / "trials" / "00004-sound" / "attempt-1"
    assert read_evidence(kept) == KEPT.evidence
    assert read_verdict(kept) == VERDICT
    assert (kept / "state.txt").read_bytes() == KEPT.raw["state.txt"]


def test_a_trial_that_comes_back_twice_keeps_the_first_evidence(store: CampaignStore) -> None:
    retention = Retention(store, 10)
    assert retention.keep(write(store, 1, Outcome.FAIL), 1.0)
    first = (store.evidence / "trials" / "00001-sound").stat().st_ino
    assert not retention.keep(write(store, 1, Outcome.FAIL), 1.0)
    assert (store.evidence / "trials" / "00001-sound").stat().st_ino == first
    assert names(store.evidence / INCOMING) == []


def test_what_a_killed_worker_left_half_is_no_evidence_and_goes(store: CampaignStore, tmp_path: Path) -> None:
    root = tmp_path / "shared" / "u"
    claim_root(root, "u", store.folder)
    path = {"PYTHONPATH": f"{ROOT}:{ROOT}/testcases/unit", "PATH": "/usr/bin:/bin"}
    for turn in range(3):
        words = (sys.executable, "-c", WRITER, str(root))
        writer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=path)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "1\n"
        time.sleep(0.003 * turn)
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=10)
    assert len(names(root / INCOMING)) == 3
    assert names(root / "trials") == []
    store.evidence = root
    Retention(store, 10)
    assert names(root / INCOMING) == []


def test_an_error_takes_away_what_was_written(store: CampaignStore) -> None:
    def fail() -> None:
        with Staging(store.evidence, store.find()[0]) as staging:
            staging.write(1, KEPT, VERDICT)
            assert names(store.evidence / INCOMING) == [staging.word]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(store.evidence / INCOMING) == []


@pytest.mark.parametrize("spoil", ["gone", "another", "file", "garbage"])
def test_a_host_that_is_not_on_the_share_says_which_and_where(store: CampaignStore, spoil: str) -> None:
    root, uid = store.evidence, store.find()[0]
    if spoil == "gone":
        shutil.rmtree(root)
    elif spoil == "another":
        (root / OWNER).write_bytes((root / OWNER).read_bytes().replace(uid.encode(), b"f" * 32))
    elif spoil == "file":
        shutil.rmtree(root / INCOMING)
    else:
        (root / OWNER).write_bytes(b"nothing of ours")
    with pytest.raises(HostError) as refused, Staging(root, uid):
        pass
    said = str(refused.value)
    assert said.startswith(f"host {socket.gethostname()} cannot write evidence in '{root}': ")
    assert "\n" not in said


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(
    store: CampaignStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self), None, str(len(data)))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(HostError) as refused:
        write(store, 1, Outcome.FAIL)
    said = str(refused.value)
    assert said.startswith(f"host {socket.gethostname()}: evidence folder '{store.evidence}/{INCOMING}/")
    assert said.endswith("could not be written: No space left on device")
    assert names(store.evidence / INCOMING) == []


def test_evidence_that_only_its_worker_sees_ends_the_campaign(store: CampaignStore) -> None:
    done = write(store, 1, Outcome.FAIL)
    shutil.rmtree(store.evidence / INCOMING)
    with pytest.raises(HostError, match=r"host here wrote evidence to .* and this host does not see it"):
        Retention(store, 10).keep(done, 1.0)
    assert list(read_records(store.folder)) == []


@pytest.mark.parametrize("word", ["../../x", "0" * 31, "A" * 32, "/etc"])
def test_a_word_that_is_none_of_ours_is_refused(store: CampaignStore, word: str) -> None:
    done = msgspec.structs.replace(make_done(1, Outcome.FAIL), staged=word)
    with pytest.raises(EvidenceError, match="no name of ours"):
        Retention(store, 10).keep(done, 1.0)


def test_a_copy_of_a_campaign_does_not_touch_the_evidence(store: CampaignStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"belongs to the campaign in '{store.folder}' of host"):
        claim_root(store.evidence, store.find()[0], tmp_path / "copy")
    (store.evidence / OWNER).unlink()
    claim_root(store.evidence, store.find()[0], tmp_path / "copy")


@pytest.mark.parametrize(
    ("given", "uid"),
    [
        ("shared", "0" * 32),
        ("/a/../etc", "0" * 32),
        ("/a", "../u"),
        ("/a", ""),
        ("/a", "project"),
        ("/a", "0" * 31),
        ("/a", "0" * 33),
        ("/a", "F" * 32),
        ("/a", "0" * 32 + "\n"),
    ],
)
def test_a_foreign_store_cannot_choose_any_place(tmp_path: Path, given: str, uid: str) -> None:
    assert find_root("/a", "0" * 32, tmp_path) == Path("/a", "0" * 32)
    assert find_root("", uid, tmp_path) == tmp_path
    with pytest.raises(EvidenceError, match="no place of ours"):
        find_root(given, uid, tmp_path)


def test_only_a_folder_of_this_host_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    # Another host may have another folder behind the link.
    assert check_evidence_dir(Path("link")) == str(tmp_path / "link")
    for wrong in ("file", "nowhere"):
        with pytest.raises(UsageError, match="is not a folder: one is needed that all hosts share"):
            check_evidence_dir(Path(wrong))


def test_evidence_of_the_shared_path_is_merged_into_the_new_folder(store: CampaignStore, tmp_path: Path) -> None:
    Retention(store, 10).keep(write(store, 1, Outcome.FAIL), 1.0)
    store.end_sitting(finished=False, why="", ran_s=1.0)
    (tmp_path / "all").mkdir()
    merge_campaigns([store.folder], tmp_path / "all", lambda _: None)
    (record,) = read_records(tmp_path / "all")
    assert read_evidence(tmp_path / "all" / record.evidence / "attempt-1") == KEPT.evidence
    assert summarise(tmp_path / "all")[0].evidence_dir == str(tmp_path / "all")
    store.evidence.rename(tmp_path / "away")
    (tmp_path / "none").mkdir()
    with pytest.raises(EvidenceError, match=f"is in '{store.evidence}', which this host does not see"):
        merge_campaigns([store.folder], tmp_path / "none", lambda _: None)


def test_a_store_from_before_has_its_evidence_in_its_own_folder(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    migrate(connection, "old", target=3)
    assert "evidence_dir" not in {name for _, name, *_ in connection.execute("PRAGMA table_info(campaigns)")}
    connection.execute(
        "INSERT INTO campaigns (uid, summary, seed, spec, started, lab_version, state)"
        " VALUES ('0a', 'x', '7', ?, 'now', '0', 'stopped')",
        (msgspec.json.encode(make_spec()).decode(),),
    )
    connection.close()
    with lock_campaign(tmp_path), open_writer(tmp_path) as writer:
        store = CampaignStore(writer, tmp_path)
        store.find()
        assert store.evidence == tmp_path
    with open_reader(tmp_path) as reader:
        assert reader.execute("SELECT evidence_dir FROM campaigns").fetchall() == [("",)]


def test_a_sitting_uses_the_path_and_leaves_it_clean(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was thought dead writes evidence that nobody takes; the sitting's end removes it."""
    spec = make_spec(trials=3, keep_passes_one_in=1)
    folder = tmp_path / "out"
    folder.mkdir()

    words: dict[int, str] = {}

    class Sharing(FakeExecutor):
        def submit(self, job: Job) -> None:
            with Staging(Path(job.evidence), job.campaign) as staging:
                staging.write(1, KEPT, VERDICT)
            words[job.number] = staging.word
            with Staging(Path(job.evidence), job.campaign) as late:
                late.write(1, KEPT, VERDICT)
            super().submit(job)

    def end(number: int) -> Ended:
        return msgspec.structs.replace(make_done(number, part="sound"), staged=words[number])

    executor = Sharing(end)
    monkeypatch.setattr(sitting, "_open_executor", lambda *_: _Given(executor))
    images = NoImages()
    where = Where(workers=1, evidence_dir=str(shared))
    assert start_campaign(folder, spec, lambda _: images, where, Watch()).finished
    (root,) = shared.iterdir()
    assert names(root) == [INCOMING, OWNER, "trials"]
    assert (names(root / INCOMING), len(names(root / "trials"))) == ([], 3)
    assert names(folder) == [NAME]

    def go_on(where: Where) -> None:
        def more(spec: CampaignSpec) -> CampaignSpec:
            return msgspec.structs.replace(spec, limits=msgspec.structs.replace(spec.limits, trials=4))

        resume_campaign(folder, more, lambda _: images, where, Watch())

    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match=r"and the campaign's evidence is in .*: leave the option out"):
        go_on(Where(workers=1, evidence_dir=str(tmp_path / "other")))
    go_on(Where(workers=1))
    assert len(names(root / "trials")) == 4
    assert find_root(str(shared), root.name, folder) == root


def begin(folder: Path, shared: Path) -> Path:
    """Store a campaign whose evidence is on a shared path, where nothing is made, and return its folder there."""
    folder.mkdir()
    with lock_campaign(folder), open_writer(folder) as connection:
        store = CampaignStore(connection, folder)
        store.create(make_spec(trials=2), {}, str(shared))
        store.find()
        return store.evidence


def go_on(folder: Path, monkeypatch: pytest.MonkeyPatch, evidence_dir: Path | None = None) -> None:
    executor = FakeExecutor(make_done)
    monkeypatch.setattr(sitting, "_open_executor", lambda *_: _Given(executor))
    where = Where(workers=1, evidence_dir="" if evidence_dir is None else str(evidence_dir))

    def build(_: CampaignSpec) -> NoImages:
        return NoImages()

    def limit(spec: CampaignSpec) -> CampaignSpec:
        return msgspec.structs.replace(spec, limits=msgspec.structs.replace(spec.limits, trials=2))

    resume_campaign(folder, limit, build, where, Watch())


def test_a_store_that_came_from_elsewhere_removes_nothing(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = begin(tmp_path / "mailed", shared)
    for name in ("trials/precious", f"{INCOMING}/mail"):
        (root / name).mkdir(parents=True)
        (root / name / "x").touch()
    before = sorted(root.rglob("*"))
    with pytest.raises(UsageError) as refused:
        go_on(tmp_path / "mailed", monkeypatch)
    assert str(refused.value) == (
        f"'{root / OWNER}' is missing, and the campaign's evidence is in '{root}': mount that path; if it is the place"
        f" and yours, give --evidence-dir {shared}"
    )
    (root / OWNER).write_bytes(b'{"uid":"' + root.name.encode() + b'","host":"there","folder":"/home/else"}')
    for named in (None, shared):
        with pytest.raises(UsageError, match="belongs to the campaign in '/home/else' of host there"):
            go_on(tmp_path / "mailed", monkeypatch, named)
    (root / OWNER).write_bytes(b"nothing of ours")
    with pytest.raises(UsageError, match="is not what this lab writes"):
        go_on(tmp_path / "mailed", monkeypatch)
    (root / OWNER).unlink()
    assert sorted(root.rglob("*")) == before


def test_a_campaign_that_was_moved_goes_on_where_its_user_says(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = begin(tmp_path / "out", shared)
    go_on(tmp_path / "out", monkeypatch, shared)
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="if that one was moved here, and no copy of it is run any more, remove"):
        go_on(tmp_path / "moved", monkeypatch)
    (root / OWNER).unlink()
    with pytest.raises(UsageError, match=r"owner\.json' is missing"):
        go_on(tmp_path / "moved", monkeypatch)
    go_on(tmp_path / "moved", monkeypatch, shared)
    go_on(tmp_path / "moved", monkeypatch)


def test_a_path_that_is_not_mounted_is_not_made_up_for(
    store: CampaignStore, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Retention(store, 10).keep(write(store, 1, Outcome.FAIL), 1.0)
    folder, root = store.folder, store.evidence
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shared.rename(tmp_path / "server")
    with pytest.raises(UsageError, match=f"^'{root / OWNER}' is missing"):
        go_on(copy, monkeypatch)
    assert not shared.exists()
    with pytest.raises(HostError, match=f"cannot write evidence in '{root}': No such file or directory"):
        claim_root(root, root.name, folder)
    shared.mkdir()  # as an empty mount point is
    with pytest.raises(UsageError, match=f"^'{root / OWNER}' is missing"):
        go_on(copy, monkeypatch)
    with pytest.raises(UsageError, match=f"keeps evidence in '{root}', which does not exist here: mount that path"):
        go_on(copy, monkeypatch, shared)
    assert names(shared) == []


class _Given:
    def __init__(self, executor: FakeExecutor) -> None:
        self._executor = executor

    def __enter__(self) -> FakeExecutor:
        return self._executor

    def __exit__(self, *_: object) -> None:
        pass


def test_broken_archives_are_refused_as_ever(store: CampaignStore) -> None:
    with pytest.raises(EvidenceError, match="came back"):
        Retention(store, 10).keep(make_done(1, archive=ARCHIVE[:-9]), 1.0)
