# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaign files: what they say is what runs, and what is wrong in them is named."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from night_samples import PARTS, make_spec

from lab.campaign.definition import Limits, check_kernels, choose_trial, keeps_pass, narrow
from lab.campaign.file import change_limits, read_campaign
from lab.errors import UsageError
from lab.host.paths import SCENARIOS
from lab.model.phase import Phase, Role
from lab.model.placed import Placed
from lab.model.sweep import Rank, SweepAsk
from lab.model.verdict import Outcome
from lab.sweep.journal import JOURNAL_VERSION, Begun, Journal, Tried

GOOD = """
summary = "a night"
seed = 7
[limits]
trials = 20
hours = 1.5
retries = 0
[[scenarios]]
file = "one.toml"
weight = 3
[[scenarios]]
name = "two"
scenario = { mechanism = "stop-machine", topology = "1x1x2" }
retries = 1
"""


def write(folder: Path, text: str) -> Path:
    (folder / "one.toml").write_text((SCENARIOS / "stop-machine.toml").read_text())
    path = folder / "night.toml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_the_scenario_files_it_names(tmp_path: Path) -> None:
    spec = read_campaign(write(tmp_path, GOOD), 99)
    assert (spec.summary, spec.seed) == ("a night", 7)
    assert [(part.name, part.weight, part.retries) for part in spec.parts] == [("one", 3, None), ("two", 1, 1)]
    assert [str(part.scenario.topology) for part in spec.parts] == ["1x2x2", "1x1x2"]
    assert spec.limits == Limits(trials=20, hours=1.5, retries=0)


POINTS = tuple(
    (Placed(at=f"0x{at:x}", role=Role.SIBLING, phase=Phase.ARMED),)
    for at in range(0xFFFFFFFF81000000, 0xFFFFFFFF81000005)
)
SHA = "5" * 64


def write_sweep(folder: Path, points: tuple[tuple[Placed, ...], ...] = POINTS, outcome: Outcome = Outcome.PASS) -> None:
    """Leave a sweep that has tried some points, and given one up."""
    folder.mkdir()
    ask = SweepAsk(mechanism="nmi-self", roles=(Role.SIBLING,))
    begun = Begun(version=JOURNAL_VERSION, lab_version="0", ask=ask, kernel_sha256=SHA)
    with Journal(folder, begun, resume=False) as journal:
        for placed, ended in [*((each, outcome) for each in points), (points[0], Outcome.INVALID)]:
            pc = int(placed[-1].at, 16)
            tried = Tried(
                role=Role.SIBLING,
                phase=Phase.ARMED,
                pc=pc,
                rank=Rank.FIRST,
                outcome=ended,
                reason="",
                asked=1,
                arrival=1,
                attempts=1,
                placed=placed,
            )
            journal.append(tried)


SWEEP = '[[scenarios]]\nsweep = "swept"\nweight = 2\n'


def test_a_sweep_is_a_scenario_of_which_each_trial_is_a_point(tmp_path: Path) -> None:
    write_sweep(tmp_path / "swept")
    spec = read_campaign(write(tmp_path, GOOD + SWEEP), 99)
    part = spec.parts[2]
    assert (part.name, part.points, part.kernel_sha256) == ("nmi-self-sweep", POINTS, SHA)
    spec = msgspec.structs.replace(spec, limits=Limits(trials=2_000))
    chosen = [choose_trial(spec, number) for number in range(1, 2_001)]
    drawn = Counter(each.part.scenario.placed for each in chosen if each.part.name == part.name)
    assert set(drawn) == set(POINTS)
    assert min(drawn.values()) > 0.5 * max(drawn.values())
    assert all(each.reproduces and each.plan.holds for each in chosen if each.part.name == part.name)
    # What a worker is told is enough for the same trial, and has no points of scenarios that it is none of.
    for each in chosen[:50]:
        narrowed = narrow(spec, each.number)
        assert choose_trial(narrowed, each.number) == each
        assert {one.name for one in narrowed.parts if one.points} == {each.part.name} & {part.name}


def test_a_sweep_of_another_kernel_or_without_points_is_refused(tmp_path: Path) -> None:
    write_sweep(tmp_path / "swept")
    spec = read_campaign(write(tmp_path, GOOD + SWEEP), 99)
    check_kernels(spec, {"linux-6.1": SHA})
    with pytest.raises(UsageError, match="scenario 'nmi-self-sweep': its sweep is of another kernel"):
        check_kernels(spec, {"linux-6.1": "6" * 64})
    write_sweep(tmp_path / "empty", outcome=Outcome.INVALID)
    with pytest.raises(UsageError, match="has tried no point"):
        read_campaign(write(tmp_path, GOOD + SWEEP.replace("swept", "empty")), 99)
    with pytest.raises(UsageError, match="holds no sweep"):
        read_campaign(write(tmp_path, GOOD + SWEEP.replace("swept", "nowhere")), 99)
    with pytest.raises(UsageError, match="one of the keys 'file', 'scenario' and 'sweep'"):
        read_campaign(write(tmp_path, GOOD + SWEEP + 'file = "one.toml"\n'), 99)


def test_a_seed_that_is_left_out_is_the_drawn_one(tmp_path: Path) -> None:
    assert read_campaign(write(tmp_path, GOOD.replace("seed = 7", "")), 99).seed == 99


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed = 7", "seed = -1", ("night.toml", "'seed'", "-1", "allowed is a whole number from 0")),
        ("seed = 7", "seeds = 7", ("'seeds' is unknown", "there are summary, seed, scenarios, limits")),
        ('summary = "a night"', "", ("'summary' is missing",)),
        ("trials = 20", "trials = 0", ("limits: key 'trials' is 0", "from 1 to")),
        ("trials = 20", "trials = true", ("limits: key 'trials' is True",)),
        ("hours = 1.5", "hours = nan", ("limits: key 'hours' is nan", "above 0")),
        ("hours = 1.5", "hour = 1.5", ("limits: key 'hour' is unknown", "until_failure")),
        ("trials = 20", "dump_memory_mib = 321", ("limits: key 'dump_memory_mib' is 321", "from 0, for none, to 320")),
        ("retries = 1", "retries = 99", ("scenarios[1]: key 'retries' is 99", "from 0 to 20")),
        ("weight = 3", "weight = 0", ("scenarios[0]: key 'weight' is 0", "from 1")),
        ('name = "two"', 'name = "Two!"', ("scenarios[1]: key 'name'", "a-z")),
        ('name = "two"', 'name = "one"', ("scenarios[1]: name 'one' is taken",)),
        ('file = "one.toml"', 'file = "none.toml"', ("scenarios[0]", "none.toml", "cannot be read")),
        ('file = "one.toml"', "", ("scenarios[0]", "one of the keys 'file', 'scenario' and 'sweep'")),
        ('topology = "1x1x2"', 'topology = "1x1x3"', ("scenarios[1]", "1x1x3", "allowed is 2")),
        ('mechanism = "stop-machine"', 'mechanism = "none"', ("scenarios[1]", "key 'mechanism' is 'none'")),
        ("[limits]", "[limits", ("night.toml", "no TOML")),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(
    tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as error:
        read_campaign(write(tmp_path, GOOD.replace(old, new, 1)), 1)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_command_line_changes_limits_within_their_ranges() -> None:
    assert change_limits(Limits(trials=5), hours=2.0, until_failure=None) == Limits(trials=5, hours=2.0)
    with pytest.raises(UsageError, match="command line: limits: key 'trials' is 0"):
        change_limits(Limits(), trials=0)


def test_a_trial_follows_from_the_seed_and_its_number_alone() -> None:
    spec = make_spec(trials=100_000)
    alone = choose_trial(spec, 48_213)
    in_turn = {number: choose_trial(spec, number) for number in range(48_200, 48_220)}
    assert in_turn[48_213] == alone
    assert choose_trial(make_spec(trials=100_000, seed=8), 48_213).plan != alone.plan
    # What is kept of a campaign has to mean the same trial for as long as there are stores of it.
    assert (alone.part.name, alone.plan.seed) == ("sound", 1946018333000223)


def test_scenarios_are_drawn_by_their_weights() -> None:
    spec = make_spec(trials=4_000)
    drawn = Counter(choose_trial(spec, number).part.name for number in range(1, 4_001))
    assert 2_850 < drawn[PARTS[0].name] < 3_150
    assert len({choose_trial(spec, number).plan.seed for number in range(1, 4_001)}) == 4_000


def test_numbers_beyond_the_campaign_are_refused() -> None:
    for number in (0, -1, 11):
        with pytest.raises(UsageError, match="trials 1 to 10"):
            choose_trial(make_spec(trials=10), number)


def test_one_pass_in_so_many_is_kept() -> None:
    spec = make_spec(keep_passes_one_in=10)
    assert [number for number in range(1, 31) if keeps_pass(spec, number)] == [1, 11, 21]
    assert not any(keeps_pass(make_spec(keep_passes_one_in=0), number) for number in range(1, 100))


def test_scenarios_may_leave_out_the_mechanism_of_a_kernel_that_is_brought(tmp_path: Path) -> None:
    text = """summary = "mine"
[[scenarios]]
name = "inside"
scenario = { nmis = 3 }
[[scenarios]]
name = "beside"
file = "mine.toml"
"""
    (tmp_path / "mine.toml").write_text('summary = "s"\nnmis = 4\n')
    spec = read_campaign(write(tmp_path, text), 1, "stock-nmi")
    assert {part.scenario.mechanism for part in spec.parts} == {"stock-nmi"}
    assert [part.scenario.nmis for part in spec.parts] == [3, 4]
    with pytest.raises(UsageError, match="key 'mechanism' is missing"):
        read_campaign(write(tmp_path, text), 1)
