# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a campaign: what it says, that it is bounded, and that nothing a guest said runs or breaks it."""

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import pytest
from night_samples import ARCHIVE, KEPT, PARTS, SMALL, VERDICT, make_done, make_spec, open_store

from lab.campaign.database import lock_campaign, open_writer
from lab.campaign.definition import Part, choose_trial
from lab.campaign.details import SittingHeld, TrialLine
from lab.campaign.job import TrialDone
from lab.campaign.merge import merge_campaigns
from lab.campaign.reader import summarise
from lab.campaign.retention import Retention
from lab.campaign.shared_evidence import Staging, claim_root
from lab.campaign.store import CampaignStore, Kept
from lab.errors import EvidenceError
from lab.host.paths import ROOT
from lab.model.phase import Phase, Role
from lab.model.placed import Placed
from lab.model.scenario import Scenario
from lab.model.scenario_file import to_words
from lab.model.verdict import Durations, Finding, Outcome
from lab.report import campaign_page
from lab.report.campaign_figures import MAX_REASONS, read_figures
from lab.report.campaign_page import write_campaign_report
from lab.report.stacks import Column, draw_stacks

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=y>&\x1b[31m\x00\x9b\u202egnp\u200f\u2066\ud800"
#: Void elements have no end.
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page's tags, links and text; each tag that is opened must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        assert not {name for name in found if name.startswith("on")}
        self.links += [found[name] or "" for name in ("href", "src") if name in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read_page(folder: Path) -> Page:
    text = write_campaign_report(folder).read_text()
    page = Page(text)
    assert not {"script", "img", "iframe", "link"} & set(page.tags)
    assert "://" not in text
    assert all(link.startswith(("./trials/", "#c")) for link in page.links)
    return page


def change(done: TrialDone, **changes: Any) -> TrialDone:
    record = {key: value for key, value in changes.items() if key in done.record.__struct_fields__}
    rest = {key: value for key, value in changes.items() if key not in record}
    return msgspec.structs.replace(done, record=msgspec.structs.replace(done.record, **record), **rest)


def at(second: int) -> str:
    return f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}+00:00"


def begin_at(store: CampaignStore, began: str, ended: str = "") -> None:
    """Have the sitting of a store be of another time."""
    store._connection.execute("UPDATE sittings SET began = ?, ended = ? WHERE id = ?", (began, ended, store._sitting))


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """Two sittings, with a failure that has a title and evidence, one without, and one that shows nothing."""
    folder = tmp_path / "night"
    with open_store(folder, make_spec(trials=20)) as store:
        retention = Retention(store, 64)
        begin_at(store, at(0))
        for number in range(1, 5):
            retention.keep(change(make_done(number), began=at(number * 60)), 60.0 * number)
        failed = make_done(5, Outcome.FAIL, again=(Outcome.PASS, Outcome.FAIL), archive=ARCHIVE)
        retention.keep(change(failed, bucket="quiet broken in exc_nmi", began=at(300)), 300.0)
        store.end_sitting(finished=False, why="it was interrupted", ran_s=360.0)
        begin_at(store, at(0), at(360))
    with open_store(folder) as store:
        begin_at(store, at(7_200))
        store.add(
            change(make_done(6, Outcome.FAIL, again=(Outcome.FAIL,)), began=at(7_260)), Kept(state="dropped"), 420.0
        )
        for number in (7, 8):
            lost = make_done(number, Outcome.INVALID)
            store.add(change(lost, reason=f"vCPU {number} did not run", began=at(7_300)), Kept(), 480.0)
        store.end_sitting(finished=False, why="it was told to stop", ran_s=660.0)
        begin_at(store, at(7_200), at(7_500))
    return folder


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("sound",), "1 of 2 scenarios did what it must, and 1 has no trial yet"),
        (("sound", "control"), "✓ every scenario did what it must"),
    ],
)
def test_a_campaign_is_as_expected_once_every_scenario_is(tmp_path: Path, parts: tuple[str, ...], said: str) -> None:
    with open_store(tmp_path / "night", make_spec(trials=20)) as store:
        for number, part in enumerate(parts, start=1):
            done = make_done(number, Outcome.PASS if part == "sound" else Outcome.FAIL, part=part)
            invariants = done.record.invariants | ({"quiet": Finding.BROKEN} if part == "control" else {})
            store.add(change(done, invariants=invariants), Kept(), 60.0)
    page = read_page(tmp_path / "night")
    assert said in page.text
    assert page.text.count("did what it must") == 1
    # One for each scenario that has a trial, and one for all.
    assert page.text.count("✓") == len(parts) + (len(parts) == 2) + 1


def test_the_page_says_what_came_of_a_night(night: Path) -> None:
    page = read_page(night)
    assert "✗ 1 of 2 scenarios did not do what they must" in page.text
    assert "sound : 2 of 8 trials are INVALID: more than one in 10 show nothing." in page.text
    assert "Stopped: it was told to stop." in page.text
    assert "1 of 2 scenarios have no trial yet" in page.text
    assert "control stop-machine, 1x1x2 no trial yet to be caught" in page.text
    assert "8 of 20 trials ERROR 0 FAIL 2 INVALID 2 PASS 4 44 an hour" in page.text
    assert "quiet broken in exc_nmi 1 trials of sound; 2 of 3 tries FAIL" in page.text
    assert "no title 1 trials of sound; 2 of 2 tries FAIL" in page.text
    assert "6 sound FAIL 2 of 2 timed, may differ reason of 6" in page.text
    assert "dropped for want of room" in page.text
    assert "2 sound INVALID vCPU 7 did not run 8" in page.text
    assert "one sitting behind the other; a line is where the next one began" in page.text
    assert "it was stopped, and the next one went on" in page.text
    assert f"{at(7_200)} {at(7_500)} it was told to stop" in page.text
    assert "lab campaign trial . 5 --out DIR" in page.text
    assert page.links == ["./trials/00005-sound/"]
    assert (night / page.links[0] / "attempt-1").is_dir()
    assert "lab judge ./trials/00005-sound/attempt-1" in page.text
    assert str(night) not in page.text


def test_the_page_has_the_numbers_of_status(night: Path) -> None:
    (summary,) = summarise(night)
    text = read_page(night).text
    assert all(f"{name} {count}" in text for name, count in summary.outcomes.items())
    for place, nmis in summary.places.items():
        phase, role = place.split()
        columns = ("before", "gather", "armed", "window", "closing", "release", "after")
        match = re.search(rf"all of them {role} ((?:\d+ ){{7}})", text)
        assert match is not None
        assert match[1].split()[columns.index(phase)] == str(nmis)
    assert f"In {len(summary.places)} of 28 pairs of phase and thread." in text


def test_an_empty_campaign_has_a_page(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()):
        text = read_page(tmp_path).text
    assert text.count("no trial yet") == 3
    assert "This campaign runs." in text
    assert "✗" not in text.split("PASS and FAIL are about")[0]
    assert "Nothing did." in text
    assert "This campaign was killed." in read_page(tmp_path).text


def test_a_store_that_was_merged_has_one_page_for_all(night: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with open_store(other, make_spec(seed=8)) as store:
        store.add(make_done(1), Kept(), 1.0)
    (tmp_path / "both").mkdir()
    merge_campaigns([night, other], tmp_path / "both", lambda _: None)
    page = read_page(tmp_path / "both")
    assert "2 campaigns" in page.text
    assert page.text.count("What each scenario showed") == 2
    (link,) = [link for link in page.links if link.startswith("./")]
    assert (tmp_path / "both" / link / "attempt-1").is_dir()


def test_evidence_on_a_shared_path_is_linked_and_judged_where_it_is(tmp_path: Path) -> None:
    folder, shared = tmp_path / "night", tmp_path / "a share"
    folder.mkdir()
    shared.mkdir()
    with lock_campaign(folder), open_writer(folder) as connection:
        store = CampaignStore(connection, folder)
        store.create(make_spec(), {}, str(shared))
        uid, _ = store.find()
        store.begin_sitting(1, "")
        claim_root(store.evidence, uid, folder)
        retention = Retention(store, 64)
        with Staging(store.evidence, uid) as staging:
            staging.write(1, KEPT, VERDICT)
        done = change(make_done(1, Outcome.FAIL), bucket="quiet broken")
        retention.keep(msgspec.structs.replace(done, staged=staging.word), 1.0)
    page = Page(write_campaign_report(folder).read_text())
    kept = shared / uid / "trials" / "00001-sound"
    (link,) = page.links
    assert link == kept.as_uri()
    assert Path(unquote(urlsplit(link).path)).is_dir()
    (command,) = re.findall(r"lab judge ('.*?')", page.text)
    assert shlex.split(command) == [str(kept / "attempt-1")]
    judged = run_lab("judge", shlex.split(command)[0])
    assert judged.stdout.startswith(VERDICT.outcome.value)


def test_a_sweep_is_shown_with_one_of_its_points(tmp_path: Path) -> None:
    """Without one, the command would ask for a load that no NMI is sent to."""
    points = tuple((Placed(at=f"0xffffffff8100000{at}", role=Role.SIBLING, phase=Phase.ARMED),) for at in range(3))
    dry = Scenario(mechanism="nmi-self", topology=SMALL, nmis=0)
    spec = make_spec((*PARTS, Part(name="swept", scenario=dry, points=points, kernel_sha256="5" * 64)))
    with open_store(tmp_path, spec):
        page = read_page(tmp_path)
    plain, control, swept = re.findall(r"lab trial (--mechanism .*?) --seed SEED --out DIR", page.text)
    assert not any("--place" in words for words in (plain, control))
    drawn = [choose_trial(spec, number) for number in range(1, 100)]
    assert shlex.split(swept) in [list(to_words(each.part.scenario)) for each in drawn if each.part.name == "swept"]
    assert swept.endswith("--nmis 0 --place at=0xffffffff81000000,role=sibling,phase=armed")
    assert page.text.count("is a sweep:") == 1
    assert "swept is a sweep: this is the first of its 3 points, and lab campaign trial runs" in page.text


@pytest.mark.parametrize("column", ["bucket", "reason", "host", "summary", "why", "scheduler", "place", "uid", "base"])
def test_hostile_text_neither_runs_nor_breaks_the_page(tmp_path: Path, column: str) -> None:
    text = HOSTILE.replace("\ud800", "") if column != "reason" else HOSTILE.replace("\x00", "").replace("\ud800", "")
    with open_store(tmp_path, make_spec()) as store:
        store.add(make_done(1, Outcome.FAIL, archive=ARCHIVE), Kept(folder="trials/x", state="kept"), 1.0)
        store.add(make_done(2, Outcome.INVALID), Kept(), 1.0)
        store.end_sitting(finished=False, why="", ran_s=2.0)
        tables = {"summary": "campaigns", "why": "campaigns", "uid": "campaigns", "scheduler": "sittings"}
        tables |= {"place": "coverage", "base": "images"}
        if column == "base":
            store._connection.execute("INSERT INTO images VALUES (1, '', 'kernel', ?)", (text,))
        elif column == "place":
            store._connection.execute("INSERT INTO coverage VALUES (1, 1, ?, 3)", (f"{text} {text}",))
        table = tables.get(column, "trials")
        if column not in ("place",):
            store._connection.execute(f"UPDATE {table} SET {column} = ?", (text,))
    page = read_page(tmp_path)
    raw = (tmp_path / "index.html").read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f]", raw)
    assert "gnp" in raw
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize(
    "folder", ["../../etc", "/etc", "javascript:alert(1)", "trials/\u202e", "trials/a\x00b", "#c1"]
)
def test_evidence_cannot_choose_where_a_link_leads(tmp_path: Path, folder: str) -> None:
    with open_store(tmp_path, make_spec()) as store:
        store.add(make_done(1, Outcome.FAIL), Kept(folder=folder, state="kept"), 1.0)
    assert read_page(tmp_path).links == []


def test_failures_are_bounded_the_newest_are_listed_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_page, "MAX_FAILURES_A_BUCKET", 3)
    monkeypatch.setattr(campaign_page, "MAX_FAILURES", 5)
    with open_store(tmp_path, make_spec()) as store:
        for number in range(1, 21):
            part, title = ("sound", "stall") if number % 2 else ("control", "quiet broken")
            store.add(change(make_done(number, Outcome.FAIL, part=part), bucket=title), Kept(), 1.0 * number)
    text = read_page(tmp_path).text
    listed = re.findall(r"(\d+) (?:sound|control) FAIL 1 of 1", text)
    # What nobody expects comes first, and the control's failures have the room that is left.
    assert listed == ["19", "17", "15", "20", "18"]
    assert "7 older ones are left out here" in text
    assert "8 older ones are left out here" in text
    assert "of controls alone, as expected" in text


def test_a_hundred_thousand_trials_make_a_page_of_bounded_size(tmp_path: Path) -> None:
    with lock_campaign(tmp_path), open_writer(tmp_path) as connection:
        store = CampaignStore(connection, tmp_path)
        store.create(make_spec(), {})
        store.find()
        store.begin_sitting(1, "")
        store.add(change(make_done(1, Outcome.FAIL), began=at(0)), Kept(), 1.0)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(trials)")]
        chosen = {
            "number": "value",
            "part": "CASE value % 2 WHEN 0 THEN 'sound' ELSE 'control' END",
            "outcome": "CASE value % 3 WHEN 0 THEN 'FAIL' WHEN 1 THEN 'PASS' ELSE 'INVALID' END",
            "bucket": "CASE value % 3 WHEN 0 THEN 'title ' || (value % 900) ELSE '' END",
            "reason": "'because of x' || value || substr('" + "y" * 700 + "', value % 50)",
            "host": "'host' || (value % 300)",
        }
        picked = ", ".join(chosen.get(name, name) for name in columns)
        numbers = "WITH RECURSIVE n(value) AS (SELECT 2 UNION ALL SELECT value + 1 FROM n WHERE value < 100000)"
        connection.execute(
            f"INSERT INTO trials ({', '.join(columns)}) {numbers} SELECT {picked} FROM n, (SELECT * FROM trials)"
        )
        store.end_sitting(finished=True, why="all 100000 trials are done", ran_s=36_000.0)
    page = read_page(tmp_path)
    assert "100\u202f000 trials" in page.text.replace("100 000", "100\u202f000")
    assert (tmp_path / "index.html").stat().st_size < 2_000_000
    assert "more titles, of fewer trials each, are in the store" in page.text
    assert "more hosts are in the store" in page.text


def test_a_damaged_trial_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        store.add(make_done(1), Kept(), 1.0)
        store._connection.execute("UPDATE trials SET durations = '{'")
    with pytest.raises(EvidenceError, match="trial 1 of the store"):
        write_campaign_report(tmp_path)


def make_line(number: int, **changes: Any) -> TrialLine:
    line = TrialLine(
        number=number,
        part="sound",
        mechanism="nmi-self",
        outcome=Outcome.PASS,
        reason="",
        sitting=1,
        ended_s=1.0 * number,
        took_s=0.5,
        nmis_sent=1,
        evidence="",
        durations=Durations(host_load_us=1.0),
        fractions={},
    )
    return msgspec.structs.replace(line, **changes)


@pytest.mark.parametrize("ended_s", [-1e300, 1e300, float("nan"), float("inf"), None])
def test_no_clock_however_set_breaks_the_course(ended_s: float | None) -> None:
    sitting = SittingHeld(
        id=1,
        began="",
        ended="",
        length_s=20.0,
        host="",
        cores=1,
        vcpu_budget=1,
        workers=1,
        scheduler="",
        lab_version="",
    )
    lines = [make_line(1), make_line(2, ended_s=ended_s, outcome=Outcome.FAIL)]
    course = read_figures(lines, [sitting], {"sound": False}, 1).course
    placed = sum(sum(each.counts) for each in course.bins)
    assert placed + course.unplaced == 2
    assert all(0 <= each.begin_s < each.end_s for each in course.bins)


def test_reasons_that_a_guest_makes_up_are_bounded() -> None:
    letters = [chr(ord("a") + digit) for digit in range(26)]
    made = (a + b + c for a in letters for b in letters for c in letters)
    lines = [
        make_line(n, outcome=Outcome.INVALID, reason=reason) for n, reason in zip(range(4_000), made, strict=False)
    ]
    figures = read_figures(lines, [], {"sound": False}, 10)
    assert len(figures.reasons) == 10
    assert figures.reasons_more == 3_990
    assert MAX_REASONS < 4_000


def test_columns_are_stacked_within_the_chart() -> None:
    columns = [Column(begin_s=n, end_s=n + 1, heights=(float(n), 0.0, 2.0), text="") for n in range(7)]
    stacks = draw_stacks(columns, [3.0, 7.0])
    assert stacks is not None
    assert len(stacks.columns) == 7
    for drawn in stacks.columns:
        assert all(stacks.top <= box.y <= box.y + box.height <= stacks.base_y + 0.02 for box in drawn.boxes)
        assert all(stacks.left <= box.x <= box.x + box.width <= stacks.right for box in drawn.boxes)
    lower, upper = stacks.columns[6].boxes
    assert (lower.kind, upper.kind) == (0, 2)
    assert upper.y + upper.height == pytest.approx(lower.y, abs=0.02)
    assert len(stacks.borders) == 1
    assert stacks.levels[-1].x <= min(box.y for drawn in stacks.columns for box in drawn.boxes) + 0.1
    assert draw_stacks([], []) is None


def run_lab(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "lab.cli", *map(str, words))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_lab_report_knows_a_campaign(night: Path) -> None:
    told = run_lab("report", night, "--json")
    assert told.returncode == 0, told.stderr
    found = msgspec.json.decode(told.stdout)
    assert (found["campaigns"][0]["done"], found["report"]) == (8, str(night / "index.html"))
    (night / "campaign.sqlite").write_bytes(b"nothing")
    refused = run_lab("report", night)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
