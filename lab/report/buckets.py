# SPDX-License-Identifier: GPL-2.0-or-later
"""The failures of a run's trials; equal failures are in one bucket."""

from collections.abc import Iterable

import msgspec

from lab.model.verdict import TrialRecord


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Trials with the same failure.

    :param mechanisms: in alphabetical order
    :param first: number of the first such trial
    :param seed: seed of the first such trial's plan
    :param evidence: folder of the first such trial, relative to the folder of the run
    """

    title: str
    count: int
    mechanisms: tuple[str, ...]
    first: int
    seed: int
    evidence: str


def count_buckets(records: Iterable[TrialRecord]) -> tuple[Bucket, ...]:
    """Return all buckets, the fullest bucket first. Trials without a bucket are left out."""
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
