# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two sets of trials: figures worked out by hand, and each answer with its exit status."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from evidence_builder import MS, WINDOW_AT_NS, Load
from report_samples import write_sample_run

from lab.host.paths import ROOT
from lab.judge import judge
from lab.model.evidence import EventKind
from lab.model.verdict import Outcome, TrialRecord
from lab.report.comparison import Change, Comparison, compare, compute_rate
from lab.report.statistics import correct
from lab.trial.record import make_record

_PASSED, _FAILED = (Load().build(), Load().add(WINDOW_AT_NS + MS, EventKind.OUTSIDE, 1).build())
PASS, FAIL = (make_record(1, evidence, judge(evidence), "") for evidence in (_PASSED, _FAILED))


def timed(*loads_us: float) -> list[TrialRecord]:
    """Return trials that pass, of which each load took so much longer than its window."""
    durations = PASS.durations
    return [
        msgspec.structs.replace(PASS, durations=msgspec.structs.replace(durations, host_load_us=us, host_windows_us=()))
        for us in loads_us
    ]


def changes(found: Comparison) -> dict[str, Change]:
    (part,) = found.parts
    return {each.outcome.value: each.change for each in part.rates} | {each.name: each.change for each in part.times}


def test_p_values_are_corrected_as_by_hand() -> None:
    # Holm: 0.01 x 3, then 0.02 x 2, then 0.5 x 1; none below one before it.
    assert correct([0.02, 0.5, 0.01]) == [0.04, 0.5, 0.03]
    assert correct([0.03, 0.02, 0.04]) == [0.06, 0.06, 0.06]
    assert correct([]) == []


def test_a_rate_has_its_exact_interval() -> None:
    # Of none in 10 the upper end is 1 - 0.025 ** (1/10), of all in 10 the lower end is 0.025 ** (1/10).
    none, every = compute_rate(0, 10), compute_rate(10, 10)
    assert (none.low_percent, every.high_percent) == (0.0, 100.0)
    assert none.high_percent == pytest.approx(100 * (1 - 0.025**0.1))
    assert every.low_percent == pytest.approx(100 * 0.025**0.1)


def test_fishers_test_is_that_of_the_book() -> None:
    # 3 of 3 against 0 of 3: 2 of the 20 ways to deal three of six. Two of the four outcomes tell, by the same figure.
    found = compare({"a": [PASS] * 3}, {"a": [FAIL] * 3})
    p = {each.outcome: each.p for each in found.parts[0].rates}
    assert p[Outcome.PASS] == pytest.approx(0.1 * 4)
    assert p[Outcome.INVALID] == 1.0
    assert found.change is Change.UNKNOWN


def test_a_kernel_that_begins_to_fail_has_changed() -> None:
    found = compare({"a": [PASS] * 40}, {"a": [PASS] * 20 + [FAIL] * 20})
    assert changes(found)["FAIL"] is changes(found)["PASS"] is Change.CHANGED
    assert changes(found)["INVALID"] is Change.UNCHANGED
    assert found.change is Change.CHANGED
    assert found.parts[0].new_buckets == (FAIL.bucket,)
    back = compare({"a": [FAIL] * 40}, {"a": [PASS] * 40})
    assert (back.parts[0].new_buckets, back.parts[0].gone_buckets) == ((), (FAIL.bucket,))


def test_few_trials_cannot_tell_and_many_can() -> None:
    assert compare({"a": [PASS] * 10}, {"a": [PASS] * 10}).change is Change.UNKNOWN
    assert compare({"a": [PASS] * 40}, {"a": [PASS] * 40}).change is Change.UNCHANGED
    assert compare({}, {}).change is Change.UNKNOWN


def test_times_that_moved_have_changed_by_the_median_of_all_pairs() -> None:
    slow = [float(us) for us in range(1_000, 1_040)]
    found = compare({"a": timed(*slow)}, {"a": timed(*(us + 500 for us in slow))})
    (own, rendezvous) = found.parts[0].times
    assert own.shift_us == 500.0
    assert (own.before_median_us, own.after_median_us) == (1_019.5, 1_519.5)
    assert own.change is Change.CHANGED
    assert found.change is Change.CHANGED
    assert rendezvous.change is Change.UNCHANGED
    same = compare({"a": timed(*slow)}, {"a": timed(*reversed(slow))})
    assert (same.parts[0].times[0].shift_us, same.change) == (0.0, Change.UNCHANGED)
    few = compare({"a": timed(*slow[:3])}, {"a": timed(*slow[-3:])}).parts[0].times[0]
    assert (few.p, few.change) == (None, Change.UNKNOWN)


def test_a_time_of_a_trial_that_shows_nothing_is_left_out() -> None:
    invalid = [msgspec.structs.replace(each, outcome=Outcome.INVALID) for each in timed(*[9e9] * 20)]
    found = compare({"a": timed(*[1_000.0] * 20)}, {"a": [*timed(*[1_000.0] * 20), *invalid]})
    assert found.parts[0].times[0].after == 20
    assert found.parts[0].times[0].change is Change.UNCHANGED


def test_scenarios_of_one_side_are_named() -> None:
    found = compare({"a": [PASS], "old": [PASS]}, {"a": [PASS], "new": [PASS]})
    assert (found.only_before, found.only_after) == (("old",), ("new",))


def run_lab(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "lab.cli", "compare", *map(str, words))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_compares_runs_and_says_so_by_its_status(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "a")
    done = run_lab(tmp_path / "a", tmp_path / "a", "--json")
    assert done.returncode == 3, done.stderr
    told = msgspec.json.decode(done.stdout)
    assert told["change"] == "cannot tell"
    assert {part["name"] for part in told["comparison"]["parts"]} > {"stop-machine"}
    shown = run_lab(tmp_path / "a", tmp_path / "a")
    assert shown.stdout.splitlines()[-1] == "cannot tell"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for words in ((tmp_path / "none", tmp_path), (tmp_path, tmp_path)):
        done = run_lab(*words)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
