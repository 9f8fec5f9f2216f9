# SPDX-License-Identifier: GPL-2.0-or-later
"""What a page says is new against an earlier run or campaign."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from evidence_builder import MS, WINDOW_AT_NS, Load
from night_samples import make_done, make_spec, open_store
from report_samples import write_sample_run

from lab.campaign.definition import choose_trial
from lab.campaign.retention import Retention
from lab.host.paths import ROOT
from lab.judge import judge
from lab.model.evidence import EventKind
from lab.model.verdict import Outcome, TrialRecord
from lab.report.comparison import Change, compare
from lab.report.since import MAX_TITLES, tell_since
from lab.trial.record import make_record

_PASSED, _FAILED = (Load().build(), Load().add(WINDOW_AT_NS + MS, EventKind.OUTSIDE, 1).build())
PASS, FAIL = (make_record(1, evidence, judge(evidence), "") for evidence in (_PASSED, _FAILED))
HOSTILE = "</section><script>alert(1)</script>\x1b[31m\u202e"


def titled(title: str) -> TrialRecord:
    return msgspec.structs.replace(FAIL, bucket=title)


def test_what_changed_is_told_with_both_figures_and_what_did_not_is_left_out() -> None:
    since = tell_since("monday", compare({"a": [PASS] * 60, "b": [PASS] * 60}, {"a": [FAIL] * 60, "b": [PASS] * 60}))
    assert (since.earlier, since.change, since.headline) == ("monday", Change.CHANGED, "changed: a")
    assert {(each.scenario, each.name) for each in since.figures} >= {("a", "PASS"), ("a", "FAIL")}
    assert "b" not in {each.scenario for each in since.figures}
    failed = next(each for each in since.figures if each.name == "FAIL")
    assert failed.before.startswith("0 of 60 (0.0 to 6.0 %)")
    assert failed.after.startswith("60 of 60 (94.0 to 100.0 %)")


def test_a_title_that_is_new_is_news_even_if_no_rate_changed() -> None:
    old, new = [titled("old") for _ in range(60)], [titled("new"), *[titled("old")] * 59]
    since = tell_since("", compare({"a": old}, {"a": new}))
    assert (since.appeared, since.gone) == ((("a", "new"),), ())
    assert since.headline == "changed: a"


def test_nothing_new_and_too_few_trials_are_not_the_same() -> None:
    assert tell_since("", compare({"a": [PASS] * 60}, {"a": [PASS] * 60})).headline == "nothing changed"
    few = tell_since("", compare({"a": [PASS]}, {"a": [PASS]}))
    assert (few.headline, few.unknown) == ("too few trials to tell what changed", ("a",))
    other = tell_since("", compare({"a": [PASS]}, {"b": [PASS]}))
    assert (other.only_before, other.only_after, other.change) == (("a",), ("b",), Change.UNKNOWN)


def test_titles_are_bounded_and_the_rest_is_counted() -> None:
    new = [titled(f"title {number}") for number in range(MAX_TITLES + 5)]
    since = tell_since("", compare({"a": [PASS]}, {"a": new}))
    assert (len(since.appeared), since.more) == (MAX_TITLES, 5)


def report(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "lab.cli", "report", *map(str, words))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def make_night(folder: Path, outcome: Outcome, title: str = "") -> Path:
    folder.mkdir()
    spec = make_spec(trials=40)
    with open_store(folder, spec) as store:
        retention = Retention(store, 1_024)
        for number in range(1, 41):
            done = make_done(number, outcome, part=choose_trial(spec, number).part.name)
            done = msgspec.structs.replace(done, record=msgspec.structs.replace(done.record, bucket=title))
            retention.keep(done, float(number))
    return folder


def test_the_page_of_a_night_says_what_is_new_and_hostile_titles_do_not_run(tmp_path: Path) -> None:
    monday, tuesday = make_night(tmp_path / "mon", Outcome.PASS), make_night(tmp_path / "tue", Outcome.FAIL, HOSTILE)
    assert report(tuesday).returncode == 0
    assert "What is new since" not in (tuesday / "index.html").read_text()
    done = report(tuesday, "--since", monday)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tuesday / "index.html").read_text()
    assert "What is new since" in page
    assert re.search(r"0 of \d+ \(0\.0 to ", page)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_the_page_of_a_run_says_what_is_new(tmp_path: Path) -> None:
    old, new = (write_sample_run(tmp_path / name) for name in ("old", "new"))
    assert report(new, "--since", old).returncode in (0, 1)
    assert "What is new since" in (new / "index.html").read_text()


@pytest.mark.parametrize("earlier", ["none", "empty"])
def test_an_earlier_one_that_is_none_is_refused_and_the_page_stays(earlier: str, tmp_path: Path) -> None:
    new = make_night(tmp_path / "new", Outcome.PASS)
    (tmp_path / "empty").mkdir()
    report(new)
    before = (new / "index.html").read_bytes()
    done = report(new, "--since", tmp_path / earlier)
    assert done.returncode == 2
    assert done.stderr.startswith("lab: ")
    assert done.stderr.count("\n") == 1
    assert (new / "index.html").read_bytes() == before
