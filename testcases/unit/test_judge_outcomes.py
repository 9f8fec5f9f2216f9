# SPDX-License-Identifier: GPL-2.0-or-later
"""A clean load passes, and each single defect gives the finding and the outcome that it deserves."""

from collections.abc import Callable
from typing import Any

import pytest
from evidence_builder import (
    ASKED_NS,
    BROADCASTS,
    END_AT_NS,
    MS,
    ORIGIN_NS,
    RELEASE_AT_NS,
    REPEAT_AT_NS,
    WINDOW_AT_NS,
    WINDOW_NS,
    Load,
    change,
)

from lab.judge import judge
from lab.judge.judging import INVARIANTS
from lab.model.evidence import BlockCount, Ending, EventKind, Evidence, Hazard
from lab.model.topology import Topology
from lab.model.verdict import Finding, Invariant, Outcome, Verdict

INSIDE_NS = WINDOW_AT_NS + 3 * MS
VIEW = "observer.windows.0.siblings.0"

STRAY = BlockCount(pc=0xFFFFFFFF81A00000, symbol="exc_nmi+0x5", count=3, first_seq=120, last_seq=121, in_region=False)


def find(verdict: Verdict, name: str) -> Invariant:
    return next(invariant for invariant in verdict.invariants if invariant.name == name)


def changed(*changes: tuple[str, Any]) -> Evidence:
    evidence = Load().build()
    for path, value in changes:
        evidence = change(evidence, path, value)
    return evidence


def added(kind: EventKind, at_ns: int = INSIDE_NS, vcpu: int = 1, **fields: Any) -> Evidence:
    return Load().add(at_ns, kind, vcpu, **fields).build()


def ran_until(at_ns: int) -> Evidence:
    """Without NMIs, core 0's sibling waits in its loop for a while, and then never runs again."""
    return change(Load(sends=[]).build(), VIEW + ".last_ns", ORIGIN_NS + at_ns)


def crash(ending: Ending = Ending.PANIC) -> Evidence:
    load = Load(ending=ending).drop(EventKind.LOAD_END).drop(EventKind.RELEASE).drop(EventKind.WINDOW_CLOSE)
    return load.build()


@pytest.mark.parametrize("topology", [Topology(1, 1, 2), Topology(1, 2, 2), Topology(2, 2, 2)], ids=str)
def test_a_clean_load_passes(topology: Topology) -> None:
    verdict = judge(Load(topology=topology).handle().build())

    assert verdict.outcome is Outcome.PASS
    assert (verdict.windows_judged, verdict.windows_unseen) == (topology.total_cores, 0)
    unseen = [one.name for one in verdict.invariants if one.finding is not Finding.HELD]
    assert unseen == ["right-image", "offline-siblings-return"]
    assert [one.name for one in verdict.invariants] == list(INVARIANTS)
    assert {one.name for one in verdict.invariants if not one.required} == {
        "still",
        "right-image",
        "offline-siblings-return",
        "nmis-serviced",
    }


def test_a_clean_load_gives_its_counts_and_durations() -> None:
    verdict = judge(Load().build())

    assert (verdict.nmis.sent, verdict.nmis.handled, verdict.nmis.entries) == (2, 4, 8)
    assert verdict.nmis.proven_in_window == 2
    durations = verdict.durations
    assert durations.host_load_us == 16_000.0
    assert durations.host_rendezvous_us == 103.4
    assert [span.us for span in durations.host_windows_us] == [10_000.0, 10_000.0]
    assert [span.who for span in durations.host_holds_us] == [1, 3]
    assert [span.who for span in durations.guest_updates_us] == [0, 2]
    assert [span.us for span in durations.guest_updates_us] == [10_002.0, 10_002.0]
    assert len(durations.guest_waits_us) == 4
    assert [span.us for span in durations.host_nmi_delay_us] == [10_100.0, 10_101.0, 10_102.0, 10_103.0]
    assert durations.tsc_offset_cycles == -1_000_000_000
    assert durations.tsc_error_us is not None
    assert 0 <= durations.tsc_error_us <= 1


#: name of the defect, the evidence, the invariant that must be broken
BREAKING: list[tuple[str, Callable[[], Evidence], str]] = [
    ("noise-record", lambda: added(EventKind.OUTSIDE, symbol="asm_exc_nmi+0x0"), "quiet"),
    (
        "noise-in-the-table",
        lambda: changed((VIEW + ".blocks", lambda old: (*old, STRAY)), (VIEW + ".outside_blocks", 3)),
        "quiet",
    ),
    ("noise-in-the-count", lambda: changed((VIEW + ".outside_blocks", 1)), "quiet"),
    ("noise-in-flight", lambda: changed((VIEW + ".in_flight_region", False)), "quiet"),
    ("nasty-instruction", lambda: added(EventKind.HAZARD, hazard=Hazard.IRET), "harmless"),
    ("call-in-late", lambda: Load().move(EventKind.CALL_IN, 1, INSIDE_NS).build(), "all-waiting-before-update"),
    ("sibling-never-calls-in", lambda: Load().drop(EventKind.CALL_IN, 3).build(), "all-waiting-before-update"),
    ("released-before", lambda: added(EventKind.RELEASE, WINDOW_AT_NS - 500), "all-waiting-before-update"),
    ("released-inside", lambda: added(EventKind.RELEASE), "released-after-update"),
    ("primary-released-inside", lambda: added(EventKind.RELEASE, vcpu=0), "released-after-update"),
    ("retry", lambda: added(EventKind.RETRY, RELEASE_AT_NS - MS, 0), "one-update-per-core"),
    ("sibling-updates-too", lambda: added(EventKind.RETRY, RELEASE_AT_NS - MS, 1), "one-update-per-core"),
    ("early", lambda: added(EventKind.EARLY, -MS, 0, in_load=False), "one-update-per-core"),
    ("update-after-the-load", lambda: added(EventKind.EARLY, END_AT_NS + MS, 0, in_load=False), "load-repeatable"),
    ("second-write-fails", lambda: changed(("guest.repeat_errno", 22)), "load-repeatable"),
    (
        "old-revision",
        lambda: changed(("guest.revisions_after.3", 1), ("guest.state.cpus.3.revision", 1)),
        "new-revision-everywhere",
    ),
    ("callers-left", lambda: changed(("guest.state.callers_left", 2)), "counters-settled"),
    (
        "warning",
        lambda: changed(("guest.dmesg", lambda old: (*old, "[ 9.1] WARNING: CPU: 1 PID: 18 at x"))),
        "dmesg-clean",
    ),
    ("errno", lambda: changed(("guest.load_errno", 1)), "errno-and-messages"),
    ("no-success-line", lambda: changed(("guest.dmesg", lambda old: old[:2])), "errno-and-messages"),
    (
        "wrong-numbers",
        lambda: changed(("guest.dmesg.2", "microcode: Reload succeeded, microcode revision: 0x2 -> 0x2")),
        "errno-and-messages",
    ),
    ("spurious-nmi", lambda: added(EventKind.NMI_ENTRY, RELEASE_AT_NS + MS, 0), "nmis-delivered"),
    ("self-nmi-lost", lambda: added(EventKind.SELF_NMI, RELEASE_AT_NS + MS, 0), "nmis-delivered"),
    ("second-load", lambda: Load().repeat().build(), "load-repeatable"),
    ("deaf-vcpu", lambda: Load().watch(3).build(), "nmis-delivered"),
    ("panic", crash, "within-deadline"),
    ("gone", lambda: crash(Ending.GONE), "within-deadline"),
    ("hang", lambda: crash(Ending.DEADLINE), "within-deadline"),
]


@pytest.mark.parametrize(("build", "name"), [row[1:] for row in BREAKING], ids=[row[0] for row in BREAKING])
def test_a_defect_of_the_kernel_is_a_fail_that_names_it(build: Callable[[], Evidence], name: str) -> None:
    verdict = judge(build())

    assert find(verdict, name).finding is Finding.BROKEN
    assert find(verdict, name).proofs
    assert verdict.outcome is Outcome.FAIL
    others = {one.name for one in verdict.invariants if one.finding is Finding.BROKEN and one.required} - {name}
    assert others <= ALONGSIDE.get(name, set())


#: What may be broken beside the named invariant: one event can break two promises.
ALONGSIDE = {
    "load-repeatable": {"one-update-per-core"},
    "nmis-delivered": {"witnesses-agree"},
}


def test_a_sibling_that_runs_freely_is_accused_by_the_landmarks_that_others_hit() -> None:
    free = Load().drop(EventKind.CALL_IN, 3).add(INSIDE_NS, EventKind.OUTSIDE, 3)
    verdict = judge(free.build())
    assert verdict.outcome is Outcome.FAIL
    for name in ("all-waiting-before-update", "quiet"):
        assert [proof.vcpu for proof in find(verdict, name).proofs] == [3]

    # One that was hit by nobody may be another kernel's.
    assert judge(free.drop(EventKind.CALL_IN).build()).outcome is Outcome.INVALID
    assert judge(change(free.build(), "observer.records_lost", 1)).outcome is Outcome.INVALID


@pytest.mark.parametrize(("hit", "outcome"), [((0, 1, 2), Outcome.FAIL), ((0, 2), Outcome.INVALID)])
def test_where_siblings_call_in_elsewhere_only_a_sibling_shows_where(hit: tuple[int, ...], outcome: Outcome) -> None:
    load = Load(mechanism="park-hlt").drop(EventKind.CALL_IN).add(INSIDE_NS, EventKind.OUTSIDE, 3)
    for vcpu in hit:
        load.add(100_000, EventKind.CALL_IN, vcpu)
    assert judge(load.build()).outcome is outcome


def test_the_nmi_of_the_mail_breaks_quiet_harmless_and_the_entry_rule() -> None:
    load = Load(sends=[(-1, 4 * MS, 5 * MS)]).drop(EventKind.NMI_ENTRY, 1)
    load.add(100_900, EventKind.NMI_ENTRY, 1)
    load.add(4 * MS + 500_000, EventKind.NMI_ENTRY, 1)
    load.add(4 * MS + 500_001, EventKind.OUTSIDE, 1, symbol="asm_exc_nmi+0x0")
    load.add(4 * MS + 500_900, EventKind.HAZARD, 1, symbol="asm_exc_nmi+0x9", hazard=Hazard.SWAPGS)
    verdict = judge(load.build())

    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason == "quiet broken: vCPU 1 entered asm_exc_nmi+0x0 2500.0 us into core 0's window"
    for name in ("quiet", "harmless", "no-nmi-entry-in-window"):
        proof = find(verdict, name).proofs[0]
        assert (proof.vcpu, proof.core) == (1, 0)
        assert proof.at_us == pytest.approx(2500, abs=1)
        assert proof.seq > 0
        assert proof.symbol.startswith("asm_exc_nmi")


def tell_stop_machine() -> Load:
    """Siblings take both NMIs in the window, primaries one after it; each thread waits in the same function twice."""
    load = Load(mechanism="stop-machine").drop(EventKind.SELF_NMI).drop(EventKind.NMI_ENTRY)
    load.sends = [*BROADCASTS]
    for vcpu in (0, 2):
        load.add(WINDOW_AT_NS + WINDOW_NS + 10_000, EventKind.NMI_ENTRY, vcpu)
        load.add(WINDOW_AT_NS + WINDOW_NS + 50_000, EventKind.CALL_IN, vcpu)
    for vcpu in (1, 3):
        load.add(500_000, EventKind.CALL_IN, vcpu)
        load.add(4 * MS + 900_000, EventKind.NMI_ENTRY, vcpu).add(7 * MS + 900_000, EventKind.NMI_ENTRY, vcpu)
    return load


def test_the_negative_control_is_caught_for_what_it_does_and_nothing_else() -> None:
    verdict = judge(tell_stop_machine().build())

    assert verdict.outcome is Outcome.FAIL
    assert [one.name for one in verdict.invariants if one.finding is Finding.BROKEN] == ["no-nmi-entry-in-window"]
    assert find(verdict, "nmis-delivered").finding is Finding.HELD
    assert find(verdict, "nmis-serviced").finding is Finding.HELD


def test_what_happens_to_a_sibling_is_not_laid_at_its_primary_or_at_another_core() -> None:
    load = Load().add(INSIDE_NS, EventKind.NMI_ENTRY, 0)
    verdict = judge(load.build())

    assert find(verdict, "no-nmi-entry-in-window").finding is Finding.HELD


@pytest.mark.parametrize(
    ("hazard", "finding"),
    [
        *((hazard, Finding.HELD) for hazard in (Hazard.GSBASE, Hazard.DR_CR, Hazard.OTHER)),
        (Hazard.NONE, Finding.UNSEEN),
        *((hazard, Finding.BROKEN) for hazard in (Hazard.MSR, Hazard.IRET, Hazard.MWAIT, Hazard.CPUID, Hazard.SWAPGS)),
    ],
)
def test_only_nasty_instructions_break_harmless_and_the_others_are_named(hazard: Hazard, finding: Finding) -> None:
    harmless = find(judge(added(EventKind.HAZARD, hazard=hazard)), "harmless")

    assert harmless.finding is finding
    assert hazard.value in harmless.reason or hazard is Hazard.NONE


def test_a_second_function_breaks_still_and_nothing_else() -> None:
    other = BlockCount(pc=1, symbol="__ndelay+0x0", count=10, first_seq=120, last_seq=120, in_region=True)
    verdict = judge(changed((VIEW + ".blocks", lambda old: (*old, other)), (VIEW + ".region_blocks", 1_010)))

    assert find(verdict, "still").finding is Finding.BROKEN
    assert find(verdict, "quiet").finding is Finding.HELD
    assert verdict.outcome is Outcome.PASS


#: name of the defect, the evidence, a part of the verdict's reason
DOUBTING: list[tuple[str, Callable[[], Evidence], str]] = [
    ("no-observer", lambda: changed(("observer", None)), "missing: the observer"),
    ("no-log", lambda: changed(("injections", None)), "missing: the injection log"),
    ("no-guest", lambda: changed(("guest", None)), "the guest's evidence"),
    ("no-state", lambda: changed(("guest.state", None)), "the rendezvous state"),
    ("no-ledger", lambda: changed(("guest.ledger_after", ())), "the NMI ledger"),
    ("half-a-ledger", lambda: changed(("guest.ledger_after", lambda old: old[:3])), "ledger of CPU 3 is missing"),
    ("no-timings", lambda: changed(("timings", None)), "the lab's timings"),
    ("records-lost", lambda: changed(("observer.records_lost", 1)), "lost 1 records"),
    ("windows-lost", lambda: changed(("observer.windows_lost", 1)), "lost 1 windows"),
    ("hole", lambda: changed(("observer.events", lambda old: (*old[:9], *old[10:]))), "jump from"),
    ("repetition", lambda: changed(("observer.events", lambda old: (*old, old[-1]))), "repetitions"),
    ("no-windows", lambda: changed(("observer.windows", ())), "do not match"),
    ("no-begin", lambda: Load().drop(EventKind.LOAD_BEGIN).build(), "landmarks not hit: the load's begin"),
    ("no-end", lambda: Load().drop(EventKind.LOAD_END).build(), "the load's end"),
    ("no-call-in", lambda: Load().drop(EventKind.CALL_IN).build(), "the call-in of vCPU 0"),
    ("no-release", lambda: Load().drop(EventKind.RELEASE, 2).build(), "the release of vCPU 2"),
    ("no-self-nmi", lambda: Load().drop(EventKind.SELF_NMI, 0).build(), "witnesses-agree|the self-NMI of vCPU 0"),
    ("two-loads", lambda: added(EventKind.LOAD_BEGIN, 15 * MS, 0), "2 late loads"),
    ("not-all-sent", lambda: changed(("injections.problem", "the deadline came")), "not every planned NMI was sent"),
    ("log-cut", lambda: changed(("injections.sent", lambda old: old[:1])), "do not match the 2 planned"),
    ("never-acknowledged", lambda: changed(("injections.sent.1.reply_ns", 0)), "never acknowledged"),
    ("no-nmis", lambda: Load(sends=[], asked=2).build(), "no NMI was proven"),
    ("sent-before", lambda: Load(sends=[(-1, WINDOW_AT_NS - 10, WINDOW_AT_NS + MS)]).build(), "no NMI was proven"),
    (
        "acknowledged-after",
        lambda: Load(sends=[(-1, 11 * MS, WINDOW_AT_NS + WINDOW_NS + MS)]).build(),
        "no NMI was proven",
    ),
    ("sibling-never-ran", lambda: changed((VIEW + ".region_blocks", 3)), "ran 3 blocks"),
    ("sibling-stopped-early", lambda: changed((VIEW + ".last_ns", ORIGIN_NS + 7 * MS)), "after NMI 1 was acknowledged"),
    ("sibling-ran-briefly", lambda: ran_until(WINDOW_AT_NS + 2_000), "before the end of the 9.0 ms"),
    ("sibling-stopped-before-the-end", lambda: ran_until(WINDOW_AT_NS + ASKED_NS - 1), "before the end of the 9.0"),
    ("no-account-of-a-sibling", lambda: changed(("observer.windows.1.siblings", ())), "no account of vCPU 3"),
    ("table-cut", lambda: changed((VIEW + ".blocks", ())), "does not hold all its blocks"),
    ("blocks-lost", lambda: changed((VIEW + ".blocks_lost", 2)), "found no place"),
    ("window-never-closed", lambda: Load().drop(EventKind.WINDOW_CLOSE, 2).build(), "never closed"),
    ("noise-record-outside", lambda: added(EventKind.OUTSIDE, WINDOW_AT_NS - 100), "on the edge"),
    ("schema", lambda: changed(("schema_version", 99)), "schema 99"),
    ("other-mechanism", lambda: changed(("guest.state.mechanism", "stop-machine")), "ran mechanism 'stop-machine'"),
    ("unknown-mechanism", lambda: changed(("scenario.mechanism", "prayer")), "'prayer' is unknown"),
    ("no-topology", lambda: changed(("scenario.topology", Topology(0, 0, 0))), "topology '0x0x0'"),
    ("number-too-big", lambda: changed(("observer.events.0.tsc", 10**5_000)), "beyond 64 bits"),
    ("not-text", lambda: changed(("reason", "\ud800")), "no text"),
    ("short-revisions", lambda: changed(("guest.revisions_after", (2, 2, 2))), "revision"),
    ("already-new", lambda: changed(("guest.revisions_before.0", 2)), "not older"),
    ("load-did-not-return", lambda: changed(("guest.load_errno", -1)), "did not return"),
    ("no-second-write", lambda: changed(("guest.repeat_errno", -1)), "second write"),
    ("empty-dmesg", lambda: changed(("guest.dmesg", ())), "does not show the load's beginning"),
    ("late-return", lambda: changed(("timings.returned_ns", ORIGIN_NS + 60_000 * MS)), "within-deadline unseen"),
    ("panic-without-observer", lambda: change(crash(), "observer", None), "missing: the observer"),
    ("panic-before-the-load", lambda: change(crash(), "observer.events", ()), "missing"),
]


def test_a_sibling_counts_once_it_was_seen_at_the_end_of_the_stretch_or_halts() -> None:
    assert judge(ran_until(WINDOW_AT_NS + ASKED_NS)).outcome is Outcome.PASS
    halted = change(ran_until(WINDOW_AT_NS + 2_000), VIEW + ".halted_at_close", True)
    assert judge(halted).outcome is Outcome.PASS


def test_a_sibling_is_to_be_alive_at_the_end_of_what_was_asked_also_where_the_observer_gave_up_waiting() -> None:
    verdict = judge(change(ran_until(WINDOW_AT_NS + 2_000), "observer.windows.0.extended_ns", 100 * MS))
    assert verdict.outcome is Outcome.INVALID
    assert "though the observer waited 100.0 ms more for it" in verdict.reason
    assert verdict.windows_unseen == 1


def test_a_scenario_without_nmis_needs_none() -> None:
    verdict = judge(Load(sends=[]).build())

    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert "no NMIs asked: nothing is shown of what one would do" in verdict.reason


@pytest.mark.parametrize(("build", "reason"), [row[1:] for row in DOUBTING], ids=[row[0] for row in DOUBTING])
def test_a_witness_that_is_silent_or_cut_makes_the_trial_invalid(build: Callable[[], Evidence], reason: str) -> None:
    verdict = judge(build())

    assert verdict.outcome is Outcome.INVALID, verdict.reason
    assert any(part in verdict.reason for part in reason.split("|")), verdict.reason


#: Each makes inside and outside differ in one thing.
DISAGREEING: dict[str, tuple[str, Any]] = {
    "ledger-more": ("guest.ledger_after.1.ordinary", lambda old: old + 1),
    "ledger-less": ("guest.ledger_after.1.consumed", lambda old: old - 1),
    "self-sent": ("guest.ledger_after.1.self_sent", lambda old: old + 1),
    "interrupts": ("guest.nmis_after.2", lambda old: old + 1),
    "sysfs-revision": ("guest.revisions_after.1", 1),
    "state-revision": ("guest.state.cpus.1.revision", 1),
    "wait-ends-before-release": ("guest.state.cpus.1.wait_end_tsc", lambda old: old - 2_000_000),
    "wait-begins-after-call-in": ("guest.state.cpus.1.wait_begin_tsc", lambda old: old + 2_000_000),
    "update-within-window": ("guest.state.cpus.0.update_begin_tsc", lambda old: old + 2_000_000),
    "update-ends-within-window": ("guest.state.cpus.0.update_end_tsc", lambda old: old - 2_000_000),
}


@pytest.mark.parametrize("path", DISAGREEING.values(), ids=DISAGREEING)
def test_witnesses_that_disagree_are_invalid_and_accuse_nobody(path: tuple[str, Any]) -> None:
    verdict = judge(changed(path))

    assert find(verdict, "witnesses-agree").finding is Finding.BROKEN
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason.startswith("witnesses-agree broken")
    assert [one.name for one in verdict.invariants if one.finding is Finding.BROKEN] == ["witnesses-agree"]


def test_a_fault_of_the_lab_is_an_error_whatever_else_was_seen() -> None:
    evidence = change(added(EventKind.OUTSIDE), "ending", Ending.LAB)
    verdict = judge(change(evidence, "reason", "disk\x1b[31m full"))

    assert verdict.outcome is Outcome.ERROR
    assert verdict.reason == "the lab failed: disk [31m full"
    assert judge(change(evidence, "schema_version", 0)).outcome is Outcome.ERROR


STARVED: dict[str, tuple[str, Any]] = {
    "gap": ("observer.gaps_ns.2", 412 * MS),
    "waited": ("timings.vcpus.1.waited_ns", 900 * MS),
    "held-by-the-lab": ("observer.windows.0.extended_ns", 950 * MS),
    # Its primary was kept from its next block, closed or not: the observer's gaps leave out who is held.
    "held-by-the-host": ("observer.windows.0.open_ns", lambda old: old - 950 * MS),
}


@pytest.mark.parametrize("path", STARVED.values(), ids=STARVED)
@pytest.mark.parametrize("ending", [Ending.PANIC, Ending.GONE, Ending.DEADLINE])
def test_a_crash_next_to_starvation_is_invalid(path: tuple[str, Any], ending: Ending) -> None:
    for evidence in (crash(ending), change(crash(ending), "guest", None)):
        verdict = judge(change(evidence, *path))

        deadline = find(verdict, "within-deadline")
        assert deadline.finding is Finding.UNSEEN
        assert verdict.outcome is Outcome.INVALID
        assert verdict.reason.endswith(deadline.reason)


def test_a_timeout_next_to_starvation_is_invalid_and_without_it_a_fail() -> None:
    lines = (
        "microcode: Attempting late microcode loading - it is dangerous and taints the kernel.",
        "microcode: Timeout while waiting for CPUs rendezvous, remaining: 1",
        "microcode: Reload failed, current microcode revision: 0x1",
    )
    late = changed(("guest.dmesg", lines), ("guest.load_errno", 1))

    assert judge(late).outcome is Outcome.FAIL
    assert judge(change(late, "observer.gaps_ns.2", 412 * MS)).outcome is Outcome.INVALID


#: What our own mechanisms leave behind, without a word, when a thread waited too long for one that did not run.
SILENT: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "errno": ([("guest.load_errno", 1)], "errno-and-messages"),
    "old-revisions": (
        [("guest.revisions_after.3", 1), ("guest.state.cpus.3.revision", 1)],
        "new-revision-everywhere",
    ),
    "callers-left": ([("guest.state.callers_left", 2)], "counters-settled"),
    "repeat-errno": ([("guest.repeat_errno", 1)], "load-repeatable"),
}


@pytest.mark.parametrize("starved", STARVED.values(), ids=STARVED)
@pytest.mark.parametrize(("changes", "name"), SILENT.values(), ids=SILENT)
def test_a_silent_timeout_next_to_starvation_is_invalid_and_without_it_a_fail(
    starved: tuple[str, Any], changes: list[tuple[str, Any]], name: str
) -> None:
    late = changed(*changes)
    assert find(judge(late), name).finding is Finding.BROKEN
    assert judge(late).outcome is Outcome.FAIL

    verdict = judge(change(late, *starved))
    assert find(verdict, name).finding is Finding.UNSEEN
    assert verdict.outcome is Outcome.INVALID


def test_all_of_a_silent_timeout_next_to_a_gap_is_invalid() -> None:
    late = changed(*(one for changes, _ in SILENT.values() for one in changes), ("observer.gaps_ns.2", 1_500 * MS))

    assert judge(late).outcome is Outcome.INVALID


@pytest.mark.parametrize("path", STARVED.values(), ids=STARVED)
def test_an_update_after_the_load_is_broken_however_slow_the_host(path: tuple[str, Any]) -> None:
    late = added(EventKind.EARLY, END_AT_NS + MS, 0, in_load=False)

    assert find(judge(change(late, *path)), "load-repeatable").finding is Finding.BROKEN


def test_a_deadline_after_the_load_accuses_nobody() -> None:
    ended = Load(ending=Ending.DEADLINE).build()
    assert find(judge(ended), "within-deadline").finding is Finding.UNSEEN
    assert judge(ended).outcome is Outcome.INVALID

    returned = change(crash(Ending.DEADLINE), "timings.returned_ns", ORIGIN_NS + 20 * MS)
    assert find(judge(returned), "within-deadline").finding is Finding.UNSEEN
    assert find(judge(Load(ending=Ending.PANIC).build()), "within-deadline").finding is Finding.BROKEN


def test_a_second_load_is_a_fail_and_the_first_is_judged_for_itself() -> None:
    load = Load().watch().handle().repeat().add(REPEAT_AT_NS + MS + 1, EventKind.RETRY, 1, load=2)
    evidence = change(
        load.build(),
        "guest.dmesg",
        lambda old: (*old, *old[:2], "[   12.2] microcode: Reload succeeded, microcode revision: 0x2 -> 0x2"),
    )
    for vcpu in range(4):
        evidence = change(evidence, f"guest.state.cpus.{vcpu}.arrival_tsc", lambda old: old + 50_000_000)
        evidence = change(evidence, f"guest.state.cpus.{vcpu}.wait_begin_tsc", lambda old: old + 50_000_000)
        evidence = change(evidence, f"guest.state.cpus.{vcpu}.wait_end_tsc", lambda old: old + 50_000_000)
    verdict = judge(evidence)

    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("load-repeatable broken: the second write to reload began a second late load")
    texts = [proof.text for proof in find(verdict, "load-repeatable").proofs]
    assert texts[1] == "vCPU 1 executed WRMSR 0x79 in the second late load"
    others = {one.name: one.finding for one in verdict.invariants if one.name != "load-repeatable"}
    assert others.pop("witnesses-agree") is Finding.UNSEEN
    assert others.pop("offline-siblings-return") is Finding.UNSEEN
    assert others.pop("right-image") is Finding.UNSEEN
    assert set(others.values()) == {Finding.HELD}
    assert verdict.windows_judged == 2
    assert verdict.durations.guest_waits_us == ()
    assert verdict.durations.tsc_offset_cycles is None


def test_noise_in_the_first_of_two_loads_is_found_and_more_lost_windows_than_cores_hide_it_all() -> None:
    noisy = Load().add(INSIDE_NS, EventKind.OUTSIDE, 1).repeat().build()
    assert find(judge(noisy), "quiet").finding is Finding.BROKEN

    quiet = change(Load().repeat().build(), "observer.windows_lost", 3)
    assert find(judge(quiet), "quiet").finding is Finding.UNSEEN
    assert find(judge(quiet), "load-repeatable").finding is Finding.BROKEN


def test_a_second_load_after_a_failed_first_is_right() -> None:
    failed = change(Load().repeat().build(), "guest.load_errno", 1)

    assert find(judge(failed), "load-repeatable").finding is Finding.UNSEEN
    assert judge(failed).reason.startswith("errno-and-messages broken")
    assert judge(change(failed, "observer.gaps_ns.2", 412 * MS)).outcome is Outcome.INVALID


def test_a_third_load_is_not_judged() -> None:
    load = Load().repeat().add(REPEAT_AT_NS + 5 * MS, EventKind.LOAD_BEGIN, 0, load=3)

    assert judge(load.build()).outcome is Outcome.INVALID
    assert "3 late loads" in judge(load.build()).reason


def test_a_panic_quotes_the_console_in_bounds() -> None:
    evidence = change(crash(), "console_tail", tuple("x" * 10_000 for _ in range(500)))
    deadline = find(judge(evidence), "within-deadline")

    assert deadline.finding is Finding.BROKEN
    assert "Timeout during microcode update" in deadline.reason
    assert len(deadline.proofs) <= 20
    assert all(len(proof.text) <= 200 for proof in deadline.proofs)


def test_lost_records_neither_hold_nor_break_by_absence_but_what_was_seen_still_breaks() -> None:
    lost = change(added(EventKind.OUTSIDE), "observer.records_lost", 5)
    verdict = judge(lost)

    assert find(verdict, "quiet").finding is Finding.BROKEN
    assert verdict.outcome is Outcome.FAIL
    late = change(Load().move(EventKind.CALL_IN, 1, INSIDE_NS).build(), "observer.records_lost", 5)
    assert find(judge(late), "all-waiting-before-update").finding is Finding.UNSEEN
    spurious = change(added(EventKind.NMI_ENTRY, RELEASE_AT_NS + MS, 0), "observer.records_lost", 5)
    assert find(judge(spurious), "nmis-delivered").finding is Finding.UNSEEN


def test_noise_of_a_sibling_whose_landmarks_were_not_hit_accuses_nobody() -> None:
    verdict = judge(Load().drop(EventKind.CALL_IN).add(INSIDE_NS, EventKind.OUTSIDE, 1).build())

    assert find(verdict, "quiet").finding is Finding.UNSEEN
    assert verdict.outcome is Outcome.INVALID


HALTED = {
    VIEW + ".halted_at_close": True,
    VIEW + ".region_blocks": 0,
    VIEW + ".blocks": (),
    VIEW + ".last_ns": 0,
    VIEW + ".in_flight_pc": 0,
    VIEW + ".in_flight_region": False,
}


def halt(evidence: Evidence) -> Evidence:
    for path, value in HALTED.items():
        evidence = change(evidence, path, value)
    return evidence


def test_a_halted_sibling_needs_no_blocks() -> None:
    verdict = judge(halt(Load(sends=[(0, 4 * MS, 5 * MS)]).build()))

    assert find(verdict, "quiet").finding is Finding.HELD
    assert verdict.outcome is Outcome.PASS


def test_a_sibling_still_halted_after_an_nmi_that_reached_it_shows_nothing() -> None:
    verdict = judge(halt(Load(sends=[(1, 4 * MS, 5 * MS)]).build()))

    assert find(verdict, "quiet").finding is Finding.UNSEEN
    assert verdict.outcome is Outcome.INVALID


def test_an_nmi_to_the_primary_alone_counts_as_pending_in_its_window() -> None:
    verdict = judge(Load(sends=[(0, 4 * MS, 5 * MS)]).build())

    assert verdict.outcome is Outcome.PASS
    assert verdict.nmis.proven_in_window == 1
    assert verdict.reason.endswith(
        "1 of 1 NMIs proven in a window: 0 pending on a sibling, 1 at the primary",
    )


def test_the_reason_of_a_pass_says_whom_the_nmis_reached() -> None:
    sends = [(1, 4 * MS, 5 * MS), (0, 5 * MS, 6 * MS), (-1, 6 * MS, 7 * MS), (2, RELEASE_AT_NS, RELEASE_AT_NS + MS)]
    verdict = judge(Load(sends=sends).add(RELEASE_AT_NS + 2 * MS, EventKind.NMI_ENTRY, 2).build())

    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert verdict.reason.endswith("3 of 4 NMIs proven in a window: 2 pending on a sibling, 1 at the primary")


def test_the_reason_of_a_pass_counts_what_met_a_masked_lint1() -> None:
    load = Load(mechanism="park-hlt", sends=[(-1, 4 * MS, 5 * MS), (0, 8 * MS, 9 * MS)])
    load.drop(EventKind.SELF_NMI).drop(EventKind.NMI_ENTRY)
    for core in range(2):
        closed_ns = load.open_ns(core) + WINDOW_NS
        load.add(closed_ns + MS, EventKind.IPI_NMI, 2 * core)
        load.add(closed_ns + 10_000, EventKind.NMI_ENTRY, 2 * core)
        load.add(closed_ns + MS + 1_000, EventKind.NMI_ENTRY, 2 * core + 1)
    evidence = load.build()
    for vcpu in (1, 3):
        evidence = change(evidence, f"guest.ledger_after.{vcpu}.consumed", 4)
        evidence = change(evidence, f"guest.ledger_after.{vcpu}.ordinary", 7)
    verdict = judge(evidence)

    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert verdict.reason.endswith(
        "2 of 2 NMIs proven in a window: 0 pending on a sibling, 2 at the primary, 1 met a masked LINT1"
    )


def test_a_guest_that_complained_before_the_load_shows_nothing() -> None:
    line = "[   71.2][    C1] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [sh:60]"
    verdict = judge(changed(("guest.dmesg_before", ("harmless", line))))

    assert verdict.outcome is Outcome.INVALID
    assert "complained before this load" in verdict.reason
    assert judge(changed(("guest.dmesg_before", ("harmless",)))).outcome is Outcome.PASS


def test_an_observer_that_takes_a_thread_for_another_accuses_nobody() -> None:
    """An NMI too many, but the guest says that the other thread of the core did the update."""
    load = Load().add(END_AT_NS - 1_000, EventKind.NMI_ENTRY, 1)
    assert judge(load.build()).outcome is Outcome.FAIL
    evidence = load.build()
    stamps = [(cpu.update_begin_tsc, cpu.update_end_tsc) for cpu in evidence.guest.state.cpus[:2]]  # type: ignore[union-attr]
    for cpu, (begin_tsc, end_tsc) in enumerate(reversed(stamps)):
        evidence = change(evidence, f"guest.state.cpus.{cpu}.update_begin_tsc", begin_tsc)
        evidence = change(evidence, f"guest.state.cpus.{cpu}.update_end_tsc", end_tsc)
    verdict = judge(evidence)

    assert verdict.outcome is Outcome.INVALID
    assert "the observer saw vCPU 0 update core 0, the rendezvous state says CPU 1" in verdict.reason


@pytest.mark.parametrize("ending", [Ending.COMPLETE, Ending.PANIC])
def test_a_first_load_without_nmis_is_told_as_such(ending: Ending) -> None:
    """Its seed is that of a plan that was never begun."""
    evidence = added(EventKind.OUTSIDE, symbol="exc_nmi+0x5") if ending is Ending.COMPLETE else crash(ending)
    told = judge(evidence)
    first = judge(change(evidence, "plan.first_load", True))
    assert first.outcome is told.outcome is not Outcome.PASS
    assert first.reason == f"in the first load of this guest, to which no NMIs were sent: {told.reason}"
