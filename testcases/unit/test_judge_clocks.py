# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's clock against the host's: at which rate its TSC goes, and what the guest takes it for."""

import msgspec
import pytest
from evidence_builder import Load, change

from lab.judge import judge
from lab.judge.clocks import MAX_OFF, find_cycles_per_us
from lab.judge.facts import Facts, find_facts
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import CpuState, Evidence, ObserverEvent
from lab.model.verdict import Finding, Invariant, Outcome

#: Of the made-up loads, whose guest's TSC is the host's plus a constant.
KHZ = 2_000_000
TSCS = ("arrival_tsc", "wait_begin_tsc", "wait_end_tsc", "update_begin_tsc", "update_end_tsc")


def agreement(evidence: Evidence) -> Invariant:
    return next(one for one in judge(evidence).invariants if one.name == "witnesses-agree")


def facts_of(evidence: Evidence) -> Facts:
    return find_facts(evidence, evidence.scenario.topology, find_mechanism(evidence.scenario.mechanism))


@pytest.mark.parametrize("claimed", [KHZ * 5 // 4, KHZ * 4 // 5, KHZ * 11 // 10, KHZ * 9 // 10])
def test_a_guest_that_takes_its_tsc_for_another_is_no_pass(claimed: int) -> None:
    evidence = change(Load().build(), "guest.state.tsc_khz", claimed)
    verdict = judge(evidence)
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason.startswith("witnesses-agree broken: ")
    assert f"takes its TSC for one of {claimed / 1000:.3f} MHz, and 2000.000 MHz were measured" in verdict.reason


def test_durations_of_the_guest_are_by_the_rate_that_was_measured() -> None:
    right, off = (judge(change(Load().build(), "guest.state.tsc_khz", khz)).durations for khz in (KHZ, KHZ * 4 // 5))
    assert right.guest_updates_us == off.guest_updates_us
    assert right.guest_waits_us == off.guest_waits_us
    assert [span.us for span in off.guest_updates_us] == [10_002.0, 10_002.0]
    assert (off.tsc_claimed_khz, off.tsc_measured_khz) == (KHZ * 4 // 5, KHZ)


def test_a_guest_that_is_off_by_less_than_a_few_percent_is_told_and_corrected() -> None:
    evidence = change(Load().build(), "guest.state.tsc_khz", round(KHZ * (1 + MAX_OFF / 2)))
    assert judge(evidence).outcome is Outcome.PASS
    assert "TSC of 2050.000 MHz by the guest, 2000.000 MHz measured" in agreement(evidence).reason


def drift(evidence: Evidence, times: float) -> Evidence:
    """Have the guest's TSC go at another rate than the host's, from the load's begin on, and the guest know it."""
    assert evidence.guest is not None
    assert evidence.guest.state is not None
    stamps = [getattr(cpu, name) for cpu in evidence.guest.state.cpus for name in TSCS if getattr(cpu, name)]
    first = min(stamps)

    def move(cpu: CpuState) -> CpuState:
        moved = {name: round(first + (at - first) * times) for name in TSCS if (at := getattr(cpu, name))}
        return msgspec.structs.replace(cpu, **moved)

    state = evidence.guest.state
    moved = msgspec.structs.replace(state, cpus=tuple(map(move, state.cpus)))
    return msgspec.structs.replace(evidence, guest=msgspec.structs.replace(evidence.guest, state=moved))


@pytest.mark.parametrize("times", [1.5, 0.7])
def test_what_a_guest_claims_to_have_waited_is_held_against_what_the_observer_saw_of_it(times: float) -> None:
    found = agreement(drift(Load().build(), times))
    assert found.finding is Finding.BROKEN
    assert any("us by the guest, and the observer saw" in proof.text for proof in found.proofs), found


def test_the_measured_rate_is_not_that_of_a_thread_that_was_kept_between_two_clocks() -> None:
    """A record has two clocks, read one after the other; the host may take the CPU away between them."""
    evidence = Load().build()
    assert evidence.observer is not None
    events = list(evidence.observer.events)
    late = 3_000_000 * KHZ // 1_000_000

    def delay(event: ObserverEvent) -> ObserverEvent:
        return msgspec.structs.replace(event, tsc=event.tsc + late)

    for index in (0, len(events) - 1):
        torn = [delay(event) if at == index else event for at, event in enumerate(events)]
        spoilt = msgspec.structs.replace(
            evidence, observer=msgspec.structs.replace(evidence.observer, events=tuple(torn))
        )
        assert find_cycles_per_us(facts_of(spoilt)) == pytest.approx(KHZ / 1_000, rel=0.001)


def test_a_guest_that_names_no_rate_has_its_durations_all_the_same() -> None:
    evidence = change(Load().build(), "guest.state.tsc_khz", 0)
    assert agreement(evidence).finding is Finding.UNSEEN
    assert [span.us for span in judge(evidence).durations.guest_updates_us] == [10_002.0, 10_002.0]
