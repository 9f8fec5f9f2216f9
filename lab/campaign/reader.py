# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a campaign's store, also while it is written: what came of it, and its records."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from lab.campaign.database import NAME, is_running, open_reader
from lab.campaign.definition import CampaignSpec, Part
from lab.campaign.kills import weigh_mutants
from lab.campaign.rows import read_rows, select
from lab.campaign.stored import find_root, read_spec
from lab.campaign.sums import (
    MAX_BUCKETS,
    BucketStanding,
    Landed,
    add_places,
    count_caught,
    sum_buckets,
    sum_coverage,
    sum_outcomes,
)
from lab.errors import EvidenceError, UsageError
from lab.expected.hunt import Fate, Kill
from lab.expected.tally import OutcomeCounts, weigh_counts
from lab.model.verdict import Outcome, TrialRecord

#: What a store says of a campaign that was killed.
KILLED: Final = "killed"
#: Of a scenario that no trial has been run of.
NO_TRIAL: Final = "no trial yet"
#: What is expected of all scenarios of a mutant together.
HUNTED: Final = "mutant caught"
#: How many of the newest failures a summary names.
NEWEST: Final = 5


#: Fields of a record that are columns of a trial by the same name, and those that are JSON in such a column.
_PLAIN: Final = (
    "mechanism",
    "topology",
    "seed",
    "outcome",
    "reason",
    "windows_judged",
    "windows_unseen",
    "kernel_sha256",
    "evidence",
    "bucket",
)
_JSON: Final = ("durations", "fractions", "shots", "wait_region")
#: Fields of lab.model.verdict.NmiCount to columns.
_NMIS: Final = {
    "sent": "nmis_sent",
    "handled": "nmis_handled",
    "entries": "nmis_entries",
    "proven_in_window": "nmis_proven",
    "on_siblings": "nmis_siblings",
    "masked": "nmis_masked",
}


class PartStanding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one scenario.

    :param met: its trials did what is expected of them; None without a trial
    :param passed_without_nmis: of its trials that passed, how many asked for no NMI
    """

    name: str
    mechanism: str
    topology: str
    expected: str
    met: bool | None
    reason: str
    outcomes: dict[str, int]
    nmis_sent: int
    nmis_proven: int
    passed_without_nmis: int = 0

    @property
    def standing(self) -> str:
        """Whether its expectation is met, in words."""
        return NO_TRIAL if self.met is None else "met" if self.met else "NOT MET"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A trial that is counted among the failures.

    :param failed: in how many of its attempts
    :param reproduces: its plan places all NMIs by holds, so that each attempt does the same
    :param evidence: its folder, relative to the summary's ``evidence_dir``; empty where none is kept, and
        ``evidence_state`` says why
    """

    number: int
    part: str
    seed: int
    outcome: str
    failed: int
    attempts: int
    reproduces: bool
    reason: str
    evidence: str
    evidence_state: str
    bucket: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign as its store has it.

    :param state: running, stopped, finished or killed
    :param planned: how many trials there are to be, None without a limit
    :param evidence: trials by what became of their evidence: kept, sampled-out, dropped
    :param evidence_dir: what the names of evidence are relative to: ``folder``, or a path that all hosts share
    :param vcpu_budget: of the host that led the last sitting; guests run beside each other as it admits them
    :param starved_most_ppm: the most that a host's own hypervisor kept from it during one trial
    :param load_most: the highest load average that was seen beside a trial
    :param coverage: where NMIs were set pending
    :param buckets: failures by title, the fullest first, MAX_BUCKETS at most; ``buckets_more`` are left out
    :param newest: the last failures, newest first
    :param kills: of ``lab mutants``: what became of each mutant
    """

    folder: str
    uid: str
    summary: str
    seed: int
    state: str
    why: str
    started: str
    ran_s: float
    sittings: int
    hosts: tuple[str, ...]
    vcpu_budget: int
    workers: int
    planned: int | None
    done: int
    trials_per_h: float
    parts: tuple[PartStanding, ...]
    evidence: dict[str, int]
    evidence_bytes: int
    evidence_dir: str
    load_most: float
    starved_most_ppm: int
    coverage: tuple[Landed, ...]
    buckets: tuple[BucketStanding, ...]
    buckets_more: int
    newest: tuple[Failure, ...]
    kills: tuple[Kill, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the trials of every scenario did what is expected of them: one without a trial has shown nothing."""
        return bool(self.parts) and all(part.met for part in self.parts)

    @property
    def outcomes(self) -> dict[str, int]:
        """How many trials ended how."""
        return {name.value: sum(part.outcomes.get(name.value, 0) for part in self.parts) for name in Outcome}

    @property
    def places(self) -> dict[str, int]:
        """How many NMIs were set pending in each phase at each role."""
        return add_places(self.coverage)


def summarise(folder: Path) -> tuple[Summary, ...]:
    """Return what came of each campaign of a store.

    :raise UsageError: there is none
    :raise EvidenceError: the store is damaged, or of another lab
    """
    with open_campaigns(folder) as (connection, campaigns, running):
        return tuple(sum_up(connection, folder, each, running) for each in campaigns)


@contextlib.contextmanager
def open_campaigns(folder: Path) -> Iterator[tuple[sqlite3.Connection, tuple[int, ...], bool]]:
    """Open a store to read; yields it, the campaigns in it, and whether one runs there.

    :raise UsageError: and EvidenceError as :func:`lab.campaign.database.open_reader`
    """
    running = (folder / NAME).is_file() and is_running(folder)
    with open_reader(folder) as connection:
        rows = connection.execute("SELECT id FROM campaigns ORDER BY id").fetchall()
        yield connection, tuple(each for (each,) in rows), running


def read_campaign_spec(folder: Path) -> tuple[str, CampaignSpec]:
    """Return the uid of a store's one campaign, and what it is about.

    :raise UsageError: there is none, or more than one
    :raise EvidenceError: the store is damaged, or of another lab
    """
    with open_reader(folder) as connection:
        rows = connection.execute("SELECT uid, spec FROM campaigns LIMIT 2").fetchall()
    if len(rows) != 1:
        raise UsageError(f"'{folder}' holds {'no campaign' if not rows else 'several campaigns'}: one is needed")
    return rows[0][0], read_spec(rows[0][1], folder / NAME)


def read_campaign_qemu(folder: Path) -> str:
    """Return the SHA-256 of the QEMU that a store's one campaign runs on, empty where an older lab began it.

    :raise EvidenceError: the store is damaged, or of another lab
    """
    with open_reader(folder) as connection:
        rows = connection.execute("SELECT DISTINCT sha256 FROM images WHERE file = 'qemu' LIMIT 2").fetchall()
    return str(rows[0][0]) if len(rows) == 1 else ""


def read_records(folder: Path) -> Iterator[TrialRecord]:
    """Yield all records of a store, in order of campaign and number.

    :raise UsageError: there is no campaign
    :raise EvidenceError: the store is damaged, or of another lab
    """
    with open_reader(folder) as connection:
        for _, record in _read_parts(connection):
            yield record


def group_records(folder: Path, parts: Iterable[str]) -> dict[str, list[TrialRecord]]:
    """Return all records of a store by scenario, in order of number.

    :param parts: names of the campaign's scenarios
    :raise UsageError: there is no campaign
    :raise EvidenceError: the store is damaged, or of another lab, or a trial is of another scenario
    """
    with open_reader(folder) as connection:
        return _group(connection, folder, parts)


def _group(
    connection: sqlite3.Connection, folder: Path, parts: Iterable[str], campaign: int | None = None
) -> dict[str, list[TrialRecord]]:
    found: dict[str, list[TrialRecord]] = {part: [] for part in parts}
    for part, record in _read_parts(connection, campaign):
        if part not in found:
            raise EvidenceError(f"'{folder / NAME}': trial {record.trial} is of a scenario that the campaign has not")
        found[part].append(record)
    return found


def _read_parts(connection: sqlite3.Connection, campaign: int | None = None) -> Iterator[tuple[str, TrialRecord]]:
    query = "SELECT * FROM trials WHERE coalesce(campaign = ?, 1) ORDER BY campaign, number"
    for row in select(connection, query, (campaign,)):
        yield row["part"], _make_record(connection, row)


def _make_record(connection: sqlite3.Connection, row: sqlite3.Row) -> TrialRecord:
    key = (row["campaign"], row["number"])
    invariants = connection.execute("SELECT name, finding FROM invariants WHERE campaign = ? AND number = ?", key)
    coverage = connection.execute("SELECT place, nmis FROM coverage WHERE campaign = ? AND number = ?", key)
    try:
        fields = {
            "trial": row["number"],
            "invariants": dict(invariants),
            "nmis": {field: row[column] for field, column in _NMIS.items()},
            "coverage": dict(coverage),
            "match": row["kernel_match"] or None,
            "first_load": bool(row["first_load"]),
            **{name: row[name] for name in _PLAIN},
            **{name: msgspec.json.decode(row[name]) for name in _JSON},
        }
        return msgspec.convert(fields, TrialRecord)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise EvidenceError(f"trial {row['number']} of the store is no record of this lab: {error}") from error


def sum_up(connection: sqlite3.Connection, folder: Path, campaign: int, running: bool) -> Summary:
    """Return what came of one campaign of a store.

    :param running: a process runs it now
    :raise EvidenceError: the store is of another lab
    """

    def ask(query: str, *more: object) -> tuple[object, ...]:
        row: tuple[object, ...] = connection.execute(query, (campaign, *more)).fetchone()
        return row

    uid, summary, text, started, ran_s, state, why, evidence_dir = ask(
        "SELECT uid, summary, spec, started, ran_s, state, why, evidence_dir FROM campaigns WHERE id = ?"
    )
    spec = read_spec(str(text), folder / NAME)
    done, load, steal, kept_bytes = ask(
        "SELECT count(*), coalesce(max(load_1m), 0), coalesce(max(steal_ppm), 0), coalesce(sum(evidence_bytes), 0)"
        " FROM trials WHERE campaign = ?"
    )
    sittings, budget, workers = ask(
        "SELECT count(*), coalesce(max(vcpu_budget), 0), coalesce(max(workers), 0) FROM sittings WHERE campaign = ?"
    )
    hosts = connection.execute("SELECT DISTINCT host FROM trials WHERE campaign = ? ORDER BY host", (campaign,))
    states = "SELECT evidence_state, count(*) FROM trials WHERE campaign = ? GROUP BY evidence_state"
    ran = float(str(ran_s))
    outcomes = sum_outcomes(connection, campaign)
    buckets = sum_buckets(connection, campaign)
    parts = tuple(_weigh_part(connection, campaign, spec, part, outcomes.get(part.name, {})) for part in spec.parts)
    kills: tuple[Kill, ...] = ()
    if spec.mutants:
        records = _group(connection, folder, (part.name for part in spec.parts), campaign)
        kills = weigh_mutants(spec, records)
        of = {kill.mutant: kill for kill in kills}
        parts = tuple(_hold_to(of[part.mutant], each) for part, each in zip(spec.parts, parts, strict=True))
    return Summary(
        folder=str(folder),
        uid=str(uid),
        summary=str(summary),
        seed=spec.seed,
        state=KILLED if state == "running" and not running else str(state),
        why=str(why),
        started=str(started),
        ran_s=ran,
        sittings=int(str(sittings)),
        hosts=tuple(host for (host,) in hosts if host),
        vcpu_budget=int(str(budget)),
        workers=int(str(workers)),
        planned=spec.limits.trials,
        done=int(str(done)),
        trials_per_h=int(str(done)) / ran * 3_600 if ran else 0.0,
        parts=parts,
        kills=kills,
        evidence=dict(connection.execute(states, (campaign,))),
        evidence_bytes=int(str(kept_bytes)),
        evidence_dir=str(find_root(str(evidence_dir), str(uid), folder)),
        load_most=float(str(load)),
        starved_most_ppm=int(str(steal)),
        coverage=sum_coverage(connection, campaign),
        buckets=buckets[:MAX_BUCKETS],
        buckets_more=len(buckets[MAX_BUCKETS:]),
        newest=find_failures(connection, campaign, NEWEST),
    )


def _weigh_part(
    connection: sqlite3.Connection, campaign: int, spec: CampaignSpec, part: Part, outcomes: dict[str, int]
) -> PartStanding:
    key = (campaign, part.name)
    sent, proven, without = connection.execute(
        "SELECT coalesce(sum(nmis_sent), 0), coalesce(sum(nmis_proven), 0),"
        " coalesce(sum(outcome = 'PASS' AND nmis_sent = 0), 0) FROM trials WHERE campaign = ? AND part = ?",
        key,
    ).fetchone()
    expected = spec.expect(part)
    caught = count_caught(connection, campaign, part.name, expected)
    counts = OutcomeCounts(
        passed=outcomes.get("PASS", 0),
        failed=outcomes.get("FAIL", 0),
        invalid=outcomes.get("INVALID", 0),
        error=outcomes.get("ERROR", 0),
        passed_without_nmis=without,
    )
    met, reason = weigh_counts(expected, counts, caught)
    return PartStanding(
        name=part.name,
        mechanism=part.scenario.mechanism,
        topology=str(part.scenario.topology),
        expected=expected.kind.value,
        met=met if outcomes else None,
        reason=reason if outcomes else NO_TRIAL,
        outcomes=outcomes,
        nmis_sent=sent,
        nmis_proven=proven,
        passed_without_nmis=without,
    )


def _hold_to(kill: Kill, part: PartStanding) -> PartStanding:
    """Return a scenario of a mutant: it did what is expected of it once the mutant is caught."""
    met = None if kill.fate is Fate.OPEN else kill.fate is Fate.CAUGHT
    by = f" by {', '.join(kill.by)}" if kill.by else f": {kill.reason}" if kill.reason else ""
    return msgspec.structs.replace(part, expected=HUNTED, met=met, reason=f"mutant {kill.fate.value}{by}")


def find_failures(
    connection: sqlite3.Connection, campaign: int, limit: int, title: str | None = None
) -> tuple[Failure, ...]:
    """Return the failures that were stored last, newest first.

    :param title: what they share, empty for those without one; None for all that ended in FAIL
    """
    which = "outcome = 'FAIL'"
    if title is not None:
        which = "bucket = :title AND bucket <> ''" if title else "outcome = 'FAIL' AND bucket = ''"
    # The words are ours.
    query = (
        "SELECT number, part, seed, outcome, failed, attempts, reproduces, reason, evidence, evidence_state, bucket"  # noqa: S608
        f" FROM trials WHERE {which} AND campaign = :campaign ORDER BY rowid DESC LIMIT :limit"
    )
    return tuple(read_rows(connection, Failure, query, {"title": title, "campaign": campaign, "limit": limit}))
