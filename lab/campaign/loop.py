# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a campaign: hands out the trials that are left, stores each that ends, and stops when it should."""

import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from lab import __version__
from lab.build.images import ImageSet
from lab.campaign.database import STOP
from lab.campaign.definition import MAX_TRIAL, CampaignSpec, Chosen, Part, choose_trial, narrow
from lab.campaign.executor import Executor
from lab.campaign.job import Attempt, Broken, Job, TrialDone, Unstarted
from lab.campaign.over import Over
from lab.campaign.retention import Retention
from lab.campaign.store import CampaignStore, now
from lab.campaign.sums import is_failure
from lab.errors import BuildError
from lab.model.boot import Boot
from lab.model.verdict import Durations, NmiCount, Outcome, TrialRecord
from lab.trial.pool import MAX_FAILED_BOOTS

#: Of failures by title, which are shown while a campaign runs.
MAX_SHOWN_BUCKETS: Final = 5
#: How often the campaign looks at the clock and at STOP.
TICK_S: Final = 0.5
_S_PER_HOUR: Final = 3_600.0


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far a campaign is.

    :param outcomes: by scenario and outcome
    :param rate_per_h: trials an hour, over this sitting
    :param left_s: until its time is up or all trials are done, by the present rate; None when neither is set
    :param coverage: phase and role to how many NMIs were set pending there
    :param buckets: the titles that most failures share, to how many trials they are of
    :param newest_failure: one sentence, empty as long as there is none
    """

    planned: int | None
    done: int
    running: int
    workers: int
    guests: int
    outcomes: Mapping[str, Mapping[str, int]]
    ran_s: float
    rate_per_h: float
    left_s: float | None
    coverage: Mapping[str, int]
    buckets: Mapping[str, int]
    evidence_bytes: int
    newest_failure: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a sitting ended.

    :param finished: nothing of the campaign is left to be done
    :param why: in one sentence
    """

    finished: bool
    why: str


class Campaign:
    """One sitting of a campaign. The caller holds its lock and has begun the sitting.

    :param uid: the campaign's own
    :param images: by name; one that could not be built raises why
    :param over: told of all trials that are stored already
    :param ended: told of each trial that has been stored
    :param asked_to_stop: whether whoever started it wants it to end after the running trials
    """

    def __init__(
        self,
        *,
        uid: str,
        spec: CampaignSpec,
        store: CampaignStore,
        images: Mapping[str, ImageSet],
        over: Over | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        tell: Callable[[Standing], None] = lambda _: None,
        ended: Callable[[TrialRecord], None] = lambda _: None,
    ) -> None:
        self._uid = uid
        self._spec = spec
        self._store = store
        self._images = images
        self._asked_to_stop = asked_to_stop
        self._tell = tell
        self._ended = ended
        self._retention = Retention(store, spec.limits.evidence_mib)
        self._planned = spec.limits.trials
        self._left: Iterator[int] = store.numbers_left(MAX_TRIAL if self._planned is None else self._planned)
        self._failures = store.count_failures()
        self._outcomes = {part: Counter(counts) for part, counts in store.count_outcomes().items()}
        self._running: dict[int, Chosen] = {}
        self._failed_boots: Counter[tuple[str, Boot]] = Counter()
        self._guests: OrderedDict[str, int] = OrderedDict()
        self._coverage = Counter(store.count_coverage())
        self._buckets = Counter(store.count_buckets())
        self._newest_failure = ""
        self._last_unbooted = ""
        self._exhausted = False
        self._over = over or Over(spec)
        self._spared = 0
        self._ran_before_s = store.ran_s
        self._began = time.monotonic()
        self._done_here = 0

    def run(self, executor: Executor) -> Result:
        """Run what is left, until it is done or something ends the campaign; running trials are waited for.

        One that still waits for a host's vCPUs has not begun, and is left to whoever resumes.

        :raise HostError: the host, or where the trials run, failed; what has been stored stays
        """
        try:
            while True:
                why = self._refill(executor)
                if not self._running and (why or self._exhausted):
                    break
                if why:
                    executor.withdraw()
                taken = self._receive(executor)
                for chosen, each in taken:
                    self._note(chosen, each)
                try:
                    # Storing takes a while, in which no worker should stand idle.
                    why = self._refill(executor)
                finally:
                    for chosen, each in taken:
                        self._take(chosen, each)
                self._tell(self._describe(executor))
        finally:
            # What was interrupted has no record, and is run again by whoever resumes.
            self._running.clear()
        all_done = self._exhausted and not why
        if all_done:
            spared = f", but for {self._spared} of scenarios that had shown enough" if self._spared else ""
            why = f"all {self._planned} trials are done{spared}"
        return Result(finished=all_done or self._is_over(), why=why)

    @property
    def ran_s(self) -> float:
        """How long the campaign has run, over all sittings; a clock that is set does not change it."""
        return self._ran_before_s + time.monotonic() - self._began

    def is_ending(self) -> bool:
        """Say whether no further trial may begin."""
        return bool(self._find_end())

    def _is_over(self) -> bool:
        """Say whether the campaign's own limits leave nothing to do."""
        limits = self._spec.limits
        failed = limits.until_failure is not None and self._failures >= limits.until_failure
        return failed or (limits.hours is not None and self.ran_s >= limits.hours * _S_PER_HOUR)

    def _find_end(self) -> str:
        """Return why no further trial may begin, empty when one may."""
        limits = self._spec.limits
        if limits.until_failure is not None and self._failures >= limits.until_failure:
            return f"{self._failures} trials have ended in FAIL"
        if limits.hours is not None and self.ran_s >= limits.hours * _S_PER_HOUR:
            return f"its {_tell_hours(limits.hours)} are over"
        if Path(self._store.folder, STOP).exists():
            return "it was told to stop"
        if self._asked_to_stop():
            return "it was interrupted"
        if self._spec.parts and all(self._failed_boots[_key(part)] >= MAX_FAILED_BOOTS for part in self._spec.parts):
            return f"no guest of any of its machines boots{self._last_unbooted}"
        return ""

    def _submit_next(self, executor: Executor) -> None:
        number = next(self._left, None)
        if number is None:
            self._exhausted = True
            return
        chosen = choose_trial(self._spec, number)
        if chosen.part.name in self._over:
            self._spared += 1
            return
        try:
            images = {chosen.part.image_key: self._images[chosen.part.image_key]}
        except BuildError as error:
            self._take_broken(chosen, str(error))
            return
        if self._failed_boots[_key(chosen.part)] >= MAX_FAILED_BOOTS:
            machine = chosen.part.scenario.boot
            self._take_broken(
                chosen, f"no guest booted {MAX_FAILED_BOOTS} times in a row ({machine}), so it was not tried again"
            )
            return
        self._running[number] = chosen
        store, spec = self._store, narrow(self._spec, number)
        evidence = "" if store.evidence == store.folder else str(store.evidence)
        executor.submit(Job(campaign=self._uid, spec=spec, number=number, images=images, evidence=evidence))

    def _take_broken(self, chosen: Chosen, reason: str) -> None:
        broken = Broken(number=chosen.number, reason=reason)
        self._note(chosen, broken)
        self._take(chosen, broken)

    def _refill(self, executor: Executor) -> str:
        """Hand out trials up to what the executor takes, and return why no more may begin, empty when they may."""
        while not (why := self._find_end()) and not self._exhausted:
            if len(self._running) >= max(1, executor.capacity):
                break
            self._submit_next(executor)
        return why

    def _receive(self, executor: Executor) -> list[tuple[Chosen, TrialDone | Broken]]:
        """Return those of the trials under way that have ended; what was withdrawn is left to be run."""
        taken: list[tuple[Chosen, TrialDone | Broken]] = []
        for each in executor.wait(TICK_S):
            chosen = self._running.pop(each.number, None)
            if chosen is None:
                continue
            if isinstance(each, Unstarted):
                self._left = itertools.chain((each.number,), self._left)
                self._exhausted = False
            else:
                taken.append((chosen, each))
        return taken

    def _note(self, chosen: Chosen, ended: TrialDone | Broken) -> None:
        """Let what a trial came to decide which may begin."""
        if isinstance(ended, Broken):
            self._over.note(chosen.part.name, _explain_broken(chosen, ended).record)
            return
        self._over.note(chosen.part.name, ended.record)
        key = _key(chosen.part)
        self._failed_boots[key] = 0 if ended.booted else self._failed_boots[key] + 1
        if not ended.booted:
            self._last_unbooted = f": trial {ended.number}: {ended.record.reason}"
        self._failures += ended.record.outcome is Outcome.FAIL
        self._guests[ended.worker] = ended.guests
        self._guests.move_to_end(ended.worker)

    def _take(self, chosen: Chosen, ended: TrialDone | Broken) -> None:
        """Store a trial, and count it."""
        done = _explain_broken(chosen, ended) if isinstance(ended, Broken) else ended
        if not self._retention.keep(done, self.ran_s):
            return
        self._done_here += 1
        self._ended(done.record)
        outcome = done.record.outcome
        self._outcomes.setdefault(done.part, Counter())[outcome.value] += 1
        self._coverage.update(done.record.coverage)
        if is_failure(outcome.value, done.record.bucket):
            self._buckets[done.record.bucket] += 1
        if outcome is Outcome.FAIL:
            again = f"{done.failed} of {len(done.attempts)} tries"
            self._newest_failure = f"trial {done.number} {done.part}, {again}: {done.record.reason}"

    def _describe(self, executor: Executor) -> Standing:
        done = sum(sum(counts.values()) for counts in self._outcomes.values())
        while len(self._guests) > max(1, executor.capacity):
            # Of a worker that has died: its guests have, too.
            self._guests.popitem(last=False)
        here_s = max(time.monotonic() - self._began, TICK_S)
        rate_per_s = self._done_here / here_s
        ends = []
        if self._planned is not None and rate_per_s > 0:
            ends.append((self._planned - done) / rate_per_s)
        if self._spec.limits.hours is not None:
            ends.append(max(0.0, self._spec.limits.hours * _S_PER_HOUR - self.ran_s))
        return Standing(
            planned=self._planned,
            done=done,
            running=len(self._running),
            workers=executor.capacity,
            guests=sum(self._guests.values()),
            outcomes={part: dict(counts) for part, counts in self._outcomes.items()},
            ran_s=self.ran_s,
            rate_per_h=rate_per_s * _S_PER_HOUR,
            left_s=min(ends, default=None),
            coverage=dict(self._coverage),
            buckets=dict(self._buckets.most_common(MAX_SHOWN_BUCKETS)),
            evidence_bytes=self._retention.size,
            newest_failure=self._newest_failure,
        )


def _key(part: Part) -> tuple[str, Boot]:
    """Return what guests have in common that boot, or do not, for one reason."""
    return part.image_key, part.scenario.boot


def _explain_broken(chosen: Chosen, broken: Broken) -> TrialDone:
    """Return the record of a trial of which nothing came back."""
    scenario = chosen.part.scenario
    record = TrialRecord(
        trial=chosen.number,
        mechanism=scenario.mechanism,
        topology=str(scenario.topology),
        seed=chosen.plan.seed,
        outcome=Outcome.ERROR,
        reason=broken.reason,
        invariants={},
        nmis=NmiCount(),
        durations=Durations(),
        windows_judged=0,
        windows_unseen=0,
        kernel_sha256="",
        evidence="",
    )
    return TrialDone(
        number=chosen.number,
        part=chosen.part.name,
        record=record,
        attempts=(Attempt(outcome=Outcome.ERROR, reason=broken.reason, took_s=0.0, guest_trial=0),),
        reproduces=chosen.reproduces,
        began=now(),
        took_s=0.0,
        host="",
        load_1m=0.0,
        steal_ppm=0,
        lab_version=__version__,
        booted=False,
    )


def _tell_hours(hours: float) -> str:
    return f"{hours:g} hours" if hours >= 1 else f"{hours * 60:g} minutes"
