# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel with nothing of ours inside, whose updates the observer takes, refuses, or takes in part."""

from typing import Any

import msgspec
import pytest
from evidence_builder import Load, change, load_of_stock

from lab.judge import judge
from lab.judge.finding import NEEDS_ENGINE
from lab.mechanisms.base import find_base
from lab.model.engine import Engine
from lab.model.evidence import Evidence, Sees, Taken, UpdateSeen
from lab.model.verdict import Finding, Outcome, Verdict

FAILED = "microcode: update failed: 4 CPUs failed 0 CPUs timed out"
PARTLY = (
    "microcode: load: updated on 1 primary CPUs with 1 siblings",
    "microcode: load incomplete. 2 CPUs timed out or failed",
    "microcode: revision: 0x1 -> 0x2",
)


UPDATE = UpdateSeen(
    seq=1,
    vcpu=0,
    operand=0xFFFF888000541030,
    digest=1,
    revision=2,
    signature=0x50654,
    platforms=1,
    total_size=2048,
    taken=Taken.DONE,
    before=1,
    after=2,
)


def build(engine: Engine, *, after: tuple[int, ...], errno: int, said: tuple[str, ...], repeat: int = -1) -> Evidence:
    evidence = load_of_stock("stock-nmi").build()
    evidence = change(evidence, "scenario.engine", engine)
    evidence = change(evidence, "observer.sees", (Sees.REGISTERS, Sees.ENGINE))
    evidence = change(evidence, "guest.revisions_after", after)
    evidence = change(evidence, "guest.load_errno", errno)
    evidence = change(evidence, "guest.repeat_errno", repeat)
    return change(evidence, "guest.dmesg", lambda old: (*old[:-1], *said))


def refused(engine: Engine = Engine.REFUSES) -> Evidence:
    return build(engine, after=(1, 1, 1, 1), errno=5, said=(FAILED,))


def partly() -> Evidence:
    return build(Engine.ONE_CORE, after=(2, 2, 1, 1), errno=5, said=PARTLY)


def find(verdict: Verdict, name: str) -> tuple[Finding, bool]:
    return next((one.finding, one.required) for one in verdict.invariants if one.name == name)


def test_an_update_that_the_observer_took_gives_a_whole_verdict() -> None:
    said = ("microcode: load: updated on 2 primary CPUs with 2 siblings", "microcode: revision: 0x1 -> 0x2")
    verdict = judge(build(Engine.TAKES, after=(2, 2, 2, 2), errno=0, said=said, repeat=2))
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert "engine" not in verdict.reason
    for name in NEEDS_ENGINE:
        assert find(verdict, name) == (Finding.HELD, True)


CHANGED = "x86/CPU: CPU features have changed after loading microcode, but might not take effect."


def test_a_kernel_has_to_warn_of_features_that_an_update_changes_and_of_no_others() -> None:
    said = ("microcode: load: updated on 2 primary CPUs with 2 siblings", "microcode: revision: 0x1 -> 0x2")
    loud = build(Engine.CPUID_CHANGES, after=(2, 2, 2, 2), errno=0, said=(*said, CHANGED), repeat=2)
    assert judge(loud).outcome is Outcome.PASS, judge(loud).reason
    silent = build(Engine.CPUID_CHANGES, after=(2, 2, 2, 2), errno=0, said=said, repeat=2)
    assert judge(silent).reason.startswith("errno-and-messages broken: the kernel did not warn")
    missed = change(silent, "observer.cpuid_missed", 1)
    assert judge(missed).outcome is Outcome.INVALID
    assert find(judge(missed), "errno-and-messages") == (Finding.UNSEEN, True)
    wrong = build(Engine.TAKES, after=(2, 2, 2, 2), errno=0, said=(*said, CHANGED), repeat=2)
    assert "and none has changed" in judge(wrong).reason


def test_without_it_the_same_kernel_shows_no_more_than_before() -> None:
    verdict = judge(load_of_stock("stock-nmi").build())
    assert verdict.outcome is Outcome.PASS
    for name in NEEDS_ENGINE:
        assert find(verdict, name) == (Finding.UNSEEN, False)


@pytest.mark.parametrize("engine", [Engine.REFUSES, Engine.FAULTS, Engine.OTHER_REVISION])
def test_a_kernel_that_reports_the_refusal_and_claims_nothing_is_right(engine: Engine) -> None:
    verdict = judge(refused(engine))
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert find(verdict, "errno-and-messages") == (Finding.HELD, True)
    assert find(verdict, "new-revision-everywhere") == (Finding.HELD, True)
    assert find(verdict, "load-repeatable") == (Finding.UNSEEN, False)


def test_an_observer_that_answered_for_an_update_is_an_engine_whatever_it_says() -> None:
    load = load_of_stock("stock-nmi")
    evidence = change(load.build(), "observer.updates", (UPDATE,))
    assert find(judge(evidence), "new-revision-everywhere")[1]
    looked = msgspec.structs.replace(UPDATE, taken=Taken.UNASKED)
    assert not find(judge(change(evidence, "observer.updates", (looked,))), "new-revision-everywhere")[1]


def test_an_emulator_that_ignores_the_update_refuses_it() -> None:
    evidence = change(refused(), "observer.sees", ())
    assert judge(evidence).outcome is Outcome.PASS
    assert find(judge(evidence), "errno-and-messages") == (Finding.HELD, True)


def test_an_update_on_one_core_is_told_as_such() -> None:
    verdict = judge(partly())
    assert verdict.outcome is Outcome.PASS, verdict.reason


@pytest.mark.parametrize(
    ("evidence", "path", "value", "name", "told"),
    [
        (refused(), "guest.load_errno", 0, "errno-and-messages", "succeeded, though the engine refused the update"),
        (refused(), "guest.load_errno", 2, "errno-and-messages", "failed with errno 2 instead of 5"),
        (refused(), "guest.dmesg", lambda old: old[:-1], "errno-and-messages", "did not say that the load failed"),
        (
            refused(),
            "guest.dmesg",
            lambda old: (*old, "microcode: revision: 0x1 -> 0x2"),
            "errno-and-messages",
            "said 'microcode: revision: 0x1 -> 0x2', though",
        ),
        (refused(), "guest.revisions_after.3", 2, "new-revision-everywhere", "revision 0x2 instead of 0x1"),
        (refused(Engine.FAULTS), "guest.load_errno", 0, "errno-and-messages", "raised #GP"),
        (partly(), "guest.revisions_after.2", 2, "new-revision-everywhere", "CPU 2 ended with revision 0x2 instead"),
        (partly(), "guest.revisions_after.1", 1, "new-revision-everywhere", "CPU 1 ended with revision 0x1 instead"),
        (
            partly(),
            "guest.dmesg",
            lambda old: tuple(line.replace("on 1 primary", "on 2 primary") for line in old),
            "errno-and-messages",
            "for 1 and 1",
        ),
    ],
)
def test_a_kernel_that_tells_another_story_is_accused(
    evidence: Evidence, path: str, value: Any, name: str, told: str
) -> None:
    verdict = judge(change(evidence, path, value))
    found = next(one for one in verdict.invariants if one.name == name)
    assert verdict.outcome is Outcome.FAIL
    assert found.finding is Finding.BROKEN
    assert told in " ".join(proof.text for proof in found.proofs)


def test_a_fault_may_be_told_of_and_nothing_else() -> None:
    line = "unchecked MSR access error: WRMSR to 0x79 (tried to write 0xffff888000541030) at rIP: 0xffffffff810356c5"
    added = change(refused(Engine.FAULTS), "guest.dmesg", lambda old: (*old[:-1], line, old[-1]))
    assert judge(added).outcome is Outcome.PASS, judge(added).reason
    other = change(added, "guest.dmesg", lambda old: tuple(each.replace("0x79", "0x8b") for each in old))
    assert find(judge(other), "dmesg-clean") == (Finding.BROKEN, True)
    assert find(judge(change(added, "scenario.engine", Engine.REFUSES)), "dmesg-clean")[0] is Finding.BROKEN


def test_each_kernel_has_an_errno_for_failure() -> None:
    assert (find_base("stock-since-6.7").failed_errno, find_base("stock-before-6.7").failed_errno) == (5, 1)
    old = change(Load(mechanism="nmi-self").build(), "scenario.engine", Engine.REFUSES)
    assert isinstance(old, msgspec.Struct)
    assert judge(old).outcome is Outcome.FAIL
