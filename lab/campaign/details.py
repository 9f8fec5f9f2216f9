# SPDX-License-Identifier: GPL-2.0-or-later
"""All that a store has to say of its campaigns, for a page: their sums, and their trials one after the other."""

import contextlib
import datetime
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lab.campaign.database import NAME
from lab.campaign.definition import CampaignSpec
from lab.campaign.reader import Failure, PartStanding, Summary, find_failures, open_campaigns, sum_up
from lab.campaign.rows import read_rows, select
from lab.campaign.stored import read_spec
from lab.campaign.sums import sum_findings, sum_masked
from lab.errors import EvidenceError
from lab.expected.expect import QUIET
from lab.expected.tally import HARMLESS, OutcomeCounts, Struck, Tally
from lab.model.verdict import Durations, Outcome


class SittingHeld(msgspec.Struct, frozen=True, kw_only=True):
    """One sitting, by what the store calls it.

    :param began: wall-clock time, ISO 8601, and ``ended``, empty where nobody could note it
    :param length_s: from one to the other, None where one is missing or no time
    :param qemu: what its guests ran on, empty before schema 5
    """

    id: int
    began: str
    ended: str
    host: str
    cores: int
    vcpu_budget: int
    workers: int
    scheduler: str
    lab_version: str
    qemu: str = ""
    length_s: float | None = None


class HostStanding(msgspec.Struct, frozen=True, kw_only=True):
    """What trials of one host met; None where none of them has it.

    :param steal_mean_ppm: of its time that its own hypervisor kept from it
    """

    name: str
    trials: int
    load_mean: float | None
    load_most: float | None
    steal_mean_ppm: float | None
    steal_most_ppm: int | None


class EvidenceStanding(msgspec.Struct, frozen=True, kw_only=True):
    """Trials whose evidence came to the same: kept, sampled-out or dropped."""

    state: str
    outcome: str
    trials: int
    size: int


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A file that the campaign boots, by its SHA-256."""

    base: str
    file: str
    sha256: str


class TrialLine(msgspec.Struct, frozen=True, kw_only=True):
    """What a page adds up of one trial.

    :param ended_s: when it ended, since its sitting began, by the wall clock; None where one of them is no time
    """

    number: int
    part: str
    mechanism: str
    outcome: Outcome
    reason: str
    sitting: int
    ended_s: float | None
    took_s: float
    nmis_sent: int
    evidence: str
    durations: Durations
    fractions: dict[str, tuple[float, ...]]
    shots: dict[str, int] = {}


class Details:
    """One campaign of a store that is open."""

    def __init__(self, connection: sqlite3.Connection, folder: Path, campaign: int, running: bool) -> None:
        self._connection = connection
        self._campaign = campaign
        self._path = folder / NAME
        self.summary: Summary = sum_up(connection, folder, campaign, running)
        self.spec: CampaignSpec = read_spec(self._ask("SELECT spec FROM campaigns WHERE id = ?")[0][0], self._path)
        query = (
            "SELECT id, began, ended, host, cores, vcpu_budget, workers, scheduler, lab_version, qemu FROM sittings"
            " WHERE campaign = ? ORDER BY id"
        )
        self.sittings = tuple(
            msgspec.structs.replace(held, length_s=_measure(held.began, held.ended))
            for held in read_rows(connection, SittingHeld, query, (campaign,))
        )

    def list_hosts(self) -> tuple[HostStanding, ...]:
        """Return the hosts that trials ran on, by name."""
        query = (
            "SELECT host AS name, count(*) AS trials, avg(load_1m) AS load_mean, max(load_1m) AS load_most,"
            " avg(steal_ppm) AS steal_mean_ppm, max(steal_ppm) AS steal_most_ppm FROM trials"
            " WHERE campaign = ? GROUP BY host ORDER BY host"
        )
        return tuple(read_rows(self._connection, HostStanding, query, (self._campaign,)))

    def list_evidence(self) -> tuple[EvidenceStanding, ...]:
        """Return what became of trials' evidence, by outcome."""
        query = (
            "SELECT evidence_state AS state, outcome, count(*) AS trials, sum(evidence_bytes) AS size FROM trials"
            " WHERE campaign = ? GROUP BY 1, 2 ORDER BY 1, 2"
        )
        return tuple(read_rows(self._connection, EvidenceStanding, query, (self._campaign,)))

    def list_images(self) -> tuple[Image, ...]:
        """Return the files that it boots, by base."""
        query = "SELECT base, file, sha256 FROM images WHERE campaign = ? ORDER BY base, file"
        return tuple(read_rows(self._connection, Image, query, (self._campaign,)))

    def list_versions(self) -> tuple[str, ...]:
        """Return the versions of the labs that ran its trials."""
        rows = self._ask("SELECT DISTINCT lab_version FROM trials WHERE campaign = ? ORDER BY lab_version")
        return tuple(version for (version,) in rows)

    def list_failures(self, title: str, limit: int) -> tuple[Failure, ...]:
        """Return the failures of one title that were stored last, newest first; empty for those that have none."""
        return find_failures(self._connection, self._campaign, limit, title)

    def tally(self) -> dict[str, tuple[Tally, Tally, Struck]]:
        """Return how ``quiet`` and ``harmless`` were found, for each scenario that has a trial.

        The third says the same of the trials alone in which an NMI reached a sibling.
        """
        names = (QUIET, HARMLESS)
        counts = sum_findings(self._connection, self._campaign, names)
        struck = sum_findings(self._connection, self._campaign, names, struck=True)
        masked = sum_masked(self._connection, self._campaign)
        found = {}
        for part in self.summary.parts:
            quiet, harmless = (_tally(counts.get((part.name, name), {})) for name in names)
            struck_quiet, struck_harmless = (_tally(struck.get((part.name, name), {})) for name in names)
            reached = Struck(
                quiet=struck_quiet,
                harmless=struck_harmless,
                sent=part.nmis_sent,
                masked=masked.get(part.name, 0),
            )
            if part.outcomes:
                found[part.name] = (quiet, harmless, reached)
        return found

    def read_trials(self) -> Iterator[TrialLine]:
        """Yield all trials, in the order in which they were stored.

        :raise EvidenceError: one is none of this lab's
        """
        began = {sitting.id: _read_time(sitting.began) for sitting in self.sittings}
        durations = msgspec.json.Decoder(Durations)
        fractions = msgspec.json.Decoder(dict[str, tuple[float, ...]])
        shots = msgspec.json.Decoder(dict[str, int])
        query = (
            "SELECT number, part, mechanism, outcome, reason, sitting, began, took_s, nmis_sent, evidence, durations,"
            " fractions, shots FROM trials WHERE campaign = ? ORDER BY rowid"
        )
        for row in select(self._connection, query, (self._campaign,)):
            begun, start = _read_time(row["began"]), began.get(row["sitting"])
            try:
                yield TrialLine(
                    number=row["number"],
                    part=row["part"],
                    mechanism=row["mechanism"],
                    outcome=Outcome(row["outcome"]),
                    reason=row["reason"],
                    sitting=row["sitting"],
                    ended_s=begun - start + row["took_s"] if begun is not None and start is not None else None,
                    took_s=row["took_s"],
                    nmis_sent=row["nmis_sent"],
                    evidence=row["evidence"],
                    durations=durations.decode(row["durations"]),
                    fractions=fractions.decode(row["fractions"]),
                    shots=shots.decode(row["shots"]),
                )
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise EvidenceError(f"trial {row['number']} of the store is no record of this lab: {error}") from error

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, (self._campaign,)).fetchall()


@contextlib.contextmanager
def open_details(folder: Path) -> Iterator[tuple[Details, ...]]:
    """Open a store, also one that is being written: all that is read in the block is of one moment.

    :raise UsageError: there is none
    :raise EvidenceError: the store is damaged, or of another lab
    """
    with open_campaigns(folder) as (connection, campaigns, running):
        yield tuple(Details(connection, folder, each, running) for each in campaigns)


def count_outcomes(part: PartStanding) -> OutcomeCounts:
    """Return a scenario's outcomes by their names."""
    counts = part.outcomes
    return OutcomeCounts(
        passed=counts.get("PASS", 0),
        failed=counts.get("FAIL", 0),
        invalid=counts.get("INVALID", 0),
        error=counts.get("ERROR", 0),
        passed_without_nmis=part.passed_without_nmis,
    )


def _tally(counts: dict[str, int]) -> Tally:
    return Tally(held=counts.get("held", 0), broken=counts.get("broken", 0), unseen=counts.get("unseen", 0))


def _read_time(text: str) -> float | None:
    """Return seconds of the wall clock, of ISO 8601."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _measure(began: str, ended: str) -> float | None:
    first, last = _read_time(began), _read_time(ended)
    return last - first if first is not None and last is not None else None
