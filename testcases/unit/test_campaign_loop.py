# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign hands out and when it ends, without guests."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from night_samples import ARCHIVE, PARTS, FakeExecutor, NoImages, make_done, make_spec, open_store

from lab.campaign.database import STOP
from lab.campaign.definition import CampaignSpec, choose_trial
from lab.campaign.executor import Ended
from lab.campaign.job import Broken, Unstarted
from lab.campaign.loop import Campaign, Result, Standing
from lab.campaign.reader import read_records, summarise
from lab.campaign.store import Kept
from lab.errors import HostError
from lab.model.verdict import Outcome
from lab.trial.pool import MAX_FAILED_BOOTS


def run(
    folder: Path, spec: CampaignSpec, executor: FakeExecutor, *, new: bool = True, **watch: Any
) -> tuple[Result, list[Standing]]:
    told: list[Standing] = []
    with open_store(folder, spec if new else None) as store:
        campaign = Campaign(uid="u", spec=spec, store=store, images=NoImages(), tell=told.append, **watch)
        result = campaign.run(executor)
        store.end_sitting(finished=result.finished, why=result.why, ran_s=campaign.ran_s)
    return result, told


def of_spec(spec: CampaignSpec, number: int, outcome: Outcome = Outcome.PASS, **more: Any) -> Ended:
    return make_done(number, outcome, part=choose_trial(spec, number).part.name, **more)


def stored(folder: Path) -> list[int]:
    return [record.trial for record in read_records(folder)]


def test_all_trials_are_run_once(tmp_path: Path) -> None:
    spec = make_spec(trials=20)
    executor = FakeExecutor(lambda number: of_spec(spec, number), capacity=3)
    result, told = run(tmp_path, spec, executor)
    assert result == Result(finished=True, why="all 20 trials are done")
    assert executor.submitted == stored(tmp_path) == list(range(1, 21))
    assert max(standing.running for standing in told) == 3
    last = told[-1]
    assert (last.done, last.planned, last.running, last.workers, last.guests) == (20, 20, 0, 3, 1)
    assert sum(sum(counts.values()) for counts in last.outcomes.values()) == 20
    assert last.left_s == 0
    assert summarise(tmp_path)[0].state == "finished"


def test_what_was_under_way_when_it_was_interrupted_is_run_by_resume(tmp_path: Path) -> None:
    spec = make_spec(trials=9)

    def end(number: int) -> Ended:
        if number == 5:
            raise KeyboardInterrupt
        return of_spec(spec, number)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, spec, FakeExecutor(end, capacity=4))
    before = stored(tmp_path)
    assert 5 not in before
    executor = FakeExecutor(lambda number: of_spec(spec, number))
    result, _ = run(tmp_path, spec, executor, new=False)
    assert result.finished
    assert sorted(executor.submitted) == sorted(set(range(1, 10)) - set(before))
    assert stored(tmp_path) == list(range(1, 10))


def test_a_trial_that_comes_back_twice_counts_once(tmp_path: Path) -> None:
    spec = make_spec(trials=4)

    class Twice(FakeExecutor):
        def wait(self, seconds: float) -> list[Ended]:
            return super().wait(seconds) * 2

    _, told = run(tmp_path, spec, Twice(lambda number: of_spec(spec, number)))
    assert stored(tmp_path) == [1, 2, 3, 4]
    assert told[-1].done == 4


def test_no_trial_begins_after_so_many_failures(tmp_path: Path) -> None:
    spec = make_spec(trials=50, until_failure=2)
    fails = {3, 4}
    executor = FakeExecutor(
        lambda number: of_spec(spec, number, Outcome.FAIL if number in fails else Outcome.PASS), capacity=1
    )
    result, told = run(tmp_path, spec, executor)
    assert result == Result(finished=True, why="2 trials have ended in FAIL")
    assert executor.submitted == [1, 2, 3, 4]
    assert told[-1].newest_failure.startswith("trial 4 ")
    again = FakeExecutor(executor._end)
    assert run(tmp_path, spec, again, new=False)[0].finished
    assert again.submitted == []


def test_a_stop_file_ends_it_after_the_running_trials(tmp_path: Path) -> None:
    spec = make_spec(trials=50)

    def end(number: int) -> Ended:
        if number >= 3:
            (tmp_path / STOP).touch()
        return of_spec(spec, number)

    executor = FakeExecutor(end, capacity=3)
    result, _ = run(tmp_path, spec, executor)
    assert result == Result(finished=False, why="it was told to stop")
    assert executor.submitted == stored(tmp_path)
    assert len(executor.submitted) < 50


def test_an_interrupt_ends_it_after_the_running_trials(tmp_path: Path) -> None:
    spec = make_spec(trials=50)
    executor = FakeExecutor(lambda number: of_spec(spec, number))
    result, _ = run(tmp_path, spec, executor, asked_to_stop=lambda: len(executor.submitted) >= 4)
    assert result == Result(finished=False, why="it was interrupted")
    assert len(stored(tmp_path)) == len(executor.submitted) <= 5


def test_what_is_withdrawn_has_no_record_and_is_left_to_resume(tmp_path: Path) -> None:
    """All trials have been handed out: those that ran are stored, and those that waited for vCPUs were not begun."""
    spec = make_spec(trials=4)

    class Withdrawing(FakeExecutor):
        withdrawn = False

        def withdraw(self) -> None:
            self.withdrawn = True

        def wait(self, seconds: float) -> list[Ended]:  # noqa: ARG002
            number = self._waiting.pop(0)
            return [Unstarted(number=number) if self.withdrawn else self._end(number)]

    executor = Withdrawing(lambda number: of_spec(spec, number), capacity=4)
    result, _ = run(tmp_path, spec, executor, asked_to_stop=lambda: len(executor.submitted) == 4)
    assert result == Result(finished=False, why="it was interrupted")
    assert executor.submitted == [1, 2, 3, 4]
    assert stored(tmp_path) == []
    again = FakeExecutor(lambda number: of_spec(spec, number))
    assert run(tmp_path, spec, again, new=False)[0].finished
    assert stored(tmp_path) == [1, 2, 3, 4]


def test_what_was_withdrawn_is_run_where_the_campaign_goes_on_after_all(tmp_path: Path) -> None:
    spec = make_spec(trials=4)

    class Once(FakeExecutor):
        withdrawn = False

        def withdraw(self) -> None:
            self.withdrawn = True

        def wait(self, seconds: float) -> list[Ended]:
            if self.withdrawn and len(self.submitted) == 2:
                return [Unstarted(number=self._waiting.pop(0))]
            return super().wait(seconds)

    executor = Once(lambda number: of_spec(spec, number))
    result, _ = run(
        tmp_path, spec, executor, asked_to_stop=lambda: len(executor.submitted) == 2 and not executor.withdrawn
    )
    assert result.finished
    assert sorted(executor.submitted) == [1, 1, 2, 3, 4]
    assert stored(tmp_path) == [1, 2, 3, 4]


def test_its_time_counts_over_all_sittings(tmp_path: Path) -> None:
    spec = make_spec(hours=1.0)
    executor = FakeExecutor(lambda number: of_spec(spec, number), capacity=1)
    with open_store(tmp_path, spec) as store:
        store.add(make_done(1), Kept(), 3_599.9)
    result, _ = run(tmp_path, spec, executor, new=False)
    assert result == Result(finished=True, why="its 1 hours are over")
    assert summarise(tmp_path)[0].ran_s >= 3_600


def test_a_machine_that_never_boots_is_not_waited_for_and_the_others_go_on(tmp_path: Path) -> None:
    """Its trials end in ERROR, three after a try and the rest at once, and those of other machines as ever."""
    other = msgspec.structs.replace(
        PARTS[1], scenario=msgspec.structs.replace(PARTS[1].scenario, fsgsbase=False), weight=3
    )
    spec = make_spec((PARTS[0], other), trials=30)

    def end(number: int) -> Ended:
        if choose_trial(spec, number).part.name == "sound":
            return of_spec(spec, number, Outcome.ERROR, booted=False)
        return of_spec(spec, number)

    executor = FakeExecutor(end, capacity=1)
    result, _ = run(tmp_path, spec, executor)
    assert result.finished
    parts = Counter(choose_trial(spec, number).part.name for number in executor.submitted)
    planned = Counter(choose_trial(spec, number).part.name for number in range(1, 31))
    assert parts == {"sound": MAX_FAILED_BOOTS, "control": planned["control"]}
    assert stored(tmp_path) == list(range(1, 31))
    (summary,) = summarise(tmp_path)
    counts = {part.name: part.outcomes for part in summary.parts}
    assert counts == {"sound": {"ERROR": planned["sound"]}, "control": {"PASS": planned["control"]}}
    assert any("not tried again" in record.reason for record in read_records(tmp_path))
    assert not summary.met


def test_it_ends_when_no_guest_boots_at_all(tmp_path: Path) -> None:
    spec = make_spec(trials=1_000)
    executor = FakeExecutor(lambda number: of_spec(spec, number, Outcome.ERROR, booted=False), capacity=1)
    result, _ = run(tmp_path, spec, executor)
    assert not result.finished
    assert result.why.startswith("no guest of any of its machines boots: trial ")
    assert len(stored(tmp_path)) == MAX_FAILED_BOOTS


def test_a_trial_that_kills_its_workers_is_an_error_and_the_campaign_goes_on(tmp_path: Path) -> None:
    spec = make_spec(trials=4)
    executor = FakeExecutor(
        lambda number: Broken(number=number, reason="it died") if number == 2 else of_spec(spec, number)
    )
    result, _ = run(tmp_path, spec, executor)
    assert result.finished
    outcomes = {record.trial: (record.outcome, record.reason) for record in read_records(tmp_path)}
    assert outcomes[2] == (Outcome.ERROR, "it died")
    assert sorted(outcomes) == [1, 2, 3, 4]


def test_a_full_disk_ends_it_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise HostError("evidence folder could not be written: No space left on device")

    spec = make_spec(trials=4)
    monkeypatch.setattr("lab.campaign.retention.write_evidence", no_room)
    with pytest.raises(HostError, match="No space left"):
        run(tmp_path, spec, FakeExecutor(lambda number: of_spec(spec, number, Outcome.FAIL, archive=ARCHIVE)))
    assert stored(tmp_path) == []
    monkeypatch.undo()
    result, _ = run(tmp_path, spec, FakeExecutor(lambda number: of_spec(spec, number)), new=False)
    assert result.finished
    assert stored(tmp_path) == [1, 2, 3, 4]
