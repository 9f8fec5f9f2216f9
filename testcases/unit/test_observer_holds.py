# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds and covers on the guest of a few instructions: who is held where and when, how it goes on, what it began."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from observer_bench import Bench, compile_plugin, start_bench
from test_observer_guest import MECHANISM, WAIT_S, events_of

from lab.errors import UsageError
from lab.host.deadline import Deadline
from lab.kernelimage.hold_places import FoundHold
from lab.model.evidence import Covered, EventKind, ObserverEvidence, WindowSeen
from lab.model.hold import MAX_HOLDS, Hold
from lab.model.phase import Phase
from lab.observer.link import EXTEND_BOUND_NS

MS = 1_000_000
#: How often a host may be too slow.
LATE_TRIES = 5
TRIES = 5
PRIMARY, SIBLING = 0, 1
#: More than a busy host takes to run the other vCPU.
BOUND_US = 400_000
EDGES = (EventKind.HELD, EventKind.LET_GO, EventKind.HOLD_OVERRUN, EventKind.RESUMED)

#: What a test does when a vCPU is held, given which hold it is.
OnHeld = Callable[[Bench, int], None]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_plugin(tmp_path_factory.mktemp("observer"))


def at_block(
    bench: Bench,
    label: str,
    vcpu: int,
    *,
    arrival: int = 1,
    phase: Phase | None = None,
    bound_us: int = BOUND_US,
    early: bool = False,
) -> FoundHold:
    address = bench.guest.labels[label]
    hold = Hold(at=f"{address:#x}", vcpu=vcpu, arrival=arrival, phase=phase, bound_us=bound_us, early=early)
    return FoundHold(hold, None, address)


def at_landmark(
    kind: EventKind, vcpu: int, *, arrival: int = 1, phase: Phase | None = None, bound_us: int = BOUND_US
) -> FoundHold:
    return FoundHold(Hold(at=kind.value, vcpu=vcpu, arrival=arrival, phase=phase, bound_us=bound_us), kind, 0)


def let_go(bench: Bench, which: int) -> None:
    bench.link.let_go(which)


def leave(bench: Bench, which: int) -> None:
    """Let its bound end it."""


def run_held(
    bench: Bench, *holds: FoundHold, on_held: OnHeld = let_go, first: int = 1, loads: int = 1, cover: bool = False
) -> ObserverEvidence:
    """Run trials until one saw its load from the begin; the trial ends when as many loads as asked have."""
    for trial in range(first, first + 50):
        deadline = Deadline.after(WAIT_S)
        bench.link.arm(trial, MECHANISM, (1_000,), holds=holds, cover=cover)
        message, ended = bench.link.hear(deadline), 0
        if message.kind is EventKind.LOAD_BEGIN:
            # To the begin of the one after: who is held at a load's end is so behind its message.
            while ended < loads or message.kind is not EventKind.LOAD_BEGIN:
                message = bench.link.hear(deadline)
                if message.kind is EventKind.HELD:
                    on_held(bench, message.detail)
                ended += message.kind is EventKind.LOAD_END
        bench.link.disarm()
        if ended:
            return bench.link.collect(bench.guest.symbolise)
    raise AssertionError("no load was seen from its begin")


def list_edges(evidence: ObserverEvidence) -> list[tuple[EventKind, int, int]]:
    return [(event.kind, event.vcpu, event.detail) for event in events_of(evidence, *EDGES)]


def test_a_vcpu_is_held_at_the_arrival_that_was_asked_for_and_let_go_when_told(plugin: Path, tmp_path: Path) -> None:
    counted = []

    def count(bench: Bench, which: int) -> None:
        time.sleep(0.02)
        counted.append(bench.link._header.holds[which].arrivals)
        bench.link.let_go(which)

    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(bench, at_block(bench, "region", SIBLING, arrival=5), on_held=count)
    assert list_edges(evidence) == [
        (EventKind.HELD, SIBLING, 0),
        (EventKind.LET_GO, SIBLING, 0),
        (EventKind.RESUMED, SIBLING, 0),
    ]
    held, gone, resumed = events_of(evidence, *EDGES)
    assert [event.symbol for event in (held, gone, resumed)] == ["region", "region", "region"]
    assert 20 * MS <= gone.mono_ns - held.mono_ns < BOUND_US * 1000
    assert counted == [5]
    assert evidence.arrivals[0] > 5


def test_an_arrival_that_never_comes_is_counted_and_holds_nobody(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(
            bench,
            at_landmark(EventKind.CALL_IN, SIBLING, arrival=2),
            at_landmark(EventKind.CALL_IN, PRIMARY),
            at_block(bench, "cpuid_site", SIBLING),
        )
    assert list_edges(evidence) == []
    assert evidence.arrivals == (1, 0, 0)


@pytest.mark.parametrize(
    ("kind", "vcpu", "arrival", "symbol", "before"),
    [
        (EventKind.LOAD_BEGIN, PRIMARY, 1, "load_begin", False),
        # Who is held at its call-in has not called in, nor has the window of a primary opened that is held there.
        (EventKind.CALL_IN, SIBLING, 1, "call_in", True),
        (EventKind.WINDOW_OPEN, PRIMARY, 1, "window_site", True),
        (EventKind.WINDOW_OPEN, PRIMARY, 2, "retry_site", True),
        (EventKind.WINDOW_CLOSE, PRIMARY, 1, "after_window", False),
        (EventKind.RELEASE, SIBLING, 1, "region_end", False),
        (EventKind.LOAD_END, PRIMARY, 1, "load_end", False),
    ],
)
def test_a_landmark_holds_before_or_behind_its_record(
    plugin: Path, tmp_path: Path, kind: EventKind, vcpu: int, arrival: int, symbol: str, *, before: bool
) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(bench, at_landmark(kind, vcpu, arrival=arrival))
    held, gone = events_of(evidence, EventKind.HELD, EventKind.LET_GO)
    record = events_of(evidence, EventKind.RETRY if arrival == 2 else kind)[0]
    assert (held.vcpu, held.symbol, record.symbol) == (vcpu, symbol, symbol)
    assert (held.seq < gone.seq < record.seq) if before else (record.seq < held.seq < gone.seq)


@pytest.mark.parametrize("phase", [Phase.GATHER, Phase.WINDOW])
def test_a_phase_counts_the_arrivals_in_it_alone(plugin: Path, tmp_path: Path, phase: Phase) -> None:
    with start_bench(tmp_path, plugin, call_in="set_up") as bench:
        evidence = run_held(bench, at_block(bench, "region", SIBLING, arrival=3, phase=phase))
    (held,) = events_of(evidence, EventKind.HELD)
    (window,) = evidence.windows
    begin = events_of(evidence, EventKind.LOAD_BEGIN)[0]
    load = [event for event in events_of(evidence, EventKind.CALL_IN) if event.load == begin.load]
    last_call_in = max(event.seq for event in load)
    edges = {Phase.GATHER: (begin.seq, last_call_in), Phase.WINDOW: (window.open_seq, window.close_seq)}
    assert edges[phase][0] < held.seq < edges[phase][1]
    assert window.open_seq > last_call_in


def test_who_is_early_waits_for_the_phase_and_is_held_once_it_has_begun(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, call_in="set_up") as bench:
        evidence = run_held(bench, at_block(bench, "region", SIBLING, arrival=2, phase=Phase.WINDOW, early=True))
    assert list_edges(evidence) == [
        (kind, SIBLING, 0) for kind in (EventKind.HELD, EventKind.LET_GO, EventKind.RESUMED)
    ]
    held, _, resumed = events_of(evidence, *EDGES)
    (window,) = evidence.windows
    assert window.open_seq < held.seq < window.close_seq
    assert (held.symbol, resumed.symbol) == ("region", "region")
    # It had come there before, and is at the first block that it begins in the window.
    (sibling,) = window.siblings
    assert sibling.region_blocks > 0
    assert sibling.first_ns >= held.mono_ns


def test_who_is_early_for_a_phase_that_does_not_come_is_let_go_and_said_to_have_overrun(
    plugin: Path, tmp_path: Path
) -> None:
    """The primary waits for the phase that it would begin itself."""
    hold = Hold(at="window-open", vcpu=PRIMARY, phase=Phase.WINDOW, bound_us=30_000, early=True)
    with start_bench(tmp_path, plugin, call_in="set_up") as bench:
        evidence = run_held(bench, FoundHold(hold, EventKind.WINDOW_OPEN, 0), on_held=leave)
    assert [kind for kind, _, _ in list_edges(evidence)] == [EventKind.HOLD_OVERRUN, EventKind.RESUMED]


def test_any_block_is_the_first_that_a_vcpu_begins_in_a_phase(plugin: Path, tmp_path: Path) -> None:
    hold = Hold(at="any-block", vcpu=SIBLING, phase=Phase.CLOSING, bound_us=BOUND_US)
    arrivals = 0
    for attempt in range(TRIES):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with start_bench(folder, plugin, call_in="set_up") as bench:
            evidence = run_held(bench, FoundHold(hold, None, 0), cover=True)
        (held,) = events_of(evidence, EventKind.HELD)
        (window,) = evidence.windows
        assert held.vcpu == SIBLING
        assert held.seq > window.close_seq
        # Where the host keeps the thread from running until the phase is over, it begins no second block in it.
        arrivals = max(arrivals, evidence.arrivals[0])
        if arrivals > 1:
            break
    assert arrivals > 1


@pytest.mark.parametrize(
    ("kind", "vcpu", "phase"),
    [
        (EventKind.LOAD_BEGIN, PRIMARY, Phase.GATHER),
        (EventKind.CALL_IN, SIBLING, Phase.GATHER),
        (EventKind.WINDOW_OPEN, PRIMARY, Phase.ARMED),
        (EventKind.WINDOW_CLOSE, PRIMARY, Phase.CLOSING),
        (EventKind.RELEASE, SIBLING, Phase.RELEASE),
        (EventKind.LOAD_END, PRIMARY, Phase.AFTER),
    ],
)
def test_a_landmark_is_in_one_phase(plugin: Path, tmp_path: Path, kind: EventKind, vcpu: int, phase: Phase) -> None:
    with start_bench(tmp_path, plugin, call_in="set_up") as bench:
        evidence = run_held(bench, *(at_landmark(kind, vcpu, phase=each) for each in Phase))
    # The WRMSR that this guest executes again is behind the window of the first.
    seen = [phase, Phase.CLOSING] if kind is EventKind.WINDOW_OPEN else [phase]
    assert evidence.arrivals == tuple(int(each in seen) for each in Phase)
    assert [list(Phase)[event.detail] for event in events_of(evidence, EventKind.HELD)] == seen


def test_a_bound_that_runs_out_lets_go_and_says_so(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(bench, at_block(bench, "region", SIBLING, bound_us=30_000), on_held=leave)
    assert [kind for kind, _, _ in list_edges(evidence)] == [
        EventKind.HELD,
        EventKind.HOLD_OVERRUN,
        EventKind.RESUMED,
    ]
    held, over, _ = events_of(evidence, *EDGES)
    assert 30 * MS <= over.mono_ns - held.mono_ns < WAIT_S * 1000 * MS


def test_one_that_was_let_go_before_it_came_is_not_kept(plugin: Path, tmp_path: Path) -> None:
    def note(bench: Bench, which: int) -> None:
        if which == 0:
            bench.link.let_go(1)
            bench.link.let_go(0)

    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(
            bench,
            at_landmark(EventKind.LOAD_BEGIN, PRIMARY),
            at_landmark(EventKind.RELEASE, SIBLING),
            on_held=note,
        )
    held, gone = (event for event in events_of(evidence, EventKind.HELD, EventKind.LET_GO) if event.detail == 1)
    assert (held.kind, gone.kind) == (EventKind.HELD, EventKind.LET_GO)
    assert gone.mono_ns - held.mono_ns < BOUND_US * 1000


def test_an_nmi_sent_meanwhile_enters_at_the_next_block(plugin: Path, tmp_path: Path) -> None:
    def send(bench: Bench, which: int) -> None:
        bench.send_nmi(SIBLING)
        bench.link.let_go(which)

    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(bench, at_block(bench, "region", SIBLING, arrival=2), on_held=send)
    resumed = events_of(evidence, EventKind.RESUMED)[0]
    (entry,) = events_of(evidence, EventKind.NMI_ENTRY)
    assert (resumed.symbol, entry.seq) == ("nmi_entry", resumed.seq + 1)


def test_holds_nest_in_the_order_that_the_lab_keeps(plugin: Path, tmp_path: Path) -> None:
    """The primary waits at its window's close until the sibling has been held in the phase that this keeps up."""
    reached: list[int] = []

    def nest(bench: Bench, which: int) -> None:
        reached.append(which)
        if len(reached) == 2:
            bench.link.let_go(1)
            bench.link.let_go(0)

    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(
            bench,
            at_landmark(EventKind.WINDOW_CLOSE, PRIMARY),
            at_block(bench, "region", SIBLING, arrival=4, phase=Phase.CLOSING),
            on_held=nest,
        )
    # The phase begins a moment before the primary is held in it.
    assert sorted(reached) == [0, 1]
    kinds = [(kind, detail) for kind, _, detail in list_edges(evidence) if kind is not EventKind.RESUMED]
    assert [kind for kind, _ in kinds] == [EventKind.HELD] * 2 + [EventKind.LET_GO] * 2
    resumed = {event.detail: event.vcpu for event in events_of(evidence, EventKind.RESUMED)}
    assert resumed == {0: PRIMARY, 1: SIBLING}


def test_two_holds_of_one_vcpu_at_one_place_follow_each_other(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(bench, *(at_landmark(EventKind.RELEASE, SIBLING) for _ in range(MAX_HOLDS)))
    kinds = (EventKind.HELD, EventKind.LET_GO)
    assert [(event.kind, event.detail) for event in events_of(evidence, *kinds)] == [
        (kind, which) for which in range(MAX_HOLDS) for kind in kinds
    ]


def test_only_the_first_load_of_a_trial_is_held(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(bench, at_landmark(EventKind.RELEASE, SIBLING), loads=3)
    assert len(events_of(evidence, EventKind.LOAD_END)) == 3
    assert len(events_of(evidence, EventKind.HELD)) == 1
    assert evidence.arrivals == (1,)


def test_a_trial_that_ends_leaves_nobody_held_and_nothing_to_the_next(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        bench.link.arm(1, MECHANISM, (1_000,), holds=(at_block(bench, "region", SIBLING),))
        held = bench.link.wait_for(EventKind.HELD, Deadline.after(WAIT_S))
        bench.link.arm(2, MECHANISM, (1_000,))
        bench.link.wait_for(EventKind.LOAD_END, Deadline.after(WAIT_S))
        ended_ns = time.monotonic_ns()
        bench.link.disarm()
        after = bench.link.collect(bench.guest.symbolise)
    assert ended_ns - held.mono_ns < BOUND_US * 1000
    assert list_edges(after) == []
    assert after.records_lost == 0


def test_a_held_vcpu_is_not_called_starved(plugin: Path, tmp_path: Path) -> None:
    def wait(bench: Bench, which: int) -> None:
        time.sleep(0.3)
        bench.link.let_go(which)

    with start_bench(tmp_path, plugin) as bench:
        evidence = run_held(bench, at_block(bench, "region", SIBLING), on_held=wait)
    held, gone = events_of(evidence, EventKind.HELD, EventKind.LET_GO)
    assert gone.mono_ns - held.mono_ns > 300 * MS
    assert evidence.gaps_ns[SIBLING] < 300 * MS


def test_no_window_closes_before_the_nmis_that_were_announced_for_it(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        for trial in range(1, LATE_TRIES + 1):
            window, acked_ns = announce_two(bench, trial)
            # A window is held so long at most; a host that sends later than that shows nothing.
            if acked_ns < window.open_ns + 40 * MS + EXTEND_BOUND_NS:
                break
    assert window.close_ns > acked_ns > window.open_ns + 70 * MS
    assert window.extended_ns > 20 * MS


def announce_two(bench: Bench, trial: int) -> tuple[WindowSeen, int]:
    """Send one NMI early in a window and one late, and return when that was acknowledged."""
    deadline = Deadline.after(WAIT_S)
    bench.link.arm(trial, MECHANISM, (40_000,))
    opened = bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
    bench.link.announce(2)
    for after_s in (0.001, 0.07):
        time.sleep(after_s)
        with bench.link.sending(announced=True):
            bench.send_nmi(SIBLING)
    acked_ns = time.monotonic_ns()
    while bench.link.wait_for(EventKind.LOAD_END, deadline).seq < opened.seq:
        pass
    bench.link.disarm()
    (window,) = bench.link.collect(bench.guest.symbolise).windows
    return window, acked_ns


def find_covered(evidence: ObserverEvidence, vcpu: int, symbol: str) -> dict[Phase, int]:
    assert evidence.cover is not None
    return {each.phase: each.count for each in evidence.cover.blocks if (each.vcpu, each.symbol) == (vcpu, symbol)}


def test_a_cover_counts_what_each_began_in_which_phase(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, call_in="set_up") as bench:
        evidence = run_held(bench, cover=True)
    assert evidence.cover is not None
    assert evidence.cover.lost == 0
    region = find_covered(evidence, SIBLING, "region")
    assert region[Phase.WINDOW] >= 4
    assert region[Phase.GATHER] >= 1
    view = evidence.windows[0].siblings[0]
    # The phase begins before the window's blocks are counted, and ends behind them; but a block under way at the end is
    # counted in the window first and then in the phase, which may be the next by then.
    assert region[Phase.WINDOW] >= view.region_blocks - 1
    assert find_covered(evidence, PRIMARY, "after_window") == {Phase.CLOSING: 1}
    assert find_covered(evidence, PRIMARY, "set_up") == {Phase.GATHER: 1}
    assert not find_covered(evidence, SIBLING, "set_up")
    blocks = evidence.cover.blocks
    assert all(isinstance(each, Covered) and each.count > 0 for each in blocks)
    assert len({(each.vcpu, each.phase, each.pc) for each in blocks}) == len(blocks)


def test_a_cover_begins_anew_and_is_kept_only_where_it_was_asked_for(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        first = run_held(bench, cover=True)
        none = run_held(bench, first=51)
        again = run_held(bench, first=101, cover=True)
    assert none.cover is None
    for evidence in (first, again):
        assert find_covered(evidence, PRIMARY, "after_window") == {Phase.CLOSING: 1}


def test_blocks_without_a_place_in_the_cover_are_counted(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, cover_blocks=1) as bench:
        lost = run_held(bench, cover=True).cover
        plain = run_held(bench, first=51, cover=False)
        again = run_held(bench, first=101, cover=True).cover
    assert lost is not None
    assert again is not None
    assert (plain.cover, len(lost.blocks) <= 2) == (None, True)
    assert lost.lost > 0
    assert 0 < again.lost < 100 * lost.lost


def test_the_link_refuses_holds_that_have_no_place_in_its_file(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        too_many = tuple(at_landmark(EventKind.RELEASE, SIBLING) for _ in range(MAX_HOLDS + 1))
        with pytest.raises(UsageError, match=r"17 holds.*allowed are 16"):
            bench.link.arm(1, MECHANISM, (1_000,), holds=too_many)
        with pytest.raises(UsageError, match=r"hold 0.*vCPU 2.*allowed is 0 to 1"):
            bench.link.arm(1, MECHANISM, (1_000,), holds=(at_landmark(EventKind.RELEASE, 2),))
