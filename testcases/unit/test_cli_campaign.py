# SPDX-License-Identifier: GPL-2.0-or-later
"""``lab campaign`` without guests: what it refuses and in which words, and what it shows."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from night_samples import make_done, make_spec, open_store
from rich.console import Console

from lab.campaign.database import lock_campaign
from lab.campaign.job import TrialDone
from lab.campaign.loop import Result, Standing
from lab.campaign.reader import summarise
from lab.campaign.store import Kept
from lab.cli.app import Interrupted
from lab.cli.campaign_view import draw_standing, make_summary_view, tell_standing
from lab.cli.ending import run_sitting
from lab.errors import HostError, UsageError
from lab.host.paths import ROOT
from lab.model.verdict import Finding, Outcome
from lab.report.text import tell_time

GOOD = 'summary = "x"\n[[scenarios]]\nscenario = { mechanism = "nmi-self" }\n'
STANDING = Standing(
    planned=100,
    done=40,
    running=2,
    workers=3,
    guests=1,
    outcomes={"sound": {"PASS": 30, "FAIL": 1}, "control": {"FAIL": 9}},
    ran_s=3_725.0,
    rate_per_h=1_234.4,
    left_s=59.0,
    coverage={"window sibling": 3, "unsure sibling": 4, "gather primary": 1},
    buckets={"quiet broken in exc_nmi": 9, "": 1, "stall\x1b[31m in x": 1},
    evidence_bytes=3 * 1_024 * 1_024,
    newest_failure="trial 7 sound, 1 of 3 tries: quiet broken\x1b[31m",
)


def run_lab(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "lab.cli", "campaign", *map(str, words))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def draw(what: object) -> str:
    console = Console(width=160, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    with open_store(folder, make_spec(trials=9)) as store:
        for number in range(1, 4):
            store.add(make_done(number), Kept(), 2.0 * number)
        store.add(make_done(4, Outcome.FAIL, again=(Outcome.PASS,)), Kept(), 8.0)
        store.end_sitting(finished=False, why="it was told to stop", ran_s=8.0)
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start", "{tmp}/none.toml", "--out", "{tmp}/o", "--trials", "1"), "none.toml' cannot be read"),
        (("start", "{tmp}/good.toml", "--out", "{tmp}/o"), "the campaign would never end: give --for, --trials"),
        (("start", "{tmp}/good.toml", "--out", "{tmp}/o", "--for", "8x"), "--for is '8x': allowed is a number above 0"),
        (("start", "{tmp}/good.toml", "--out", "{tmp}/o", "--for", "0s"), "--for is '0s': allowed is a number above 0"),
        (("start", "{tmp}/good.toml", "--out", "{tmp}/o", "--trials", "0"), "key 'trials' is 0: allowed is"),
        (("start", "{tmp}/good.toml", "--out", "{tmp}/kept", "--trials", "1"), "a campaign is kept in"),
        (("start", "{tmp}/good.toml", "--out", "{tmp}", "--trials", "1"), "may not replace: name an empty or new one"),
        (
            (
                "start",
                "{tmp}/good.toml",
                "--out",
                "{tmp}/o",
                "--trials",
                "1",
                "--workers",
                "1",
                "--scheduler",
                "tcp://x:1",
            ),
            "--workers and --scheduler exclude each other",
        ),
        (
            ("start", "{tmp}/good.toml", "--out", "{tmp}/o", "--dump-memory", "321"),
            "'--dump-memory': Input should be less than or equal to 320",
        ),
        (
            ("start", "{tmp}/good.toml", "--out", "{tmp}/o", "--trials", "1", "--evidence-dir", "{tmp}/good.toml"),
            "good.toml' is not a folder: one is needed that all hosts share",
        ),
        (("resume", "{tmp}/kept", "--evidence-dir", "{tmp}/none"), "none' is not a folder"),
        (
            ("start", "{tmp}/good.toml", "--out", "{tmp}/o", "--trials", "1", "--scheduler", "lead"),
            "--scheduler 'lead' is no address",
        ),
        (("status", "{tmp}/o"), "holds no campaign"),
        (("stop", "{tmp}/o"), "holds no campaign"),
        (("stop", "{tmp}/kept"), "no campaign runs in"),
        (("resume", "{tmp}/o"), "holds no campaign"),
        (("trial", "{tmp}/kept", "10", "--out", "{tmp}/o"), "trial 10: this campaign has trials 1 to 9"),
        (("merge", "{tmp}/none", "--out", "{tmp}/o"), "holds no campaign"),
        (("list", "{tmp}/none"), "is not a folder"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_status_2(
    tmp_path: Path, kept: Path, words: tuple[str, ...], said: str
) -> None:
    assert kept.is_dir()
    (tmp_path / "good.toml").write_text(GOOD)
    refused = run_lab(*(word.format(tmp=tmp_path) for word in words))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1, refused.stderr


def test_status_is_for_people_and_for_machines(kept: Path) -> None:
    told = msgspec.json.decode(run_lab("status", kept, "--json").stdout)
    assert (told["state"], told["done"], told["planned"], told["why"]) == ("stopped", 4, 9, "it was told to stop")
    assert told["newest"][0]["attempts"] == 2
    shown = run_lab("status", kept).stdout
    assert "4 of 9 trials" in shown
    assert "FAIL trial 4 sound, 1/2 tries, a plan that is timed: reason of 4" in shown
    assert "vCPU budget of the host" in shown


def test_list_leaves_out_what_is_no_campaign(kept: Path) -> None:
    (kept.parent / "other").mkdir()
    (kept.parent / "other" / "campaign.sqlite").write_bytes(b"nothing")
    listed = run_lab("list", kept.parent, "--json")
    assert [each["folder"] for each in msgspec.json.decode(listed.stdout)["campaigns"]] == [str(kept)]
    assert "leaving out" in listed.stderr
    assert "4/9" in run_lab("list", kept.parent).stdout


def test_merge_says_what_it_joined(kept: Path, tmp_path: Path) -> None:
    merged = run_lab("merge", kept, kept, "--out", tmp_path / "all", "--json")
    assert msgspec.json.decode(merged.stdout) == {"campaigns": 1, "trials": 4, "twice": 4}


def test_a_log_has_all_of_the_standing_on_one_line() -> None:
    assert tell_standing(STANDING) == (
        "40 of 100 trials; PASS 30 FAIL 10; 1234 an hour; 2 running on 3 workers, 1 guests;"
        " coverage 2 of 28 phases and roles (gather primary 1, window sibling 3); ran 1:02:05; left 0:00:59;"
        " failures: 9 x quiet broken in exc_nmi, 1 x no title, 1 x stall in x;"
        " newest failure: trial 7 sound, 1 of 3 tries: quiet broken"
    )


def test_a_terminal_shows_outcomes_by_scenario_and_nothing_of_a_guests_escapes() -> None:
    lines = draw(draw_standing(STANDING)).splitlines()
    assert lines[0].rstrip() == "40 of 100 trials, 1234 an hour, ran 1:02:05, left 0:00:59"
    (control,) = [line.split() for line in lines if line.startswith("control")]
    assert control == ["control", "0", "9", "0", "0"]
    assert "\x1b" not in "".join(lines)
    assert "evidence 3.0 MiB" in "".join(lines)
    assert ["primary", "0", "1", "0", "0", "0", "0", "0", "0"] in [line.split() for line in lines]
    assert ["sibling", "0", "0", "0", "3", "0", "0", "0", "4"] in [line.split() for line in lines]
    assert {"9 x quiet broken in exc_nmi", "1 x no title", "1 x stall in x"} <= {line.rstrip() for line in lines}


def test_a_summary_cleans_what_guests_said(tmp_path: Path) -> None:
    done = make_done(1, Outcome.FAIL)
    done = msgspec.structs.replace(done, record=msgspec.structs.replace(done.record, reason="bad\x1b[2J\u202egnp"))
    with open_store(tmp_path, make_spec(trials=1)) as store:
        store.add(done, Kept(), 1.0)
    (summary,) = summarise(tmp_path)
    shown = draw(make_summary_view(summary))
    assert "badgnp" in shown
    assert "\x1b" not in shown


def test_a_scenario_without_a_trial_is_not_said_to_fail(kept: Path) -> None:
    (summary,) = summarise(kept)
    sound, control = summary.parts
    assert (sound.met, control.met, control.reason) == (False, None, "no trial yet")
    lines = draw(make_summary_view(summary)).splitlines()
    assert "clean: NOT MET" in next(line for line in lines if "sound " in line)
    (row,) = [line for line in lines if "control" in line]
    assert "no trial yet" in row
    assert "MET" not in row


def test_a_campaign_is_met_once_every_scenario_has_shown_what_is_expected(tmp_path: Path) -> None:
    caught = make_done(2, Outcome.FAIL, part="control")
    findings = caught.record.invariants | {"quiet": Finding.BROKEN}
    caught = msgspec.structs.replace(caught, record=msgspec.structs.replace(caught.record, invariants=findings))
    with open_store(tmp_path, make_spec()) as store:
        assert not summarise(tmp_path)[0].met
        store.add(make_done(1), Kept(), 1.0)
        assert not summarise(tmp_path)[0].met
        store.add(caught, Kept(), 2.0)
    assert summarise(tmp_path)[0].met


def test_failures_and_coverage_are_added_up(tmp_path: Path) -> None:
    def name(number: int, bucket: str, part: str, outcome: Outcome = Outcome.FAIL) -> TrialDone:
        done = make_done(number, outcome, part=part, again=(Outcome.PASS,))
        record = msgspec.structs.replace(done.record, bucket=bucket, coverage={"window sibling": number})
        return msgspec.structs.replace(done, record=record)

    with open_store(tmp_path, make_spec()) as store:
        store.add(name(1, "stall in x", "sound"), Kept(), 1.0)
        store.add(name(2, "stall in x", "control"), Kept(), 2.0)
        store.add(name(3, "QEMU does not answer", "sound", Outcome.INVALID), Kept(), 3.0)
        store.add(name(4, "", "sound", Outcome.INVALID), Kept(), 4.0)
        store.add(name(5, "", "sound"), Kept(), 5.0)
        assert store.count_buckets() == {"stall in x": 2, "": 1, "QEMU does not answer": 1}
        assert store.count_coverage() == {"window sibling": 15}
    (summary,) = summarise(tmp_path)
    assert [(each.title, each.trials, each.parts, each.failed, each.attempts) for each in summary.buckets] == [
        ("stall in x", 2, ("control", "sound"), 2, 4),
        ("", 1, ("sound",), 1, 2),
        ("QEMU does not answer", 1, ("sound",), 0, 2),
    ]
    assert summary.places == {"window sibling": 15}
    lines = [line.split() for line in draw(make_summary_view(summary)).splitlines()]
    assert ["2", "2", "of", "4", "stall", "in", "x", "control,", "sound", "2"] in lines
    assert ["sibling", "0", "0", "0", "15", "0", "0", "0"] in lines


@pytest.mark.parametrize(
    "end", [Result(finished=True, why=""), HostError("no space"), UsageError("another kernel"), KeyboardInterrupt()]
)
def test_a_sitting_leaves_the_campaigns_page_however_it_ends(kept: Path, end: Result | BaseException) -> None:
    def sit() -> Result:
        if isinstance(end, BaseException):
            raise end
        return end

    if isinstance(end, Result):
        assert run_sitting(kept, sit) is end
    else:
        with pytest.raises(Interrupted if isinstance(end, KeyboardInterrupt) else type(end)):
            run_sitting(kept, sit)
    assert "4 of 9 trials" in " ".join((kept / "index.html").read_text().split())


def test_a_page_of_another_labs_campaign_is_left_to_it(kept: Path) -> None:
    def sit() -> Result:
        raise UsageError("another lab runs a campaign")

    with lock_campaign(kept), pytest.raises(UsageError, match="another lab"):
        run_sitting(kept, sit)
    assert not (kept / "index.html").exists()


def test_a_page_that_cannot_be_written_takes_nothing_from_a_campaign(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(_: Path) -> Path:
        raise HostError("no space left")

    monkeypatch.setattr("lab.cli.ending.write_campaign_report", no_room)
    ended = Result(finished=True, why="")
    assert run_sitting(kept, lambda: ended) is ended
    assert capsys.readouterr().err == "lab: the campaign's page was not written: no space left\n"


def test_times_are_hours_minutes_and_seconds() -> None:
    assert [tell_time(each) for each in (0.4, 61, 3_600, 360_000)] == ["0:00:00", "0:01:01", "1:00:00", "100:00:00"]


def test_a_campaign_of_a_kernel_that_is_not_brought_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "night.toml"
    file.write_text(GOOD.replace("nmi-self", "stock-nmi"))
    done = run_lab("start", file, "--trials", "1", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "lab: mechanism 'stock-nmi' is that of a kernel you bring: give it with --kernel and --vmlinux"
    )
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
