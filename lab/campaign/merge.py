# SPDX-License-Identifier: GPL-2.0-or-later
"""Joins campaigns' stores: those of one campaign by trial, each once, and others side by side."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from lab.campaign.database import NAME, TRIALS, lock_campaign, open_reader, open_writer, transaction
from lab.campaign.stored import find_root
from lab.errors import EvidenceError, UsageError
from lab.evidence.folder import MAX_FILES, limit_raw, read_evidence, read_verdict, write_evidence, write_verdict
from lab.evidence.foreign import ForeignFolder

#: What belongs to a trial beside its row, with its columns after campaign and number.
_DETAILS: Final = ("invariants", "coverage", "attempts")
#: Enough of a uid to keep campaigns' evidence apart.
_UID_CHARS: Final = 12


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a merge.

    :param twice: trials that more than one store had, of which the first store's was taken
    """

    campaigns: int
    trials: int
    twice: int


def merge_campaigns(sources: Sequence[Path], target: Path, say: Callable[[str], None]) -> Merged:
    """Write the campaigns of several folders, which stay as they are, into an empty one.

    :raise UsageError: a source holds no campaign
    :raise EvidenceError: a source is damaged
    :raise HostError: no space, or not writable
    """
    for source in sources:
        with open_reader(source):
            pass
    twice = 0
    with lock_campaign(target), _removed_unless_whole(target), open_writer(target) as connection:
        for source in sources:
            say(f"reading {source}")
            twice += _copy_store(source, target, connection)
        campaigns, trials = (
            int(connection.execute(query).fetchone()[0])
            for query in ("SELECT count(*) FROM campaigns", "SELECT count(*) FROM trials")
        )
    return Merged(campaigns=campaigns, trials=trials, twice=twice)


@contextlib.contextmanager
def _removed_unless_whole(target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for path in target.glob(f"{NAME}*"):
            path.unlink()
        shutil.rmtree(target / TRIALS, ignore_errors=True)
        raise


def _copy_store(source: Path, target: Path, connection: sqlite3.Connection) -> int:
    twice = 0
    with open_reader(source) as reader:
        reader.row_factory = sqlite3.Row
        for campaign in reader.execute("SELECT * FROM campaigns ORDER BY id"):
            root = _find_evidence(source, reader, campaign)
            with transaction(connection, target / NAME):
                here = _put_campaign(connection, reader, campaign)
                sittings = _put_sittings(connection, reader, campaign["id"], here)
            for trial in reader.execute("SELECT * FROM trials WHERE campaign = ? ORDER BY number", (campaign["id"],)):
                taken = _copy_trial(root, target, connection, reader, trial, campaign["uid"], here, sittings)
                twice += not taken
    return twice


def _find_evidence(source: Path, reader: sqlite3.Connection, row: sqlite3.Row) -> Path:
    """Return the folder that names of a campaign's evidence are relative to.

    :raise EvidenceError: it is elsewhere, and not to be seen from here
    """
    root = find_root(row["evidence_dir"], row["uid"], source)
    kept = "SELECT 1 FROM trials WHERE campaign = ? AND evidence <> '' LIMIT 1"
    if root != source and not root.is_dir() and reader.execute(kept, (row["id"],)).fetchone() is not None:
        raise EvidenceError(f"evidence of the campaign in '{source}' is in '{root}', which this host does not see")
    return root


def _put_campaign(connection: sqlite3.Connection, reader: sqlite3.Connection, row: sqlite3.Row) -> int:
    known = connection.execute("SELECT id, seed FROM campaigns WHERE uid = ?", (row["uid"],)).fetchone()
    if known is not None:
        if known[1] != row["seed"]:
            raise UsageError(f"two stores call different campaigns {row['uid'][:_UID_CHARS]}: they cannot be merged")
        connection.execute("UPDATE campaigns SET ran_s = ran_s + ? WHERE id = ?", (row["ran_s"], known[0]))
        return int(known[0])
    # Evidence is copied into the target, wherever it was.
    here = _insert(connection, "campaigns", {**dict(row), "id": None, "evidence_dir": ""})
    for image in reader.execute("SELECT * FROM images WHERE campaign = ?", (row["id"],)):
        _insert(connection, "images", {**dict(image), "campaign": here})
    return here


def _put_sittings(
    connection: sqlite3.Connection, reader: sqlite3.Connection, campaign: int, here: int
) -> dict[int, int]:
    found = {}
    for row in reader.execute("SELECT * FROM sittings WHERE campaign = ?", (campaign,)):
        found[row["id"]] = _insert(connection, "sittings", {**dict(row), "id": None, "campaign": here})
    return found


def _copy_trial(
    root: Path,
    target: Path,
    connection: sqlite3.Connection,
    reader: sqlite3.Connection,
    row: sqlite3.Row,
    uid: str,
    here: int,
    sittings: dict[int, int],
) -> bool:
    key = (here, row["number"])
    if connection.execute("SELECT 1 FROM trials WHERE campaign = ? AND number = ?", key).fetchone() is not None:
        return False
    fields = {**dict(row), "campaign": here, "sitting": sittings[row["sitting"]]}
    if row["evidence"]:
        fields["evidence"] = f"{TRIALS}/{_name_folder(uid)}/{int(row['number']):05}"
        _copy_evidence(root / _check_relative(row["evidence"]), target / fields["evidence"])
    with transaction(connection, target / NAME):
        _insert(connection, "trials", fields)
        for table in _DETAILS:
            query = f"SELECT * FROM {table} WHERE campaign = ? AND number = ?"  # noqa: S608  the names are ours
            for detail in reader.execute(query, (row["campaign"], row["number"])):
                _insert(connection, table, {**dict(detail), "campaign": here})
    return True


def _name_folder(uid: str) -> str:
    if not uid.isascii() or not uid.isalnum():
        raise EvidenceError("a campaign's uid is no plain word: its store is none of ours")
    return uid[:_UID_CHARS]


def _check_relative(name: str) -> Path:
    """Return the path of evidence as a foreign store has it, if it stays within its folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] != (TRIALS,):
        raise EvidenceError(f"a trial's evidence is said to be in {name[:80]!r}, which is no place of ours")
    return path


def _copy_evidence(source: Path, target: Path) -> None:
    """Copy a trial's evidence by reading it, since it may be foreign."""
    shutil.rmtree(target, ignore_errors=True)
    for attempt in sorted(source.glob("attempt-*")):
        with ForeignFolder(attempt) as folder:
            names = sorted(name for name in folder.list_names() if not name.endswith(".json"))
            raw = {name: folder.read(name, limit_raw(name)) for name in names[:MAX_FILES]}
        write_evidence(target / attempt.name, read_evidence(attempt), raw)
        write_verdict(target / attempt.name, read_verdict(attempt))


def _insert(connection: sqlite3.Connection, table: str, fields: dict[str, object]) -> int:
    # A foreign store may have columns of any name: those of our own schema are what is asked for, and they alone.
    known = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
    if set(fields) != set(known):
        raise EvidenceError(f"table {table} of a store has other columns than this lab's: it is none of ours")
    columns, marks = ", ".join(known), ", ".join(f":{name}" for name in known)
    cursor = connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", fields)  # noqa: S608
    return cursor.lastrowid or 0
