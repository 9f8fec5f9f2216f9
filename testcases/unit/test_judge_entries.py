# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU itself says of the NMIs that a vCPU takes, held against the entries that the observer saw."""

import dataclasses

import pytest
from evidence_builder import Load, Step, change

from lab.judge import judge
from lab.model.evidence import EventKind, Evidence, Sees
from lab.model.verdict import Finding, Invariant, Outcome


def build(*, without: int | None = None, twice: int | None = None, sees: bool = True) -> Evidence:
    """Return a clean load with QEMU's account of each entry, but for one that is missing or there twice."""
    load = Load()
    entries = [step for step in load.steps if step.kind is EventKind.NMI_ENTRY]
    assert len(entries) > 2
    for number, entry in enumerate(entries):
        taken: Step = dataclasses.replace(entry, at_ns=entry.at_ns - 1, kind=EventKind.NMI_TAKEN)
        load.steps += [taken] * (0 if number == without else 2 if number == twice else 1)
    return change(load.build(), "observer.sees", (Sees.INTERRUPTS,) if sees else ())


def agreement(evidence: Evidence) -> Invariant:
    return next(one for one in judge(evidence).invariants if one.name == "witnesses-agree")


def test_two_accounts_that_agree_one_for_one_are_named() -> None:
    evidence = build()
    assert judge(evidence).outcome is Outcome.PASS
    assert "QEMU's own account of NMIs" in agreement(evidence).reason


@pytest.mark.parametrize(("without", "twice"), [(0, None), (2, None), (None, 1)])
def test_an_entry_that_qemu_knows_nothing_of_and_one_that_was_never_seen_are_disagreements(
    without: int | None, twice: int | None
) -> None:
    evidence = build(without=without, twice=twice)
    assert agreement(evidence).finding is Finding.BROKEN
    assert judge(evidence).outcome is Outcome.INVALID


def test_as_many_of_both_on_the_wrong_threads_do_not_agree() -> None:
    evidence = build()
    observer = evidence.observer
    assert observer is not None
    first = next(number for number, event in enumerate(observer.events) if event.kind is EventKind.NMI_TAKEN)
    other = observer.events[first].vcpu ^ 1
    assert agreement(change(evidence, f"observer.events.{first}.vcpu", other)).finding is Finding.BROKEN


def test_a_qemu_that_shows_no_interrupts_owes_none() -> None:
    assert judge(Load().build()).outcome is Outcome.PASS
    assert agreement(build(without=0, sees=False)).finding is Finding.HELD
