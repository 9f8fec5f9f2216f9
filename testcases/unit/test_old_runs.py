# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of older labs: what is read of them, how they are replaced; and what is expected of any run."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from old_run import OldRun
from report_samples import make_info, make_record, write_sample_run

from lab.campaign import run_folder
from lab.campaign.run_folder import claim_run_output, clear_run
from lab.campaign.runs import read_run
from lab.errors import EvidenceError, UsageError
from lab.expected.expect import Expected
from lab.expected.tally import run_met, weigh_mechanism, weigh_run
from lab.mechanisms.mechanism import Expectation
from lab.model.verdict import Finding, Outcome, TrialRecord
from lab.report import page

NAME = "stop-machine"


def records(text: str) -> list[TrialRecord]:
    """One record a letter: Pass, Fail, Invalid, Error, and fail with quiet held (f)."""
    outcomes = {"P": Outcome.PASS, "F": Outcome.FAIL, "f": Outcome.FAIL, "I": Outcome.INVALID, "E": Outcome.ERROR}
    return [
        make_record(number, NAME, outcomes[letter], quiet=Finding.HELD if letter == "f" else None)
        for number, letter in enumerate(text)
    ]


def test_a_run_comes_back(tmp_path: Path) -> None:
    given_records = records("PFIE")
    with OldRun(tmp_path / "run", make_info(finished=False, exit_status=None)) as store:
        for record in given_records:
            store.append(record)
        assert read_run(tmp_path / "run").records == tuple(given_records)
        assert not read_run(tmp_path / "run").info.finished
        store.finish(3)
    run = read_run(tmp_path / "run")
    assert run.info == make_info(finished=True, exit_status=3)
    assert (run.records, run.torn) == (tuple(given_records), 0)


def test_a_torn_last_line_is_left_out_and_counted(tmp_path: Path) -> None:
    with OldRun(tmp_path, make_info()) as store:
        for record in records("PPP"):
            store.append(record)
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for length in range(last + 1, len(whole)):
        os.truncate(path, length)
        run = read_run(tmp_path)
        assert (len(run.records), run.torn) == (2, 1)
        path.write_bytes(whole)
    os.truncate(path, last)
    assert (len(read_run(tmp_path).records), read_run(tmp_path).torn) == (2, 0)


def test_a_bad_line_in_the_middle_is_no_torn_line(tmp_path: Path) -> None:
    with OldRun(tmp_path, make_info()) as store:
        for record in records("PP"):
            store.append(record)
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"trial": 1}\n' + path.read_bytes())
    with pytest.raises(EvidenceError, match="line 1"):
        read_run(tmp_path)


def test_a_record_of_a_mechanism_not_asked_for_is_foreign(tmp_path: Path) -> None:
    with OldRun(tmp_path, make_info()) as store:
        store.append(make_record(1, "hearsay", Outcome.PASS))
    with pytest.raises(EvidenceError, match="mechanism"):
        read_run(tmp_path)


def list_tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_run_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    write_sample_run(tmp_path, trials=2)
    before = list_tree(tmp_path)
    with pytest.raises(UsageError, match=r"holds a run: .* --replace"):
        claim_run_output(tmp_path, replace=False)
    with pytest.raises(UsageError, match="another run"):
        clear_run(tmp_path, replace=False)
    assert list_tree(tmp_path) == before
    assert len(read_run(tmp_path).records) == 6


def test_a_new_run_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    write_sample_run(tmp_path, trials=2)
    page.write_report(tmp_path)
    (tmp_path / ".run.json.abcd_123").touch()
    (tmp_path / "trials" / ".00007-nmi-self.abcd_123").mkdir()
    (tmp_path / "trials" / "00001" / ".verdict.json.abcd_123").touch()
    (tmp_path / ".trials.abcd_123" / "trials" / "half").mkdir(parents=True)
    assert claim_run_output(tmp_path, replace=True) == tmp_path
    clear_run(tmp_path, replace=True)
    assert list_tree(tmp_path) == [".mclab-run"]


@pytest.mark.parametrize(
    "foreign",
    ["notes.txt", "trials/notes.txt", "trials/00001/notes.txt", "trials/mine/x", ".secret", ".trials.abcd_123"],
)
def test_a_run_with_something_of_the_users_in_it_is_not_replaced(tmp_path: Path, foreign: str) -> None:
    write_sample_run(tmp_path, trials=1)
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("years of work")
    before = list_tree(tmp_path)
    named = "trials/00001" if "00001" in foreign else foreign.removesuffix("/x")
    with pytest.raises(UsageError, match=f"'{named}', which the lab did not leave"):
        claim_run_output(tmp_path, replace=True)
    with pytest.raises(UsageError, match="did not leave"):
        clear_run(tmp_path, replace=True)
    assert list_tree(tmp_path) == before
    assert len(read_run(tmp_path).records) == 3


def test_links_in_a_run_are_foreign(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run = write_sample_run(tmp_path / "run", trials=1)
    (run / "trials").rename(tmp_path / "trials")
    (run / "trials").symlink_to(tmp_path / "trials")
    with pytest.raises(UsageError, match="'trials', which"):
        claim_run_output(run, replace=True)


def test_a_run_goes_into_no_folder_of_another_kind(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "run", trials=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for folder in (tmp_path / "run" / "trials" / "00001", tmp_path / "mine"):
        for replace in (False, True):
            with pytest.raises(UsageError, match="may not replace"):
                claim_run_output(folder, replace)
    for name in ("new", "new"):  # the second time it is there and empty
        assert claim_run_output(tmp_path / name, replace=True) == tmp_path / name


def test_the_page_has_one_name() -> None:
    assert run_folder.PAGE == page.PAGE


@pytest.mark.parametrize("name", ["run.json", "records.jsonl"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    with OldRun(tmp_path, make_info()):
        pass
    (tmp_path / name).unlink()
    with pytest.raises(EvidenceError, match=f"{name} is missing"):
        read_run(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000, b" " * (1 << 21)])
def test_a_damaged_run_is_an_evidence_error(tmp_path: Path, data: bytes) -> None:
    with OldRun(tmp_path, make_info()):
        pass
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(EvidenceError):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("expectation", "text", "met", "reason"),
    [
        (Expectation.CAUGHT, "PPFPPPPPPI", True, "caught"),
        (Expectation.CAUGHT, "PPP", False, "not caught"),
        (Expectation.CAUGHT, "PPf", False, "not caught"),
        (Expectation.CAUGHT, "F", True, "caught"),
        (Expectation.CAUGHT, "FFE", False, "ERROR"),
        (Expectation.CAUGHT, "FFI", False, "INVALID"),
        (Expectation.CAUGHT, "", False, "no trial"),
        (Expectation.CLEAN, "PPPPPPPPPI", True, "clean"),
        (Expectation.CLEAN, "PPPPPPPPII", False, "INVALID"),
        (Expectation.CLEAN, "PPPPPPPPPF", False, "FAIL"),
        (Expectation.CLEAN, "PPPPPPPPPf", False, "FAIL"),
        (Expectation.CLEAN, "PPPPPPPPPE", False, "ERROR"),
        (Expectation.CLEAN, "I", False, "INVALID"),
        (Expectation.CLEAN, "", False, "no trial"),
        (Expectation.EITHER, "PPPPPPPPPI", True, "broken in 0 failed trials of 10, which may be none"),
        (Expectation.EITHER, "PPF", True, "broken in 1 failed trials of 3"),
        (Expectation.EITHER, "F", True, "either"),
        (Expectation.EITHER, "PPf", False, "1 of 3 trials FAIL without quiet broken"),
        (Expectation.EITHER, "PPPPPPPPII", False, "INVALID"),
        (Expectation.EITHER, "PPPPPPPPPE", False, "ERROR"),
        (Expectation.EITHER, "", False, "no trial"),
    ],
)
def test_expectations(expectation: Expectation, text: str, met: bool, reason: str) -> None:
    result = weigh_mechanism(NAME, Expected(expectation), records(text))
    assert result.met is met
    assert reason in result.reason
    assert result.outcomes.trials == len(text) == result.quiet.trials == result.harmless.trials


def test_a_control_needs_quiet_broken_in_a_trial_that_fails() -> None:
    starved = make_record(1, NAME, Outcome.INVALID, quiet=Finding.BROKEN)
    others = records("PPPPPPPPPP")
    assert not weigh_mechanism(NAME, Expected(Expectation.CAUGHT), [starved, *others]).met


@given(st.text("PFfIE"), st.sampled_from(Expectation))
def test_no_met_expectation_hides_an_error_or_rests_on_nothing(text: str, expectation: Expectation) -> None:
    result = weigh_mechanism(NAME, Expected(expectation), records(text))
    if result.met:
        assert "E" not in text
        assert text.count("I") * 10 <= len(text)
        if expectation is Expectation.EITHER:
            assert "f" not in text
            assert "P" in text or "F" in text
        else:
            assert ("F" in text) if expectation is Expectation.CAUGHT else ("P" in text and "F" not in text)


def test_a_run_is_met_when_all_its_mechanisms_are() -> None:
    both = {NAME: Expected(Expectation.CAUGHT), "nmi-self": Expected(Expectation.CLEAN)}
    clean = make_record(9, "nmi-self", Outcome.PASS)
    assert run_met(weigh_run(both, [*records("F"), clean]))
    assert not run_met(weigh_run(both, records("F")))
    assert not run_met(weigh_run({}, []))
    assert [result.name for result in weigh_run(both, [])] == list(both)
