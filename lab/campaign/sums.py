# SPDX-License-Identifier: GPL-2.0-or-later
"""Adds up a campaign's trials, the same for its running self, for ``status`` and for its page."""

import sqlite3
from typing import Final

import msgspec

from lab.expected.expect import Expected
from lab.model.phase import Phase, Role
from lab.model.verdict import ON_SIBLINGS

#: Of failures that share a title; a guest may think of any number of titles.
MAX_BUCKETS: Final = 60
#: All pairs of a phase and a role in which an NMI can be set pending.
CELLS: Final = tuple(f"{phase.value} {role.value}" for phase in Phase for role in Role)

_PLACES: Final = ", ".join(f"'{place}'" for place in ON_SIBLINGS)
#: Of a trial ``t``: as lab.model.verdict.TrialRecord.nmis_on_siblings counts. The words are ours.
_STRUCK: Final = (
    "(t.nmis_siblings > 0 OR (t.nmis_siblings IS NULL AND EXISTS"  # noqa: S608
    " (SELECT 1 FROM coverage AS c WHERE c.campaign = t.campaign AND c.number = t.number AND c.nmis > 0"
    f" AND c.place IN ({_PLACES}))))"
)


class Landed(msgspec.Struct, frozen=True, kw_only=True):
    """How many NMIs were set pending at one place, a phase and a role, over all trials of a mechanism."""

    mechanism: str
    place: str
    nmis: int


class BucketStanding(msgspec.Struct, frozen=True, kw_only=True):
    """Failures that share a title.

    :param title: empty for those that have none
    :param parts: the scenarios they are of, by name
    :param failed: how many tries ended in FAIL, of ``attempts`` over all of its trials
    :param newest: the number of the one that was stored last
    """

    title: str
    trials: int
    parts: tuple[str, ...]
    failed: int
    attempts: int
    newest: int


def is_failure(outcome: str, bucket: str) -> bool:
    """Say whether a trial is counted among the failures: it ended in FAIL, or what it ended in has a title."""
    return outcome == "FAIL" or bool(bucket)


def sum_outcomes(connection: sqlite3.Connection, campaign: int) -> dict[str, dict[str, int]]:
    """Return, for each scenario by name, how many trials ended how."""
    counts: dict[str, dict[str, int]] = {}
    query = "SELECT part, outcome, count(*) FROM trials WHERE campaign = ? GROUP BY part, outcome"
    for part, outcome, count in connection.execute(query, (campaign,)):
        counts.setdefault(part, {})[outcome] = count
    return counts


def count_caught(connection: sqlite3.Connection, campaign: int, part: str, expected: Expected) -> int:
    """Return how many trials of a scenario ended in FAIL with one of the invariants broken that it is a control of."""
    query = (
        "SELECT count(*) FROM trials AS t WHERE campaign = ? AND part = ? AND outcome = 'FAIL' AND EXISTS"
        " (SELECT 1 FROM invariants AS i WHERE i.campaign = t.campaign AND i.number = t.number"
        " AND finding = 'broken' AND name IN (SELECT value FROM json_each(?)))"
    )
    names = msgspec.json.encode(expected.caught_by).decode()
    return int(connection.execute(query, (campaign, part, names)).fetchone()[0])


def sum_findings(
    connection: sqlite3.Connection, campaign: int, names: tuple[str, ...], *, struck: bool = False
) -> dict[tuple[str, str], dict[str, int]]:
    """Return, for each scenario and invariant of those named, in how many trials it was found how.

    :param struck: count those trials alone in which an NMI was pending on a sibling in its core's window
    """
    counts: dict[tuple[str, str], dict[str, int]] = {}
    # The words are ours.
    query = (
        "SELECT t.part, i.name, i.finding, count(*) FROM trials AS t CROSS JOIN invariants AS i"  # noqa: S608
        " ON i.campaign = t.campaign AND i.number = t.number AND i.name = ?"
        f" WHERE t.campaign = ?{f' AND {_STRUCK}' if struck else ''} GROUP BY 1, 2, 3"
    )
    for name in names:
        for part, found, finding, count in connection.execute(query, (name, campaign)):
            counts.setdefault((part, found), {})[finding] = count
    return counts


def sum_masked(connection: sqlite3.Connection, campaign: int) -> dict[str, int]:
    """Return, for each scenario, in how many trials NMIs met a sibling's masked LINT1 in its core's window."""
    query = "SELECT part, coalesce(sum(nmis_masked > 0), 0) FROM trials WHERE campaign = ? GROUP BY part"
    return dict(connection.execute(query, (campaign,)).fetchall())


def sum_coverage(connection: sqlite3.Connection, campaign: int) -> tuple[Landed, ...]:
    """Return where NMIs were set pending, by mechanism."""
    query = (
        "SELECT t.mechanism, c.place, sum(c.nmis) FROM trials AS t CROSS JOIN coverage AS c"
        " ON c.campaign = t.campaign AND c.number = t.number WHERE t.campaign = ? GROUP BY t.mechanism, c.place"
    )
    rows = connection.execute(query, (campaign,))
    return tuple(Landed(mechanism=mechanism, place=place, nmis=nmis) for mechanism, place, nmis in rows)


def sum_buckets(connection: sqlite3.Connection, campaign: int) -> tuple[BucketStanding, ...]:
    """Return failures by title, the fullest bucket first."""
    found: dict[str, list[tuple[int, str, int, int, int]]] = {}
    query = (
        "SELECT bucket, count(*), part, sum(failed), sum(attempts), max(number) FROM trials"
        " WHERE campaign = ? AND (outcome = 'FAIL' OR bucket <> '') GROUP BY bucket, part ORDER BY part"
    )
    for bucket, *rest in connection.execute(query, (campaign,)):
        found.setdefault(bucket, []).append((rest[0], rest[1], rest[2], rest[3], rest[4]))
    buckets = (
        BucketStanding(
            title=title,
            trials=sum(trials for trials, *_ in rows),
            parts=tuple(part for _, part, *_ in rows),
            failed=sum(failed for _, _, failed, *_ in rows),
            attempts=sum(attempts for _, _, _, attempts, _ in rows),
            newest=max(newest for *_, newest in rows),
        )
        for title, rows in found.items()
    )
    return tuple(sorted(buckets, key=lambda bucket: (-bucket.trials, bucket.title)))


def add_places(landed: tuple[Landed, ...]) -> dict[str, int]:
    """Return how many NMIs were set pending at each place, over all mechanisms."""
    total: dict[str, int] = {}
    for each in landed:
        total[each.place] = total.get(each.place, 0) + each.nmis
    return total
