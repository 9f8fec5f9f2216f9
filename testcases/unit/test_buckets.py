# SPDX-License-Identifier: GPL-2.0-or-later
"""Equal failures are shown together, on the page and in a terminal; so is where a stalled guest was."""

import io
from pathlib import Path

import msgspec
import rich.console
from old_run import OldRun
from report_samples import make_evidence, make_info, make_record, make_verdict
from test_report import HOSTILE, read_page, words

from lab.campaign.runs import read_run
from lab.cli.present import describe_trial, make_bucket_table, make_trial_view
from lab.evidence.folder import write_evidence, write_verdict
from lab.model.verdict import Outcome, TrialRecord, Verdict
from lab.report.buckets import count_buckets

STALL = ("vCPU 0 at wait_a+0x1, interrupts off", "vCPU 1 halted at default_idle+0x13, interrupts on")


def make(trial: int, bucket: str, mechanism: str = "nmi-self", **fields: object) -> TrialRecord:
    record = make_record(trial, mechanism, Outcome.FAIL if bucket else Outcome.PASS)
    return msgspec.structs.replace(record, bucket=bucket, **fields)


def show(what: object) -> str:
    text = io.StringIO()
    rich.console.Console(file=text, width=160).print(what)
    return text.getvalue()


def write_run(folder: Path, *records: TrialRecord) -> Path:
    with OldRun(folder, make_info()) as store:
        for record in records:
            store.append(record)
    return folder


def test_the_fullest_bucket_comes_first_and_names_its_first_trial() -> None:
    records = (make(1, "b"), make(2, "a"), make(3, ""), make(4, "a", "stop-machine"), make(5, "c"))
    buckets = count_buckets(records)
    assert [(each.title, each.count, each.first) for each in buckets] == [("a", 2, 2), ("b", 1, 1), ("c", 1, 5)]
    assert buckets[0].mechanisms == ("nmi-self", "stop-machine")
    assert buckets[0].seed == records[1].seed


def test_the_page_and_the_table_show_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make(1, "stall in wait_a"), make(2, "stall in wait_a"), make(3, HOSTILE))
    text = words(read_page(folder))
    assert "What went wrong" in text
    assert "stall in wait_a" in text
    table = show(make_bucket_table(read_run(folder)))
    assert "stall in wait_a" in table
    assert "\x1b" not in table


def test_a_run_in_which_nothing_went_wrong_has_no_such_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make(1, ""))
    assert "What went wrong" not in words(read_page(folder))
    assert make_bucket_table(read_run(folder)) is None


def test_where_a_stalled_guest_was_is_shown(tmp_path: Path) -> None:
    record = make(1, "stall in wait_a", evidence="trials/00001")
    evidence = make_evidence("nmi-self")
    verdict = msgspec.structs.replace(make_verdict(evidence), stall=(*STALL, HOSTILE))
    shown = show(make_trial_view(verdict, record))
    assert "bucket: stall in wait_a" in shown
    assert f"when it stopped answering: {STALL[0]}" in shown
    assert "\x1b" not in shown
    described = describe_trial(verdict, record)
    assert described["bucket"] == "stall in wait_a"
    assert described["stall"] == verdict.stall
    folder = write_run(tmp_path / "run", record)
    write_evidence(folder / record.evidence, evidence, {})
    write_verdict(folder / record.evidence, verdict)
    assert STALL[1] in words(read_page(folder))


def test_what_older_labs_wrote_can_still_be_read() -> None:
    record = msgspec.to_builtins(make(1, "x"))
    del record["bucket"]
    assert msgspec.convert(record, TrialRecord).bucket == ""
    assert Verdict().stall == ()
