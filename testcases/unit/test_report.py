# SPDX-License-Identifier: GPL-2.0-or-later
import html.parser
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from old_run import OldRun
from report_samples import make_evidence, make_info, make_record, make_verdict, write_sample_run

from lab.campaign.old_runs import MechanismAsked
from lab.errors import EvidenceError
from lab.evidence.folder import write_evidence, write_verdict
from lab.mechanisms.mechanism import Expectation
from lab.model.evidence import EventKind, Evidence, InjectionLog
from lab.model.scenario import Aim, Scenario
from lab.model.verdict import Durations, Finding, Outcome, Proof, Span, TrialRecord
from lab.report import page as page_module
from lab.report.environment import judge_again
from lab.report.example import find_evidence, find_example, link_evidence
from lab.report.figures import group_reasons, measure_price, measure_spread
from lab.report.page import reproduce, write_report
from lab.report.panel import BADGE_GAP_PX, GUTTER_PX, WIDTH_PX, Axis, Lane, Moment, Panel, Stretch, draw_panel
from lab.report.text import clean, format_us
from lab.report.timeline import draw_timeline

HOSTILE = (
    "\x1b[31m<script>alert(1)</script>\x00\x1b]0;title\x07\u202e\" onload='x' {{ 7 * 7 }} </style></title> &amp;\x9b2J"
)
VOID = {"meta", "link", "br", "img", "rect", "circle", "path"}


class Reader(html.parser.HTMLParser):
    """Reads a page as a strict reader would: tags balance, and nothing runs or is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID or tag in ("rect", "circle", "path"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name != "src"
            if name == "href":
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read_page(folder: Path) -> Reader:
    path = write_report(folder)
    text = path.read_text()
    reader = Reader(text)
    assert "script" not in reader.tags
    assert "://" not in text
    assert all(link.startswith(("./", "#")) for link in reader.links)
    return reader


def words(reader: Reader) -> str:
    return " ".join(" ".join(reader.text).split())


def write_run(folder: Path, records: list[TrialRecord], **changes: object) -> Path:
    with OldRun(folder, make_info(**changes)) as store:
        for record in records:
            store.append(record)
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_run(tmp_path_factory.mktemp("report") / "run")


def test_the_page_answers_the_mails_question(sample: Path) -> None:
    text = words(read_page(sample))
    assert "No instruction at all on the sibling, or just no nasty ones?" in text
    assert "✓ every mechanism did what it must" in text
    # 15 of 19: Clopper and Pearson's interval.
    assert (
        "the sibling left its wait in 15 of the 19 trials that could tell (78.9 %, 95 % interval 54.4 to 93.9 %)"
        in text
    )
    assert "nothing outside its wait was seen in the 19 of 20 trials that could tell and in which an NMI" in text
    # 1 - 0.05 ** (1 / 19) is 14.59 %.
    assert "No instruction at all, breaks in fewer than 15 % of trials (95 %)" in text
    assert "Caught, as it must be." in text
    assert "window of core 1 unseen: its sibling ran 5 blocks" in text
    assert "error of mapping guest TSC to host TSC, ±" in text
    assert "still, in one loop" in text
    assert "asm_exc_nmi+0x1c0" in text
    assert "lab judge ./trials/000" in text
    assert "3f" * 32 in text


def test_the_page_links_only_evidence_that_is_there(sample: Path) -> None:
    links = {link for link in read_page(sample).links if link.startswith("./")}
    assert links == {f"./trials/{number:05d}/" for number in (1, 2, 3, 21, 22, 23, 41, 42, 43)}
    assert all((sample / link).is_dir() for link in links)


def test_the_page_is_drawn_the_same_from_a_moved_run(sample: Path, tmp_path: Path) -> None:
    before = write_report(sample).read_bytes()
    (tmp_path / "elsewhere").symlink_to(sample)
    assert write_report(tmp_path / "elsewhere").read_bytes() == before
    assert str(sample).encode() not in before


def hostile_evidence() -> Evidence:
    evidence = make_evidence()
    assert evidence.observer is not None
    events = tuple(msgspec.structs.replace(event, symbol=HOSTILE) for event in evidence.observer.events)
    return msgspec.structs.replace(
        evidence,
        observer=msgspec.structs.replace(evidence.observer, events=events),
        console_tail=(HOSTILE,),
        reason=HOSTILE,
    )


def test_hostile_text_neither_runs_nor_breaks_the_page(tmp_path: Path) -> None:
    evidence = hostile_evidence()
    verdict = make_verdict(evidence)
    verdict = msgspec.structs.replace(verdict, reason=HOSTILE)
    name = "trials/<img src=x onerror=alert(1)>\"'&?#%2e"
    write_evidence(tmp_path / name, evidence, {})
    write_verdict(tmp_path / name, verdict)
    record = make_record(1, HOSTILE, Outcome.FAIL, reason=HOSTILE, evidence=name)
    record = msgspec.structs.replace(
        record, topology=HOSTILE, invariants={HOSTILE: Finding.BROKEN, "quiet": Finding.BROKEN}
    )
    invalid = make_record(2, HOSTILE, Outcome.INVALID, reason=HOSTILE, evidence="javascript:alert(1)")
    asked = MechanismAsked(name=HOSTILE, summary=HOSTILE, expectation=Expectation.CAUGHT)
    write_run(
        tmp_path,
        [record, invalid],
        mechanisms=(asked,),
        command=(HOSTILE,),
        host={HOSTILE: HOSTILE},
        started=HOSTILE,
        lab_version=HOSTILE,
    )
    reader = read_page(tmp_path)
    assert "img" not in reader.tags
    text = words(reader)
    assert "<script>alert(1)</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert not {"\x00", "\x1b", "\u202e", "\x9b"} & set((tmp_path / "index.html").read_text())
    links = [link for link in reader.links if link.startswith("./")]
    assert links
    assert not any(set(link) & set("<>\"'?# ") for link in links)


@pytest.mark.parametrize("expectation", list(Expectation))
def test_a_page_says_what_is_expected(tmp_path: Path, expectation: Expectation) -> None:
    name = "trials/00001-stop-machine"
    evidence = make_evidence()
    write_evidence(tmp_path / name, evidence, {})
    write_verdict(tmp_path / name, make_verdict(evidence))
    asked = MechanismAsked(name="stop-machine", summary="s", expectation=expectation, why="this is why")
    failed = make_record(1, "stop-machine", Outcome.FAIL, evidence=name)
    passed = make_record(2, "stop-machine", Outcome.PASS, evidence=name)
    write_run(tmp_path, [failed, passed], mechanisms=(asked,))
    text = words(read_page(tmp_path))
    assert {
        Expectation.CAUGHT: "to be caught",
        Expectation.CLEAN: "held to be sound, to be clean",
        Expectation.EITHER: "may be caught and need not",
        Expectation.MEASURED: "known to let some through, measured",
    }[expectation] in text
    controls = {Expectation.CAUGHT: "Caught, as it must be", Expectation.EITHER: "Caught, as it may be: this is why"}
    assert controls.get(expectation, "A mechanism held to be sound broke") in text


@pytest.mark.parametrize(
    "evidence", ["../outside", "/etc", "trials/../../outside", "link", "trials/link/x", "..", "a\0b", "x" * 5000]
)
def test_evidence_outside_the_run_is_refused(tmp_path: Path, evidence: str) -> None:
    write_evidence(tmp_path / "outside" / "x", make_evidence(), {})
    run = write_run(tmp_path / "run", [make_record(1, "stop-machine", Outcome.FAIL, evidence=evidence)])
    (run / "trials").mkdir()
    (run / "link").symlink_to(tmp_path / "outside")
    (run / "trials" / "link").symlink_to("../../outside")
    with pytest.raises(EvidenceError):
        find_evidence(run, evidence)
    assert [link for link in read_page(run).links if link.startswith("./")] == []


def test_a_link_cannot_be_a_scheme() -> None:
    assert link_evidence("javascript:alert(1)").startswith("./")
    assert link_evidence("a b/ü") == "./a%20b/%C3%BC/"


def test_rows_are_bounded_and_the_unexpected_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MAX_ROWS", 5)
    outcomes = [Outcome.PASS] * 6 + [Outcome.FAIL] * 3
    records = [make_record(n, "stop-machine", outcome) for n, outcome in enumerate(outcomes)]
    records.append(make_record(99, "nmi-self", Outcome.FAIL, reason="the surprise"))
    run = write_run(tmp_path, records)
    text = words(read_page(run))
    assert "5 more trials are in records.jsonl" in text
    assert text.index("the surprise", text.index("All trials")) < text.index("quiet: broken", text.index("All trials"))


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, [make_record(1, "stop-machine", Outcome.PASS)], finished=False, exit_status=None)
    with open(tmp_path / "records.jsonl", "ab") as sink:
        sink.write(b'{"trial": 2')
    text = words(read_page(tmp_path))
    assert "has not come to its own end" in text
    assert "was cut short" in text
    assert "✗ not every mechanism did what it must" in text


def test_a_run_without_records_has_a_page(tmp_path: Path) -> None:
    text = words(read_page(write_run(tmp_path, [], images=())))
    assert "0 of 60 trials" in text
    assert "no trial was run" in text


def test_a_folder_without_a_run_is_an_evidence_error(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_sound_mechanism_reads_as_bad_news(tmp_path: Path) -> None:
    text = words(read_page(write_run(tmp_path, [make_record(1, "nmi-self", Outcome.FAIL)])))
    assert "A mechanism held to be sound broke" in text
    assert "no evidence of a broken trial can be read" in text


def test_the_example_is_the_shortest_proof_of_a_failed_trial(tmp_path: Path) -> None:
    records = []
    for number, proofs in enumerate((5, 2, 0, 3), start=1):
        evidence = make_evidence(seed=number)
        verdict = make_verdict(evidence)
        invariants = tuple(
            msgspec.structs.replace(i, proofs=tuple(Proof(text="seen", core=1) for _ in range(proofs)))
            if i.name == "quiet"
            else i
            for i in verdict.invariants
        )
        write_evidence(tmp_path / str(number), evidence, {})
        write_verdict(tmp_path / str(number), msgspec.structs.replace(verdict, invariants=invariants))
        records.append(make_record(number, "stop-machine", Outcome.FAIL, evidence=str(number)))
    invalid = make_record(9, "stop-machine", Outcome.INVALID, quiet=Finding.BROKEN, evidence="2")
    example = find_example(tmp_path, [invalid, *records])
    assert example is not None
    assert example.record.trial == 2
    assert example.timeline is not None
    assert example.timeline.core == 1
    (tmp_path / "2" / "oracle.json").unlink()
    example = find_example(tmp_path, records)
    assert example is not None
    assert example.timeline is None
    assert "oracle.json is missing" in example.problem
    assert str(tmp_path) not in example.problem


def test_a_break_that_nobody_requires_is_no_accusation(tmp_path: Path) -> None:
    record = make_record(1, "nmi-self", Outcome.PASS)
    record = msgspec.structs.replace(record, invariants={"quiet": Finding.HELD, "still": Finding.BROKEN})
    assert find_example(tmp_path, [record]) is None
    text = words(read_page(write_run(tmp_path, [record])))
    assert "still reported, never required 1 of 1" in text
    assert "No instruction at all" in text


def test_a_control_that_nobody_caught_answers_nothing(tmp_path: Path) -> None:
    text = words(read_page(write_run(tmp_path, [make_record(1, "stop-machine", Outcome.PASS)])))
    assert "Not shown no break was seen in the 1 of 1 trials that could tell and in which an NMI was pending" in text
    assert "not caught" in text
    assert "No instruction at all nothing" not in text


def test_commands_can_be_pasted() -> None:
    record = make_record(1, "stop-machine", Outcome.FAIL)
    plain = Scenario(mechanism="stop-machine")
    command = "lab trial --mechanism stop-machine --topology 1x2x2"
    assert reproduce(record, plain) == f"{command} --seed {record.seed} --out DIR"
    aimed = msgspec.structs.replace(plain, aim=Aim.SIBLING, nmis=3, stretch_per_core_us=(1000, 50000))
    options = "--nmis 3 --aim sibling --stretch-us 1000,50000"
    assert reproduce(record, aimed) == f"{command} {options} --seed {record.seed} --out DIR"
    brought = msgspec.structs.replace(record, mechanism="stock-nmi")
    assert reproduce(brought, plain).startswith("lab trial --kernel BZIMAGE --vmlinux VMLINUX --mechanism stock-nmi ")
    assert judge_again("a b; rm -rf x") == "lab judge './a b; rm -rf x'"
    assert judge_again("/srv/a b/trials/1") == "lab judge '/srv/a b/trials/1'"
    assert judge_again("--json") == "lab judge ./--json"


def panels(evidence: Evidence, core: int = 0) -> list[Panel]:
    timeline = draw_timeline(evidence, core)
    assert timeline is not None
    return [timeline.overview] if timeline.breach is None else [timeline.overview, timeline.breach]


@pytest.mark.parametrize("core", [0, 1, -1, 77])
@pytest.mark.parametrize("seed", range(6))
def test_the_drawing_shows_the_breach(seed: int, core: int) -> None:
    evidence = make_evidence(seed=seed)
    overview, *more = panels(evidence, core)
    assert {bar.shape for bar in overview.bars} >= {"wait", "window", "window-band", "send"}
    for panel in more:
        shapes = [mark.shape for mark in panel.marks]
        assert {"entry", "outside", "hazard", "apart"} <= set(shapes)
        told = [shape for badge in panel.badges for shape, _ in badge.told]
        assert sum(badge.more for badge in panel.badges) + len(told) >= len(shapes)
        assert [badge.number for badge in panel.badges] == list(range(1, len(panel.badges) + 1))


def test_a_quiet_load_has_no_second_panel() -> None:
    assert len(panels(make_evidence(broken=False))) == 1


def test_without_a_window_there_is_no_drawing() -> None:
    evidence = make_evidence()
    assert evidence.observer is not None
    assert draw_timeline(msgspec.structs.replace(evidence, observer=None), 0) is None
    empty = msgspec.structs.replace(evidence.observer, windows=())
    assert draw_timeline(msgspec.structs.replace(evidence, observer=empty), 0) is None


def test_a_window_that_never_closed_is_drawn_to_the_end() -> None:
    evidence = make_evidence()
    assert evidence.observer is not None
    events = tuple(e for e in evidence.observer.events if e.kind not in (EventKind.WINDOW_CLOSE, EventKind.RELEASE))
    windows = tuple(msgspec.structs.replace(w, close_seq=0, close_ns=0) for w in evidence.observer.windows)
    observer = msgspec.structs.replace(evidence.observer, events=events, windows=windows)
    texts = {bar.text for bar in panels(msgspec.structs.replace(evidence, observer=observer))[0].bars}
    assert {"window: WRMSR 0x79, never closed", "waits, never released"} <= texts


@settings(max_examples=60, deadline=None)
@given(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70), st.integers(-5, 2**70), st.integers(-(2**70), 2**70))
def test_no_clock_however_foreign_breaks_the_drawing(event_ns: int, open_ns: int, core: int, close_ns: int) -> None:
    evidence = make_evidence()
    assert evidence.observer is not None
    events = (msgspec.structs.replace(evidence.observer.events[0], mono_ns=event_ns), *evidence.observer.events[1:])
    window = msgspec.structs.replace(
        evidence.observer.windows[0], open_ns=open_ns, close_ns=close_ns, core=core, primary=core
    )
    observer = msgspec.structs.replace(evidence.observer, events=events, windows=(window,))
    log = InjectionLog(begin_ns=0, span_ns=0, sent=(), problem="")
    for panel in panels(msgspec.structs.replace(evidence, observer=observer, injections=log)):
        for bar in panel.bars:
            assert GUTTER_PX <= bar.x <= WIDTH_PX
            assert bar.width <= WIDTH_PX


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(-5, 105)), max_size=80))
def test_no_two_numbers_of_a_lane_overlap(at: list[tuple[int, float]]) -> None:
    lanes = [Lane(number=number, label=f"vCPU {number}", role="") for number in range(3)]
    moments = [Moment(lane=lane, at_us=at_us, shape="outside", text="x") for lane, at_us in at]
    axis = Axis(begin_us=0, end_us=100, zero_us=-7, unit_us=1, label="µs")
    panel = draw_panel(
        axis, lanes, [Stretch(lane=0, begin_us=1, end_us=2, shape="wait", text="")], moments, numbered=True
    )
    for badge, other in itertools.combinations(panel.badges, 2):
        assert badge.lane != other.lane or abs(badge.x - other.x) >= BADGE_GAP_PX
    told = sum(len(badge.told) + badge.more for badge in panel.badges)
    assert told == sum(0 <= at_us <= 100 for _, at_us in at)
    for first, second in itertools.pairwise(panel.ticks):
        assert second.x - first.x > 40


def test_prices_leave_out_trials_that_show_nothing_and_numbers_that_are_none() -> None:
    wild = Durations(host_load_us=float("inf"), host_windows_us=(Span(who=0, us=float("nan")), Span(who=1, us=5.0)))
    records = [
        msgspec.structs.replace(make_record(1, "x", Outcome.PASS), durations=wild),
        make_record(2, "x", Outcome.INVALID),
    ]
    price = measure_price(records)
    assert price.load == measure_spread([])
    assert (price.window.n, price.window.p50_us, price.window.max_us) == (1, 5.0, 5.0)


def test_a_hold_beyond_its_window_is_taken_from_its_own_core() -> None:
    durations = Durations(
        host_windows_us=(Span(who=0, us=100.0), Span(who=1, us=1000.0)),
        host_holds_us=(Span(who=1, us=107.0), Span(who=3, us=1009.0), Span(who=5, us=1.0)),
    )
    record = msgspec.structs.replace(make_record(1, "x", Outcome.PASS), durations=durations)
    beyond = measure_price([record]).hold_beyond
    assert (beyond.n, beyond.p50_us, beyond.max_us) == (2, 8.0, 9.0)
    foreign = msgspec.structs.replace(record, topology="round")
    assert measure_price([foreign]).hold_beyond.n == 0


def test_reasons_that_differ_in_numbers_are_one_group() -> None:
    records = [make_record(n, "x", Outcome.INVALID, reason=f"core {n} unseen at 0x{n:x}") for n in range(9)]
    groups = group_reasons(records, (Outcome.INVALID,))
    assert [(group.count, group.reason) for group in groups] == [(9, "core 0 unseen at 0x0")]


@given(st.text())
def test_clean_text_holds_no_controls(text: str) -> None:
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) <= 0x9F for c in clean(text + HOSTILE))


@pytest.mark.parametrize(
    ("us", "text"),
    [(None, "-"), (0.0, "0.00 µs"), (12.34, "12.3 µs"), (1234.0, "1.23 ms"), (2.5e6, "2.50 s"), (float("nan"), "-")],
)
def test_durations_have_three_digits_and_a_unit(us: float | None, text: str) -> None:
    assert format_us(us) == text
