# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns without guests: specifications, and trials that have ended, for tests of the store and of the loop."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from evidence_builder import Load

from lab.build.images import ImageSet
from lab.campaign.database import lock_campaign, open_writer
from lab.campaign.definition import CampaignSpec, Limits, Part, choose_trial
from lab.campaign.executor import Ended
from lab.campaign.job import Attempt, Job, TrialDone, pack_evidence
from lab.campaign.store import CampaignStore
from lab.judge import judge
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Outcome
from lab.trial.record import make_record
from lab.trial.session import Kept

SMALL = Topology(1, 1, 2)
PARTS = (
    Part(name="sound", scenario=Scenario(mechanism="nmi-self", topology=SMALL), weight=3),
    Part(name="control", scenario=Scenario(mechanism="stop-machine", topology=SMALL)),
)
KEPT = Kept(Load().build(), {"state.txt": b"x" * 100})
VERDICT = judge(KEPT.evidence)
ARCHIVE = pack_evidence(KEPT, VERDICT)


def make_spec(parts: tuple[Part, ...] = PARTS, seed: int = 7, **limits: Any) -> CampaignSpec:
    return CampaignSpec(summary="a test", seed=seed, parts=parts, limits=Limits(**limits))


def make_done(
    number: int,
    outcome: Outcome = Outcome.PASS,
    *,
    part: str = "sound",
    again: tuple[Outcome, ...] = (),
    archive: bytes = b"",
    booted: bool = True,
) -> TrialDone:
    record = make_record(number, KEPT.evidence, VERDICT, "")
    attempts = (outcome, *again)
    return TrialDone(
        number=number,
        part=part,
        record=msgspec.structs.replace(record, outcome=outcome, reason=f"reason of {number}"),
        attempts=tuple(
            Attempt(outcome=each, reason="r", took_s=0.5, guest_trial=1, archive=archive if index == 0 else b"")
            for index, each in enumerate(attempts)
        ),
        reproduces=False,
        began="2026-01-01T00:00:00+00:00",
        took_s=0.5,
        host="here",
        load_1m=0.25,
        steal_ppm=1_000,
        lab_version="0",
        worker="here/1",
        guests=1,
        booted=booted,
    )


@contextlib.contextmanager
def open_store(
    folder: Path, spec: CampaignSpec | None = None, images: Mapping[str, ImageSet] | None = None
) -> Iterator[CampaignStore]:
    """Begin a campaign, or go on with the one that is there."""
    folder.mkdir(exist_ok=True)
    with lock_campaign(folder), open_writer(folder) as connection:
        store = CampaignStore(connection, folder)
        if spec is not None:
            store.create(spec, images or {})
        store.find()
        store.begin_sitting(1, "")
        yield store


class NoImages(dict[str, Any]):
    """Images for an executor that boots nothing: none is listed, and each that is asked for is there."""

    def __missing__(self, name: str) -> None:
        return None


class FakeExecutor:
    """Ends each trial as a function of its number says."""

    def __init__(self, end: Callable[[int], Ended], capacity: int = 2) -> None:
        self.capacity = capacity
        self.submitted: list[int] = []
        self._end = end
        self._waiting: list[int] = []

    def submit(self, job: Job) -> None:
        assert choose_trial(job.spec, job.number).number == job.number
        self.submitted.append(job.number)
        self._waiting.append(job.number)

    def wait(self, seconds: float) -> list[Ended]:
        assert seconds > 0
        return [self._end(self._waiting.pop())] if self._waiting else []

    def withdraw(self) -> None:
        """Let what waits be; only some tests have more than one trial wait."""

    def abort(self) -> None:
        self._waiting.clear()
