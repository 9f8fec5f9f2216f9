# SPDX-License-Identifier: GPL-2.0-or-later
"""Siblings that are not there: parked in an MWAIT that an emulator does not wait in, or offline and reset by INIT."""

from typing import Any

import pytest
from evidence_builder import MS, WINDOW_AT_NS, WINDOW_NS, Load, change

from lab.errors import UsageError
from lab.judge import judge
from lab.model.evidence import Ending, EventKind, Evidence, Hazard
from lab.model.scenario import Aim, Scenario, Siblings
from lab.model.verdict import Finding, Invariant, Outcome, Verdict

INSIDE_NS = WINDOW_AT_NS + 3 * MS
AFTER_NS = WINDOW_AT_NS + WINDOW_NS + MS
PARKED_AT = "mclab_park_mwait+0x1f"
SIBLINGS = (1, 3)


def find(verdict: Verdict, name: str) -> Invariant:
    return next(invariant for invariant in verdict.invariants if invariant.name == name)


def masked(mechanism: str, **fields: Any) -> Load:
    """A clean load whose siblings have LINT1 masked, under a broadcast that the primaries take after their windows."""
    load = Load(mechanism=mechanism, sends=[(-1, 4 * MS, 5 * MS)], **fields)
    load.drop(EventKind.SELF_NMI).drop(EventKind.NMI_ENTRY)
    for primary in (0, 2):
        load.add(AFTER_NS, EventKind.NMI_ENTRY, primary)
    return load


def stopped(evidence: Evidence, core: int) -> Evidence:
    """Let a core's sibling be halted all through its window."""
    view = f"observer.windows.{core}.siblings.0"
    for field, value in (("in_flight_pc", 0), ("in_flight_symbol", ""), ("region_blocks", 0), ("blocks", ())):
        evidence = change(evidence, f"{view}.{field}", value)
    return change(evidence, f"{view}.halted_at_close", True)


def told(evidence: Evidence) -> Evidence:
    """Let the siblings leave no times, as where they are offline."""
    for vcpu in SIBLINGS:
        evidence = stopped(evidence, vcpu // 2) if evidence.scenario.mechanism == "init-sipi" else evidence
        evidence = change(evidence, f"guest.state.cpus.{vcpu}.role", "absent")
        for field in ("arrival_tsc", "wait_begin_tsc", "wait_end_tsc"):
            evidence = change(evidence, f"guest.state.cpus.{vcpu}.{field}", 0)
    return evidence


def test_the_mwait_of_a_parked_sibling_is_the_emulators() -> None:
    load = masked("park-mwait").add(INSIDE_NS, EventKind.HAZARD, 1, symbol=PARKED_AT, hazard=Hazard.MWAIT)
    verdict = judge(load.build())

    harmless = find(verdict, "harmless")
    assert harmless.finding is Finding.UNSEEN
    assert not harmless.required
    assert "the emulator's" in harmless.reason
    assert PARKED_AT in harmless.reason
    assert verdict.outcome is Outcome.PASS, verdict.reason


@pytest.mark.parametrize(
    ("mechanism", "symbol", "hazard"),
    [
        ("park-mwait", PARKED_AT, Hazard.IRET),
        ("park-mwait", PARKED_AT, Hazard.MSR),
        ("park-mwait", "mwait_play_dead+0x40", Hazard.MWAIT),
        ("park-mwait", "mclab_park_mwait_not+0x1f", Hazard.MWAIT),
        ("park-mwait", "", Hazard.MWAIT),
        ("park-hlt", PARKED_AT, Hazard.MWAIT),
    ],
)
def test_any_other_hazard_of_a_parked_sibling_breaks_harmless(mechanism: str, symbol: str, hazard: Hazard) -> None:
    load = masked(mechanism).add(INSIDE_NS, EventKind.HAZARD, 1, symbol=PARKED_AT, hazard=Hazard.MWAIT)
    verdict = judge(load.add(INSIDE_NS + 1, EventKind.HAZARD, 1, symbol=symbol, hazard=hazard).build())

    harmless = find(verdict, "harmless")
    assert harmless.finding is Finding.BROKEN
    assert harmless.required
    assert verdict.outcome is Outcome.FAIL


def test_what_an_emulator_cannot_show_of_one_mechanism_is_required_of_others() -> None:
    load = masked("park-hlt").add(INSIDE_NS, EventKind.HAZARD, 1, hazard=Hazard.NONE)
    verdict = judge(load.build())

    assert find(verdict, "harmless").finding is Finding.UNSEEN
    assert find(verdict, "harmless").required
    assert verdict.outcome is Outcome.INVALID


def test_siblings_that_a_mechanism_takes_offline_leave_no_times() -> None:
    verdict = judge(told(masked("init-sipi").build()))

    assert find(verdict, "witnesses-agree").finding is Finding.HELD
    assert verdict.outcome is Outcome.PASS, verdict.reason


def test_a_sibling_that_was_not_reset_is_not_quiet_in_its_parking_loop() -> None:
    whole = masked("init-sipi").build()
    running = change(told(whole), "observer.windows.1.siblings.0", whole.observer.windows[1].siblings[0])  # type: ignore[union-attr]
    verdict = judge(running)

    assert find(verdict, "quiet").finding is Finding.BROKEN
    assert "vCPU 3 executed 1000 blocks of the loop" in find(verdict, "quiet").reason
    assert verdict.outcome is Outcome.FAIL


@pytest.mark.parametrize("field", ["role", "arrival_tsc", "wait_begin_tsc", "wait_end_tsc"])
def test_siblings_that_were_to_be_offline_and_tell_of_the_load_are_doubted(field: str) -> None:
    evidence = masked("init-sipi").build()
    assert evidence.guest is not None
    assert evidence.guest.state is not None
    as_online = getattr(evidence.guest.state.cpus[3], field)
    verdict = judge(change(told(evidence), f"guest.state.cpus.3.{field}", as_online))

    assert verdict.outcome is Outcome.INVALID
    assert "CPU 3, which was to be offline" in verdict.reason


@pytest.mark.parametrize("mechanism", ["park-mwait", "nmi-self"])
def test_siblings_that_a_mechanism_leaves_online_must_tell_of_the_load(mechanism: str) -> None:
    load = masked(mechanism) if mechanism == "park-mwait" else Load(mechanism=mechanism)
    verdict = judge(told(load.build()))

    assert verdict.outcome is Outcome.INVALID
    assert "CPU 1 left no times" in verdict.reason


def test_the_primaries_of_a_mechanism_that_takes_siblings_offline_must_tell_of_the_load() -> None:
    verdict = judge(change(told(masked("init-sipi").build()), "guest.state.cpus.2.update_begin_tsc", 0))

    assert verdict.outcome is Outcome.INVALID
    assert "CPU 2 left no times" in verdict.reason


def drop_one(evidence: Evidence) -> Evidence:
    """Let the last NMI that the ledger of CPU 1 counts have met it offline."""
    evidence = change(evidence, "guest.ledger_after.1.ordinary", lambda count: count - 1)
    evidence = change(evidence, "guest.ledger_after.1.dropped", 1)
    return change(evidence, "guest.nmis_after.1", lambda count: count - 1)


def test_an_nmi_that_met_its_cpu_offline_is_in_the_ledger_alone() -> None:
    load = masked("init-sipi")
    # Before the call-in of vCPU 1: on its way down, with LINT1 not masked yet.
    load.sends.append((-1, 20_000, 30_000))
    load.add(25_000, EventKind.NMI_ENTRY, 1)
    load.add(25_000, EventKind.NMI_ENTRY, 0).add(25_000, EventKind.NMI_ENTRY, 2).add(25_000, EventKind.NMI_ENTRY, 3)
    evidence = told(load.build())

    verdict = judge(drop_one(evidence))
    assert find(verdict, "witnesses-agree").finding is Finding.HELD
    assert find(verdict, "nmis-delivered").finding is Finding.HELD
    # Who dropped it had no handler run for it, and which of the entries that was is not known.
    assert find(verdict, "nmis-serviced").finding is Finding.UNSEEN
    assert verdict.outcome is Outcome.PASS, verdict.reason

    unknown = judge(change(drop_one(evidence), "guest.ledger_after.1.dropped", 0))
    assert find(unknown, "witnesses-agree").finding is Finding.BROKEN
    assert unknown.outcome is Outcome.INVALID


def gone(mechanism: str, send: tuple[int, int, int]) -> Load:
    load = masked(mechanism, ending=Ending.GONE).drop(EventKind.LOAD_END).drop(EventKind.WINDOW_CLOSE)
    load.sends.append(send)
    return load.drop(EventKind.RELEASE)


def test_what_an_nmi_does_to_a_thread_that_waits_for_a_sipi_accuses_nobody() -> None:
    """QEMU has it execute the firmware's handler, and then resets the machine."""
    load = gone("init-sipi", (3, 6 * MS, 7 * MS)).add(6 * MS, EventKind.OUTSIDE, 3)
    verdict = judge(load.build())

    assert verdict.outcome is Outcome.INVALID
    assert "the plan aims at vCPU 3, a sibling" in verdict.reason
    assert not any(invariant.finding is Finding.BROKEN for invariant in verdict.invariants)


@pytest.mark.parametrize(
    ("mechanism", "send"),
    [("init-sipi", (-1, 6 * MS, 7 * MS)), ("init-sipi", (2, 6 * MS, 7 * MS)), ("park-mwait", (3, 6 * MS, 7 * MS))],
    ids=["masked", "to-a-primary", "not-waiting-for-a-sipi"],
)
def test_a_reset_that_no_nmi_of_the_labs_explains_is_the_kernels(mechanism: str, send: tuple[int, int, int]) -> None:
    verdict = judge(gone(mechanism, send).build())

    assert find(verdict, "within-deadline").finding is Finding.BROKEN
    assert verdict.outcome is Outcome.FAIL


def test_a_reset_by_the_sentinel_of_a_sibling_that_was_not_brought_back_is_the_kernels() -> None:
    load = masked("init-sipi", ending=Ending.GONE).drop(EventKind.RELEASE, 3).watch(3)
    verdict = judge(load.build())

    assert find(verdict, "within-deadline").finding is Finding.BROKEN
    assert verdict.outcome is Outcome.FAIL


def test_no_plan_aims_at_a_thread_that_waits_for_a_sipi() -> None:
    with pytest.raises(UsageError, match=r"aim is sibling: .* resets an emulated machine"):
        Scenario(mechanism="init-sipi", aim=Aim.SIBLING).check()
    for aim in (Aim.BROADCAST, Aim.PRIMARY):
        Scenario(mechanism="init-sipi", aim=aim).check()
    Scenario(mechanism="park-mwait", aim=Aim.SIBLING).check()


@pytest.mark.parametrize("siblings", [Siblings.OFFLINE, Siblings.RETURNING])
def test_a_mechanism_that_takes_siblings_offline_is_not_given_any_that_are(siblings: Siblings) -> None:
    with pytest.raises(UsageError, match=f"siblings is {siblings.value}"):
        Scenario(mechanism="init-sipi", siblings=siblings).check()
    Scenario(mechanism="park-mwait", siblings=siblings).check()


def test_a_mechanism_that_parks_in_mwait_is_given_a_cpu_that_has_it() -> None:
    assert Scenario(mechanism="park-mwait").boot.monitor
    assert not Scenario(mechanism="park-hlt").boot.monitor
