# SPDX-License-Identifier: GPL-2.0-or-later
"""That an invariant can be taken out of the judge, and that it shows: a cheap part of ``make judge-coverage``."""

import pytest
from judge_coverage import HERE, TESTS, NotRun, try_without

DMESG = HERE / "test_judge_dmesg.py"
OUTCOMES = HERE / "test_judge_outcomes.py"


def test_with_nothing_taken_out_all_is_green() -> None:
    assert try_without("", (DMESG,)).red == ""


def test_an_invariant_taken_out_goes_red_and_names_the_test() -> None:
    tried = try_without("quiet", (OUTCOMES,))

    assert tried.without == "quiet"
    assert tried.red.startswith("testcases/unit/test_judge_outcomes.py::test_")


def test_one_that_no_test_needs_is_told_as_such() -> None:
    assert try_without("load-repeatable", (DMESG,)).red == ""


def test_what_is_no_invariant_is_refused() -> None:
    with pytest.raises(NotRun, match="LAB_JUDGE_WITHOUT is 'no-such': there are all-waiting-before-update, quiet,"):
        try_without("no-such", (DMESG,))


def test_tests_that_cannot_be_run_are_no_answer() -> None:
    with pytest.raises(NotRun, match="not found"):
        try_without("", (HERE / "test_judge_gone.py",))


def test_all_tests_of_the_judge_take_part() -> None:
    there = {path.name for path in HERE.glob("test_judge_*.py")} | {"test_kept_evidence.py"}

    assert {path.name for path in TESTS} == there - {"test_judge_properties.py", "test_judge_coverage.py"}
