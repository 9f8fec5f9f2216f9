# SPDX-License-Identifier: GPL-2.0-or-later
"""The SQLite file of a campaign: how it is opened for its one writer and for readers, and locked."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab.campaign.schema import VERSION, migrate, read_version
from lab.errors import EvidenceError, HostError, UsageError
from lab.host.deadline import Deadline
from lab.host.lock import try_lock

NAME: Final = "campaign.sqlite"
#: Beside the store: the folder of all trials' evidence.
TRIALS: Final = "trials"
#: Beside the store: by this file somebody asks the running campaign to end after its running trials.
STOP: Final = "STOP"
#: A reader holds no lock that a writer waits for; a checkpoint by another one takes moments.
BUSY_S: Final = 30.0
#: Whoever looks whether a campaign runs has its lock for less, and a writer waits so long.
LOOK_S: Final = 1.0
_POLL_S: Final = 0.01


@contextlib.contextmanager
def lock_campaign(folder: Path) -> Iterator[None]:
    """Hold the one writer's place of a campaign's folder. The kernel takes it back however the holder ends.

    :raise UsageError: another process has it
    :raise HostError: the folder cannot be opened
    """
    with _open_folder(folder) as descriptor:
        deadline = Deadline.after(LOOK_S)
        while not try_lock(descriptor):
            if deadline.expired:
                raise UsageError(f"another lab runs a campaign in '{folder}': name another folder, or stop that one")
            time.sleep(_POLL_S)
        yield


def stop_campaign(folder: Path) -> None:
    """Have a campaign end after its running trials.

    :raise UsageError: none runs there
    """
    if not (folder / NAME).is_file():
        raise UsageError(f"'{folder}' holds no campaign: {NAME} is missing")
    if not is_running(folder):
        raise UsageError(f"no campaign runs in '{folder}'")
    (folder / STOP).touch()


def is_running(folder: Path) -> bool:
    """Say whether a process runs a campaign in a folder now; any number may ask at a time.

    :raise HostError: the folder cannot be opened
    """
    with _open_folder(folder) as descriptor:
        return not try_lock(descriptor, shared=True)


@contextlib.contextmanager
def open_writer(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open a store to write, made or brought to today's schema if need be. Its caller holds the campaign's lock.

    Each commit is synced (FULL, where WAL's NORMAL would lose the last ones when the host loses power): a trial takes
    a tenth of a second at least, and a sync some milliseconds.

    :raise HostError: no space, or not writable
    :raise EvidenceError: the file is no store, or a later lab's
    """
    path = folder / NAME
    with explain(path):
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        with explain(path):
            _defend(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            migrate(connection, str(path))
        yield connection
    finally:
        # The last one out folds the WAL into the file; without space it stays, and nothing is lost.
        with contextlib.suppress(sqlite3.Error):
            connection.close()


@contextlib.contextmanager
def open_reader(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open a store to read, also one that is being written; one of an older schema as today's, and its file stays.

    :raise UsageError: there is none
    :raise EvidenceError: the file is no store, or a later lab's
    """
    path = folder / NAME
    if not path.is_file():
        raise UsageError(f"'{folder}' holds no campaign: {NAME} is missing")
    try:
        # Whoever may write can also fold in what a killed writer left; others must not need files beside the store.
        mode = "mode=rw" if os.access(folder, os.W_OK) and os.access(path, os.W_OK) else "mode=ro"
        if mode == "mode=ro" and not path.with_name(f"{NAME}-wal").exists():
            mode = "immutable=1"
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=BUSY_S, isolation_level=None
        )
        try:
            _defend(connection)
            connection.execute("PRAGMA query_only = ON")
            version = read_version(connection, str(path))
            if version == 0:
                raise EvidenceError(f"'{path}' is empty: it is no store of a campaign")
            if version < VERSION:
                older, connection = connection, _copy_as_today(connection, path)
                older.close()
            # One view of all tables, whatever is written meanwhile.
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise EvidenceError(f"'{path}' cannot be read: {error}") from error


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Do all that the block does, or nothing.

    :raise HostError: no space, or not writable
    """
    with explain(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            # A full disk has rolled it back already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def explain(path: Path) -> Iterator[None]:
    """Turn what SQLite says while a store is written into one sentence."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise HostError(f"store '{path}' could not be written: {error}; what it holds stays whole") from error
    except sqlite3.DatabaseError as error:
        raise EvidenceError(f"store '{path}' is damaged, or is none: {error}") from error


def _copy_as_today(older: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Return a copy of a store in memory, of today's schema."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        older.backup(copy)
        _defend(copy)
        migrate(copy, str(path))
        copy.execute("PRAGMA query_only = ON")
    except BaseException:
        copy.close()
        raise
    return copy


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"campaign folder '{folder}' cannot be opened: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _defend(connection: sqlite3.Connection) -> None:
    # A store may come from another machine: nothing in its schema is run.
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
