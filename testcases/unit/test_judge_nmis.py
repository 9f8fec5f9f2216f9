# SPDX-License-Identifier: GPL-2.0-or-later
"""The pending-bit model: every entry needs a cause, every cause an entry, and several causes may merge."""

import pytest
from evidence_builder import END_AT_NS, FIRST_SEQ, MS, RELEASE_AT_NS, Load, change

from lab.judge import judge
from lab.judge.facts import find_facts
from lab.judge.nmis import VcpuNmis, explain
from lab.spec.evidence import EventKind, Evidence
from lab.spec.mechanism import find_mechanism
from lab.spec.topology import Topology
from lab.spec.verdict import Finding, Invariant

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


def test_lost_and_spurious_nmis_are_named() -> None:
    lost = delivered(tell([(0, 3, 4), (0, 15, 15)], [5], []))
    assert lost.finding is Finding.BROKEN
    assert lost.reason == "NMI 1 to vCPU 0 was acknowledged and never entered"

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


def test_a_lost_nmi_needs_the_ledger_and_a_whole_trial() -> None:
    lost = tell([(0, 3, 4), (0, 15, 15)], [5], [])

    assert delivered(lost).finding is Finding.BROKEN
    assert delivered(change(lost, "guest.ledger_after", ())).finding is Finding.UNSEEN
    assert delivered(change(lost, "injections.sent.1.reply_ns", 0)).finding is Finding.UNSEEN
    assert delivered(change(lost, "oracle.records_lost", 1)).finding is Finding.UNSEEN


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
