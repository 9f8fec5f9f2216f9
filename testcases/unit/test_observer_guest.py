# SPDX-License-Identifier: GPL-2.0-or-later
"""The observer on a real QEMU whose guest is a rendezvous of a few instructions (data/observer-guest.S)."""

import signal
import time
from pathlib import Path

import pytest
from observer_bench import Bench, compile_plugin, start_bench

from lab.build.qemu import find_qemu
from lab.errors import DeadlineError, GuestGone
from lab.host.deadline import Deadline
from lab.model.evidence import EventKind, Hazard, ObserverEvent, ObserverEvidence, Sees

#: The region's mechanism in the bench's landmarks, and one that has no region there.
MECHANISM = 3
OTHER_MECHANISM = 4
STRETCH_US = 20_000
STRETCH_NS = STRETCH_US * 1000
#: Long enough for a vCPU to get its turn on a busy host.
LONG_STRETCH_US = 400_000
WAIT_S = 10.0


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_plugin(tmp_path_factory.mktemp("observer"))


def run_trial(
    bench: Bench,
    *,
    trial: int = 1,
    nmis: int = 0,
    mechanism: int = MECHANISM,
    stretch_us: int = STRETCH_US,
    stalled: bool = False,
) -> ObserverEvidence:
    """Arm, see one window from its opening to its load's end, send NMIs to the sibling in it, disarm."""
    deadline = Deadline.after(WAIT_S)
    bench.link.arm(trial, mechanism, (stretch_us,), stalled=stalled)
    opened = bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
    for _ in range(nmis):
        bench.send_nmi(1)
    while (ended := bench.link.wait_for(EventKind.LOAD_END, deadline)).seq < opened.seq:
        pass  # of the load that was going on when the trial was armed
    while bench.link.wait_for(EventKind.LOAD_BEGIN, deadline).seq < ended.seq:
        pass  # the next load's begin, so that what comes between the two is there
    bench.link.disarm()
    return bench.link.collect(bench.guest.symbolise)


def events_of(evidence: ObserverEvidence, *kinds: EventKind) -> list[ObserverEvent]:
    return [event for event in evidence.events if event.kind in kinds]


#: What a whole load leaves, but for what its sibling does in the window.
WHOLE_LOAD = [
    (EventKind.LOAD_BEGIN, 0, "load_begin"),
    (EventKind.CALL_IN, 1, "call_in"),
    (EventKind.WINDOW_OPEN, 0, "window_site"),
    (EventKind.IN_FLIGHT, 1, "region"),
    (EventKind.WINDOW_CLOSE, 0, "after_window"),
    (EventKind.RETRY, 0, "retry_site"),
    (EventKind.RELEASE, 1, "region_end"),
    (EventKind.LOAD_END, 0, "load_end"),
]


def list_kinds(evidence: ObserverEvidence) -> list[tuple[EventKind, int, str]]:
    """Return what the records of the load with the first window say, but for those of updates that were read."""
    load = evidence.windows[0].load
    events = [event for event in evidence.events if event.load == load and event.kind is not EventKind.UPDATE]
    return [(event.kind, event.vcpu, event.symbol) for event in events]


def run_whole_load(bench: Bench, *, mechanism: int = MECHANISM, stalled: bool = False) -> ObserverEvidence:
    """Run trials until one was not armed in the middle of a load."""
    for trial in range(1, 50):
        evidence = run_trial(bench, trial=trial, mechanism=mechanism, stalled=stalled)
        if evidence.windows[0].load in {event.load for event in events_of(evidence, EventKind.LOAD_BEGIN)}:
            return evidence
    raise AssertionError("no load was seen from its begin")


def test_waiting_sibling_is_seen_quiet(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_whole_load(bench)
    first = evidence.windows[0]
    assert list_kinds(evidence) == WHOLE_LOAD
    read = [event.symbol for event in events_of(evidence, EventKind.UPDATE) if event.load == first.load]
    assert read == (["window_site", "retry_site"] if Sees.UPDATES in evidence.sees else [])
    assert len(evidence.windows) == 1
    assert evidence.records_lost == 0
    sibling = first.siblings[0]
    assert (sibling.vcpu, sibling.in_flight_symbol, sibling.in_flight_region) == (1, "region", True)
    assert [block.symbol for block in sibling.blocks] == ["region"]
    assert sibling.blocks[0].count == sibling.region_blocks >= 4
    assert (sibling.outside_blocks, sibling.halted_at_close, sibling.blocks_lost) == (0, False, 0)
    assert (first.stalled, sibling.stalled_ns, sibling.stall_overrun) == (False, 0, False)
    # A busy host may take the sibling off its CPU between its look at the window and its look at the clock.
    assert first.open_ns < sibling.first_ns < sibling.last_ns
    assert first.asked_ns == STRETCH_NS
    assert first.close_ns - first.open_ns >= STRETCH_NS
    assert first.open_tsc < first.close_tsc


def test_nmi_in_the_window_is_seen_with_its_iret(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_trial(bench, nmis=1, stretch_us=LONG_STRETCH_US)
        entries = bench.link.entries()
    window = evidence.windows[0]
    seen = [
        (event.kind, event.symbol, event.hazard)
        for event in evidence.events
        if event.vcpu == 1 and window.open_seq < event.seq < window.close_seq and event.kind is not EventKind.NMI_TAKEN
    ]
    assert seen == [
        (EventKind.IN_FLIGHT, "region", Hazard.NONE),
        (EventKind.OUTSIDE, "nmi_entry", Hazard.NONE),
        (EventKind.NMI_ENTRY, "nmi_entry", Hazard.NONE),
        (EventKind.HAZARD, "iret_site", Hazard.IRET),
    ]
    sibling = window.siblings[0]
    assert sibling.outside_blocks == 1
    nmi = events_of(evidence, EventKind.NMI_ENTRY)[0]
    region = next(block for block in sibling.blocks if block.in_region)
    assert region.last_seq > nmi.seq  # it went back to waiting
    assert entries == 1


def test_what_qemu_itself_says_of_an_nmi_comes_right_before_its_entry(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_trial(bench, nmis=2, stretch_us=LONG_STRETCH_US)
        labels = bench.guest.labels
    both = [event for event in events_of(evidence, EventKind.NMI_TAKEN, EventKind.NMI_ENTRY) if event.vcpu == 1]
    entries = [event for event in both if event.kind is EventKind.NMI_ENTRY]
    assert entries
    if Sees.INTERRUPTS not in evidence.sees:
        assert both == entries
        return
    assert [event.kind for event in both] == [EventKind.NMI_TAKEN, EventKind.NMI_ENTRY] * len(entries)
    taken = both[0]
    assert taken.symbol == "nmi_entry"
    assert labels["region"] <= taken.detail < labels["region_end"]  # where the sibling waits


def test_the_observer_says_which_interface_it_speaks_and_what_that_shows(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_trial(bench)
    level = find_qemu().level
    assert evidence.interface == level
    assert (Sees.REGISTERS in evidence.sees) == (level >= 2)
    assert (Sees.INLINE in evidence.sees) == (level >= 3)
    assert (Sees.INTERRUPTS in evidence.sees) == (level >= 6) or level == 5  # of 5, only QEMU 10.2 has it


def test_blocks_that_qemu_stores_are_those_that_the_observer_is_called_for(tmp_path: Path) -> None:
    """The two ways see the same of a guest that does the same: what was in flight, every block, every hazard."""
    told: list[tuple[object, object]] = []
    for flags in ((), ("-DOBSERVER_CALL_EVERY_BLOCK",)):
        folder = tmp_path / str(len(told))
        folder.mkdir()
        with start_bench(folder, compile_plugin(folder, *flags), "NASTY") as bench:
            evidence = run_trial(bench)
        sibling = evidence.windows[0].siblings[0]
        blocks = {(block.symbol, block.in_region) for block in sibling.blocks}
        kinds = {(event.kind, event.symbol) for event in evidence.events if event.kind is not EventKind.IN_FLIGHT}
        told.append((blocks, kinds))
        assert sibling.outside_blocks > 10
        assert (Sees.INLINE in evidence.sees) == (not flags and evidence.interface >= 3)
    assert told[0] == told[1]


def test_nasty_sibling_is_caught_without_any_nmi(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "NASTY") as bench:
        evidence = run_trial(bench)
    window = evidence.windows[0]
    # Many thousand times in the window, recorded once.
    assert [event.symbol for event in events_of(evidence, EventKind.OUTSIDE)] == ["cpuid_site"]
    hazards = events_of(evidence, EventKind.HAZARD)
    assert [(event.symbol, event.hazard) for event in hazards] == [("cpuid_site", Hazard.CPUID)]
    assert window.siblings[0].outside_blocks > 10


@pytest.mark.parametrize("mechanism", [MECHANISM, OTHER_MECHANISM])
def test_where_backtraces_are_asked_for_is_reported_whatever_the_mechanism_is(
    plugin: Path, tmp_path: Path, mechanism: int
) -> None:
    with start_bench(tmp_path, plugin, backtrace="set_up") as bench:
        evidence = run_whole_load(bench, mechanism=mechanism)
    load = evidence.windows[0].load
    found = [event for event in events_of(evidence, EventKind.BACKTRACE) if event.load == load]
    assert [(event.vcpu, event.symbol) for event in found] == [(0, "set_up")]
    assert found[0].seq < evidence.windows[0].open_seq


def test_halted_sibling_is_not_extended_for(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "HALTING") as bench:
        evidence = run_trial(bench, stretch_us=LONG_STRETCH_US)
    sibling = evidence.windows[0].siblings[0]
    assert (sibling.halted_at_close, sibling.in_flight_pc, sibling.region_blocks, sibling.outside_blocks) == (
        True,
        0,
        0,
        0,
    )
    assert evidence.windows[0].extended_ns == 0
    # Halted for the whole stretch, but never starved as long.
    assert evidence.gaps_ns[1] < evidence.windows[0].close_ns - evidence.windows[0].open_ns


def test_woken_sibling_shows_what_it_executed(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "HALTING") as bench:
        evidence = run_trial(bench, nmis=1, stretch_us=LONG_STRETCH_US)
    sibling = evidence.windows[0].siblings[0]
    assert sibling.in_flight_pc == 0
    assert sibling.outside_blocks > 0
    # It goes back to where it halted.
    assert sibling.halted_at_close


def test_regions_and_points_of_other_mechanisms_do_not_count(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_trial(bench, mechanism=OTHER_MECHANISM, stretch_us=1_000)
    window = evidence.windows[0]
    sibling = window.siblings[0]
    assert (sibling.region_blocks, sibling.in_flight_region) == (0, False)
    assert sibling.outside_blocks > 10
    # No wait-region block ever shows that it lives: held to the bound, no longer.
    assert 150_000_000 <= window.extended_ns < 400_000_000
    assert not events_of(evidence, EventKind.SELF_NMI)


def test_second_load_of_a_trial_keeps_the_first_window(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        bench.link.arm(1, MECHANISM, (1_000,))
        deadline = Deadline.after(WAIT_S)
        opened = bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
        for _ in range(3):
            bench.link.wait_for(EventKind.LOAD_END, deadline)
        bench.link.disarm()
        evidence = bench.link.collect(bench.guest.symbolise)
        assert [window.open_seq for window in evidence.windows] == [opened.seq]
        assert evidence.windows_lost >= 1
        # The next trial starts afresh.
        bench.link.arm(2, MECHANISM, (1_000,))
        again = bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
        bench.link.wait_for(EventKind.WINDOW_CLOSE, deadline)
        bench.link.disarm()
        evidence = bench.link.collect(bench.guest.symbolise)
    assert [window.open_seq for window in evidence.windows] == [again.seq]
    assert again.load > opened.load
    assert min(event.seq for event in evidence.events) > opened.seq


def test_first_wrmsr_outside_a_load_is_early(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_trial(bench)
    early = events_of(evidence, EventKind.EARLY)
    assert {(event.symbol, event.load) for event in early} == {("early_site", 0)}


def test_nothing_is_recorded_unless_armed(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        run_trial(bench)
        time.sleep(0.1)  # a callback that was under way at disarming ends
        before = bench.link.collect(bench.guest.symbolise)
        bench.link.drain()
        with pytest.raises(DeadlineError, match="load-end"):
            bench.link.wait_for(EventKind.LOAD_END, Deadline.after(0.3))
        assert bench.link.collect(bench.guest.symbolise) == before


def test_small_ring_counts_what_it_lost(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, ring_records=4) as bench:
        evidence = run_trial(bench)
    assert evidence.records_lost > 0
    assert len(evidence.events) == 4
    assert len(evidence.windows) == 1


def test_small_table_counts_what_it_lost(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "NASTY", table_blocks=1) as bench:
        sibling = run_trial(bench).windows[0].siblings[0]
    assert len(sibling.blocks) == 1
    assert sibling.blocks[0].count + sibling.blocks_lost == sibling.region_blocks + sibling.outside_blocks


def test_evidence_outlives_qemu(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        bench.link.arm(1, MECHANISM, (500_000,))
        deadline = Deadline.after(WAIT_S)
        bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
        bench.process.kill()
        with pytest.raises(GuestGone, match="window-close"):
            bench.link.wait_for(EventKind.WINDOW_CLOSE, deadline)
        evidence = bench.link.collect(bench.guest.symbolise)
    window = evidence.windows[0]
    assert (window.close_seq, window.close_ns, window.siblings[0].halted_at_close) == (0, 0, False)
    assert events_of(evidence, EventKind.WINDOW_OPEN)[0].seq == window.open_seq


def open_whole_load(bench: Bench, deadline: Deadline) -> None:
    """Arm trials until one meets a load from its begin, and leave its window open."""
    for trial in range(1, 20):
        bench.link.arm(trial, MECHANISM, (LONG_STRETCH_US,))
        bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
        try:
            bench.link.wait_for(EventKind.LOAD_BEGIN, Deadline.after(0.05))
        except DeadlineError:
            continue  # armed in the middle of the load
        return
    raise AssertionError("no load was seen from its begin")


def test_starved_vcpu_has_a_gap_and_a_held_one_none(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        deadline = Deadline.after(WAIT_S)
        open_whole_load(bench, deadline)
        bench.process.send_signal(signal.SIGSTOP)  # the host runs none of its threads
        time.sleep(0.3)
        bench.process.send_signal(signal.SIGCONT)
        bench.link.wait_for(EventKind.WINDOW_CLOSE, deadline)
        bench.link.wait_for(EventKind.LOAD_END, deadline)
        bench.link.disarm()
        evidence = bench.link.collect(bench.guest.symbolise)
    assert evidence.gaps_ns[1] > 250_000_000
    assert evidence.gaps_ns[0] < 250_000_000
