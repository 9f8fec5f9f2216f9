# SPDX-License-Identifier: GPL-2.0-or-later
"""Stalls on the guest of a few instructions: what a held sibling does not execute, and how it is let go."""

import time
from pathlib import Path

import pytest
from observer_bench import Bench, compile_plugin, start_bench
from test_observer_guest import (
    LONG_STRETCH_US,
    MECHANISM,
    WAIT_S,
    WHOLE_LOAD,
    events_of,
    list_kinds,
    run_trial,
    run_whole_load,
)

from lab.host.deadline import Deadline
from lab.model.evidence import EventKind, Hazard, ObserverEvidence
from lab.observer.link import MAX_STRETCH_US

MS = 1_000_000
#: What images/observer/stall.h lets no stall exceed.
STALL_CAP_NS = 900 * MS


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_plugin(tmp_path_factory.mktemp("observer"))


def test_a_stalled_sibling_begins_no_block_and_goes_on_afterwards(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_whole_load(bench, stalled=True)
    window = evidence.windows[0]
    assert list_kinds(evidence) == WHOLE_LOAD
    sibling = window.siblings[0]
    assert (window.stalled, sibling.stall_overrun, sibling.halted_at_close) == (True, False, False)
    assert (sibling.region_blocks, sibling.outside_blocks, sibling.blocks) == (0, 0, ())
    assert window.open_ns < sibling.stalled_ns < window.close_ns
    # It is known to be held as soon as it is: where the host ran it in time, nothing is waited for beyond the stretch.
    late = sibling.stalled_ns > window.open_ns + window.asked_ns
    assert late or window.extended_ns == 0


def test_what_is_outside_any_region_is_held_as_well(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_trial(bench, mechanism=MECHANISM + 1, stalled=True)
    sibling = evidence.windows[0].siblings[0]
    assert (sibling.in_flight_region, sibling.region_blocks, sibling.outside_blocks) == (False, 0, 0)
    assert sibling.stalled_ns
    assert not events_of(evidence, EventKind.OUTSIDE)


def test_an_nmi_to_a_stalled_sibling_is_acknowledged_at_once_and_enters_after_the_close(
    plugin: Path, tmp_path: Path
) -> None:
    with start_bench(tmp_path, plugin) as bench:
        deadline = Deadline.after(WAIT_S)
        bench.link.arm(1, MECHANISM, (LONG_STRETCH_US,), stalled=True)
        bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
        bench.send_nmi(1)
        acknowledged_ns = time.monotonic_ns()
        bench.link.wait_for(EventKind.LOAD_END, deadline)
        bench.link.disarm()
        evidence = bench.link.collect(bench.guest.symbolise)
    window = evidence.windows[0]
    assert acknowledged_ns < window.close_ns
    (entry,) = events_of(evidence, EventKind.NMI_ENTRY)
    assert entry.seq > window.close_seq
    assert window.siblings[0].outside_blocks == 0


def test_a_halted_sibling_is_neither_stalled_nor_waited_for(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "HALTING") as bench:
        evidence = run_trial(bench, stretch_us=LONG_STRETCH_US, stalled=True)
    window = evidence.windows[0]
    sibling = window.siblings[0]
    assert (sibling.halted_at_close, sibling.stalled_ns, sibling.in_flight_pc) == (True, 0, 0)
    assert window.extended_ns == 0


def test_a_sibling_that_is_woken_stalls_at_the_head_of_the_nmi_entry(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "HALTING") as bench:
        evidence = run_trial(bench, nmis=1, stretch_us=LONG_STRETCH_US, stalled=True)
    window = evidence.windows[0]
    sibling = window.siblings[0]
    assert (sibling.in_flight_pc, sibling.halted_at_close, sibling.outside_blocks) == (0, False, 0)
    assert window.open_ns < sibling.stalled_ns < window.close_ns
    assert events_of(evidence, EventKind.NMI_ENTRY)[0].seq > window.close_seq


def test_only_the_block_in_flight_executes_a_hazard(plugin: Path, tmp_path: Path) -> None:
    hazards = []
    stalled = 0
    with start_bench(tmp_path, plugin, "NASTY") as bench:
        for trial in range(1, 31):
            evidence = run_trial(bench, trial=trial, stretch_us=1_000, stalled=True)
            assert not events_of(evidence, EventKind.OUTSIDE)
            seen = events_of(evidence, EventKind.HAZARD)
            hazards.append([event.hazard for event in seen])
            sibling = evidence.windows[0].siblings[0]
            assert (sibling.outside_blocks, sibling.region_blocks) == (0, 0)
            stalled += sibling.stalled_ns > 0
    # A busy host may not run the sibling in one of them.
    assert stalled >= 25
    # The loop executes CPUID again and again: its second one would need another block.
    assert all(each in ([], [Hazard.CPUID]) for each in hazards)


def run_past_the_bound(bench: Bench, nmis: int = 0) -> ObserverEvidence:
    """Hold one window for longer than any stall: the longest stretch, and an NMI that is never acknowledged."""
    deadline = Deadline.after(WAIT_S)
    bench.link.arm(1, MECHANISM, (MAX_STRETCH_US,), stalled=True)
    bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
    for _ in range(nmis):
        bench.send_nmi(1)
    with pytest.raises(RuntimeError), bench.link.sending():
        raise RuntimeError
    bench.link.wait_for(EventKind.LOAD_END, deadline)
    bench.link.disarm()
    return bench.link.collect(bench.guest.symbolise)


def test_a_stall_ends_with_its_bound_and_says_so(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        evidence = run_past_the_bound(bench)
    window = evidence.windows[0]
    sibling = window.siblings[0]
    assert sibling.stall_overrun
    assert window.close_ns - window.open_ns > STALL_CAP_NS
    # It went on from there, and what it did is told.
    assert sibling.region_blocks > 0
    assert STALL_CAP_NS - MS <= sibling.first_ns - window.open_ns < window.close_ns - window.open_ns


def test_the_block_that_a_bound_let_go_counts_as_one_of_the_window(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "HALTING") as bench:
        evidence = run_past_the_bound(bench, nmis=1)
    window = evidence.windows[0]
    assert window.siblings[0].stall_overrun
    seen = [
        (event.kind, event.symbol)
        for event in evidence.events
        if event.vcpu == 1 and window.open_seq < event.seq < window.close_seq and event.kind is not EventKind.NMI_TAKEN
    ]
    # The HLT that it goes back to is a hazard as well.
    assert seen[:4] == [
        (EventKind.IN_FLIGHT, ""),
        (EventKind.OUTSIDE, "nmi_entry"),
        (EventKind.NMI_ENTRY, "nmi_entry"),
        (EventKind.HAZARD, "iret_site"),
    ]


def test_a_stalled_vcpu_is_not_called_starved(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        for trial in range(1, 20):
            evidence = run_trial(bench, trial=trial, stretch_us=LONG_STRETCH_US, stalled=True)
            if events_of(evidence, EventKind.LOAD_BEGIN)[0].seq < evidence.windows[0].open_seq:
                break
    window = evidence.windows[0]
    assert events_of(evidence, EventKind.LOAD_BEGIN)[0].load == window.load
    assert window.close_ns - window.siblings[0].stalled_ns > LONG_STRETCH_US * 1000 // 2
    assert evidence.gaps_ns[1] < LONG_STRETCH_US * 1000 // 2


def test_a_trial_that_runs_follows_one_that_stalled(plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin) as bench:
        stalled = [
            run_trial(bench, trial=trial, stalled=trial % 2 == 1).windows[0].siblings[0].stalled_ns > 0
            for trial in range(1, 5)
        ]
        running = run_trial(bench, trial=5).windows[0].siblings[0]
    assert stalled == [True, False, True, False]
    assert running.region_blocks >= 4
