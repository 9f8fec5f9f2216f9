# SPDX-License-Identifier: GPL-2.0-or-later
"""A window is that of an update only where it closes behind its WRMSR, or at the entry of an NMI that came there."""

from collections.abc import Callable

import pytest
from evidence_builder import AFTER_WRMSR_PC, MS, WINDOW_AT_NS, WINDOW_NS, WRMSR_PC, Load

from lab.judge import judge
from lab.model.evidence import EventKind, Hazard
from lab.model.verdict import Finding, Outcome, Verdict

CLOSE_NS = WINDOW_AT_NS + WINDOW_NS
ENTRY_PC = 0xFFFFFFFF81A00000
#: A CPUID, a three-byte instruction, a jump, and a block that happens to lie before it.
ELSEWHERE = (WRMSR_PC, WRMSR_PC + 1, WRMSR_PC + 3, WRMSR_PC + 0x40, WRMSR_PC - 2)


def close_at(load: Load, pc: int, kind: EventKind = EventKind.WINDOW_CLOSE, vcpu: int = 0) -> Load:
    for step in load.steps:
        if step.kind is kind and step.vcpu == vcpu:
            step.pc = pc
    return load


def find(verdict: Verdict, name: str) -> Finding:
    return next(one.finding for one in verdict.invariants if one.name == name)


def test_it_closes_behind_its_wrmsr() -> None:
    assert judge(close_at(Load(), AFTER_WRMSR_PC).build()).outcome is Outcome.PASS


@pytest.mark.parametrize("pc", ELSEWHERE)
@pytest.mark.parametrize("vcpu", [0, 2])
def test_a_close_elsewhere_shows_nothing(pc: int, vcpu: int) -> None:
    verdict = judge(close_at(Load(), pc, vcpu=vcpu).build())

    assert verdict.outcome is Outcome.INVALID
    assert f"opened at {WRMSR_PC:#x} and closed at {pc:#x}" in verdict.reason
    assert find(verdict, "quiet") is Finding.UNSEEN


@pytest.mark.parametrize(
    "add",
    [
        lambda load: load.add(WINDOW_AT_NS + MS, EventKind.OUTSIDE, 1),
        lambda load: load.add(WINDOW_AT_NS + MS, EventKind.HAZARD, 1, hazard=Hazard.IRET),
        lambda load: load.add(WINDOW_AT_NS + MS, EventKind.NMI_ENTRY, 1).add(3 * MS, EventKind.RELEASE, 1),
        lambda load: load.add(CLOSE_NS + MS, EventKind.RETRY, 0),
        lambda load: load.add(1_000, EventKind.EARLY, 0, in_load=False),
        lambda load: load.add(19 * MS, EventKind.EARLY, 0, in_load=False),
    ],
)
def test_a_close_elsewhere_accuses_nobody(add: Callable[[Load], Load]) -> None:
    load = add(Load())

    assert judge(load.build()).outcome is Outcome.FAIL
    assert judge(close_at(load, WRMSR_PC + 3).build()).outcome is Outcome.INVALID


def entered(entry_ns: int = 0, vcpu: int = 0, pc: int = ENTRY_PC) -> Load:
    """The NMI that CPU 0 would enter later comes right at the close."""
    load = Load(mechanism="stop-machine", sends=[(0, 4 * MS, 5 * MS)])
    load.drop(EventKind.SELF_NMI).drop(EventKind.NMI_ENTRY)
    load.add(CLOSE_NS + (entry_ns or 100), EventKind.NMI_ENTRY, vcpu)
    return close_at(close_at(load, ENTRY_PC), pc, EventKind.NMI_ENTRY, vcpu)


def test_an_nmi_may_come_in_place_of_the_next_instruction() -> None:
    verdict = judge(entered().build())

    assert verdict.outcome is Outcome.PASS, verdict.reason


@pytest.mark.parametrize(
    "load",
    [
        # Not there, another thread's, from elsewhere, before the close, or no entry, or one after the vCPU had gone on.
        entered().drop(EventKind.NMI_ENTRY),
        entered(vcpu=1),
        entered(pc=ENTRY_PC + 16),
        entered(entry_ns=-100),
        entered(entry_ns=5 * MS).add(CLOSE_NS + MS, EventKind.WAIT_LOOP, 0),
        entered(entry_ns=5 * MS).add(CLOSE_NS + MS, EventKind.WAIT_LOOP, 0, pc=ENTRY_PC),
    ],
)
def test_an_nmi_that_did_not_enter_there_explains_nothing(load: Load) -> None:
    verdict = judge(load.build())

    assert verdict.outcome is Outcome.INVALID
    assert f"closed at {ENTRY_PC:#x}" in verdict.reason


def test_the_snapshot_of_a_primary_is_none_of_its_own_records() -> None:
    load = entered(entry_ns=2_000).add(CLOSE_NS + 1_000, EventKind.IN_FLIGHT, 0)

    assert judge(load.build()).outcome is Outcome.PASS
