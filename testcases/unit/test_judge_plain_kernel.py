# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel without witnesses of ours: what cannot be seen is not required, and nothing else is let go."""

from collections.abc import Callable
from typing import Any

import pytest
from evidence_builder import END_AT_NS, MS, RELEASE_AT_NS, WINDOW_AT_NS, Load, change, load_of_stock

from lab.judge import judge
from lab.judge.dmesg import WORDS
from lab.judge.judging import list_accused
from lab.mechanisms.base import BASES, STOCK_BASES
from lab.mechanisms.table import MECHANISMS, STOCK_MECHANISMS
from lab.model.evidence import EventKind, Evidence, Hazard, Match
from lab.model.verdict import Finding, Outcome

UHHUH = "Uhhuh. NMI received for unknown reason 2c on CPU {}."
DAZED = "Dazed and confused, but trying to continue"


def build(**fields: Any) -> Evidence:
    return Load(mechanism="upstream", **fields).build()


def changed(*changes: tuple[str, Any]) -> Evidence:
    evidence = build()
    for path, value in changes:
        evidence = change(evidence, path, value)
    return evidence


def finding(evidence: Evidence, name: str) -> Finding:
    return next(one.finding for one in judge(evidence).invariants if one.name == name)


def test_each_kernel_has_its_words_and_each_mechanism_its_kernel() -> None:
    assert {base.loader for base in (*BASES, *STOCK_BASES)} == set(WORDS)
    assert {mechanism.base for mechanism in MECHANISMS} == {base.name for base in BASES}
    assert {mechanism.base for mechanism in STOCK_MECHANISMS} == {base.name for base in STOCK_BASES}


def test_a_clean_load_passes_with_what_can_be_seen() -> None:
    verdict = judge(build())
    found = {one.name: one for one in verdict.invariants}

    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert [one.name for one in verdict.invariants if one.finding is not Finding.HELD] == [
        "right-image",
        "counters-settled",
        "offline-siblings-return",
        "nmis-passed-on",
        "nmis-serviced",
    ]
    assert not found["counters-settled"].required
    assert "/proc/interrupts and revisions" in found["witnesses-agree"].reason
    assert (verdict.nmis.entries, verdict.nmis.handled) == (8, 4)
    assert verdict.durations.tsc_offset_cycles is None
    assert verdict.durations.guest_waits_us == ()


@pytest.mark.parametrize(
    ("path", "value", "outcome", "told"),
    [
        ("observer", None, Outcome.INVALID, "the observer"),
        ("injections", None, Outcome.INVALID, "the injection log"),
        ("guest", None, Outcome.INVALID, "the guest's evidence"),
        ("guest.nmis_after", (), Outcome.INVALID, "/proc/interrupts"),
        ("guest.nmis_after.1", 99, Outcome.INVALID, "witnesses-agree"),
        ("guest.revisions_after", (), Outcome.INVALID, "sysfs"),
        ("guest.revisions_after.3", 1, Outcome.FAIL, "new-revision-everywhere"),
        ("guest.repeat_errno", 0, Outcome.FAIL, "load-repeatable"),
        ("guest.repeat_errno", 5, Outcome.FAIL, "instead of 2"),
        ("guest.repeat_errno", -1, Outcome.INVALID, "did not return"),
        ("guest.load_errno", 5, Outcome.FAIL, "errno-and-messages"),
        ("guest.dmesg", (), Outcome.INVALID, "log does not show"),
        ("guest.dmesg", lambda old: old[:-1], Outcome.FAIL, "did not say so"),
        ("images.kernel_release", "6.1.170", Outcome.INVALID, "instead of linux-6.12"),
    ],
)
def test_one_witness_silent_or_another_story_is_no_pass(path: str, value: Any, outcome: Outcome, told: str) -> None:
    verdict = judge(change(build(), path, value))

    assert verdict.outcome is outcome
    assert told in verdict.reason


BREAKING: list[tuple[str, Callable[[], Evidence], str]] = [
    ("outside", lambda: _added(EventKind.OUTSIDE, WINDOW_AT_NS + MS, 1), "quiet"),
    ("hazard", lambda: _added(EventKind.HAZARD, WINDOW_AT_NS + MS, 1, hazard=Hazard.IRET), "harmless"),
    ("let-go", lambda: _added(EventKind.RELEASE, WINDOW_AT_NS + MS, 1), "released-after-update"),
    ("nobody-sent-it", lambda: _added(EventKind.NMI_ENTRY, END_AT_NS + MS, 0), "nmis-delivered"),
    ("self-nmi-lost", lambda: _added(EventKind.SELF_NMI, RELEASE_AT_NS + MS, 0), "nmis-delivered"),
    ("timeout", lambda: _said("microcode: load: 1 CPUs timed out"), "dmesg-clean"),
    ("failed", lambda: _said("microcode: update failed: 1 CPUs failed 0 CPUs timed out"), "errno-and-messages"),
    ("warning", lambda: _said("WARNING: CPU: 0 PID: 1 at kernel/x.c:1 y+0x1/0x2"), "dmesg-clean"),
    ("words-of-another", lambda: _said("microcode: load: updated on 1 primary CPUs with 3 siblings"), "errno-and-"),
]


def _added(kind: EventKind, at_ns: int, vcpu: int, **fields: Any) -> Evidence:
    return Load(mechanism="upstream").add(at_ns, kind, vcpu, **fields).build()


def _said(*lines: str) -> Evidence:
    return changed(("guest.dmesg", lambda old: (*old, *lines)))


@pytest.mark.parametrize(("make", "name"), [case[1:] for case in BREAKING], ids=[case[0] for case in BREAKING])
def test_what_is_seen_broken_fails(make: Callable[[], Evidence], name: str) -> None:
    verdict = judge(make())

    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith(name)


def test_an_unknown_nmi_may_be_told_of_once_per_entry_that_the_mechanism_left() -> None:
    assert finding(build(), "dmesg-clean") is Finding.HELD
    # Ratelimited: fewer are no wonder.
    assert finding(changed(("guest.dmesg", lambda old: (*old[:2], *old[-2:]))), "dmesg-clean") is Finding.HELD
    assert finding(_said(UHHUH.format(0)), "dmesg-clean") is Finding.BROKEN
    assert finding(_said(UHHUH.format(77)), "dmesg-clean") is Finding.BROKEN
    assert finding(_said(DAZED), "dmesg-clean") is Finding.BROKEN
    none_sent = Load(mechanism="upstream", sends=[]).build()
    assert finding(none_sent, "dmesg-clean") is Finding.HELD
    assert (
        finding(change(none_sent, "guest.dmesg", lambda old: (*old, UHHUH.format(1))), "dmesg-clean") is Finding.BROKEN
    )


def test_with_records_lost_nobody_can_say_which_nmis_were_known() -> None:
    assert finding(changed(("observer.records_lost", 1)), "dmesg-clean") is Finding.UNSEEN
    loud = change(_said("WARNING: CPU: 0 PID: 1 at x"), "observer.records_lost", 1)
    assert finding(loud, "dmesg-clean") is Finding.BROKEN


def test_a_kernel_with_a_ledger_knows_all_nmis() -> None:
    evidence = change(Load().build(), "guest.dmesg", lambda old: (*old, UHHUH.format(1), DAZED))
    assert finding(evidence, "dmesg-clean") is Finding.BROKEN


def test_a_core_updated_behind_the_observers_back_is_a_disagreement() -> None:
    load = Load(mechanism="upstream").drop(EventKind.WINDOW_OPEN, 2).drop(EventKind.WINDOW_CLOSE, 2)
    load.drop(EventKind.IN_FLIGHT, 3)
    verdict = judge(load.build())

    assert verdict.outcome is Outcome.INVALID
    assert "the observer saw no WRMSR 0x79 on its core" in verdict.reason


def test_a_self_nmi_that_a_real_one_forestalled_is_an_ordinary_one() -> None:
    """A real NMI between the call that sends the self-NMI and its write to the APIC starts the rendezvous."""
    evidence = Load(mechanism="upstream", sends=[(1, 0, 50_000)]).build()
    assert evidence.observer is not None
    entries = [event.seq for event in evidence.observer.events if (event.kind, event.vcpu) == (EventKind.NMI_ENTRY, 1)]

    assert len(entries) == 2  # the real one, and the mechanism's own after the release
    assert finding(evidence, "nmis-delivered") is Finding.HELD
    assert finding(evidence, "dmesg-clean") is Finding.HELD
    assert judge(evidence).outcome is Outcome.INVALID  # none was pending in a window


NOT_REQUIRED = {"errno-and-messages", "load-repeatable", "new-revision-everywhere"}


@pytest.mark.parametrize("mechanism", [each.name for each in STOCK_MECHANISMS])
def test_a_kernel_without_engine_passes_with_its_reservations(mechanism: str) -> None:
    verdict = judge(load_of_stock(mechanism).build())
    found = {one.name: one for one in verdict.invariants}

    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert "no engine" in verdict.reason
    assert all(name in verdict.reason for name in NOT_REQUIRED)
    assert {one.name for one in verdict.invariants if "no engine" in one.reason} == NOT_REQUIRED
    assert {found[name].finding for name in NOT_REQUIRED} == {Finding.UNSEEN}
    assert not any(found[name].required for name in NOT_REQUIRED)
    assert "its version only" not in verdict.reason
    by_version = change(load_of_stock(mechanism).build(), "images.match", Match.VERSION)
    assert "its version only" in judge(by_version).reason


@pytest.mark.parametrize("mechanism", [each.name for each in STOCK_MECHANISMS])
@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda load: load.add(WINDOW_AT_NS + MS, EventKind.OUTSIDE, 1), "quiet"),
        (lambda load: load.add(WINDOW_AT_NS + MS, EventKind.HAZARD, 1, hazard=Hazard.IRET), "harmless"),
        (lambda load: load.add(WINDOW_AT_NS + MS, EventKind.RELEASE, 1), "released-after-update"),
        (lambda load: load.move(EventKind.CALL_IN, 1, WINDOW_AT_NS + MS), "all-waiting-before-update"),
        (lambda load: load.add(END_AT_NS + MS, EventKind.NMI_ENTRY, 0), "nmis-delivered"),
    ],
)
def test_a_kernel_without_engine_is_accused_of_all_else(
    mechanism: str, spoil: Callable[[Load], Load], name: str
) -> None:
    verdict = judge(spoil(load_of_stock(mechanism)).build())

    assert verdict.outcome is Outcome.FAIL
    # Of an NMI that it does not know a kernel complains, too.
    assert next(one for one in list_accused(verdict) if one != "dmesg-clean") == name


def test_an_ordinary_nmi_before_the_call_in_is_nobodys_own() -> None:
    """Where nobody waits in the NMI handler, an NMI just before the call-in is an unknown one, and told of as such."""
    load = load_of_stock("stock-rendezvous").add(50_000, EventKind.NMI_ENTRY, 1)
    load.sends.append((1, 40_000, 45_000))
    evidence = load.build()

    assert evidence.guest is not None
    assert sum("Uhhuh" in line and line.endswith("CPU 1.") for line in evidence.guest.dmesg) == 1
    assert finding(evidence, "dmesg-clean") is Finding.HELD


def test_older_kernels_ask_about_power_saving_once_per_nmi() -> None:
    asked = "Do you have a strange power saving mode enabled?"
    evidence = load_of_stock("stock-rendezvous").build()
    two = change(evidence, "guest.dmesg", lambda old: (*old, *[asked] * 2))
    assert finding(two, "dmesg-clean") is Finding.HELD
    assert finding(change(two, "guest.dmesg", lambda old: (*old, asked)), "dmesg-clean") is Finding.BROKEN


def test_complaints_of_the_last_trials_nmis_that_come_late_are_not_held_against_this_one() -> None:
    late = (UHHUH.format(2), DAZED)
    assert judge(changed(("guest.dmesg_before", late))).outcome is Outcome.PASS
    real = (*late, "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [sh:60]")
    assert judge(changed(("guest.dmesg_before", real))).outcome is Outcome.INVALID
    assert judge(change(Load().build(), "guest.dmesg_before", late)).outcome is Outcome.INVALID


def test_an_nmi_that_the_kernel_sent_itself_and_does_not_know_is_a_complaint() -> None:
    load = Load(mechanism="upstream", sends=[])
    for kind in (EventKind.CALL_IN, EventKind.WAIT_LOOP, EventKind.RELEASE):
        load.drop(kind, 1)
    evidence = load.build()
    said = change(evidence, "guest.dmesg", lambda old: (*old, UHHUH.format(1), DAZED))

    assert finding(evidence, "dmesg-clean") is Finding.HELD
    assert finding(said, "dmesg-clean") is Finding.BROKEN


@pytest.mark.parametrize(
    ("mechanism", "first", "found"),
    [
        ("stock-rendezvous", ("[   12.099999][  T123] microcode-nmi-lab: a load begins",), Finding.HELD),
        ("stock-rendezvous", (), Finding.UNSEEN),
        ("stock-rendezvous", ("[   12.099999] it said microcode-nmi-lab: a load begins",), Finding.UNSEEN),
        # Since 6.7 every kernel says something itself.
        ("stock-nmi", ("[   12.099999][  T123] microcode-nmi-lab: a load begins",), Finding.UNSEEN),
    ],
)
def test_the_labs_mark_begins_the_log_of_a_kernel_that_says_nothing(
    mechanism: str, first: tuple[str, ...], found: Finding
) -> None:
    """As 5.10 does: its first line of a load is the last."""
    evidence = load_of_stock(mechanism).build()
    assert evidence.guest is not None
    silent = judge(change(evidence, "guest.dmesg", (*first, *evidence.guest.dmesg[2:])))
    (covered,) = (one for one in silent.invariants if one.name == "dmesg-clean")
    assert covered.finding is found
