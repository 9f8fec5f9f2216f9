# SPDX-License-Identifier: GPL-2.0-or-later
"""Every WRMSR 0x79 of a trial is judged, on each kernel by what its own code does, and no more is let go."""

from collections.abc import Callable

import pytest
from evidence_builder import CALL_OUT_AT_NS, END_AT_NS, MS, RELEASE_AT_NS, WINDOW_AT_NS, Load, change, load_of_stock

from lab.judge import judge
from lab.model.evidence import EventKind, Evidence
from lab.model.scenario import Siblings
from lab.model.verdict import Finding, Invariant, Outcome

NAME = "one-update-per-core"
#: When siblings that were let go find the old revision, and write for themselves.
AGAIN_NS = RELEASE_AT_NS + 500_000
BEHIND_NS = END_AT_NS + 5 * MS


def find(evidence: Evidence) -> Invariant:
    return next(one for one in judge(evidence).invariants if one.name == NAME)


def again(mechanism: str = "stock-rendezvous", *retries: tuple[int, int]) -> Load:
    load = load_of_stock(mechanism)
    for at_ns, vcpu in retries:
        load.add(at_ns, EventKind.RETRY, vcpu)
    return load


@pytest.mark.parametrize("mechanism", ["stock-rendezvous", "stock-nmi"])
def test_a_core_that_was_written_once_is_seen_so_without_an_engine(mechanism: str) -> None:
    found = find(again(mechanism).build())
    assert (found.finding, found.required) == (Finding.HELD, True)
    assert found.reason == "each core executed WRMSR 0x79 once on 2 cores"


def test_a_kernel_before_6_7_has_its_siblings_try_again_once_they_were_let_go() -> None:
    verdict = judge(again("stock-rendezvous", (AGAIN_NS, 1), (AGAIN_NS + 1, 3)).build())
    found = next(one for one in verdict.invariants if one.name == NAME)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert "2 threads tried again as their kernel has them do" in found.reason


BREAKING: dict[str, tuple[Callable[[], Load], str]] = {
    "in-the-window": (lambda: again("stock-rendezvous", (WINDOW_AT_NS + MS, 1)), "while its core was being updated"),
    "before-its-release": (lambda: again("stock-rendezvous", (RELEASE_AT_NS - 1, 1)), "before it was let go"),
    "not-let-go-at-all": (
        lambda: again("stock-rendezvous", (AGAIN_NS, 1)).drop(EventKind.RELEASE, 1),
        "before it was let go",
    ),
    "beside-a-primary-that-checks-its-update": (
        lambda: again("stock-rendezvous", (CALL_OUT_AT_NS - 1, 1)).move(EventKind.RELEASE, 1, CALL_OUT_AT_NS - 2),
        "beside vCPU 0, which had not come to the exit rendezvous",
    ),
    "a-second-time": (lambda: again("stock-rendezvous", (AGAIN_NS, 1), (AGAIN_NS + 1, 1)), "again and again"),
    "by-the-primary": (lambda: again("stock-rendezvous", (AGAIN_NS, 0)), "it was the one that had updated its core"),
    "since-6.7": (lambda: again("stock-nmi", (AGAIN_NS, 1)), "vCPU 1 executed WRMSR 0x79 again"),
    "all-siblings-since-6.7": (lambda: again("stock-nmi", (AGAIN_NS, 1), (AGAIN_NS, 3)), "(and 1 more)"),
    "behind-the-load": (
        lambda: load_of_stock("stock-rendezvous").add(BEHIND_NS, EventKind.EARLY, 1, in_load=False),
        "vCPU 1 executed WRMSR 0x79 outside the late load",
    ),
    "before-the-load": (
        lambda: load_of_stock("stock-nmi").add(-MS, EventKind.EARLY, 0, in_load=False),
        "vCPU 0 executed WRMSR 0x79 outside the late load",
    ),
}


@pytest.mark.parametrize(("make", "told"), BREAKING.values(), ids=BREAKING)
def test_what_a_kernels_own_code_does_not_do_is_broken_without_an_engine(make: Callable[[], Load], told: str) -> None:
    evidence = make().build()
    found = find(evidence)
    assert (found.finding, judge(evidence).outcome) == (Finding.BROKEN, Outcome.FAIL)
    assert told in found.reason


#: What is wrong with these shows by the record alone, not by what did not come before it.
SURE = {"in-the-window", "since-6.7", "all-siblings-since-6.7", "behind-the-load", "before-the-load"}


@pytest.mark.parametrize("name", BREAKING)
def test_where_records_are_lost_nothing_follows_from_what_did_not_come_before(name: str) -> None:
    lost = change(BREAKING[name][0]().build(), "observer.records_lost", 1)
    assert find(lost).finding is (Finding.BROKEN if name in SURE else Finding.UNSEEN)


@pytest.mark.parametrize(
    ("mechanism", "vcpu", "at_ns", "finding"),
    [
        ("stock-rendezvous", 1, BEHIND_NS, Finding.HELD),
        ("stock-rendezvous", 0, BEHIND_NS, Finding.BROKEN),
        ("stock-rendezvous", 1, -MS, Finding.BROKEN),
        ("stock-nmi", 1, BEHIND_NS, Finding.BROKEN),
        ("upstream", 1, BEHIND_NS, Finding.BROKEN),
        ("stop-machine", 1, BEHIND_NS, Finding.BROKEN),
    ],
)
def test_a_thread_that_is_brought_back_writes_what_was_kept_before_6_7(
    mechanism: str, vcpu: int, at_ns: int, finding: Finding
) -> None:
    load = load_of_stock(mechanism, siblings=Siblings.RETURNING)
    assert find(load.add(at_ns, EventKind.EARLY, vcpu, in_load=False).build()).finding is finding
    # One that stayed online has no way to.
    online = load_of_stock(mechanism).add(at_ns, EventKind.EARLY, vcpu, in_load=False)
    assert find(online.build()).finding is Finding.BROKEN
