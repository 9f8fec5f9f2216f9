# SPDX-License-Identifier: GPL-2.0-or-later
"""Trials for other programs: what each format says of each outcome, also of text that means to be part of it."""

import csv
import io
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from evidence_builder import MS, WINDOW_AT_NS, Load
from night_samples import make_done, make_spec, open_store
from report_samples import write_sample_run

from lab.campaign.store import Kept
from lab.expected.expect import Expected
from lab.host.paths import ROOT
from lab.judge import judge
from lab.mechanisms.mechanism import Expectation
from lab.model.evidence import Ending, EventKind
from lab.model.verdict import TrialRecord
from lab.report.exchange import Status, format_csv, format_junit, format_ktap, make_suites
from lab.trial.record import make_record

_EVIDENCE = (
    Load().build(),
    Load().add(WINDOW_AT_NS + MS, EventKind.OUTSIDE, 1).build(),
    Load().drop(EventKind.WINDOW_CLOSE, 2).build(),
    Load(ending=Ending.LAB).build(),
)
PASS, FAIL, INVALID, ERROR = (make_record(1, each, judge(each), "") for each in _EVIDENCE)
CLEAN, CAUGHT = Expected(kind=Expectation.CLEAN), Expected(kind=Expectation.CAUGHT)
HOSTILE = "]]><script>\x1b[31m\x00\u202e # SKIP ../\n1..9\nnot ok 1"


def statuses(expected: Expected, *records: TrialRecord) -> list[Status]:
    (suite,) = make_suites({"a": (expected, records)})
    return [case.status for case in suite.cases]


def test_each_outcome_ends_its_case_by_what_is_expected() -> None:
    assert statuses(CLEAN, *[PASS] * 20, INVALID)[-2:] == [Status.PASSED, Status.SKIPPED]
    assert statuses(CLEAN, PASS, FAIL) == [Status.FAILED, Status.PASSED, Status.FAILED]
    assert statuses(CLEAN, PASS, ERROR) == [Status.FAILED, Status.PASSED, Status.ERROR]
    assert statuses(CAUGHT, FAIL) == [Status.PASSED, Status.PASSED]
    # A control that breaks something else than it is to break is no control.
    assert statuses(Expected(kind=Expectation.CAUGHT, caught_by=("harmless",)), FAIL) == [Status.FAILED, Status.FAILED]


@pytest.mark.parametrize("expected", [CLEAN, CAUGHT])
def test_without_a_trial_no_scenario_is_as_expected(expected: Expected) -> None:
    assert statuses(expected) == [Status.FAILED]
    assert statuses(expected, INVALID) == [Status.FAILED, Status.SKIPPED]


def test_junit_counts_what_it_holds() -> None:
    (suite,) = ET.fromstring(format_junit(make_suites({"a": (CLEAN, [PASS, FAIL, INVALID, ERROR])})))
    counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "2", "errors": "1", "skipped": "1"}
    ends = [[child.tag for child in case if child.tag != "properties"] for case in suite]
    assert ends == [["failure"], ["system-out"], ["failure"], ["skipped"], ["error"]]


def test_ktap_has_its_plans_and_numbers() -> None:
    lines = format_ktap(make_suites({"a": (CLEAN, [PASS]), "b": (CLEAN, [FAIL, INVALID])})).splitlines()
    assert lines[:5] == ["KTAP version 1", "1..2", "  KTAP version 1", "  # Subtest: a", "  1..2"]
    assert [line.strip().partition(" #")[0] for line in lines if "ok " in line] == [
        "ok 1 as expected",
        f"ok 2 trial 1 seed {PASS.seed}",
        "ok 1 a",
        "not ok 1 as expected",
        f"not ok 2 trial 1 seed {FAIL.seed}",
        f"ok 3 trial 1 seed {INVALID.seed}",
        "not ok 2 b",
    ]
    assert [line for line in lines if "# SKIP" in line] == [next(line for line in lines if line.startswith("  ok 3"))]


def test_text_of_others_stays_text() -> None:
    bad = msgspec.structs.replace(FAIL, reason=HOSTILE, bucket=HOSTILE, evidence=HOSTILE)
    suites = make_suites({HOSTILE: (CLEAN, [bad])})
    (suite,) = ET.fromstring(format_junit(suites))
    assert len(suite) == 2
    ktap = format_ktap(suites)
    assert len(ktap.splitlines()) == 8
    assert "# SKIP" not in ktap
    for text in (format_junit(suites), ktap, format_csv({HOSTILE: (CLEAN, [bad])})):
        assert not {"\x1b", "\x00", "\u202e"} & set(text)


def test_csv_has_a_row_for_each_trial_and_no_formula() -> None:
    formula = msgspec.structs.replace(FAIL, bucket="=cmd()")
    rows = list(csv.DictReader(io.StringIO(format_csv({"a": (CLEAN, [PASS]), "b": (CLEAN, [formula])}))))
    assert [(row["scenario"], row["outcome"], row["quiet"]) for row in rows] == [
        ("a", "PASS", "held"),
        ("b", "FAIL", "broken"),
    ]
    assert rows[1]["bucket"] == "'=cmd()"
    assert float(rows[0]["load_us"]) == PASS.durations.host_load_us


def run_lab(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "lab.cli", "export", *map(str, words))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_writes_each_format(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "run")
    for form, begins in {"junit": "<?xml", "ktap": "KTAP version 1", "csv": "scenario,trial"}.items():
        done = run_lab(tmp_path / "run", "--format", form, "--out", tmp_path / form)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert (tmp_path / form).read_text().startswith(begins)
        assert run_lab(tmp_path / "run", "--format", form).stdout == (tmp_path / form).read_text()


def test_a_campaigns_trials_are_under_their_scenarios_and_no_others(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec(trials=9)) as store:
        for number, part in enumerate(("sound", "control", "sound"), 1):
            store.add(make_done(number, part=part), Kept(), 0.0)
    rows = csv.DictReader(io.StringIO(run_lab(tmp_path, "--format", "csv").stdout))
    assert sorted((row["trial"], row["scenario"]) for row in rows) == [("1", "sound"), ("2", "control"), ("3", "sound")]
    with sqlite3.connect(tmp_path / "campaign.sqlite") as connection:
        connection.execute("UPDATE trials SET part = 'another' WHERE number = 2")
    connection.close()
    done = run_lab(tmp_path, "--format", "csv")
    assert done.returncode == 2
    assert "trial 2 is of a scenario that the campaign has not" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{dir}/none", "--format", "csv"), "is not a folder"),
        (("{dir}", "--format", "csv"), "lab: "),
        (("{dir}", "--format", "cvs"), "'cvs'"),
        (("{dir}", "--format", "csv", "--out", "{dir}"), "is a folder: name a file"),
        (("{dir}",), "--format"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = run_lab(*(word.format(dir=tmp_path) for word in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
