# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of each NMI: one entry takes one or several, and the books of each vCPU close or do not."""

import pytest
from evidence_builder import MS, Load, change
from test_judge_nmis import ONE_CORE, tell

from lab.judge import judge
from lab.model.evidence import EventKind, Evidence
from lab.model.scenario import Siblings
from lab.model.verdict import Handler, NmiAccount


def account(evidence: Evidence, vcpu: int = 0) -> NmiAccount:
    return next(each for each in judge(evidence).accounts if each.vcpu == vcpu)


def took(evidence: Evidence, vcpu: int = 0) -> list[tuple[str, ...]]:
    return [entry.took for entry in judge(evidence).entries if entry.vcpu == vcpu]


@pytest.mark.parametrize(
    ("sends", "entries", "selfs", "taken"),
    [
        pytest.param([(0, 3, 4)], [5], [], [("NMI 0",)], id="one"),
        pytest.param([(0, 3, 4), (0, 5, 6)], [7], [], [("NMI 0", "NMI 1")], id="two-merge"),
        pytest.param([(0, 3, 4), (0, 5, 6)], [4, 7], [], [("NMI 0",), ("NMI 1",)], id="two-entries"),
        # Any matching has three entries with a cause; which of the merged went where, only the times say.
        pytest.param(
            [(0, 3, 6), (0, 7, 8), (0, 9, 10), (0, 11, 12)],
            [5, 11, 13],
            [],
            [("NMI 0",), ("NMI 1", "NMI 2"), ("NMI 3",)],
            id="acknowledged-late",
        ),
        pytest.param([(0, 3, 4)], [5, 9], [], [("NMI 0",), ()], id="entry-without-cause"),
        pytest.param([], [3], [3], [("its self-NMI",)], id="self"),
        pytest.param([(0, 2, 3)], [4], [4], [("NMI 0", "its self-NMI")], id="self-merges-with-a-send"),
    ],
)
def test_each_entry_says_what_it_took(
    sends: list[tuple[int, int, int]], entries: list[int], selfs: list[int], taken: list[tuple[str, ...]]
) -> None:
    assert took(tell(sends, entries, selfs)) == taken


@pytest.mark.parametrize(
    ("sends", "entries", "selfs", "merged", "never", "unexplained", "closes"),
    [
        pytest.param([(0, 3, 4)], [5], [], 0, 0, 0, True, id="one"),
        pytest.param([(0, 3, 4), (0, 5, 6)], [7], [], 1, 0, 0, True, id="merged"),
        pytest.param([(0, 2, 3)], [4], [4], 1, 0, 0, True, id="merged-with-the-self-nmi"),
        pytest.param([(0, 3, 4)], [5, 9], [], 0, 0, 1, False, id="one-too-many"),
        pytest.param([(0, 3, 4)], [], [], 0, 1, 0, False, id="never-entered"),
    ],
)
def test_the_sum_closes_or_says_what_is_left(
    sends: list[tuple[int, int, int]],
    entries: list[int],
    selfs: list[int],
    merged: int,
    never: int,
    unexplained: int,
    closes: bool,
) -> None:
    found = account(tell(sends, entries, selfs))
    assert (found.merged, found.never, found.unexplained, found.closes) == (merged, never, unexplained, closes)
    assert (found.sent, found.self_nmis, found.entries) == (len(sends), len(selfs), len(entries))
    assert found.sent + found.self_nmis - merged - never + unexplained == found.entries


def test_a_guest_that_counts_otherwise_leaves_the_books_open() -> None:
    evidence = Load(topology=ONE_CORE).build()
    assert account(evidence).closes
    assert not account(change(evidence, "guest.ledger_after.0.ordinary", lambda old: old + 1)).closes


def test_who_handled_an_nmi_is_the_ledgers_word() -> None:
    verdict = judge(Load(topology=ONE_CORE).build())
    by = [(entry.took, entry.by) for entry in verdict.entries if entry.vcpu == 1]
    assert by == [(("its self-NMI",), Handler.MECHANISM), (("NMI 0", "NMI 1"), Handler.ORDINARY)]
    assert {landing.by for landing in verdict.landings} == {Handler.ORDINARY}


@pytest.mark.parametrize("more", [{"consumed": 1}, {"consumed": 1, "ordinary": -1}, {"dropped": 1, "ordinary": -1}])
def test_a_ledger_that_does_not_fit_says_nothing_of_who_handled_what(more: dict[str, int]) -> None:
    evidence = Load(topology=ONE_CORE).build()
    for field, by in more.items():
        evidence = change(evidence, f"guest.ledger_after.1.{field}", lambda old, by=by: old + by)
    assert {entry.by for entry in judge(evidence).entries if entry.vcpu == 1} == {None}


def test_what_an_offline_cpu_drops_is_handled_by_nobody() -> None:
    load = Load(topology=ONE_CORE, siblings=Siblings.OFFLINE, sends=[(1, 4 * MS, 5 * MS)])
    load.add(6 * MS, EventKind.NMI_ENTRY, 1)
    assert {entry.by for entry in judge(load.build()).entries if entry.vcpu == 1} == {Handler.DROPPED}


def test_a_landing_says_what_it_shared_its_entry_with() -> None:
    first, second = (each for each in judge(Load(topology=ONE_CORE).build()).landings if each.vcpu == 1)
    assert (first.shared_seq, first.shared_with, second.shared_with) == (0, ("NMI 1",), ("NMI 0",))
    assert second.entry_seq == 0
    assert second.shared_seq == first.entry_seq > 0


def test_ipis_are_told_from_the_labs_own() -> None:
    load = Load(mechanism="upstream", topology=ONE_CORE, siblings=Siblings.OFFLINE, sends=[(1, 4 * MS, 5 * MS)])
    found = account(load.build(), 1)
    assert (found.sent, found.self_nmis, found.ipis, found.entries) == (1, 0, 1, 2)
    assert took(load.build(), 1) == [("an NMI IPI",), ("NMI 0",)]


def test_lost_records_leave_no_books() -> None:
    verdict = judge(change(Load().build(), "observer.records_lost", 1))
    assert (verdict.accounts, verdict.entries) == ((), ())
