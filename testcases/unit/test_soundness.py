# SPDX-License-Identifier: GPL-2.0-or-later
"""Trials over the cells of docs/sound.md: how they are shared out, what is kept, and what speaks against the list."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from evidence_builder import MS, WINDOW_AT_NS, Load
from night_samples import FakeExecutor, NoImages, make_done

from lab.campaign.definition import CampaignSpec, Front, choose_trial
from lab.campaign.image_transfer import ImageSource
from lab.campaign.job import TrialDone, pack_evidence
from lab.campaign.reader import read_records
from lab.campaign.runs import find_front
from lab.campaign.sitting import Watch, Where, resume_campaign, start_campaign
from lab.campaign.soundness import (
    CellResult,
    Soundness,
    make_sound_spec,
    read_soundness,
    share_out,
    weigh_cell,
)
from lab.evidence.folder import read_evidence
from lab.expected.cells import Cell, CellKind, Defect
from lab.expected.tally import OutcomeCounts
from lab.host.paths import ROOT
from lab.judge import judge
from lab.model.evidence import Ending, EventKind, Evidence
from lab.model.scenario import Aim, Scenario
from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome, TrialRecord
from lab.report.campaign_page import write_campaign_report
from lab.trial.record import make_record
from lab.trial.session import Kept

ONE_CORE = Topology(1, 1, 2)
PASSES = Load().build()
FAILS = Load().add(WINDOW_AT_NS + MS, EventKind.OUTSIDE, 1).build()
INVALIDS = Load().drop(EventKind.WINDOW_CLOSE, 2).build()
ERRORS = Load(ending=Ending.LAB).build()


def cell(number: int, kind: CellKind = CellKind.SOUND, **axes: object) -> Cell:
    scenario = Scenario(mechanism="nmi-self", nmis=number, **axes)  # type: ignore[arg-type]
    return Cell(kind=kind, scenario=scenario, axes=f"nmis = {number}", notes=("w", "s"), line=number)


FIRST, SECOND, THIRD = cell(1), cell(2), cell(3)
OTHER_MACHINE = cell(4, topology=ONE_CORE)
AIMED = Cell(
    kind=CellKind.FAILING,
    scenario=Scenario(mechanism="park-hlt", aim=Aim.SIBLING),
    axes='aim = "sibling"',
    notes=("w", "s", "e"),
    line=9,
)


FAILING = msgspec.structs.replace(AIMED, scenario=Scenario(mechanism="park-hlt", nmis=7), axes="nmis = 7", line=10)


class Guests:
    """Ends all trials of a scenario with the same evidence, or of any other, and says what it was asked."""

    def __init__(self, evidence: dict[Scenario, list[Evidence]] | None = None, boots: bool = True) -> None:
        self._evidence = evidence or {}
        self._boots = boots
        self.told: list[str] = []
        self.seeds: list[int] = []

    def end(self, spec: CampaignSpec, number: int) -> TrialDone:
        chosen = choose_trial(spec, number)
        scenario = chosen.part.scenario
        self.told.append(str(scenario.nmis))
        self.seeds.append(chosen.plan.seed)
        left = self._evidence.get(scenario, [PASSES])
        evidence = left.pop(0) if len(left) > 1 else left[0]
        verdict = judge(evidence)
        archive = b"" if verdict.outcome is Outcome.PASS else pack_evidence(Kept(evidence, {}), verdict)
        done = make_done(number, verdict.outcome, part=chosen.part.name, archive=archive, booted=self._boots)
        return msgspec.structs.replace(done, record=make_record(number, evidence, verdict, ""))


def run(folder: Path, guests: Guests, asked: dict[Cell, int], seed: int = 7) -> Soundness:
    spec = make_sound_spec(("lab", "sound"), asked, seed)

    @contextlib.contextmanager
    def join(_: ImageSource) -> Iterator[FakeExecutor]:
        yield FakeExecutor(lambda number: guests.end(spec, number), capacity=1)

    folder.mkdir(exist_ok=True)
    start_campaign(folder, spec, lambda _: NoImages(), Where(join=join), Watch())
    return read_soundness(folder)


def outcomes(result: CellResult) -> tuple[int, int, int, int]:
    counts = result.outcomes
    return counts.passed, counts.failed, counts.invalid, counts.error


def test_a_stored_cell_keeps_its_key() -> None:
    stored = msgspec.json.encode(AIMED)
    assert b'"held":"Known to fail"' in stored
    assert msgspec.json.decode(stored, type=Cell) == AIMED


def test_a_known_defect_of_its_kernel_explains_a_fail_by_its_own_invariants_alone() -> None:
    defect = Defect(name="rare", breaks=("quiet", "no-nmi-entry-in-window"), what="w", source="s", evidence="e")
    shown = make_record(1, FAILS, judge(FAILS), "")
    but_for = msgspec.structs.replace(FIRST, defect=defect)
    other = msgspec.structs.replace(FIRST, defect=msgspec.structs.replace(defect, breaks=("nmis-delivered",)))
    passed = [make_record(2, PASSES, judge(PASSES), "")]

    assert [name for name, finding in shown.invariants.items() if finding is Finding.BROKEN] == ["quiet"]
    result = weigh_cell(but_for, [shown, *passed])
    assert (result.met, result.by_defect, result.accused) == (True, 1, 0)
    result = weigh_cell(other, [shown, *passed])
    assert (result.met, result.by_defect, result.accused) == (False, 0, 1)
    assert not weigh_cell(FIRST, [shown, *passed]).met


@pytest.mark.parametrize(("trials", "each"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (2_000, [667, 667, 666]), (1, [1, 0, 0])])
def test_trials_are_shared_out_evenly(trials: int, each: list[int]) -> None:
    assert [*share_out(trials, (FIRST, SECOND, THIRD)).values()] == each


def test_cells_of_one_machine_take_turns_and_machines_follow_each_other(tmp_path: Path) -> None:
    guests = Guests()
    ran = run(tmp_path, guests, {FIRST: 2, OTHER_MACHINE: 1, SECOND: 1})

    assert guests.told == ["1", "2", "1", "4"]
    assert [outcomes(one) for one in ran.results] == [(2, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0)]
    assert (ran.exit_status, ran.problems) == (0, ())


def test_a_cell_without_a_trial_is_not_sound(tmp_path: Path) -> None:
    ran = run(tmp_path, Guests(), {FIRST: 2, SECOND: 0, THIRD: 0})

    assert [one.met for one in ran.results] == [True, False, False]
    assert (ran.exit_status, ran.problems) == (1, ("2 of 3 cells have no trial, so nothing is known of them",))


def test_a_cell_of_which_every_trial_is_invalid_is_not_sound(tmp_path: Path) -> None:
    """Its vCPUs outnumber the host's cores, so that no limit on INVALID trials applies to it."""
    ran = run(tmp_path, Guests({FIRST.scenario: [INVALIDS]}), {FIRST: 4, SECOND: 2})

    assert [one.met for one in ran.results] == [False, True]
    said = "nmi-self nmis = 1 (line 1): held to be sound, and 0 of 4 trials PASS: 1 or more must"
    assert ran.problems[0] == said
    assert ran.exit_status == 1


def test_each_cells_trials_have_seeds_of_their_own_that_repeat(tmp_path: Path) -> None:
    first, again, other = Guests(), Guests(), Guests()
    run(tmp_path / "a", first, {FIRST: 3, SECOND: 3})
    run(tmp_path / "b", again, {SECOND: 3, FIRST: 3})
    run(tmp_path / "c", other, {FIRST: 3, SECOND: 3}, seed=8)

    assert len(set(first.seeds)) == 6
    assert sorted(first.seeds) == sorted(again.seeds)
    assert not set(first.seeds) & set(other.seeds)


def test_evidence_is_kept_of_what_did_not_pass(tmp_path: Path) -> None:
    guests = Guests({FIRST.scenario: [PASSES, FAILS, INVALIDS]})
    run(tmp_path, guests, {FIRST: 3, SECOND: 1})
    records = list(read_records(tmp_path))

    assert [record.evidence for record in records] == ["", "", "trials/00003-001-nmi-self", "trials/00004-001-nmi-self"]
    assert [read_evidence(tmp_path / record.evidence / "attempt-1") for record in records[2:]] == [FAILS, INVALIDS]
    assert len(list((tmp_path / "trials").iterdir())) == 2
    assert find_front(tmp_path) is Front.SOUND
    assert write_campaign_report(tmp_path).exists()


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (FAILS, "nmi-self nmis = 2 (line 2): held to be sound, and 1 of 2 trials FAIL"),
        (ERRORS, "nmi-self nmis = 2 (line 2): 1 of 2 trials ended in ERROR: the lab or the host failed"),
    ],
)
def test_one_fail_or_error_of_a_sound_cell_speaks_against_the_list(
    tmp_path: Path, evidence: Evidence, said: str
) -> None:
    ran = run(tmp_path, Guests({SECOND.scenario: [evidence, PASSES]}), {FIRST: 2, SECOND: 2})

    assert (ran.exit_status, ran.problems) == (1, (said,))
    assert [one.met for one in ran.results] == [True, False]


def record_of(outcome: Outcome, reason: str) -> TrialRecord:
    return msgspec.structs.replace(make_record(1, PASSES, judge(PASSES), ""), outcome=outcome, reason=reason)


def test_reasons_of_invalid_trials_are_counted_by_kind() -> None:
    reasons = ["vCPU 1 slept 12.5 us at 0xff81", "vCPU 3 slept 7 us at 0xaa", "missing: the observer"]
    result = weigh_cell(FIRST, [record_of(Outcome.INVALID, reason) for reason in reasons])

    assert result.invalid == (("vCPU # slept # us at #", 2), ("missing: the observer", 1))
    assert outcomes(result) == (0, 0, 3, 0)
    assert not result.met


def soundness(*cells: tuple[Cell, int, int], host_cores: int = 2) -> Soundness:
    """Each cell with as many trials that passed, and INVALID ones."""
    results = tuple(
        CellResult(
            cell=each,
            outcomes=OutcomeCounts(passed=passed, invalid=invalid),
            caught=0,
            invalid=(("why", invalid),),
        )
        for each, passed, invalid in cells
    )
    return Soundness(results=results, host_cores=host_cores)


@pytest.mark.parametrize(
    ("cells", "status"),
    [
        ([(OTHER_MACHINE, 99, 1)], 0),
        ([(OTHER_MACHINE, 98, 2)], 1),
        ([(OTHER_MACHINE, 0, 1)], 1),
        # Four vCPUs on two cores: the host may keep one from its window.
        ([(FIRST, 50, 50), (OTHER_MACHINE, 99, 1)], 0),
        ([(FIRST, 100, 0), (OTHER_MACHINE, 49, 1)], 1),
        ([(OTHER_MACHINE, 100, 0)], 0),
        # A quarter of its trials, and one at least.
        ([(FIRST, 25, 75)], 0),
        ([(FIRST, 24, 76)], 1),
        ([(FIRST, 1, 3)], 0),
        ([(FIRST, 1, 4)], 1),
        ([(FIRST, 0, 1)], 1),
        ([(FIRST, 0, 0)], 1),
        ([], 1),
    ],
)
def test_invalid_trials_count_where_the_host_has_a_core_for_each_vcpu(
    cells: list[tuple[Cell, int, int]], status: int
) -> None:
    assert soundness(*cells).exit_status == status
    assert soundness((FIRST, 50, 50), host_cores=4).exit_status == 1


def test_a_cell_known_to_fail_is_tried_until_it_is_caught(tmp_path: Path) -> None:
    guests = Guests({AIMED.scenario: [PASSES, FAILS, PASSES]})
    ran = run(tmp_path, guests, {AIMED: 8})

    assert outcomes(ran.results[0]) == (1, 1, 0, 0)
    assert (ran.results[0].caught, ran.exit_status) == (1, 0)


def test_a_cell_that_fails_with_something_else_is_not_caught(tmp_path: Path) -> None:
    again = Load().add(14 * MS, EventKind.RETRY, 0).build()
    ran = run(tmp_path, Guests({AIMED.scenario: [again]}), {AIMED: 3})

    assert outcomes(ran.results[0]) == (0, 3, 0, 0)
    assert ran.exit_status == 1
    wanted = "known to fail, and none of 3 trials failed with no-nmi-entry-in-window or quiet broken"
    assert ran.problems == (f'park-hlt aim = "sibling" (line 9): {wanted}',)


def test_a_cell_that_was_caught_is_not_tried_again_by_who_resumes(tmp_path: Path) -> None:
    caught = Guests({AIMED.scenario: [FAILS], FAILING.scenario: [PASSES]})

    def interrupt(spec: CampaignSpec, number: int) -> TrialDone:
        if number == 4:
            raise KeyboardInterrupt
        return Guests.end(caught, spec, number)

    asked = {AIMED: 8, FAILING: 8}
    broken_off = Guests()
    broken_off.end = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, broken_off, asked)
    assert read_soundness(tmp_path).exit_status == 1
    spec = make_sound_spec(("lab", "sound"), asked, 7)
    later = Guests({FAILING.scenario: [FAILS]})

    @contextlib.contextmanager
    def join(_: ImageSource) -> Iterator[FakeExecutor]:
        yield FakeExecutor(lambda number: later.end(spec, number), capacity=1)

    assert resume_campaign(tmp_path, lambda spec: spec, lambda _: NoImages(), Where(join=join), Watch()).finished
    ran = read_soundness(tmp_path)
    assert (outcomes(ran.results[0]), ran.results[1].caught, ran.exit_status) == ((0, 1, 0, 0), 1, 0)
    assert len(later.seeds) == 1


def test_without_guests_it_stops_and_is_not_met(tmp_path: Path) -> None:
    guests = Guests({FIRST.scenario: [ERRORS]}, boots=False)
    ran = run(tmp_path, guests, {FIRST: 5, SECOND: 5})

    assert outcomes(ran.results[0])[3] >= 1
    assert ran.exit_status == 1
    assert ran.problems[0].startswith("not all trials were run (3 of 10), since no guest of any of its machines boots")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "no-such"], "only is 'no-such': 'Sound' in lab/expected/sound.toml has cells of nmi-self,"),
        (["--only", "uniform", "--failing"], "only is 'uniform': 'Known to fail' in lab/expected/sound.toml has"),
        (["--trials", "0"], "trials"),
        (["--trials", "5", "--only", "nmi-self"], "trials is 5: allowed is 7 or more, one for each cell"),
        (["--seed", "-1"], "seed is -1: allowed is 0 to"),
        (["--out", "{full}"], "is not empty: name an empty or new one"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    given = [word.format(full=tmp_path / "full") for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "lab.cli", "sound", "--out", tmp_path / "out", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out" / "campaign.sqlite").exists()
