# SPDX-License-Identifier: GPL-2.0-or-later
import msgspec
import pytest
from evidence_builder import MS, WINDOW_AT_NS, Load, change

from lab.judge import judge
from lab.model.evidence import EventKind, Evidence, Hazard
from lab.model.topology import Topology
from lab.report.story import LAB, Row, Story, tell_story
from lab.report.timeline import draw_timeline
from lab.report.trace_events import make_trace

ONE_CORE = Topology(1, 1, 2)
EVIL = "\x1b[2Jevil\u202e+0x0"


def story_of(evidence: Evidence, core: int | None = None, limit: int = 1000) -> Story:
    return tell_story(evidence, judge(evidence), core, limit)


def texts(story: Story, who: int) -> list[str]:
    return [row.text for row in story.rows if row.who == who]


def test_a_clean_load_is_told_in_order() -> None:
    story = story_of(Load(topology=ONE_CORE).watch().build())
    assert [row.at_us for row in story.rows] == sorted(row.at_us for row in story.rows)
    told = texts(story, 1)
    assert [text.partition(":")[0] for text in told] == [
        "sends itself an NMI",
        "enters its self-NMI, in gather, taken by the mechanism",
        "calls in",
        "waits",
        "in flight",
        "is let go by the mechanism",
        "enters NMI 0 and NMI 1, in release, taken by the ordinary handler",
        "enters its sentinel, in after, taken by the ordinary handler",
    ]
    assert told[2].endswith(": mclab_nmi_call_in+0x0")
    assert texts(story, LAB) == [
        "writes to reload",
        *("sends NMI 0 to all", "NMI 0 acknowledged", "sends NMI 1 to all", "NMI 1 acknowledged"),
        *("sends a sentinel to vCPU 0", "a sentinel acknowledged", "sends a sentinel to vCPU 1"),
        *("a sentinel acknowledged", "the write has returned"),
    ]
    assert not any(row.broke for row in story.rows)
    assert story.left_out == story.elsewhere == 0


@pytest.mark.parametrize("kind", EventKind)
def test_each_kind_of_record_is_told_and_drawn(kind: EventKind) -> None:
    """Some kinds come only from a newer QEMU than the one that most tests run on."""
    load = Load(topology=ONE_CORE).watch()
    evidence = load.add(WINDOW_AT_NS + MS, kind, 1, symbol="somewhere+0x4").build()
    story = story_of(evidence)
    assert any(row.kind == kind.value and row.who == 1 and row.text for row in story.rows)
    assert draw_timeline(evidence, 0) is not None
    assert make_trace(evidence)["traceEvents"]


def breach(places: int, topology: Topology = ONE_CORE, vcpu: int = 1) -> Evidence:
    load = Load(topology=topology)
    for number in range(places):
        at_ns = WINDOW_AT_NS + 5 * MS + number
        load.add(at_ns, EventKind.OUTSIDE, vcpu, symbol=f"place_{number}+0x0")
    return load.add(at_ns + 1, EventKind.HAZARD, vcpu, symbol="last+0x1", hazard=Hazard.IRET).build()


def test_a_way_outside_the_wait_is_one_row() -> None:
    story = story_of(breach(50))
    (row,) = [row for row in story.rows if row.kind == "outside"]
    assert row.text == "leaves its wait: 50 places, place_0+0x0 to place_49+0x0; executes iret at last+0x1"
    assert (row.count, "harmless" in row.broke) == (51, True)
    assert row.seq in {proof.seq for one in judge(breach(50)).invariants for proof in one.proofs}


def test_of_many_cores_the_one_with_the_breach_is_told() -> None:
    shape = Topology(1, 4, 2)
    story = story_of(breach(3, shape, vcpu=5))
    assert story.threads == (4, 5)
    assert story.elsewhere > 0
    assert {row.who for row in story.rows} == {LAB, 4, 5}
    assert story_of(breach(3, shape, vcpu=5), core=1).threads == (2, 3)


@pytest.mark.parametrize("limit", [10, 11, 50])
def test_too_many_rows_leave_what_broke_and_say_how_many_are_gone(limit: int) -> None:
    sends = [(-1, 3 * MS + 1000 * number, 3 * MS + 1000 * number + 500) for number in range(500)]
    load = Load(topology=ONE_CORE, sends=sends)
    load.add(WINDOW_AT_NS + 8 * MS, EventKind.HAZARD, 1, hazard=Hazard.IRET)
    whole, part = story_of(load.build(), limit=10**6), story_of(load.build(), limit=limit)
    assert len(part.rows) == limit
    assert part.left_out == len(whole.rows) - limit
    assert [row for row in whole.rows if row.broke] == [row for row in part.rows if row.broke] != []
    assert {"window-open", "window-close", "load-begin", "load-end"} <= {row.kind for row in part.rows}
    assert list(part.rows) == [row for row in whole.rows if row in part.rows]
    # Each gap is where its rows were.
    told: list[Row | None] = [None] * part.gaps.get(-1, 0)
    for number, row in enumerate(part.rows):
        told += [row, *[None] * part.gaps.get(number, 0)]
    assert all(row is None or row == other for row, other in zip(told, whole.rows, strict=True))


def test_foreign_text_is_cleaned() -> None:
    evidence = change(Load().build(), "observer.events.3.symbol", EVIL)
    story = story_of(evidence)
    told = "".join(row.text for row in story.rows)
    assert "evil" in told
    assert not {"\x1b", "\u202e"} & set(told)


def test_a_trial_that_saw_nothing_has_a_story_all_the_same() -> None:
    evidence = msgspec.structs.replace(Load().build(), observer=None, injections=None, timings=None, guest=None)
    assert story_of(evidence).rows == ()


def test_holds_are_told() -> None:
    load = Load(topology=ONE_CORE).add(3 * MS, EventKind.HELD, 1, symbol="there+0x4")
    load.add(3 * MS + 1, EventKind.LET_GO, 1).add(3 * MS + 2, EventKind.RESUMED, 1, symbol="asm_exc_nmi+0x0")
    told = texts(story_of(load.build()), 1)
    at = told.index("is held at there+0x4 (hold 0)")
    assert told[at + 1 : at + 3] == ["hold 0 lets go", "runs on: asm_exc_nmi+0x0"]
