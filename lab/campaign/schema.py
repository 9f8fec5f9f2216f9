# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of a campaign's store (docs/explanation/store.md explains them), and how an older store becomes today's.

Each entry of MIGRATIONS takes a store from the version that is its index to the next, in one transaction; a new store
goes through all of them, so that none is ever untried.
"""

import sqlite3
from typing import Final

from lab.errors import EvidenceError

#: "mclb": tells a store from any other SQLite file.
APPLICATION_ID: Final = 0x6D636C62

_FIRST: Final = (
    """CREATE TABLE campaigns (
        id INTEGER PRIMARY KEY,
        uid TEXT NOT NULL UNIQUE,
        summary TEXT NOT NULL,
        seed TEXT NOT NULL,
        spec TEXT NOT NULL,
        started TEXT NOT NULL,
        lab_version TEXT NOT NULL,
        ran_s REAL NOT NULL DEFAULT 0,
        state TEXT NOT NULL CHECK (state IN ('running', 'stopped', 'finished')),
        why TEXT NOT NULL DEFAULT ''
    ) STRICT""",
    """CREATE TABLE images (
        campaign INTEGER NOT NULL REFERENCES campaigns (id),
        base TEXT NOT NULL,
        file TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (campaign, base, file)
    ) WITHOUT ROWID, STRICT""",
    """CREATE TABLE sittings (
        id INTEGER PRIMARY KEY,
        campaign INTEGER NOT NULL REFERENCES campaigns (id),
        began TEXT NOT NULL,
        ended TEXT NOT NULL DEFAULT '',
        host TEXT NOT NULL,
        cores INTEGER NOT NULL,
        vcpu_budget INTEGER NOT NULL,
        workers INTEGER NOT NULL,
        scheduler TEXT NOT NULL,
        lab_version TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE trials (
        campaign INTEGER NOT NULL REFERENCES campaigns (id),
        number INTEGER NOT NULL,
        sitting INTEGER NOT NULL REFERENCES sittings (id),
        part TEXT NOT NULL,
        mechanism TEXT NOT NULL,
        topology TEXT NOT NULL,
        seed INTEGER NOT NULL,
        outcome TEXT NOT NULL CHECK (outcome IN ('PASS', 'FAIL', 'INVALID', 'ERROR')),
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        reproduces INTEGER NOT NULL,
        kernel_sha256 TEXT NOT NULL,
        kernel_match TEXT NOT NULL,
        nmis_sent INTEGER NOT NULL,
        nmis_handled INTEGER NOT NULL,
        nmis_entries INTEGER NOT NULL,
        nmis_proven INTEGER NOT NULL,
        windows_judged INTEGER NOT NULL,
        windows_unseen INTEGER NOT NULL,
        durations TEXT NOT NULL,
        host TEXT NOT NULL,
        lab_version TEXT NOT NULL,
        began TEXT NOT NULL,
        took_s REAL NOT NULL,
        evidence TEXT NOT NULL,
        evidence_bytes INTEGER NOT NULL,
        evidence_state TEXT NOT NULL CHECK (evidence_state IN ('kept', 'sampled-out', 'dropped')),
        PRIMARY KEY (campaign, number)
    ) STRICT""",
    """CREATE TABLE invariants (
        campaign INTEGER NOT NULL,
        number INTEGER NOT NULL,
        name TEXT NOT NULL,
        finding TEXT NOT NULL CHECK (finding IN ('held', 'broken', 'unseen')),
        PRIMARY KEY (campaign, number, name),
        FOREIGN KEY (campaign, number) REFERENCES trials (campaign, number)
    ) WITHOUT ROWID, STRICT""",
    """CREATE TABLE coverage (
        campaign INTEGER NOT NULL,
        number INTEGER NOT NULL,
        place TEXT NOT NULL,
        nmis INTEGER NOT NULL,
        PRIMARY KEY (campaign, number, place),
        FOREIGN KEY (campaign, number) REFERENCES trials (campaign, number)
    ) WITHOUT ROWID, STRICT""",
    """CREATE TABLE attempts (
        campaign INTEGER NOT NULL,
        number INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        reason TEXT NOT NULL,
        took_s REAL NOT NULL,
        guest_trial INTEGER NOT NULL,
        PRIMARY KEY (campaign, number, attempt),
        FOREIGN KEY (campaign, number) REFERENCES trials (campaign, number)
    ) WITHOUT ROWID, STRICT""",
    "CREATE INDEX trials_by_outcome ON trials (campaign, part, outcome)",
)
#: What the host did meanwhile, and what a failure is equal to.
_HOST_AND_BUCKET: Final = (
    "ALTER TABLE trials ADD COLUMN load_1m REAL",
    "ALTER TABLE trials ADD COLUMN steal_ppm INTEGER",
    "ALTER TABLE trials ADD COLUMN bucket TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX trials_by_bucket ON trials (bucket) WHERE bucket <> ''",
)
#: How far into a phase each random NMI came, as JSON: what tells whether they were random.
_FRACTIONS: Final = ("ALTER TABLE trials ADD COLUMN fractions TEXT NOT NULL DEFAULT '{}'",)
#: Where evidence is that all hosts write; empty for the campaign's own folder.
_EVIDENCE_DIR: Final = ("ALTER TABLE campaigns ADD COLUMN evidence_dir TEXT NOT NULL DEFAULT ''",)
#: What guests ran on during a sitting, which its user may change; images have its SHA-256.
_QEMU: Final = ("ALTER TABLE sittings ADD COLUMN qemu TEXT NOT NULL DEFAULT ''",)
#: Whom NMIs reached, NULL where no lab counted it, and how many shots there were of which ``fractions`` are a sample.
_REACHED_AND_SHOTS: Final = (
    "ALTER TABLE trials ADD COLUMN nmis_siblings INTEGER",
    "ALTER TABLE trials ADD COLUMN nmis_masked INTEGER",
    "ALTER TABLE trials ADD COLUMN shots TEXT NOT NULL DEFAULT '{}'",
)
#: What a sitting ran on, as JSON of lab.campaign.facts.Facts, and what else a record says of a trial.
_FACTS: Final = (
    "ALTER TABLE sittings ADD COLUMN about TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE trials ADD COLUMN wait_region TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE trials ADD COLUMN first_load INTEGER NOT NULL DEFAULT 0",
)
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    _FIRST,
    _HOST_AND_BUCKET,
    _FRACTIONS,
    _EVIDENCE_DIR,
    _QEMU,
    _REACHED_AND_SHOTS,
    _FACTS,
)
VERSION: Final = len(MIGRATIONS)


def read_version(connection: sqlite3.Connection, name: str) -> int:
    """Return a store's version, 0 for an empty file.

    :param name: what errors call it
    :raise EvidenceError: it is no store, or one of a later lab
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if owner != APPLICATION_ID and (version or tables or owner):
        raise EvidenceError(f"'{name}' is an SQLite file, but no store of a campaign")
    if not 0 <= version <= VERSION:
        raise EvidenceError(f"'{name}' has schema version {version}: this lab reads 1 to {VERSION}; use a later lab")
    return version


def migrate(connection: sqlite3.Connection, name: str, target: int = VERSION) -> None:
    """Bring a store to a version, each step whole or not at all.

    :param connection: in autocommit mode
    :raise EvidenceError: as :func:`read_version`
    """
    for version in range(read_version(connection, name), target):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
