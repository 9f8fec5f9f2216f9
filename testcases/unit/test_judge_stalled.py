# SPDX-License-Identifier: GPL-2.0-or-later
"""Trials in which the update itself holds the siblings: what the judge asks of a stall, and what it does not."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from evidence_builder import MS, ORIGIN_NS, WINDOW_AT_NS, WINDOW_NS, Load, change

from lab.expected.expect import expect
from lab.judge import judge
from lab.mechanisms.mechanism import RENDEZVOUS, Expectation
from lab.model.evidence import BlockCount, EventKind, Evidence, Hazard, SiblingView
from lab.model.scenario import Scenario, Siblings
from lab.model.verdict import Finding, Invariant, Outcome

IDLE = "do_idle+0x40"
IN_WINDOW_NS = WINDOW_AT_NS + MS
#: When each vCPU of a clean load enters what was pending.
LATE_ENTRIES = tuple(WINDOW_AT_NS + WINDOW_NS + 10_000 + 1_000 * (vcpu // 2) + 100 * vcpu for vcpu in range(4))
STRAY = BlockCount(pc=0xFFFFFFFF81002000, symbol="asm_exc_nmi+0x0", count=1, first_seq=0, last_seq=0, in_region=False)


def make_load(**fields: Any) -> Load:
    """A load of nobody who meets: no call-ins, no self-NMIs, and what is pending enters after the windows."""
    load = Load(mechanism="uniform", **fields)
    for kind in (EventKind.SELF_NMI, EventKind.CALL_IN, EventKind.WAIT_LOOP, EventKind.RELEASE):
        load.drop(kind)
    load.steps = [step for step in load.steps if step.kind is not EventKind.NMI_ENTRY or step.at_ns > WINDOW_AT_NS]
    return load


def hold(evidence: Evidence, **of_first: Any) -> Evidence:
    """Let all siblings be stalled from the first microsecond on; ``of_first`` are fields of the first one's view."""

    def stall(view: SiblingView) -> SiblingView:
        return msgspec.structs.replace(
            view,
            in_flight_pc=0,
            in_flight_symbol="",
            in_flight_region=False,
            region_blocks=0,
            first_ns=0,
            last_ns=0,
            blocks=(),
            stalled_ns=ORIGIN_NS + WINDOW_AT_NS + 2_000,
        )

    for core in range(len(evidence.observer.windows) if evidence.observer is not None else 0):
        evidence = change(evidence, f"observer.windows.{core}.stalled", True)
        evidence = change(evidence, f"observer.windows.{core}.siblings.0", stall)
    for name, value in of_first.items():
        evidence = change(evidence, f"observer.windows.0.siblings.0.{name}", value)
    for cpu in range(4):
        evidence = change(evidence, f"guest.state.cpus.{cpu}.wait_begin_tsc", 0)
        evidence = change(evidence, f"guest.state.cpus.{cpu}.wait_end_tsc", 0)
    return evidence


def find(evidence: Evidence, name: str) -> Invariant:
    return next(invariant for invariant in judge(evidence).invariants if invariant.name == name)


def test_a_load_whose_siblings_were_held_passes() -> None:
    verdict = judge(hold(make_load().watch().build()))
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert (verdict.windows_judged, verdict.nmis.proven_in_window) == (2, 2)
    assert [span.who for span in verdict.durations.host_holds_us] == [1, 3]
    assert verdict.durations.host_holds_us[0].us == pytest.approx((WINDOW_NS - 2_000) / 1_000)


@pytest.mark.parametrize("name", RENDEZVOUS)
def test_what_needs_a_rendezvous_is_unseen_and_not_required(name: str) -> None:
    found = find(hold(make_load().watch().build()), name)
    assert (found.finding, found.required) == (Finding.UNSEEN, False)
    assert "no rendezvous" in found.reason


def test_an_nmi_outside_the_windows_shows_nothing() -> None:
    early = [(-1, MS, MS + 1_000)]
    load = make_load(sends=early).watch()
    for vcpu in range(4):
        load.add(MS + 2_000 + vcpu, EventKind.NMI_ENTRY, vcpu)
    load.steps = [step for step in load.steps if step.at_ns < WINDOW_AT_NS or step.at_ns not in LATE_ENTRIES]
    verdict = judge(hold(load.build()))
    assert verdict.outcome is Outcome.INVALID
    assert "no NMI" in verdict.reason


def test_the_block_in_flight_is_told_and_breaks_nothing() -> None:
    load = make_load().watch()
    load.add(WINDOW_AT_NS + 500, EventKind.HAZARD, 1, hazard=Hazard.IRET, symbol="asm_exc_nmi+0x150")
    load.add(WINDOW_AT_NS + 600, EventKind.HAZARD, 1, hazard=Hazard.OTHER, symbol="asm_exc_nmi+0x160")
    evidence = hold(load.build(), in_flight_pc=0xFFFFFFFF81003000, in_flight_symbol=IDLE)
    assert judge(evidence).outcome is Outcome.PASS
    for name in ("quiet", "harmless", "no-nmi-entry-in-window"):
        found = find(evidence, name)
        assert found.finding is Finding.HELD
        assert IDLE in found.reason
        told = [proof.text for proof in found.proofs]
        assert any("executed iret in the block in flight" in text for text in told), told


def test_an_nmi_entry_in_flight_is_told_and_breaks_nothing() -> None:
    """The window opened between the beginning of the entry's block and its first instruction."""
    load = make_load().watch()
    load.add(WINDOW_AT_NS + 500, EventKind.NMI_ENTRY, 1)
    load.sends.append((1, WINDOW_AT_NS - MS, WINDOW_AT_NS - MS // 2))
    evidence = hold(load.build(), in_flight_pc=0xFFFFFFFF81003000, in_flight_symbol="asm_exc_nmi+0x0")
    found = find(evidence, "no-nmi-entry-in-window")
    assert found.finding is Finding.HELD
    assert any("entered an NMI in the block in flight" in proof.text for proof in found.proofs)
    assert judge(evidence).outcome is Outcome.PASS


def disturb(load: Load) -> Load:
    """Let an NMI into the first core's window, as where nothing holds the sibling."""
    load.sends.append((1, IN_WINDOW_NS - 300_000, IN_WINDOW_NS - 200_000))
    load.add(IN_WINDOW_NS, EventKind.OUTSIDE, 1, symbol="asm_exc_nmi+0x0")
    load.add(IN_WINDOW_NS + 10, EventKind.NMI_ENTRY, 1)
    return load.add(IN_WINDOW_NS + 20, EventKind.HAZARD, 1, hazard=Hazard.IRET, symbol="asm_exc_nmi+0x150")


def test_what_a_sibling_does_beyond_the_block_in_flight_is_not_excused() -> None:
    evidence = hold(disturb(make_load().watch()).build(), outside_blocks=1, blocks=(STRAY,))
    for name in ("quiet", "harmless", "no-nmi-entry-in-window"):
        assert find(evidence, name).finding is Finding.BROKEN
    assert judge(evidence).outcome is Outcome.FAIL


def test_a_sibling_that_the_lab_let_go_shows_nothing_and_is_not_accused() -> None:
    load = disturb(make_load().watch())
    evidence = hold(load.build(), outside_blocks=1, blocks=(STRAY,), stall_overrun=True)
    for name in ("quiet", "harmless", "no-nmi-entry-in-window", "still"):
        assert find(evidence, name).finding is Finding.UNSEEN
    verdict = judge(evidence)
    assert verdict.outcome is Outcome.INVALID
    assert "bound of its stall" in verdict.reason
    assert verdict.windows_judged == 1


@pytest.mark.parametrize(
    "stalled_ns", [0, ORIGIN_NS + WINDOW_AT_NS + WINDOW_NS + 1_000_000], ids=["never", "after the close"]
)
def test_a_sibling_that_the_host_never_ran_shows_nothing(stalled_ns: int) -> None:
    verdict = judge(hold(make_load().watch().build(), stalled_ns=stalled_ns))
    assert verdict.outcome is Outcome.INVALID
    assert "did not reach its stall and was not halted" in verdict.reason


def test_a_halted_sibling_counts_unless_an_nmi_woke_it() -> None:
    halted = {"stalled_ns": 0, "halted_at_close": True}
    woken = judge(hold(make_load().watch().build(), **halted))
    assert woken.outcome is Outcome.INVALID
    assert "after NMI 0 was acknowledged" in woken.reason
    to_others = [(vcpu, 4 * MS + 1_000 * vcpu, 5 * MS + 1_000 * vcpu) for vcpu in (0, 2, 3)]
    left_alone = judge(hold(make_load(sends=to_others).watch().build(), **halted))
    assert left_alone.outcome is Outcome.PASS, left_alone.reason


def let_run(evidence: Evidence) -> Evidence:
    return change(evidence, "observer.windows.0.stalled", False)


def test_siblings_that_were_let_run_are_no_proof_of_a_stall() -> None:
    verdict = judge(let_run(hold(make_load().watch().build(), stalled_ns=0, halted_at_close=True)))
    assert verdict.outcome is Outcome.INVALID
    assert "let the siblings run on" in verdict.reason


def test_siblings_that_were_let_run_and_did_are_accused() -> None:
    load = disturb(make_load().watch())
    evidence = let_run(hold(load.build(), stalled_ns=0, outside_blocks=1, blocks=(STRAY,)))
    verdict = judge(evidence)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("quiet broken: vCPU 1 entered asm_exc_nmi+0x0")
    assert find(evidence, "harmless").finding is Finding.BROKEN


def test_a_stall_is_no_proof_of_a_rendezvous() -> None:
    evidence = Load().watch().build()
    assert judge(evidence).outcome is Outcome.PASS
    verdict = judge(change(evidence, "observer.windows.0.stalled", True))
    assert verdict.outcome is Outcome.INVALID
    assert "stalled the siblings" in verdict.reason


@pytest.mark.parametrize(
    ("path", "finding"),
    [
        ("guest.state.cpus.3.arrival_tsc", Finding.UNSEEN),
        ("guest.state.cpus.2.update_end_tsc", Finding.UNSEEN),
        ("guest.state.cpus.3.wait_begin_tsc", Finding.HELD),
    ],
)
def test_the_state_owes_its_times_but_not_those_of_a_wait(path: str, finding: Finding) -> None:
    evidence = change(hold(make_load().watch().build()), path, 0)
    assert find(evidence, "witnesses-agree").finding is finding


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda load: load.drop(EventKind.LOAD_BEGIN), "load's begin"),
        (lambda load: load.drop(EventKind.LOAD_END), "load's end"),
        (lambda load: load.drop(EventKind.WINDOW_OPEN, 2).drop(EventKind.WINDOW_CLOSE, 2), "WRMSR 0x79 on core 1"),
    ],
)
def test_the_landmarks_that_are_left_are_required(spoil: Callable[[Load], Load], reason: str) -> None:
    verdict = judge(hold(spoil(make_load().watch()).build()))
    assert verdict.outcome is Outcome.INVALID
    assert reason in verdict.reason


def test_an_offline_sibling_is_held_like_any_other() -> None:
    assert expect(Scenario(mechanism="uniform", siblings=Siblings.OFFLINE)).kind is Expectation.CLEAN
    assert expect(Scenario(mechanism="nmi-self", siblings=Siblings.OFFLINE)).kind is Expectation.CAUGHT
