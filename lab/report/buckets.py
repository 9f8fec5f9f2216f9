# SPDX-License-Identifier: GPL-2.0-or-later
"""What went wrong in a run's trials, equal failures together."""

from collections.abc import Iterable

import msgspec

from lab.model.verdict import TrialRecord


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Trials that failed alike.

    :param mechanisms: in alphabetical order
    :param first: the first such trial's number, and ``seed`` that of its plan
    :param evidence: its folder, relative to the run's
    """

    title: str
    count: int
    mechanisms: tuple[str, ...]
    first: int
    seed: int
    evidence: str


def count_buckets(records: Iterable[TrialRecord]) -> tuple[Bucket, ...]:
    """Return all buckets, the fullest first; trials without one are left out."""
    grouped: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.bucket:
            grouped.setdefault(record.bucket, []).append(record)
    buckets = (
        Bucket(
            title=title,
            count=len(alike),
            mechanisms=tuple(sorted({record.mechanism for record in alike})),
            first=alike[0].trial,
            seed=alike[0].seed,
            evidence=alike[0].evidence,
        )
        for title, alike in grouped.items()
    )
    return tuple(sorted(buckets, key=lambda bucket: (-bucket.count, bucket.title)))
