# SPDX-License-Identifier: GPL-2.0-or-later
"""What trials show of a mutant, which of them are run, and what is told of the hunt."""

from pathlib import Path

import msgspec
import pytest
from night_samples import make_done, open_store

from lab.build.mutant_list import choose_mutants, read_mutants
from lab.campaign.definition import CampaignSpec, choose_trial
from lab.campaign.hunt import BASELINE_TRIALS, MutantImages, make_hunt_spec
from lab.campaign.kills import weigh_mutants
from lab.campaign.over import Over
from lab.campaign.store import Kept
from lab.cli.ending import KILLS, tell_hunt
from lab.errors import BuildError
from lab.expected.hunt import MAX_ERRORS, Fate, Kill, on_control, weigh
from lab.expected.mutant import Mutant, Subject
from lab.model.scenario import Scenario
from lab.model.verdict import Finding, Outcome, TrialRecord

KERNEL = Mutant(
    name="one",
    subject=Subject.KERNEL,
    base="linux-6.1",
    breaks="it",
    caught_by=("quiet", "harmless"),
    scenario=Scenario(mechanism="nmi-self", nmis=3),
)
WITNESS = msgspec.structs.replace(KERNEL, name="blind", subject=Subject.OBSERVER, ends_in=Outcome.INVALID)
QUIET = {"quiet": Finding.BROKEN}
UNSEEN = {"quiet": Finding.UNSEEN}
HELD = {"quiet": Finding.HELD}


def record(outcome: Outcome, findings: dict[str, Finding] | None = None, reason: str = "because") -> TrialRecord:
    made = make_done(1, outcome).record
    return msgspec.structs.replace(made, invariants=findings or {}, reason=reason, evidence="trials/00001")


@pytest.mark.parametrize(
    ("mutant", "control", "tried", "fate"),
    [
        (KERNEL, False, record(Outcome.FAIL, QUIET), Fate.CAUGHT),
        (KERNEL, False, record(Outcome.FAIL, {"dmesg-clean": Finding.BROKEN}), Fate.OPEN),
        (KERNEL, False, record(Outcome.FAIL, UNSEEN), Fate.OPEN),
        (KERNEL, False, record(Outcome.INVALID, QUIET), Fate.OPEN),
        (KERNEL, False, record(Outcome.PASS, HELD), Fate.OPEN),
        (KERNEL, False, record(Outcome.ERROR), Fate.ERROR),
        (WITNESS, False, record(Outcome.INVALID, UNSEEN), Fate.CAUGHT),
        (WITNESS, False, record(Outcome.INVALID, HELD), Fate.OPEN),
        (WITNESS, False, record(Outcome.PASS, HELD), Fate.OPEN),
        (WITNESS, False, record(Outcome.FAIL, QUIET), Fate.FOOLED),
        (WITNESS, False, record(Outcome.ERROR), Fate.ERROR),
        (WITNESS, True, record(Outcome.PASS), Fate.FOOLED),
        (WITNESS, True, record(Outcome.FAIL, QUIET), Fate.OPEN),
        (WITNESS, True, record(Outcome.INVALID, UNSEEN), Fate.OPEN),
        (WITNESS, True, record(Outcome.ERROR), Fate.ERROR),
    ],
)
def test_what_one_trial_shows(mutant: Mutant, control: bool, tried: TrialRecord, fate: Fate) -> None:
    assert weigh(mutant, tried, control=control) is fate


def make_spec(*mutants: Mutant, trials: int = 4, level: int = 7) -> CampaignSpec:
    return make_hunt_spec(("lab", "mutants"), mutants, level, trials, 2022)


def play(spec: CampaignSpec, script: dict[str, list[TrialRecord]]) -> tuple[tuple[Kill, ...], list[str]]:
    """Run a hunt whose trials end as a script says, and return the mutants' fates and what was run."""
    over, ran = Over(spec), list[str]()
    records: dict[str, list[TrialRecord]] = {part.name: [] for part in spec.parts}
    for number in range(1, (spec.limits.trials or 0) + 1):
        part = choose_trial(spec, number).part
        if part.name in over:
            continue
        ran.append(part.name)
        told = script[part.name]
        ended = msgspec.structs.replace(told[min(len(records[part.name]), len(told) - 1)], trial=number)
        records[part.name].append(ended)
        over.note(part.name, ended)
    return weigh_mutants(spec, records), ran


def test_a_kernels_mutant_is_tried_until_it_is_caught() -> None:
    spec = make_spec(KERNEL)
    assert [(part.name, part.image_key, part.trials) for part in spec.parts] == [("one", "one", 4)]
    (kill,), ran = play(
        spec,
        {
            "one": [
                record(Outcome.PASS),
                record(Outcome.FAIL, {**QUIET, "still": Finding.BROKEN, "right-image": Finding.HELD}),
            ]
        },
    )
    assert ran == ["one", "one"]
    assert (kill.fate, kill.by, kill.also) == (Fate.CAUGHT, ("quiet",), ("still",))
    assert (kill.trials, kill.outcomes) == (2, {"PASS": 1, "FAIL": 1})


def test_one_that_passes_to_the_end_survives() -> None:
    (kill,), ran = play(make_spec(KERNEL), {"one": [record(Outcome.PASS)]})
    assert (kill.fate, kill.trials, len(ran)) == (Fate.SURVIVED, 4, 4)


def test_a_fail_by_what_its_patch_does_not_name_catches_nobody() -> None:
    (kill,), _ = play(make_spec(KERNEL), {"one": [record(Outcome.FAIL, {"dmesg-clean": Finding.BROKEN})]})
    assert (kill.fate, kill.by) == (Fate.SURVIVED, ())


def test_a_witness_is_tried_beside_a_control_and_after_a_pass_without_the_mutant() -> None:
    spec = make_spec(WITNESS)
    names = {
        "blind-without": [record(Outcome.INVALID), record(Outcome.PASS)],
        "blind-control": [record(Outcome.FAIL, QUIET)],
        "blind": [record(Outcome.PASS), record(Outcome.INVALID, UNSEEN)],
    }
    (kill,), ran = play(spec, names)
    assert ran == ["blind-without", "blind-without", "blind-control", "blind", "blind-control", "blind"]
    assert (kill.fate, kill.by, kill.trials) == (Fate.CAUGHT, ("quiet",), 4)
    parts = {part.name: part for part in spec.parts}
    assert parts["blind-without"].image_key == "linux-6.1"
    assert parts["blind-control"].image_key == parts["blind"].image_key == "blind"
    assert parts["blind-control"].scenario == on_control(WITNESS)


@pytest.mark.parametrize(
    ("control", "tried"),
    [
        (record(Outcome.PASS), record(Outcome.INVALID, UNSEEN)),
        (record(Outcome.FAIL, QUIET), record(Outcome.FAIL, QUIET)),
    ],
)
def test_a_witness_that_makes_good_of_broken_or_broken_of_good_has_fooled_the_lab(
    control: TrialRecord, tried: TrialRecord
) -> None:
    script = {"blind-without": [record(Outcome.PASS)], "blind-control": [control], "blind": [tried]}
    (kill,), _ = play(make_spec(WITNESS), script)
    assert (kill.fate, kill.by) == (Fate.FOOLED, ())


def test_invalid_shows_nothing_where_no_trial_passes_without_the_mutant() -> None:
    script = {
        "blind-without": [record(Outcome.INVALID, reason="the host was busy")],
        "blind-control": [record(Outcome.INVALID, UNSEEN)],
        "blind": [record(Outcome.INVALID, UNSEEN)],
    }
    (kill,), ran = play(make_spec(WITNESS), script)
    assert ran == ["blind-without"] * BASELINE_TRIALS
    assert kill.fate is Fate.ERROR
    assert kill.reason == (
        f"without the mutant none of {BASELINE_TRIALS} trials passed, so INVALID shows nothing: the host was busy"
    )


def test_a_mutant_whose_trials_are_errors_is_given_up_and_the_next_one_is_tried() -> None:
    other = msgspec.structs.replace(KERNEL, name="two")
    script = {"one": [record(Outcome.ERROR, reason="no guest")], "two": [record(Outcome.FAIL, QUIET)]}
    (one, two), ran = play(make_spec(KERNEL, other, trials=9), script)
    assert ran == ["one"] * MAX_ERRORS + ["two"]
    assert (one.fate, one.reason, two.fate) == (Fate.ERROR, "no guest", Fate.CAUGHT)


def test_one_error_keeps_no_mutant_from_being_caught() -> None:
    (kill,), _ = play(make_spec(KERNEL), {"one": [record(Outcome.ERROR), record(Outcome.FAIL, QUIET)]})
    assert (kill.fate, kill.trials) == (Fate.CAUGHT, 2)


def test_what_has_not_been_tried_is_open_and_never_caught() -> None:
    spec = make_spec(KERNEL, WITNESS)
    nothing = weigh_mutants(spec, {part.name: [] for part in spec.parts})
    assert [kill.fate for kill in nothing] == [Fate.OPEN, Fate.OPEN]
    # A witness's trial whose baseline is not known yet.
    records = {part.name: list[TrialRecord]() for part in spec.parts}
    records["blind"] = [record(Outcome.INVALID, UNSEEN)]
    assert weigh_mutants(spec, records)[1].fate is not Fate.CAUGHT


def test_a_witness_whose_baseline_is_still_to_be_run_has_no_fate_yet() -> None:
    """Trials of one block may end before those of the block in front of it, on several workers."""
    spec = make_spec(WITNESS, trials=1)
    records: dict[str, list[TrialRecord]] = {part.name: [] for part in spec.parts}
    records["blind"] = [record(Outcome.INVALID, UNSEEN)]
    records["blind-control"] = [record(Outcome.FAIL, QUIET)]
    assert weigh_mutants(spec, records)[0].fate is Fate.OPEN
    records["blind-without"] = [record(Outcome.INVALID)]
    assert weigh_mutants(spec, records)[0].fate is Fate.OPEN
    records["blind-without"] += [record(Outcome.PASS)]
    assert weigh_mutants(spec, records)[0].fate is Fate.CAUGHT


def test_a_mutant_that_this_qemu_cannot_show_is_not_tried() -> None:
    mutant = next(each for each in read_mutants() if each.least_interface > 1)
    spec = make_spec(mutant, level=1)
    assert (spec.parts, spec.limits.trials) == ((), 0)
    (kill,), _ = play(spec, {})
    assert (kill.fate, kill.trials) == (Fate.BEYOND, 0)
    assert kill.reason.startswith(f"it shows from plugin interface {mutant.least_interface} on")


def test_seeds_of_a_kernels_mutant_depend_on_its_name_and_its_trials_alone() -> None:
    other = msgspec.structs.replace(KERNEL, name="two")
    alone, second = make_spec(KERNEL), make_spec(other, KERNEL)
    seeds = [choose_trial(alone, number).plan.seed for number in range(1, 5)]
    assert seeds == [choose_trial(second, number).plan.seed for number in range(5, 9)]
    assert len(set(seeds)) == 4


def test_images_that_do_not_build_say_so_when_they_are_asked_for_and_are_not_listed() -> None:
    images = MutantImages({}, {"one": BuildError("mutant 'one': it does not compile")})
    assert list(images) == []
    with pytest.raises(BuildError, match="it does not compile"):
        images["one"]


def test_all_mutants_make_one_hunt_and_survive_the_store() -> None:
    spec = make_spec(*choose_mutants([]))
    names = [part.name for part in spec.parts]
    assert len(set(names)) == len(names)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=CampaignSpec) == spec
    assert {part.mutant for part in spec.parts} == set(spec.mutants)


def test_over_does_not_depend_on_the_order_in_which_trials_are_told() -> None:
    spec = make_spec(WITNESS)
    told = [
        ("blind-without", record(Outcome.PASS)),
        ("blind-control", record(Outcome.FAIL, QUIET)),
        ("blind", record(Outcome.INVALID, UNSEEN)),
    ]
    for order in (told, told[::-1]):
        over = Over(spec)
        for name, each in order:
            over.note(name, each)
        assert all(part.name in over for part in spec.parts)


KILLED = {"one": [record(Outcome.FAIL, QUIET)]}


@pytest.mark.parametrize(
    ("mutants", "script", "status"),
    [
        ([KERNEL], KILLED, 0),
        ([KERNEL], {"one": [record(Outcome.PASS)]}, 1),
        ([KERNEL], {"one": [record(Outcome.ERROR)]}, 4),
        ([KERNEL, msgspec.structs.replace(KERNEL, name="new", least_interface=7)], KILLED, 0),
        # Where nothing could be tried, nothing was shown.
        ([msgspec.structs.replace(KERNEL, name="new", least_interface=7)], {}, 1),
    ],
)
def test_a_hunt_is_a_success_once_mutants_were_caught_and_none_got_away(
    mutants: list[Mutant], script: dict[str, list[TrialRecord]], status: int, tmp_path: Path
) -> None:
    spec = make_spec(*mutants, level=6)
    with open_store(tmp_path, spec) as store:
        for number in range(1, (spec.limits.trials or 0) + 1):
            part = choose_trial(spec, number).part.name
            if number > 1 and script[part][0].outcome is Outcome.FAIL:
                break
            made = make_done(number, script[part][0].outcome, part=part)
            ended = msgspec.structs.replace(made.record, invariants=script[part][0].invariants)
            store.add(msgspec.structs.replace(made, record=ended), Kept(), 1.0)
        store.end_sitting(finished=True, why="", ran_s=1.0)
    assert tell_hunt(tmp_path, as_json=False) == status
    stored = msgspec.json.decode((tmp_path / KILLS).read_bytes(), type=list[Kill])
    assert [kill.mutant for kill in stored] == [mutant.name for mutant in mutants]
