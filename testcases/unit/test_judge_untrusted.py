# SPDX-License-Identifier: GPL-2.0-or-later
"""A witness that is known to be wrong accuses nobody, and each cause is told once, by its name."""

import io
from typing import Any

import pytest
from evidence_builder import RELEASE_AT_NS, WINDOW_AT_NS, Load, change
from rich.console import Console

from lab.cli.present import describe_trial, make_trial_view
from lab.judge import judge
from lab.judge.judging import INVARIANTS
from lab.model.evidence import Ending, EventKind, Evidence, Match
from lab.model.verdict import Finding, Outcome
from lab.trial.record import make_record

MINE, OTHER = "1" * 40, "2" * 40


def tell_broken() -> Evidence:
    """Break what the observer sees of siblings, and what the guest alone tells."""
    load = Load().add(WINDOW_AT_NS + 1_000_000, EventKind.OUTSIDE, 1).add(RELEASE_AT_NS + 1, EventKind.NMI_ENTRY, 2)
    return change(load.build(), "guest.revisions_after.3", 1)


def match(evidence: Evidence, of_vmlinux: str, of_guest: str) -> Evidence:
    return change(change(evidence, "images.build_id", of_vmlinux), "images.guest_build_id", of_guest)


def swap(evidence: Evidence) -> Evidence:
    """Let the guest say that the other thread of core 0 updated it."""
    evidence = change(evidence, "guest.state.cpus.1.update_begin_tsc", 1)
    return change(evidence, "guest.state.cpus.0.update_begin_tsc", 0)


UNTRUSTED: list[tuple[str, Any, str]] = [
    ("landmarks", lambda one: change(one, "observer.points_wrong", 2), "at 2 of their addresses"),
    ("threads", swap, "the rendezvous state says CPU 1"),
    ("build", lambda one: match(one, MINE, OTHER), "the guest runs build 222222222222"),
]


@pytest.mark.parametrize(("spoil", "told"), [pytest.param(*rest, id=name) for name, *rest in UNTRUSTED])
def test_nothing_proves_anything_once_a_witness_is_untrusted(spoil: Any, told: str) -> None:
    assert judge(tell_broken()).outcome is Outcome.FAIL
    verdict = judge(spoil(tell_broken()))

    assert verdict.outcome is Outcome.INVALID
    assert told in verdict.reason
    assert {one.name for one in verdict.invariants if one.finding is Finding.UNSEEN} == set(INVARIANTS)
    assert not any(one.proofs for one in verdict.invariants)


def test_what_is_only_lost_lets_proofs_stand() -> None:
    assert judge(change(tell_broken(), "observer.records_lost", 1)).outcome is Outcome.FAIL


MATCHES: list[tuple[str, Any, str]] = [
    ("guest", lambda one: match(one, MINE, MINE), "vmlinux matched by the build id read in the guest"),
    ("built", lambda one: one, "vmlinux matched by being built with the kernel, before boot"),
    ("files", lambda one: change(one, "images.match", Match.BUILD_ID), "vmlinux matched by build id, before boot"),
    ("version", lambda one: change(one, "images.match", Match.VERSION), "vmlinux matched by version only, before boot"),
    ("no-guest-id", lambda one: match(one, MINE, ""), "vmlinux matched by being built with the kernel, before boot"),
    ("none", lambda one: change(one, "images", None), "no guest was booted"),
]
OUTCOMES: list[Any] = [
    Load().build(),
    tell_broken(),
    change(Load().build(), "observer.points_wrong", 1),
    change(Load().build(), "ending", Ending.LAB),
]


@pytest.mark.parametrize(("prepare", "told"), [pytest.param(*rest, id=name) for name, *rest in MATCHES])
@pytest.mark.parametrize("evidence", OUTCOMES, ids=["pass", "fail", "invalid", "error"])
def test_each_verdict_says_how_its_landmarks_were_matched(evidence: Evidence, prepare: Any, told: str) -> None:
    prepared = prepare(evidence)
    verdict = judge(prepared)
    record = make_record(1, prepared, verdict, "somewhere")

    assert verdict.matched == told
    assert describe_trial(verdict, record)["matched"] == told
    shown = io.StringIO()
    Console(file=shown, width=200).print(make_trial_view(verdict, record))
    assert told in shown.getvalue()


def test_a_record_has_the_best_match_there_is() -> None:
    evidence = match(Load().build(), MINE, MINE)

    assert make_record(1, evidence, judge(evidence), "somewhere").match is Match.GUEST


def test_a_pass_by_version_alone_says_so_unless_the_guest_told() -> None:
    by_version = change(Load().build(), "images.match", Match.VERSION)

    assert "told by its version only" in judge(by_version).reason
    assert "told by its version only" not in judge(match(by_version, MINE, MINE)).reason


def test_a_lab_that_failed_before_the_load_is_told_once() -> None:
    evidence = change(change(Load().build(), "observer", None), "ending", Ending.LAB)
    verdict = judge(change(evidence, "reason", "the guest's shell broke"))

    assert verdict.outcome is Outcome.ERROR
    assert verdict.reason == "the lab failed: the guest's shell broke"
    assert {one.reason for one in verdict.invariants} == {"the lab failed before the load"}
