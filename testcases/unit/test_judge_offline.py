# SPDX-License-Identifier: GPL-2.0-or-later
"""Soft-offlined siblings: they still take NMIs, so all that is asked of a core's threads is asked of them."""

from typing import Any

import msgspec
import pytest
from evidence_builder import (
    END_AT_NS,
    MS,
    OFFLINE_RELEASE_AT_NS,
    RELEASE_AT_NS,
    SENTINEL_AT_NS,
    WINDOW_AT_NS,
    WINDOW_NS,
    Load,
    change,
)

from lab.judge import judge
from lab.judge.facts import find_facts
from lab.judge.witnesses import find_missing_landmarks
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import BlockCount, EventKind, Evidence, Hazard
from lab.model.scenario import Parking, Siblings
from lab.model.topology import Topology
from lab.model.verdict import Finding, Invariant, Outcome, Verdict

ONE_CORE = Topology(1, 1, 2)
TWO_CORES = Topology(1, 2, 2)
INSIDE_NS = WINDOW_AT_NS + 3 * MS
#: When CPU 0 kicks vCPU 1, and when that has called in.
KICK_NS, CALL_IN_NS = 100_211, 100_301
VIEW = "observer.windows.0.siblings.0"

WAITS = "mwait_play_dead+0x9a"


def tell(**fields: Any) -> Load:
    """Tell of mainline on one core, its sibling offline."""
    return Load(**{"mechanism": "upstream", "topology": ONE_CORE, "siblings": Siblings.OFFLINE, **fields})


def find(verdict: Verdict, name: str) -> Invariant:
    return next(one for one in verdict.invariants if one.name == name)


def finding(evidence: Evidence, name: str) -> Finding:
    return find(judge(evidence), name).finding


def parked(*, count: int = 50, symbol: str = WAITS) -> BlockCount:
    return BlockCount(pc=0xFFFFFFFF81003000, symbol=symbol, count=count, first_seq=112, last_seq=112, in_region=False)


@pytest.mark.parametrize("topology", [ONE_CORE, TWO_CORES, Topology(2, 2, 2)], ids=str)
@pytest.mark.parametrize("siblings", [Siblings.OFFLINE, Siblings.RETURNING])
@pytest.mark.parametrize("parking", list(Parking))
def test_a_clean_load_passes(topology: Topology, siblings: Siblings, parking: Parking) -> None:
    verdict = judge(tell(topology=topology, siblings=siblings, parking=parking).watch().build())

    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert find(verdict, "offline-siblings-return").required
    assert find(verdict, "offline-siblings-return").finding is Finding.HELD
    assert (verdict.windows_judged, verdict.windows_unseen) == (topology.total_cores, 0)


def test_broadcasts_do_not_reach_an_offline_sibling_and_are_not_counted_as_if_they_had() -> None:
    verdict = judge(tell().watch().build())

    # Of vCPU 0: its self-NMI, the broadcasts as one, the sentinel. Of vCPU 1: the kick and the sentinel.
    assert (verdict.nmis.sent, verdict.nmis.entries, verdict.nmis.handled) == (2, 5, 2)
    assert "0 pending on a sibling, 2 at the primary, 2 met a masked LINT1" in verdict.reason
    assert "2 sent, 2 sentinels and 2 of the mechanism's own, 1 merged, 5 entries" in (
        find(verdict, "nmis-delivered").reason
    )
    assert [span.who for span in verdict.durations.host_nmi_delay_us] == [0]


@pytest.mark.parametrize("at_ns", [INSIDE_NS, END_AT_NS + 200_000])
def test_an_entry_of_an_offline_sibling_that_a_broadcast_alone_could_explain_has_no_cause(at_ns: int) -> None:
    load = tell(sends=[(-1, at_ns, at_ns + 100_000)]).add(END_AT_NS + 500_000, EventKind.NMI_ENTRY, 1)
    verdict = judge(load.build())

    assert verdict.outcome is Outcome.FAIL
    texts = [proof.text for proof in find(verdict, "nmis-delivered").proofs]
    assert "vCPU 1 entered an NMI that nobody sent" in texts


def test_an_nmi_aimed_into_the_window_is_held_back_and_counts_as_pending_on_a_sibling() -> None:
    verdict = judge(tell(sends=[(1, INSIDE_NS, INSIDE_NS + MS)]).watch().build())

    assert verdict.outcome is Outcome.PASS
    assert "1 pending on a sibling, 0 at the primary" in verdict.reason
    assert [span.who for span in verdict.durations.host_nmi_delay_us] == [1]


def test_an_aimed_nmi_before_the_kick_is_neither_a_call_in_nor_a_release() -> None:
    early = tell(sends=[(1, 20_000, 30_000), (1, INSIDE_NS, INSIDE_NS + MS)]).add(40_000, EventKind.NMI_ENTRY, 1)
    # It returns at once, by way of the function whose exits are releases, if it got so far.
    early.add(40_100, EventKind.RELEASE, 1)
    verdict = judge(early.watch().build())

    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert [span.us for span in verdict.durations.host_holds_us] == [(OFFLINE_RELEASE_AT_NS + 1 - CALL_IN_NS) / 1_000]

    never = tell(sends=[(1, 20_000, 30_000)]).add(40_000, EventKind.NMI_ENTRY, 1).drop(EventKind.CALL_IN, 1)
    verdict = judge(never.build())
    assert verdict.outcome is Outcome.FAIL
    assert "vCPU 1 was offline and had not called in" in verdict.reason


def test_an_aimed_nmi_that_merges_with_the_kick_is_one_entry() -> None:
    assert judge(tell(sends=[(1, 50_000, 100_240), (1, INSIDE_NS, INSIDE_NS + MS)]).watch().build()).outcome is (
        Outcome.PASS
    )


@pytest.mark.parametrize("vcpu", [1, 3])
def test_one_that_never_called_in_was_not_waiting(vcpu: int) -> None:
    load = tell(topology=TWO_CORES)
    for kind in (EventKind.NMI_ENTRY, EventKind.CALL_IN, EventKind.WAIT_LOOP, EventKind.RELEASE):
        load.drop(kind, vcpu)
    verdict = judge(load.build())

    assert verdict.outcome is Outcome.FAIL
    core = vcpu // 2
    assert verdict.reason == (
        "all-waiting-before-update broken:"
        f" vCPU {vcpu} was offline and had not called in when core {core}'s window opened"
    )
    assert find(verdict, "all-waiting-before-update").proofs[0].core == core


def test_with_records_lost_an_offline_sibling_that_did_not_call_in_accuses_nobody() -> None:
    evidence = change(tell().drop(EventKind.CALL_IN, 1).build(), "observer.records_lost", 1)

    assert finding(evidence, "all-waiting-before-update") is Finding.UNSEEN
    assert judge(evidence).outcome is Outcome.INVALID


def test_where_the_primarys_call_in_is_not_seen_either_the_landmarks_are_not_known() -> None:
    evidence = tell().drop(EventKind.CALL_IN).build()

    assert finding(evidence, "all-waiting-before-update") is Finding.UNSEEN
    assert judge(evidence).outcome is Outcome.INVALID


@pytest.mark.parametrize("at_ns", [WINDOW_AT_NS + 5_000, INSIDE_NS])
def test_a_call_in_after_the_window_opened_is_too_late(at_ns: int) -> None:
    verdict = judge(tell().move(EventKind.CALL_IN, 1, at_ns).build())

    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("all-waiting-before-update broken: vCPU 1 called in only")


def release_with_core_0() -> Load:
    """Let all offline siblings go when core 0 is done, and core 1 be updated for 5 ms more (6.12)."""
    load = tell(topology=TWO_CORES)
    load.move(EventKind.WINDOW_CLOSE, 2, WINDOW_AT_NS + WINDOW_NS + 5 * MS)
    load.move(EventKind.RELEASE, 2, END_AT_NS - 100_000).move(EventKind.LOAD_END, 0, END_AT_NS + 5 * MS)
    for vcpu in (1, 3):
        load.move(EventKind.RELEASE, vcpu, WINDOW_AT_NS + WINDOW_NS + MS)
    return load.move(EventKind.RELEASE, 2, WINDOW_AT_NS + WINDOW_NS + 6 * MS)


def test_one_that_is_let_go_in_another_cores_window_is_caught_by_that_alone() -> None:
    verdict = judge(release_with_core_0().build())

    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("released-after-update broken: vCPU 3 was let go 10999.0 us into core 1's window")
    assert find(verdict, "released-after-update").proofs[0].vcpu == 3
    assert len(find(verdict, "released-after-update").proofs) == 1
    assert find(verdict, "quiet").finding is Finding.HELD


def test_what_it_executes_on_its_way_out_breaks_quiet_and_its_return_harmless() -> None:
    load = release_with_core_0().add(WINDOW_AT_NS + WINDOW_NS + MS + 1_000, EventKind.OUTSIDE, 3, symbol="exc_nmi+0x7")
    load.add(WINDOW_AT_NS + WINDOW_NS + MS + 2_000, EventKind.HAZARD, 3, hazard=Hazard.IRET, symbol="nmi_restore+0x9")
    verdict = judge(load.build())

    for name in ("quiet", "harmless", "released-after-update"):
        assert find(verdict, name).finding is Finding.BROKEN
    assert find(verdict, "quiet").proofs[0].text.startswith("vCPU 3 entered exc_nmi+0x7")


def test_one_let_go_before_its_cores_window_opened_was_not_waiting() -> None:
    verdict = judge(tell().move(EventKind.RELEASE, 1, WINDOW_AT_NS - 1_000).build())

    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("all-waiting-before-update broken: vCPU 1 was let go")


@pytest.mark.parametrize("at_ns", [RELEASE_AT_NS, END_AT_NS - 1_000, END_AT_NS + 1_000, SENTINEL_AT_NS - 1_000])
def test_it_may_be_let_go_before_or_behind_the_loads_end(at_ns: int) -> None:
    assert judge(tell().move(EventKind.RELEASE, 1, at_ns).watch().build()).outcome is Outcome.PASS


def test_one_that_is_never_let_go_is_no_pass() -> None:
    evidence = tell().drop(EventKind.RELEASE, 1).build()
    assert judge(evidence).outcome is Outcome.INVALID
    assert judge(evidence).reason == "landmarks not hit: the release of vCPU 1"
    assert finding(evidence, "released-after-update") is Finding.UNSEEN
    still_held = change(
        evidence, "observer.resting.1", lambda old: msgspec.structs.replace(old, symbol="wait_for_ctrl")
    )
    assert judge(still_held).outcome is Outcome.FAIL


def test_a_call_in_that_nobody_kicked_is_not_believed() -> None:
    verdict = judge(tell().drop(EventKind.IPI_NMI).watch().build())

    assert verdict.outcome is Outcome.INVALID
    assert "landmarks not hit: the NMI IPI" in verdict.reason
    assert find(verdict, "nmis-delivered").finding is Finding.UNSEEN


def test_the_kick_is_owed_once_to_each_and_explains_one_entry() -> None:
    twice = tell(topology=TWO_CORES).add(CALL_IN_NS + MS, EventKind.NMI_ENTRY, 1).build()
    assert finding(twice, "nmis-delivered") is Finding.BROKEN
    late = tell().move(EventKind.IPI_NMI, 0, CALL_IN_NS).build()
    assert finding(late, "nmis-delivered") is Finding.BROKEN


def test_no_kick_is_owed_where_nobody_is_offline() -> None:
    online = Load(mechanism="upstream")
    assert judge(online.build()).outcome is Outcome.PASS
    assert finding(online.add(KICK_NS, EventKind.IPI_NMI, 0).build(), "nmis-delivered") is Finding.HELD


@pytest.mark.parametrize(
    ("parking", "halted", "symbol", "found"),
    [
        (Parking.HLT, True, "hlt_play_dead+0x12", Finding.HELD),
        (Parking.HLT, True, "hlt_play_dead.cold+0x1", Finding.HELD),
        (Parking.HLT, True, "native_play_dead+0x80", Finding.HELD),
        (Parking.HLT, False, "hlt_play_dead+0x12", Finding.BROKEN),
        (Parking.HLT, False, WAITS, Finding.BROKEN),
        (Parking.HLT, True, "default_idle+0xf", Finding.BROKEN),
        (Parking.HLT, True, "hlt_play_deadlier+0x1", Finding.BROKEN),
        (Parking.HLT, True, "", Finding.BROKEN),
        (Parking.HLT, False, "wait_for_ctrl+0x20", Finding.BROKEN),
        (Parking.MWAIT, False, WAITS, Finding.HELD),
        (Parking.MWAIT, False, "native_play_dead+0x80", Finding.HELD),
        (Parking.MWAIT, False, "wait_for_ctrl+0x20", Finding.BROKEN),
        (Parking.MWAIT, True, "default_idle+0xf", Finding.BROKEN),
        # It waits as it should, and not in what the scenario is about.
        (Parking.MWAIT, True, "hlt_play_dead+0x12", Finding.UNSEEN),
    ],
)
def test_it_has_to_wait_again_where_it_can_be_brought_up(
    parking: Parking, halted: bool, symbol: str, found: Finding
) -> None:
    evidence = tell(parking=parking).build()
    evidence = change(
        evidence, "observer.resting.1", lambda old: msgspec.structs.replace(old, halted=halted, symbol=symbol)
    )
    outcomes = {Finding.HELD: Outcome.PASS, Finding.BROKEN: Outcome.FAIL, Finding.UNSEEN: Outcome.INVALID}

    assert finding(evidence, "offline-siblings-return") is found
    assert judge(evidence).outcome is outcomes[found]
    if found is Finding.BROKEN:
        starved = change(evidence, "observer.gaps_ns.1", 1_500 * MS)
        assert finding(starved, "offline-siblings-return") is Finding.UNSEEN


RESTING: list[tuple[str, Any]] = [
    ("nobody-looked", ()),
    ("cut", lambda old: old[:1]),
    ("twice", lambda old: (*old, old[1])),
    ("contradicted", lambda old: (msgspec.structs.replace(old[1], halted=False, symbol="exc_nmi+0x1"), *old)),
]


@pytest.mark.parametrize("value", [case[1] for case in RESTING], ids=[case[0] for case in RESTING])
def test_without_one_look_at_where_it_rests_there_is_no_pass(value: Any) -> None:
    evidence = change(tell().build(), "observer.resting", value)
    verdict = judge(evidence)

    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason == "offline-siblings-return unseen: where vCPU 1 was after the load is not known"


BACK = "guest.returned"


@pytest.mark.parametrize(
    ("path", "value", "outcome", "told"),
    [
        (BACK, None, Outcome.INVALID, "the siblings were not brought back"),
        (f"{BACK}.failed", True, Outcome.FAIL, "bringing the offline siblings back failed"),
        (f"{BACK}.online", (0,), Outcome.FAIL, "CPU 1 did not come back online"),
        (f"{BACK}.online", (1,), Outcome.FAIL, "CPU 0 went offline"),
        (f"{BACK}.revisions.1", 1, Outcome.FAIL, "CPU 1 came back with revision 0x1 instead of 0x2"),
        (f"{BACK}.revisions.1", -1, Outcome.INVALID, "sysfs shows no revision of CPU 1"),
        (f"{BACK}.revisions", (2,), Outcome.INVALID, "sysfs shows no revision of CPU 1"),
        (f"{BACK}.revisions", (), Outcome.INVALID, "sysfs shows no revision of CPU 0"),
    ],
)
def test_one_that_was_to_return_has_to_come_back_with_the_new_revision(
    path: str, value: Any, outcome: Outcome, told: str
) -> None:
    evidence = change(tell(siblings=Siblings.RETURNING).build(), path, value)
    verdict = judge(evidence)

    assert verdict.outcome is outcome
    assert told in verdict.reason
    assert verdict.reason.startswith("offline-siblings-return")
    starved = change(evidence, "timings.vcpus.0.waited_ns", 900 * MS)
    assert judge(starved).outcome is Outcome.INVALID


def test_a_mechanism_that_needs_mwait_parks_offline_siblings_in_it_whatever_is_asked() -> None:
    evidence = tell(mechanism="park-mwait").build()
    assert finding(evidence, "offline-siblings-return") is Finding.UNSEEN
    turning = change(
        evidence, "observer.resting.1", lambda old: msgspec.structs.replace(old, halted=False, symbol=WAITS)
    )
    assert finding(turning, "offline-siblings-return") is Finding.HELD


def test_without_engine_there_is_no_new_revision_to_come_back_with() -> None:
    evidence = tell(mechanism="stock-nmi", siblings=Siblings.RETURNING).watch().build()
    verdict = judge(evidence)

    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert find(verdict, "offline-siblings-return").reason.endswith("waited again after the load and came back")
    assert finding(change(evidence, f"{BACK}.revisions.1", -1), "offline-siblings-return") is Finding.UNSEEN
    assert finding(change(evidence, f"{BACK}.online", (0,)), "offline-siblings-return") is Finding.BROKEN
    assert finding(change(evidence, f"{BACK}.failed", True), "offline-siblings-return") is Finding.BROKEN


def test_an_update_while_it_comes_back_is_one_too_many() -> None:
    load = tell(siblings=Siblings.RETURNING).watch()
    load.add(SENTINEL_AT_NS + 5 * MS, EventKind.EARLY, 1, in_load=False)

    assert judge(load.build()).reason.startswith("one-update-per-core broken")


@pytest.mark.parametrize("online", [(0, 1), (), (1,), (0, 0), (0, 2)])
def test_other_cpus_online_than_asked_is_another_scenario(online: tuple[int, ...]) -> None:
    verdict = judge(change(tell().build(), "guest.online", online))

    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason == f"CPUs {list(online)} of the guest were online instead of [0]"
    assert {one.finding for one in verdict.invariants} == {Finding.UNSEEN}


def test_a_sibling_that_was_offline_unasked_is_another_scenario() -> None:
    verdict = judge(change(Load(mechanism="upstream").build(), "guest.online", (0, 2)))

    assert verdict.outcome is Outcome.INVALID
    assert "were online instead of [0, 1, 2, 3]" in verdict.reason


def test_the_kernel_counts_no_offline_sibling_among_those_updated() -> None:
    def as_if_online(lines: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(line.replace("with 0 siblings", "with 1 siblings") for line in lines)

    evidence = change(tell().build(), "guest.dmesg", as_if_online)
    assert finding(evidence, "errno-and-messages") is Finding.BROKEN


def test_offline_siblings_that_did_not_respond_break_the_load() -> None:
    said = "[   12.130000] microcode: 1 offline siblings did not respond."
    evidence = change(tell().build(), "guest.dmesg", lambda old: (*old, said))
    assert finding(evidence, "errno-and-messages") is Finding.BROKEN
    assert finding(change(evidence, "observer.gaps_ns.0", 1_500 * MS), "errno-and-messages") is Finding.UNSEEN


def test_an_unknown_nmi_told_of_an_offline_cpu_has_no_entry_to_explain_it() -> None:
    said = "[   12.13] Uhhuh. NMI received for unknown reason 2c on CPU 1."
    evidence = change(tell().watch().build(), "guest.dmesg", lambda old: (*old, said))
    assert finding(evidence, "dmesg-clean") is Finding.BROKEN


CLEAN = tell(topology=TWO_CORES, siblings=Siblings.RETURNING).watch().build()


@pytest.mark.parametrize("index", range(len(CLEAN.observer.events if CLEAN.observer else ())))
def test_every_record_of_a_clean_load_is_missed(index: int) -> None:
    evidence = change(CLEAN, "observer.events", lambda old: (*old[:index], *old[index + 1 :]))
    # Behind the last record there is no hole to see: it is an offline thread's sentinel, which no other witness counts.
    last = CLEAN.observer is not None and index == len(CLEAN.observer.events) - 1
    assert judge(evidence).outcome is (Outcome.FAIL if last else Outcome.INVALID)


@pytest.mark.parametrize("witness", ["observer", "injections", "guest", "timings"])
def test_a_witness_that_says_nothing_is_no_pass(witness: str) -> None:
    assert judge(change(CLEAN, witness, None)).outcome is Outcome.INVALID


def test_nmis_that_the_scenario_is_not_about_are_no_pass() -> None:
    evidence = change(tell().build(), "scenario.nmis", 0)
    assert judge(evidence).outcome is Outcome.INVALID
    assert judge(evidence).reason == "NMIs were sent though the scenario is about none"
    assert judge(tell(sends=[]).build()).outcome is Outcome.PASS


# What is seen of MWAIT


def test_parked_in_mwait_while_the_core_is_updated_is_unseen_and_not_broken() -> None:
    """Its thread may have been let go too early; what an emulator's MWAIT executes does not say so."""
    evidence = tell(parking=Parking.MWAIT).build()
    spinning = change(evidence, f"{VIEW}.blocks", lambda old: (*old, parked()))
    spinning = change(spinning, f"{VIEW}.outside_blocks", 50)
    in_flight = change(evidence, f"{VIEW}.in_flight_symbol", WAITS)
    in_flight = change(in_flight, f"{VIEW}.in_flight_region", False)
    for each in (spinning, in_flight):
        verdict = judge(each)
        assert verdict.outcome is Outcome.INVALID
        assert "was parked in MWAIT, which the emulator executes again and again" in verdict.reason
        for name in ("quiet", "harmless"):
            assert find(verdict, name).finding is Finding.UNSEEN


def test_monitor_and_mwait_at_the_parking_place_alone_are_excused() -> None:
    def at(symbol: str, parking: Parking = Parking.MWAIT, hazard: Hazard = Hazard.MWAIT) -> Finding:
        load = tell(parking=parking).add(INSIDE_NS, EventKind.HAZARD, 1, symbol=symbol, hazard=hazard)
        return finding(load.build(), "harmless")

    assert at(WAITS) is not Finding.BROKEN
    assert at("mwait_idle+0x20") is Finding.BROKEN
    assert at(WAITS, hazard=Hazard.MSR) is Finding.BROKEN
    assert at(WAITS, Parking.HLT) is Finding.BROKEN


def test_what_is_not_the_parking_place_breaks_quiet_beside_it() -> None:
    evidence = tell(parking=Parking.MWAIT).build()
    blocks = (parked(), parked(count=3, symbol="exc_nmi+0x5"))
    evidence = change(evidence, f"{VIEW}.blocks", lambda old: (*old, *blocks))
    evidence = change(evidence, f"{VIEW}.outside_blocks", 53)

    assert judge(evidence).outcome is Outcome.FAIL
    assert [proof.text for proof in find(judge(evidence), "quiet").proofs] == [
        "vCPU 1 executed exc_nmi+0x5 3 times in core 0's window"
    ]


def test_an_online_sibling_in_the_parking_place_is_not_excused() -> None:
    load = Load(mechanism="upstream", topology=ONE_CORE, parking=Parking.MWAIT)
    assert finding(load.add(INSIDE_NS, EventKind.OUTSIDE, 1, symbol=WAITS).build(), "quiet") is Finding.BROKEN


# A mechanism that leaves offline siblings alone


def leave_alone(**fields: Any) -> Load:
    return Load(**{"mechanism": "nmi-self", "topology": ONE_CORE, "siblings": Siblings.OFFLINE, **fields})


def test_what_an_offline_sibling_does_not_do_is_no_landmark_missed() -> None:
    evidence = leave_alone().watch().build()
    assert not find_missing_landmarks(find_facts(evidence, ONE_CORE, find_mechanism("nmi-self")))


@pytest.mark.parametrize("siblings", [Siblings.OFFLINE, Siblings.RETURNING])
def test_a_mechanism_that_leaves_them_alone_fails_by_that_alone(siblings: Siblings) -> None:
    verdict = judge(leave_alone(siblings=siblings).watch().build())

    assert verdict.outcome is Outcome.FAIL
    assert [one.name for one in verdict.invariants if one.finding is Finding.BROKEN] == ["all-waiting-before-update"]
    # Halted, it executes nothing.
    for name in ("quiet", "harmless", "no-nmi-entry-in-window", "witnesses-agree", "nmis-delivered"):
        assert find(verdict, name).finding is Finding.HELD, find(verdict, name).reason


def test_an_nmi_aimed_at_one_left_alone_wakes_it_in_the_window() -> None:
    load = leave_alone(sends=[(1, INSIDE_NS, INSIDE_NS + MS)]).add(INSIDE_NS + 500, EventKind.NMI_ENTRY, 1)
    load.add(INSIDE_NS + 600, EventKind.OUTSIDE, 1, symbol="asm_exc_nmi+0x0")
    load.add(INSIDE_NS + 700, EventKind.HAZARD, 1, hazard=Hazard.IRET, symbol="nmi_restore+0x9")
    verdict = judge(load.watch().build())

    for name in ("quiet", "harmless", "no-nmi-entry-in-window"):
        assert find(verdict, name).finding is Finding.BROKEN
    # The kernel drops it, and says so.
    assert find(verdict, "nmis-delivered").finding is Finding.HELD
    assert find(verdict, "witnesses-agree").finding is Finding.HELD


def test_a_ledger_that_dropped_fewer_than_entered_on_an_offline_cpu_is_doubted() -> None:
    load = leave_alone(sends=[(1, INSIDE_NS, INSIDE_NS + MS)]).add(INSIDE_NS + 500, EventKind.NMI_ENTRY, 1)
    evidence = load.watch().build()
    dropped = find(judge(evidence), "nmis-delivered")
    silent = find(judge(change(evidence, "guest.ledger_after.1.dropped", 1)), "nmis-delivered")

    assert dropped.finding is Finding.HELD, dropped.reason
    assert silent.finding is Finding.UNSEEN
    assert "counts 1 NMIs dropped on CPU 1, the observer 2 entries" in silent.reason


def test_a_ledger_that_counts_for_an_offline_cpu_is_doubted() -> None:
    evidence = change(leave_alone().watch().build(), "guest.ledger_after.1.ordinary", lambda old: old + 1)
    assert finding(evidence, "nmis-delivered") is Finding.UNSEEN
    missing = change(leave_alone().watch().build(), "guest.ledger_after", lambda old: old[:1])
    assert finding(missing, "nmis-delivered") is Finding.UNSEEN


# Witnesses that show nothing of a CPU that is online


@pytest.mark.parametrize("mechanism", ["upstream", "nmi-self"])
@pytest.mark.parametrize("siblings", [Siblings.ONLINE, Siblings.OFFLINE])
def test_a_revision_that_sysfs_does_not_show_accuses_nobody(mechanism: str, siblings: Siblings) -> None:
    evidence = change(Load(mechanism=mechanism, siblings=siblings).build(), "guest.revisions_after.0", -1)
    assert finding(evidence, "new-revision-everywhere") is Finding.UNSEEN
    assert judge(evidence).outcome is not Outcome.PASS


@pytest.mark.parametrize(("before", "after"), [(-1, -1), (-1, 1), (10, -1)])
def test_nmis_that_proc_interrupts_does_not_show_are_not_counted(before: int, after: int) -> None:
    """-1 stands for no count: a difference of two of them, or with one, is none."""
    evidence = tell().build()
    evidence = change(change(evidence, "guest.nmis_before.0", before), "guest.nmis_after.0", after)
    verdict = judge(evidence)

    assert verdict.outcome is Outcome.INVALID
    assert find(verdict, "witnesses-agree").reason == "/proc/interrupts has no count of CPU 0"
    assert find(verdict, "nmis-delivered").finding is Finding.UNSEEN


def test_a_kernel_that_does_not_look_at_least_revisions_is_not_what_was_asked_for() -> None:
    evidence = change(Load(mechanism="upstream").build(), "scenario.min_revision", True)
    warned = judge(evidence)
    assert warned.outcome is Outcome.INVALID
    assert "looks at no least revision" in warned.reason

    silent = change(evidence, "guest.dmesg", lambda old: old[2:])
    assert judge(silent).outcome is Outcome.PASS
    assert judge(change(silent, "guest.dmesg", ())).outcome is not Outcome.PASS
