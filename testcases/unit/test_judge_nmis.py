# SPDX-License-Identifier: GPL-2.0-or-later
"""The pending-bit model: every entry needs a cause, every cause an entry, and several causes may merge."""

from typing import Any

import pytest
from evidence_builder import END_AT_NS, FIRST_SEQ, MS, RELEASE_AT_NS, WINDOW_AT_NS, WINDOW_NS, Load, change

from lab.judge import judge
from lab.judge.facts import find_facts
from lab.judge.nmis import VcpuNmis, explain
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import Ending, EventKind, Evidence
from lab.model.topology import Topology
from lab.model.verdict import Finding, Invariant, Outcome

ONE_CORE = Topology(1, 1, 2)


def tell(sends: list[tuple[int, int, int]], entries: list[int], selfs: list[int] | None = None) -> Evidence:
    """Tell of vCPU 0's NMIs alone, at times in ms; vCPU 1 keeps its clean ones."""
    own = [(0, send * MS, reply * MS) for _, send, reply in sends]
    load = Load(topology=ONE_CORE, sends=own).drop(EventKind.NMI_ENTRY, 0).drop(EventKind.SELF_NMI, 0)
    for at_ms in entries:
        load.add(at_ms * MS, EventKind.NMI_ENTRY, 0)
    for at_ms in selfs or []:
        load.add(at_ms * MS - 1, EventKind.SELF_NMI, 0)
    return load.build()


def explained(evidence: Evidence) -> VcpuNmis:
    return explain(find_facts(evidence, ONE_CORE, find_mechanism("nmi-self")), 0)


def delivered(evidence: Evidence) -> Invariant:
    return next(one for one in judge(evidence).invariants if one.name == "nmis-delivered")


@pytest.mark.parametrize(
    ("sends", "entries", "selfs", "merged", "spurious", "lost"),
    [
        pytest.param([(0, 3, 4)], [5], [], 0, 0, 0, id="one"),
        pytest.param([(0, 3, 4), (0, 5, 6)], [7], [], 1, 0, 0, id="two-merge"),
        pytest.param([(0, 3, 4), (0, 5, 6)], [4, 7], [], 0, 0, 0, id="two-entries"),
        pytest.param([(0, 3, 6), (0, 4, 6)], [5, 8], [], 0, 0, 0, id="overlapping-sends"),
        pytest.param([(0, 3, 4)], [2, 5], [], 0, 1, 0, id="entry-before-the-send"),
        pytest.param([(0, 3, 4)], [5, 9], [], 0, 1, 0, id="entry-without-cause"),
        pytest.param([(0, 3, 4)], [2], [], 0, 1, 1, id="send-after-the-last-entry"),
        pytest.param([(0, 3, 4)], [], [], 0, 0, 1, id="never-entered"),
        pytest.param([], [3], [3], 0, 0, 0, id="self"),
        pytest.param([], [3], [4], 0, 1, 1, id="self-after-the-entry"),
        pytest.param([(0, 2, 3)], [4], [4], 1, 0, 0, id="self-merges-with-a-send"),
        pytest.param([(0, 2, 3)], [4, 5], [4], 0, 0, 0, id="send-enters-before-the-self-nmi-is-written"),
        pytest.param([], [3, 17], [3], 0, 1, 0, id="self-nmi-explains-nothing-after-the-load"),
    ],
)
def test_entries_are_matched_with_causes(
    sends: list[tuple[int, int, int]], entries: list[int], selfs: list[int], merged: int, spurious: int, lost: int
) -> None:
    nmis = explained(tell(sends, entries, selfs))

    assert (nmis.merged, len(nmis.spurious), len(nmis.lost)) == (merged, spurious, lost)


def test_an_nmi_acknowledged_before_an_entry_was_recorded_may_belong_to_the_next() -> None:
    """The vCPU took the first, was preempted before its record, and the second was set and acknowledged meanwhile."""
    assert not explained(tell([(0, 3, 4), (0, 5, 6)], [8, 9])).spurious


def test_a_vcpu_seen_running_after_the_reply_had_not_taken_it_before() -> None:
    load = Load(topology=ONE_CORE, sends=[(0, 3 * MS, 4 * MS), (0, 5 * MS, 6 * MS)])
    load.drop(EventKind.NMI_ENTRY, 0).drop(EventKind.SELF_NMI, 0)
    load.add(RELEASE_AT_NS + 10_000, EventKind.NMI_ENTRY, 0).add(RELEASE_AT_NS + 20_000, EventKind.NMI_ENTRY, 0)

    assert len(explained(load.build()).spurious) == 1


@pytest.mark.parametrize("kind", [EventKind.WINDOW_CLOSE, EventKind.OUTSIDE])
@pytest.mark.parametrize("by_entry", [True, False])
def test_what_the_entry_itself_has_ended_is_no_sign_of_running_before_it(kind: EventKind, by_entry: bool) -> None:
    """The first NMI was taken, the vCPU preempted, the second set, and only then was the block recorded that began."""
    closed_ns = WINDOW_AT_NS + WINDOW_NS
    load = Load(topology=ONE_CORE, sends=[(0, 3 * MS, 4 * MS), (0, 5 * MS, 6 * MS)])
    load.drop(EventKind.NMI_ENTRY, 0).drop(EventKind.SELF_NMI, 0).drop(EventKind.WINDOW_CLOSE, 0)
    load.drop(EventKind.RELEASE, 0).add(closed_ns, kind, 0)
    load.add(closed_ns + 10_000, EventKind.NMI_ENTRY, 0).add(closed_ns + 60_000, EventKind.NMI_ENTRY, 0)
    evidence = load.build()
    if by_entry:
        assert evidence.observer is not None
        entry_pc = next(event.pc for event in evidence.observer.events if event.kind is EventKind.NMI_ENTRY)
        index = next(index for index, event in enumerate(evidence.observer.events) if event.kind is kind)
        evidence = change(evidence, f"observer.events.{index}.pc", entry_pc)

    assert len(explained(evidence).spurious) == (0 if by_entry else 1)


def test_deaf_vcpus_and_spurious_nmis_are_named() -> None:
    lost = delivered(Load().watch(0).build())
    assert lost.finding is Finding.BROKEN
    assert lost.reason == "vCPU 0 no longer takes NMIs after the load"

    spurious = delivered(Load(sends=[]).add(END_AT_NS + MS, EventKind.NMI_ENTRY, 3).build())
    assert spurious.finding is Finding.BROKEN
    assert spurious.proofs[0].vcpu == 3
    assert spurious.proofs[0].seq > FIRST_SEQ


def test_an_unexplained_entry_accuses_nobody_when_the_log_or_the_ledger_is_in_doubt() -> None:
    spurious = Load().add(RELEASE_AT_NS + MS, EventKind.NMI_ENTRY, 0).build()

    assert delivered(spurious).finding is Finding.BROKEN
    assert delivered(change(spurious, "injections", None)).finding is Finding.UNSEEN
    assert delivered(change(spurious, "injections.problem", "cut")).finding is Finding.UNSEEN
    assert delivered(change(spurious, "guest.ledger_after.0.ordinary", 7)).finding is Finding.UNSEEN


def test_an_nmi_that_nothing_follows_may_still_be_pending() -> None:
    lost = delivered(tell([(0, 3, 4), (0, 15, 15)], [5], []))

    assert lost.finding is Finding.UNSEEN
    assert lost.reason == "vCPU 0 took no NMI after the load"


def test_an_nmi_that_only_the_sentinel_follows_is_merged_or_lost() -> None:
    sends = [(-1, 4 * MS, 5 * MS), (-1, 7 * MS, 8 * MS)]
    after = (-1, END_AT_NS + 100_000, END_AT_NS + 200_000)

    assert delivered(Load(sends=sends).watch().build()).finding is Finding.HELD
    hidden = delivered(Load(sends=[*sends, after]).watch().build())
    assert hidden.finding is Finding.UNSEEN
    assert hidden.reason == "vCPU 0 took NMI 2 together with its sentinel, or never"
    settled = Load(sends=[*sends, after]).watch()
    for vcpu in range(4):
        settled.add(END_AT_NS + 150_000, EventKind.NMI_ENTRY, vcpu)
    assert delivered(settled.build()).finding is Finding.HELD


def test_sentinels_are_causes_and_nothing_else() -> None:
    plain, watched = judge(Load().build()), judge(Load().watch().build())

    assert watched.outcome is Outcome.PASS
    assert watched.nmis.sent == plain.nmis.sent == 2
    assert watched.nmis.proven_in_window == plain.nmis.proven_in_window == 2
    assert watched.nmis.entries == plain.nmis.entries + 4
    assert watched.durations.host_nmi_delay_us == plain.durations.host_nmi_delay_us
    twice = Load().watch().add(END_AT_NS + 3 * MS, EventKind.NMI_ENTRY, 0).build()
    assert delivered(twice).finding is Finding.BROKEN


def test_a_sentinel_in_a_window_is_not_proven_there() -> None:
    load = Load(sends=[])
    load.sentinels = [(1, 4 * MS, 5 * MS)]

    assert judge(load.build()).nmis.proven_in_window == 0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("observer.gaps_ns.3", 1_500 * MS, id="starved"),
        pytest.param("timings.vcpus.0.waited_ns", 900 * MS, id="waited"),
        pytest.param("injections.sentinels.0.reply_ns", 0, id="not-acknowledged"),
        pytest.param("injections.sentinels", lambda old: old[:1], id="no-other-vcpu-has-one"),
        pytest.param("guest.ledger_after", (), id="no-ledger"),
        pytest.param("observer.records_lost", 1, id="records-lost"),
        pytest.param("ending", Ending.DEADLINE, id="not-complete"),
    ],
)
def test_a_vcpu_without_its_sentinel_is_accused_only_with_the_host_in_order(path: str, value: Any) -> None:
    deaf = Load().watch(0).build()

    assert delivered(deaf).finding is Finding.BROKEN
    # Whoever damages the list of sentinels leaves entries without a cause, which accuse for themselves.
    reasons = [proof.text for proof in delivered(change(deaf, path, value)).proofs]
    assert "vCPU 0 no longer takes NMIs after the load" not in reasons
    if path != "injections.sentinels":
        assert delivered(change(deaf, path, value)).finding is Finding.UNSEEN


def test_all_vcpus_without_their_sentinels_accuse_nobody() -> None:
    deaf = delivered(Load().watch(0, 1, 2, 3).build())

    assert deaf.finding is Finding.UNSEEN
    assert deaf.reason == "vCPU 0 took no NMI after the load"


def test_a_self_nmi_is_owed_before_the_loads_end_whatever_follows() -> None:
    load = Load().watch().add(RELEASE_AT_NS + MS, EventKind.SELF_NMI, 0)

    assert delivered(load.build()).reason == "the self-NMI of vCPU 0 was never entered before the load's end"


def test_a_sentinel_explains_one_ordinary_nmi_and_no_more() -> None:
    evidence = Load(sends=[]).watch().build()
    assert delivered(evidence).finding is Finding.HELD
    evidence = change(evidence, "guest.ledger_after.1.ordinary", lambda old: old + 1)
    evidence = change(evidence, "guest.ledger_after.1.consumed", lambda old: old - 1)

    assert delivered(evidence).reason == "CPU 1 handled 2 NMIs though only the lab's sentinel was sent to it"


def test_a_panicking_kernels_own_nmis_accuse_nobody() -> None:
    crash = Load(ending=Ending.PANIC).drop(EventKind.LOAD_END).drop(EventKind.RELEASE).drop(EventKind.WINDOW_CLOSE)
    for at_ms in (1, 2, 3):
        crash.add(RELEASE_AT_NS + at_ms * MS, EventKind.NMI_ENTRY, 1)
    starved = change(crash.build(), "observer.gaps_ns.2", 1_500 * MS)

    assert delivered(starved).finding is Finding.UNSEEN
    assert judge(starved).outcome is Outcome.INVALID


def test_an_ordinary_nmi_that_nobody_sent_breaks_delivery() -> None:
    """The mechanism's own self-NMI that came too late to be recognised."""
    evidence = Load(sends=[]).build()
    evidence = change(evidence, "guest.ledger_after.1.ordinary", lambda old: old + 1)
    evidence = change(evidence, "guest.ledger_after.1.consumed", lambda old: old - 1)

    assert delivered(evidence).reason == "CPU 1 handled 1 NMIs though none was sent to it"


def test_an_nmi_that_only_the_mechanism_took_was_not_serviced_and_this_is_not_required() -> None:
    load = Load(sends=[(-1, 4 * MS, 5 * MS)]).drop(EventKind.NMI_ENTRY)
    for vcpu in range(4):
        load.add(100_200 + 1_000 * vcpu, EventKind.NMI_ENTRY, vcpu)
        load.add(4 * MS + 500_000, EventKind.NMI_ENTRY, vcpu).add(4 * MS + 500_001, EventKind.WAIT_LOOP, vcpu)
    evidence = load.build()
    for vcpu in range(4):
        evidence = change(evidence, f"guest.ledger_after.{vcpu}.consumed", 5)
        evidence = change(evidence, f"guest.ledger_after.{vcpu}.ordinary", 7)
    serviced = next(one for one in judge(evidence).invariants if one.name == "nmis-serviced")

    assert serviced.finding is Finding.BROKEN
    assert not serviced.required


def tell_swallowed(*, entered: bool) -> Load:
    load = Load(sends=[(-1, 4 * MS, 5 * MS)]).drop(EventKind.NMI_ENTRY)
    for vcpu in range(4):
        load.add(100_200 + 1_000 * vcpu, EventKind.NMI_ENTRY, vcpu)
        if entered:
            load.add(4 * MS + 500_000, EventKind.NMI_ENTRY, vcpu).add(4 * MS + 500_001, EventKind.WAIT_LOOP, vcpu)
    return load.watch()


@pytest.mark.parametrize(("entered", "finding"), [(True, Finding.BROKEN), (False, Finding.UNSEEN)])
def test_a_sentinel_does_not_count_as_service_for_what_was_sent_before(*, entered: bool, finding: Finding) -> None:
    evidence = tell_swallowed(entered=entered).build()
    for vcpu in range(4) if entered else ():
        evidence = change(evidence, f"guest.ledger_after.{vcpu}.consumed", 5)
        evidence = change(evidence, f"guest.ledger_after.{vcpu}.ordinary", 8)

    assert next(one for one in judge(evidence).invariants if one.name == "nmis-serviced").finding is finding


def test_a_vcpu_without_a_sentinel_beside_others_with_one_is_unseen() -> None:
    deaf = Load().watch(3).build()
    assert deaf.injections is not None
    sentinels = tuple(sent for sent in deaf.injections.sentinels if sent.vcpu != 3)
    unasked = delivered(change(deaf, "injections.sentinels", sentinels))
    assert unasked.finding is Finding.UNSEEN
    assert unasked.reason == "no sentinel was sent to vCPU 3, though others got one"
