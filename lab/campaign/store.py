# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a campaign's store: each trial in one transaction, with all that is known of it, once."""

import datetime
import os
import socket
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from lab import __version__
from lab.build.images import ImageSet
from lab.build.qemu import OPTION
from lab.campaign.database import NAME, explain, transaction
from lab.campaign.definition import CampaignSpec
from lab.campaign.facts import Facts
from lab.campaign.job import TrialDone
from lab.campaign.stored import find_root, read_spec
from lab.campaign.sums import add_places, sum_buckets, sum_coverage, sum_outcomes
from lab.errors import UsageError

#: Files of a base whose hashes are kept.
_FILES: Final = ("kernel", "vmlinux", "initramfs", "observer")


class Slimmed(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier trial whose evidence goes on without the dump of its guest's memory.

    :param folder: where it is now, relative to the campaign's, and ``size`` is that of what is left
    """

    number: int
    folder: str
    size: int


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a trial's evidence.

    :param folder: relative to the campaign's, empty where none is kept
    :param state: ``kept``, ``sampled-out`` (a PASS that was not to be kept) or ``dropped`` (for want of room)
    :param slimmed: trials whose dumps make room for it
    :param evicted: numbers of trials whose evidence makes room for it
    """

    folder: str = ""
    size: int = 0
    state: str = "sampled-out"
    slimmed: tuple[Slimmed, ...] = ()
    evicted: tuple[int, ...] = ()


class CampaignStore:
    """The one writer of a store that holds one campaign.

    :param connection: of :func:`lab.campaign.database.open_writer`
    :ivar evidence: the folder that evidence's names are relative to: ``folder``, or the campaign's on a shared path
    """

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self.folder = folder
        self.evidence = folder
        self._path = folder / NAME
        self._connection = connection
        self._campaign = 0
        self._sitting = 0

    def create(self, spec: CampaignSpec, images: Mapping[str, ImageSet], evidence_dir: str = "") -> None:
        """Begin a campaign.

        :param evidence_dir: a path that all hosts share, for evidence; empty for the campaign's own folder
        :raise HostError: no space, or not writable
        """
        with transaction(self._connection, self._path):
            cursor = self._connection.execute(
                "INSERT INTO campaigns (uid, summary, seed, spec, started, lab_version, evidence_dir, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 'running')",
                (
                    uuid.uuid4().hex,
                    spec.summary,
                    str(spec.seed),
                    msgspec.json.encode(spec).decode(),
                    now(),
                    __version__,
                    evidence_dir,
                ),
            )
            self._campaign = _row_id(cursor)
            self._put_images(images)

    def find(self) -> tuple[str, CampaignSpec]:
        """Find the campaign of the store, and return its uid and what it is about.

        :raise UsageError: there is none, or more than one, as in what was merged
        :raise EvidenceError: it was described by another lab in another way
        """
        with explain(self._path):
            rows = self._connection.execute("SELECT id, uid, spec, evidence_dir FROM campaigns LIMIT 2").fetchall()
        if len(rows) != 1:
            held = "none" if not rows else "several: they were merged, and are not run any more"
            raise UsageError(f"'{self.folder}' should hold one campaign, and holds {held}")
        self._campaign = rows[0][0]
        self.evidence = find_root(rows[0][3], rows[0][1], self.folder)
        return rows[0][1], read_spec(rows[0][2], self._path)

    def _put_images(self, images: Mapping[str, ImageSet]) -> None:
        self._connection.executemany(
            "INSERT INTO images (campaign, base, file, sha256) VALUES (?, ?, ?, ?)",
            [
                (self._campaign, base, file, getattr(each, f"{file}_sha256"))
                for base, each in images.items()
                for file in _FILES
            ],
        )
        self._put_qemu(images)

    def _put_qemu(self, images: Mapping[str, ImageSet]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO images (campaign, base, file, sha256) VALUES (?, ?, 'qemu', ?)",
            [(self._campaign, base, each.qemu.sha256) for base, each in images.items()],
        )

    def check_images(self, images: Mapping[str, ImageSet], *, other_qemu: bool) -> None:
        """Refuse to go on with another kernel than the campaign began with, or with another QEMU that nobody asked for.

        The first images of a campaign are kept: it was stored before they were built.

        :param other_qemu: the user asked for this QEMU, whichever it was before
        :raise UsageError: one is another
        :raise HostError: no space, or not writable
        """
        query = "SELECT base, sha256 FROM images WHERE campaign = ? AND file = 'kernel'"
        with explain(self._path):
            begun = dict(self._connection.execute(query, (self._campaign,)))
        if not begun:
            with transaction(self._connection, self._path):
                self._put_images(images)
            return
        for base, each in images.items():
            if begun.get(base) != each.kernel_sha256:
                raise UsageError(
                    f"kernel {base} is {each.kernel_sha256[:12]}, and the campaign in '{self.folder}' began with"
                    f" {begun.get(base, 'none')[:12]}: its trials would not be of one kernel; begin another campaign"
                )
        self._check_qemu(images, other_qemu=other_qemu)

    def _check_qemu(self, images: Mapping[str, ImageSet], *, other_qemu: bool) -> None:
        query = "SELECT base, sha256 FROM images WHERE campaign = ? AND file = 'qemu'"
        with explain(self._path):
            begun = dict(self._connection.execute(query, (self._campaign,)))
        for base, each in images.items():
            # A store of an older lab does not say.
            if begun.get(base, each.qemu.sha256) != each.qemu.sha256 and not other_qemu:
                raise UsageError(
                    f"QEMU '{each.qemu.path}' is {each.qemu.identity}, and the campaign in '{self.folder}' ran on"
                    f" {begun[base][:12]}: name that one with {OPTION}, or this one to go on with it"
                )
        with transaction(self._connection, self._path):
            self._put_qemu(images)

    def change_spec(self, spec: CampaignSpec) -> None:
        """Keep changed limits.

        :raise HostError: no space, or not writable
        """
        with transaction(self._connection, self._path):
            self._connection.execute(
                "UPDATE campaigns SET spec = ? WHERE id = ?", (msgspec.json.encode(spec).decode(), self._campaign)
            )

    def begin_sitting(self, workers: int, scheduler: str, qemu: str = "", facts: Facts | None = None) -> None:
        """Note that the campaign runs, from now on and here.

        :param qemu: what its guests run on, for a person
        :param facts: what else it runs on
        :raise HostError: no space, or not writable
        """
        cores = os.cpu_count() or 0
        with transaction(self._connection, self._path):
            self._connection.execute("UPDATE campaigns SET state = 'running', why = '' WHERE id = ?", (self._campaign,))
            cursor = self._connection.execute(
                "INSERT INTO sittings (campaign, began, host, cores, vcpu_budget, workers, scheduler, lab_version,"
                " qemu, about) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    self._campaign,
                    now(),
                    socket.gethostname(),
                    cores,
                    max(cores, 1),
                    workers,
                    scheduler,
                    __version__,
                    qemu,
                    msgspec.json.encode(facts).decode() if facts is not None else "",
                ),
            )
            self._sitting = _row_id(cursor)

    def end_sitting(self, *, finished: bool, why: str, ran_s: float) -> None:
        """Note why the campaign does not run any more.

        :param ran_s: how long it has run, over all sittings
        :raise HostError: no space, or not writable
        """
        state = "finished" if finished else "stopped"
        with transaction(self._connection, self._path):
            self._connection.execute("UPDATE sittings SET ended = ? WHERE id = ?", (now(), self._sitting))
            self._connection.execute(
                "UPDATE campaigns SET state = ?, why = ?, ran_s = ? WHERE id = ?", (state, why, ran_s, self._campaign)
            )

    @property
    def ran_s(self) -> float:
        """How long the campaign had run when its last trial was stored."""
        with explain(self._path):
            query = "SELECT ran_s FROM campaigns WHERE id = ?"
            return float(self._connection.execute(query, (self._campaign,)).fetchone()[0])

    def numbers_left(self, last: int) -> Iterator[int]:
        """Yield the numbers of the trials that are not stored yet, in order, as they were when the first was asked for.

        :param last: the highest there is
        """
        with explain(self._path):
            top = self._ask_number("SELECT coalesce(max(number), 0) FROM trials WHERE campaign = ?")
            gaps: list[int] = []
            if self._ask_number("SELECT count(*) FROM trials WHERE campaign = ?") < top:
                query = "SELECT number FROM trials WHERE campaign = ? ORDER BY number"
                expected = 1
                for (number,) in self._connection.execute(query, (self._campaign,)):
                    gaps += range(expected, number)
                    expected = number + 1
        yield from (number for number in gaps if number <= last)
        yield from range(top + 1, last + 1)

    def has(self, number: int) -> bool:
        """Say whether a trial is stored already."""
        there = "SELECT 1 FROM trials WHERE campaign = ? AND number = ?"
        with explain(self._path):
            return self._connection.execute(there, (self._campaign, number)).fetchone() is not None

    def count_failures(self) -> int:
        """Return how many trials have ended in FAIL."""
        with explain(self._path):
            return self._ask_number("SELECT count(*) FROM trials WHERE campaign = ? AND outcome = 'FAIL'")

    def count_outcomes(self) -> dict[str, dict[str, int]]:
        """Return, for each scenario by name, how many trials ended how."""
        with explain(self._path):
            return sum_outcomes(self._connection, self._campaign)

    def count_coverage(self) -> dict[str, int]:
        """Return how many NMIs were set pending in each phase at each role."""
        with explain(self._path):
            return add_places(sum_coverage(self._connection, self._campaign))

    def count_buckets(self) -> dict[str, int]:
        """Return, for each title that failures share, of how many trials it is."""
        with explain(self._path):
            return {each.title: each.trials for each in sum_buckets(self._connection, self._campaign)}

    def list_evidence(self) -> list[tuple[int, str, int, bool]]:
        """Return number, folder, size and whether it is of a PASS, of all evidence that is kept."""
        query = (
            "SELECT number, evidence, evidence_bytes, outcome = 'PASS' FROM trials"
            " WHERE campaign = ? AND evidence_state = 'kept' ORDER BY number"
        )
        with explain(self._path):
            rows = self._connection.execute(query, (self._campaign,))
            return [(number, name, size, bool(passed)) for number, name, size, passed in rows]

    def add(self, done: TrialDone, kept: Kept, ran_s: float) -> bool:
        """Store a trial, and return once the disk has it; False, and nothing done, when it is there already.

        :param ran_s: how long the campaign has run by now, over all sittings
        :raise HostError: no space, or not writable; nothing of the trial is stored then
        """
        with transaction(self._connection, self._path):
            key = (self._campaign, done.number)
            there = "SELECT 1 FROM trials WHERE campaign = ? AND number = ?"
            if self._connection.execute(there, key).fetchone() is not None:
                return False
            self._insert_trial(done, kept)
            record = done.record
            self._connection.executemany(
                "INSERT INTO invariants (campaign, number, name, finding) VALUES (?, ?, ?, ?)",
                [(*key, name, finding.value) for name, finding in record.invariants.items()],
            )
            self._connection.executemany(
                "INSERT INTO coverage (campaign, number, place, nmis) VALUES (?, ?, ?, ?)",
                [(*key, place, count) for place, count in record.coverage.items()],
            )
            self._connection.executemany(
                "INSERT INTO attempts (campaign, number, attempt, outcome, reason, took_s, guest_trial)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (*key, index, each.outcome.value, each.reason, each.took_s, each.guest_trial)
                    for index, each in enumerate(done.attempts, 1)
                ],
            )
            self._connection.executemany(
                "UPDATE trials SET evidence = ?, evidence_bytes = ? WHERE campaign = ? AND number = ?",
                [(each.folder, each.size, self._campaign, each.number) for each in kept.slimmed],
            )
            self._connection.executemany(
                "UPDATE trials SET evidence = '', evidence_bytes = 0, evidence_state = 'dropped'"
                " WHERE campaign = ? AND number = ?",
                [(self._campaign, number) for number in kept.evicted],
            )
            self._connection.execute("UPDATE campaigns SET ran_s = ? WHERE id = ?", (ran_s, self._campaign))
        return True

    def _insert_trial(self, done: TrialDone, kept: Kept) -> None:
        record = done.record
        row: dict[str, object] = {
            "campaign": self._campaign,
            "number": done.number,
            "sitting": self._sitting,
            "part": done.part,
            "mechanism": record.mechanism,
            "topology": record.topology,
            "seed": record.seed,
            "outcome": record.outcome.value,
            "reason": record.reason,
            "attempts": len(done.attempts),
            "failed": done.failed,
            "reproduces": done.reproduces,
            "kernel_sha256": record.kernel_sha256,
            "kernel_match": record.match.value if record.match is not None else "",
            "nmis_sent": record.nmis.sent,
            "nmis_handled": record.nmis.handled,
            "nmis_entries": record.nmis.entries,
            "nmis_proven": record.nmis.proven_in_window,
            "nmis_siblings": record.nmis.on_siblings,
            "nmis_masked": record.nmis.masked,
            "windows_judged": record.windows_judged,
            "windows_unseen": record.windows_unseen,
            "durations": msgspec.json.encode(record.durations).decode(),
            "host": done.host,
            "lab_version": done.lab_version,
            "began": done.began,
            "took_s": done.took_s,
            "evidence": kept.folder,
            "evidence_bytes": kept.size,
            "evidence_state": kept.state,
            "load_1m": done.load_1m,
            "steal_ppm": done.steal_ppm,
            "bucket": record.bucket,
            "fractions": msgspec.json.encode(record.fractions).decode(),
            "shots": msgspec.json.encode(record.shots).decode(),
            "wait_region": msgspec.json.encode(record.wait_region).decode(),
            "first_load": record.first_load,
        }
        # The names are ours; every value is a parameter.
        columns, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
        self._connection.execute(f"INSERT INTO trials ({columns}) VALUES ({marks})", row)  # noqa: S608

    def _ask_number(self, query: str) -> int:
        return int(self._connection.execute(query, (self._campaign,)).fetchone()[0])


def now() -> str:
    """Return the wall-clock time, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _row_id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None, "an INSERT has just been done"
    return cursor.lastrowid
