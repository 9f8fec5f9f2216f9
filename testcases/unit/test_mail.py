# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as a mail for a kernel list: what it says, how wide and long it is, and that text of others stays text."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from evidence_builder import MS, WINDOW_AT_NS, Load, change
from night_samples import ARCHIVE, make_done, make_spec, open_store
from report_samples import IMAGES, write_sample_run

from lab.campaign.about import About
from lab.campaign.store import Kept
from lab.cli.mail import make_mail
from lab.evidence.folder import write_evidence
from lab.expected.expect import Expected
from lab.host.paths import ROOT
from lab.judge import judge
from lab.mechanisms.mechanism import Expectation
from lab.model.evidence import EventKind
from lab.model.phase import Role
from lab.model.placed import Placed
from lab.model.verdict import Outcome, TrialRecord
from lab.report.mail import MAX_BYTES, MAX_FAILURES, MAX_SCENARIOS, WIDTH, format_mail, shorten_story
from lab.report.reproducer import name_places
from lab.report.statistics import compute_interval
from lab.report.story import Row, Story
from lab.trial.record import make_record

BROKEN = Load().add(WINDOW_AT_NS + MS, EventKind.OUTSIDE, 1).build()
PASS, FAIL = (make_record(number, each, judge(each), "") for number, each in enumerate((Load().build(), BROKEN), 1))
CLEAN = Expected(kind=Expectation.CLEAN)
ABOUT = About(
    id="1",
    lab_version="0.2.0",
    started="2026-03-01T22:14:05+01:00",
    summary="",
    seed="7",
    command=("lab", "run", "--out", "reports/night"),
    images=(msgspec.structs.replace(IMAGES, build_id="ab" * 20),),
    host={"cores": "2"},
)
HOSTILE = "\x1b[31m<b>\x00\u202e\n\nSubject: another\n" + "x" * 10_000 + "漢字" * 200


def format_of(folder: Path, trials: dict[str, tuple[Expected, list[TrialRecord]]], about: About = ABOUT) -> str:
    return format_mail(make_mail(folder, about, trials))


def keep(folder: Path, record: TrialRecord) -> TrialRecord:
    write_evidence(folder / "kept", BROKEN, {})
    return msgspec.structs.replace(record, evidence="kept")


def is_narrow(text: str) -> bool:
    return all(len(line) <= WIDTH or line.startswith("  $ ") for line in text.splitlines())


def test_a_mail_says_what_was_tested_seen_and_how_to_see_it_again(tmp_path: Path) -> None:
    text = format_of(tmp_path, {"nmi-self": (CLEAN, [*[PASS] * 9, keep(tmp_path, FAIL)])})
    assert text.startswith("Subject: x86/microcode: 1 of 1 scenarios NOT as expected, 10 trials")
    assert is_narrow(text)
    flat = " ".join(text.split())
    for part in ("Linux 6.1.158-mclab, build id " + "ab" * 20, "QEMU 7.2.17", "microcode-nmi-lab 0.2.0", "whole: 7;"):
        assert part in flat
    low, high = compute_interval(1, 10, 0.05)
    assert f"quiet broken: 1 of 10 ({100 * low:.3g} to {100 * high:.3g} %)" in flat
    assert f"lab trial --scenario failure-1.toml --seed {BROKEN.plan.seed} --out failure-1" in text
    assert "!! breaks quiet" in flat
    assert "does not show what silicon does" in flat


def test_the_scenario_of_a_failure_can_be_pasted_and_asks_for_the_same(tmp_path: Path) -> None:
    from lab.model.scenario_file import parse_scenario

    text = format_of(tmp_path, {"nmi-self": (CLEAN, [keep(tmp_path, FAIL)])})
    block = text.partition("put this into failure-1.toml:")[2].partition("and run:")[0]
    assert parse_scenario(block, "failure-1.toml", "failure-1").scenario == BROKEN.scenario


def test_addresses_become_symbols_and_only_where_a_symbol_is_one_place() -> None:
    event = next(each for each in (BROKEN.observer.events if BROKEN.observer else ()) if each.pc and each.symbol)
    placed = (Placed(at=f"{event.pc:#x}", role=Role.SIBLING), Placed(at="0x1", role=Role.SIBLING))
    evidence = change(BROKEN, "scenario.placed", placed[:1])
    scenario, left = name_places(evidence)
    assert ([each.at for each in scenario.placed], left) == ([event.symbol], False)
    scenario, left = name_places(change(BROKEN, "scenario.placed", placed))
    assert ([each.at for each in scenario.placed], left) == ([event.symbol, "0x1"], True)
    assert evidence.observer is not None
    twice = (*evidence.observer.events, msgspec.structs.replace(event, pc=event.pc + 64))
    scenario, left = name_places(change(evidence, "observer.events", twice))
    assert ([each.at for each in scenario.placed], left) == ([placed[0].at], True)


def test_text_of_others_neither_adds_lines_nor_widens_them(tmp_path: Path) -> None:
    bad = msgspec.structs.replace(FAIL, reason=HOSTILE, bucket=HOSTILE, evidence=HOSTILE)
    about = msgspec.structs.replace(
        ABOUT,
        lab_version=HOSTILE,
        host={HOSTILE: HOSTILE},
        command=(HOSTILE,),
        images=(msgspec.structs.replace(IMAGES, kernel_release=HOSTILE, qemu_version=HOSTILE),),
        asked={HOSTILE: HOSTILE},
    )
    text = format_of(tmp_path, {HOSTILE: (CLEAN, [bad])}, about)
    assert is_narrow(text)
    assert text.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert sum(line.startswith("Subject:") for line in text.splitlines()) == 1


def test_a_mail_is_short_whatever_happened(tmp_path: Path) -> None:
    trials = {}
    for number in range(MAX_SCENARIOS + 5):
        bad = [msgspec.structs.replace(FAIL, bucket=f"{number} {turn} {'y' * 600}") for turn in range(4)]
        trials[f"scenario {number} {'z' * 600}"] = (CLEAN, bad)
    text = format_of(tmp_path, trials)
    assert len(text.encode()) <= MAX_BYTES
    assert is_narrow(text)
    assert "5 more scenarios are left out." in text
    flat = " ".join(text.split())
    (left,) = re.findall(r"(\d+) more kinds of failure are left out", flat)
    assert int(left) >= 4 * (MAX_SCENARIOS + 5) - MAX_FAILURES
    assert "Limits" in text


def test_failures_that_must_not_be_come_before_those_of_controls(tmp_path: Path) -> None:
    caught = Expected(kind=Expectation.CAUGHT)
    trials = {
        "control": (caught, [msgspec.structs.replace(FAIL, bucket="as it must")] * 5),
        "sound": (CLEAN, [msgspec.structs.replace(FAIL, bucket="as it must not")]),
    }
    text = format_of(tmp_path, trials)
    assert text.index("1. as it must not") < text.index("2. as it must\n")
    assert "A control, which must fail." in text


def test_a_long_story_keeps_its_first_breaks_and_counts_what_it_leaves_out() -> None:
    rows = tuple(
        Row(at_us=float(at), who=1, seq=at, kind="outside", text="t", broke=("quiet",) if at in (50, 60) else ())
        for at in range(100)
    )
    short = shorten_story(Story(threads=(0, 1), rows=rows, gaps={}, elsewhere=0))
    assert {50, 60} <= {row.seq for row in short.rows}
    assert len(short.rows) + short.left_out == len(rows)
    assert max(row.seq for row in short.rows) == 60


def run_lab(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "lab.cli", "mail", *map(str, words))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_tells_a_run_and_a_campaign(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "run")
    done = run_lab(tmp_path / "run", "--out", tmp_path / "mail.txt")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "mail.txt").read_text() == run_lab(tmp_path / "run").stdout
    first = (tmp_path / "mail.txt").read_text().splitlines()[0]
    assert first == "Subject: x86/microcode: all as expected, 60 trials of 6.1.158-mclab"
    assert "  $ lab trial --mechanism nmi-self --topology 1x2x2 --out DIR" in (tmp_path / "mail.txt").read_text()
    (tmp_path / "campaign").mkdir()
    with open_store(tmp_path / "campaign", make_spec(trials=9)) as store:
        store.add(make_done(1, Outcome.FAIL, archive=ARCHIVE), Kept(), 0.0)
    text = run_lab(tmp_path / "campaign").stdout
    assert is_narrow(text)
    assert "sound (expected: clean): NOT AS EXPECTED" in text
    assert "seed of the whole: 7" in text
    told = msgspec.json.decode(run_lab(tmp_path / "campaign", "--json").stdout)
    assert told["text"] == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{dir}/none",), "is not a folder"),
        (("{dir}",), "lab: "),
        (("{dir}", "--out", "{dir}"), "is a folder: name a file"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = run_lab(*(word.format(dir=tmp_path) for word in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
