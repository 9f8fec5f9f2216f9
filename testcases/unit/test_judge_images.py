# SPDX-License-Identifier: GPL-2.0-or-later
"""Each WRMSR 0x79 is held against the bytes that the lab gave: another image, or a part of one, accuses the kernel."""

from typing import Any

import msgspec
import pytest
from evidence_builder import RELEASE_AT_NS, WINDOW_NS, Load, change, load_of_stock

from lab.judge import judge
from lab.model.evidence import EventKind, Evidence, Sees, Taken, UpdateSeen
from lab.model.verdict import Finding, Invariant, Outcome

NAME = "right-image"
GIVEN = 0x1234567890ABCDEF
STALE = 0xFEDCBA0987654321


def tell(load: Load) -> Evidence:
    """Build the evidence of an observer that read, for each record of an update, what the lab gave."""
    evidence = load.build()
    assert evidence.observer is not None
    updates = tuple(
        UpdateSeen(
            seq=event.seq,
            vcpu=event.vcpu,
            operand=0xFFFF888000541030,
            digest=GIVEN,
            revision=2,
            signature=0x50654,
            platforms=1,
            total_size=2048,
            taken=Taken.DONE,
            before=1,
            after=2,
        )
        for event in evidence.observer.events
        if event.kind is EventKind.UPDATE
    )
    seen = msgspec.structs.replace(evidence.observer, updates=updates, sees=(Sees.REGISTERS, Sees.UPDATES), interface=4)
    return change(change(evidence, "observer", seen), "guest.target_digest", GIVEN)


def whole() -> Load:
    load = Load(mechanism="upstream")
    for core, vcpu in enumerate(load.topology.primaries):
        load.add(load.open_ns(core) + WINDOW_NS - 1_000, EventKind.UPDATE, vcpu)
    return load


def find(evidence: Evidence) -> Invariant:
    return next(one for one in judge(evidence).invariants if one.name == NAME)


def test_the_image_that_was_given_is_held_and_required() -> None:
    verdict = judge(tell(whole()))
    found = next(one for one in verdict.invariants if one.name == NAME)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert (found.finding, found.required) == (Finding.HELD, True)
    assert found.reason == "each of 2 WRMSR 0x79 named the whole update that the guest was given"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"digest": STALE, "revision": 1}, "named an update to 0x1 of 2048 bytes at 0xffff888000541030"),
        ({"digest": STALE, "total_size": 1024}, "of 1024 bytes"),
        ({"digest": 0, "taken": Taken.UNREADABLE}, "where there is no whole update in memory"),
        ({"digest": 0, "taken": Taken.MALFORMED}, "which no header of an update is in front of"),
    ],
    ids=["stale", "short", "freed", "header-in-place-of-data"],
)
def test_any_other_accuses_the_kernel(fields: dict[str, Any], told: str) -> None:
    evidence = tell(whole())
    wrong = change(evidence, "observer.updates.1", lambda old: msgspec.structs.replace(old, **fields))
    verdict = judge(wrong)
    assert verdict.outcome is Outcome.FAIL
    assert find(wrong).finding is Finding.BROKEN
    assert told in find(wrong).proofs[0].text
    assert find(wrong).proofs[0].vcpu == evidence.observer.updates[1].vcpu if evidence.observer else False


def test_a_write_of_a_thread_that_tries_again_counts_too() -> None:
    load = load_of_stock("stock-rendezvous")
    for core, vcpu in enumerate(load.topology.primaries):
        load.add(load.open_ns(core) + WINDOW_NS - 1_000, EventKind.UPDATE, vcpu)
    load.add(RELEASE_AT_NS + 500_000, EventKind.RETRY, 1)
    load.add(RELEASE_AT_NS + 500_100, EventKind.UPDATE, 1)
    evidence = tell(load)
    assert find(evidence).finding is Finding.HELD
    assert find(change(evidence, "observer.updates.2.digest", STALE)).finding is Finding.BROKEN


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("guest.target_digest", None, "which update the guest was given is not known"),
        ("observer.updates", lambda old: old[:1], "what a WRMSR 0x79 named was not kept"),
        ("observer.records_lost", 1, "the observer lost 1 records"),
    ],
)
def test_what_is_missing_is_no_pass(path: str, value: Any, told: str) -> None:
    evidence = change(tell(whole()), path, value)
    assert (find(evidence).finding, find(evidence).required) == (Finding.UNSEEN, True)
    assert told in find(evidence).reason
    assert judge(evidence).outcome is Outcome.INVALID


def test_a_write_whose_image_nobody_read_is_no_pass() -> None:
    evidence = tell(whole().drop(EventKind.UPDATE, 2))
    assert find(evidence).reason == "vCPU 2 executed WRMSR 0x79 1 times, and what it named was read 0 times"


@pytest.mark.parametrize("also", ["", "observer.updates"])
def test_an_observer_that_forgot_what_it_sees_still_accuses(also: str) -> None:
    """What its records show counts, whatever it says of itself."""
    wrong = change(tell(whole()), "observer.updates.0.digest", STALE)
    assert judge(wrong).outcome is Outcome.FAIL
    silent = change(wrong, "observer.sees", ())
    if not also:
        assert judge(silent).outcome is Outcome.FAIL
    assert judge(change(silent, also or "observer.sees", ())).outcome is not Outcome.PASS


def test_where_guest_memory_is_not_seen_nothing_is_required() -> None:
    evidence = Load(mechanism="upstream").build()
    found = find(evidence)
    assert (found.finding, found.required) == (Finding.UNSEEN, False)
    assert "plugin interface 4 is the least" in found.reason
