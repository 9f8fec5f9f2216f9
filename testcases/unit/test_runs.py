# SPDX-License-Identifier: GPL-2.0-or-later
"""``lab run`` as a campaign: the order of its trials, what is read back of it, and its folder."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from night_samples import ARCHIVE, FakeExecutor, NoImages, make_done, make_spec, open_store
from report_samples import write_sample_run

from lab.campaign.definition import CampaignSpec, Limits, Order, Part, choose_trial
from lab.campaign.executor import Ended
from lab.campaign.image_transfer import ImageSource
from lab.campaign.loop import Result
from lab.campaign.run_folder import claim_run_output, clear_run
from lab.campaign.runs import NOT_MET, is_run, make_run_spec, read_run
from lab.campaign.sitting import Watch, Where, resume_campaign, start_campaign
from lab.errors import UsageError
from lab.evidence.folder import read_evidence
from lab.model.plan import derive_seed
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome, TrialRecord
from lab.report.page import write_report
from lab.trial.pool import MAX_FAILED_BOOTS

SCENARIOS = (Scenario(mechanism="nmi-self"), Scenario(mechanism="stop-machine"))
SPEC = make_run_spec(("lab", "run", "--trials", "3"), SCENARIOS, 3, 7)
NAMES = [scenario.mechanism for scenario in SCENARIOS]


def build(_: CampaignSpec) -> NoImages:
    return NoImages()


def end(number: int, outcome: Outcome | None = None, booted: bool = True) -> Ended:
    name = choose_trial(SPEC, number).part.name
    outcome = outcome or (Outcome.PASS if name == "nmi-self" else Outcome.FAIL)
    done = make_done(number, outcome, part=name, archive=ARCHIVE, booted=booted)
    return msgspec.structs.replace(done, record=msgspec.structs.replace(done.record, mechanism=name))


def where(end: Callable[[int], Ended] = end) -> Where:
    @contextlib.contextmanager
    def join(_: ImageSource) -> Iterator[FakeExecutor]:
        yield FakeExecutor(end, capacity=1)

    return Where(join=join)


def run(folder: Path, end: Callable[[int], Ended] = end, replace: bool = False) -> tuple[Result, list[TrialRecord]]:
    folder.mkdir(exist_ok=True)
    seen: list[TrialRecord] = []
    watch = Watch(ended=seen.append)
    return start_campaign(folder, SPEC, build, where(end), watch, clear=lambda at: clear_run(at, replace)), seen


def test_mechanisms_take_turns_and_each_trial_has_the_seed_of_its_mechanism_and_index() -> None:
    chosen = [choose_trial(SPEC, number) for number in range(1, 7)]
    assert [each.part.name for each in chosen] == NAMES * 3
    assert [each.plan.seed for each in chosen] == [derive_seed(7, name, index) for index in range(3) for name in NAMES]
    with pytest.raises(UsageError, match="trials 1 to 6"):
        choose_trial(SPEC, 7)


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4))
def test_turns_give_each_scenario_its_trials_block_by_block(blocks: list[list[int]]) -> None:
    parts = tuple(
        Part(name=f"{block}-{index}", scenario=SCENARIOS[0], trials=trials, block=block)
        for block, counts in enumerate(blocks)
        for index, trials in enumerate(counts)
    )
    total = sum(part.trials for part in parts)
    spec = CampaignSpec(summary="", seed=1, parts=parts, limits=Limits(trials=total), order=Order.TURNS)
    wanted = [
        part
        for block, counts in enumerate(blocks)
        for turn in range(max(counts))
        for part in parts
        if part.block == block and turn < part.trials
    ]
    chosen = [choose_trial(spec, number) for number in range(1, total + 1)]
    assert [each.part for each in chosen] == wanted
    assert len({each.plan.seed for each in chosen}) == total


def test_a_run_is_read_back_with_all_of_its_evidence(tmp_path: Path) -> None:
    result, seen = run(tmp_path)
    assert result.finished
    stored = read_run(tmp_path)
    assert [record.mechanism for record in stored.records] == [record.mechanism for record in seen] == NAMES * 3
    info = stored.info
    assert [each.name for each in info.mechanisms] == NAMES
    assert (info.command, info.trials_asked, info.finished) == (SPEC.command, 6, True)
    assert info.host["run seed"] == "7"
    assert "memory" in info.host
    for record in stored.records:
        assert read_evidence(tmp_path / record.evidence).scenario.mechanism == "nmi-self"
    assert write_report(tmp_path).exists()


@pytest.mark.parametrize(("outcome", "status"), [(Outcome.PASS, 0), (Outcome.FAIL, NOT_MET)])
def test_its_exit_status_is_what_is_expected_of_its_mechanisms(tmp_path: Path, outcome: Outcome, status: int) -> None:
    sound = make_run_spec(("lab", "run"), SCENARIOS[:1], 2, 7)

    def judged(number: int) -> Ended:
        done = make_done(number, outcome, part="nmi-self")
        return msgspec.structs.replace(done, record=msgspec.structs.replace(done.record, mechanism="nmi-self"))

    start_campaign(tmp_path, sound, build, where(judged), Watch())
    assert read_run(tmp_path).info.exit_status == status


def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    def interrupt(number: int) -> Ended:
        if number == 4:
            raise KeyboardInterrupt
        return end(number)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt)
    before = read_run(tmp_path)
    assert (before.info.finished, before.info.exit_status) == (False, None)
    assert 0 < len(before.records) < 6
    assert write_report(tmp_path).exists()
    assert resume_campaign(tmp_path, lambda spec: spec, build, where(), Watch()).finished
    after = read_run(tmp_path)
    assert [record.trial for record in after.records] == [1, 2, 3, 4, 5, 6]
    assert after.records[: len(before.records)] == before.records


def test_guests_that_never_boot_end_a_run(tmp_path: Path) -> None:
    result, seen = run(tmp_path, lambda number: end(number, Outcome.ERROR, booted=False))
    assert MAX_FAILED_BOOTS <= len(seen) < 6
    assert not result.finished
    assert "no guest of any of its machines boots: trial" in result.why
    assert read_run(tmp_path).info.exit_status is None


def test_a_folder_is_told_by_what_it_holds(tmp_path: Path) -> None:
    run(tmp_path / "run")
    write_sample_run(tmp_path / "old", trials=1)
    with open_store(tmp_path / "campaign", make_spec(trials=1)):
        pass
    assert [is_run(tmp_path / name) for name in ("run", "old", "campaign")] == [True, True, False]


def list_tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_run_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    run(tmp_path)
    write_report(tmp_path)
    (tmp_path / "trials" / ".00007-nmi-self.abcd_123").mkdir()
    (tmp_path / "trials" / "00001-nmi-self" / ".attempt-1.abcd_123").mkdir()
    before = list_tree(tmp_path)
    with pytest.raises(UsageError, match=r"holds a run: .* --replace"):
        claim_run_output(tmp_path, replace=False)
    with pytest.raises(UsageError, match="another run"):
        run(tmp_path)
    assert list_tree(tmp_path) == before
    assert claim_run_output(tmp_path, replace=True) == tmp_path
    result, _ = run(tmp_path, lambda number: make_done(number, part=choose_trial(SPEC, number).part.name), replace=True)
    assert result.finished
    assert len(read_run(tmp_path).records) == 6
    assert list_tree(tmp_path) == {".mclab-run", "campaign.sqlite"}


@pytest.mark.parametrize("foreign", ["notes.txt", "trials/00001-nmi-self/notes.txt", "trials/00001-nmi-self/x/y"])
def test_a_run_with_something_of_the_users_in_it_is_not_replaced(tmp_path: Path, foreign: str) -> None:
    run(tmp_path)
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("years of work")
    before = list_tree(tmp_path)
    with pytest.raises(UsageError, match="which the lab did not leave"):
        claim_run_output(tmp_path, replace=True)
    with pytest.raises(UsageError, match="which the lab did not leave"):
        run(tmp_path, replace=True)
    assert list_tree(tmp_path) == before
