# SPDX-License-Identifier: GPL-2.0-or-later
"""A send counts by its consequence: the thread enters promptly once NMIs can enter, or the NMI was lost."""

from typing import Any

import pytest
from evidence_builder import END_AT_NS, MS, RELEASE_AT_NS, WINDOW_AT_NS, WINDOW_NS, Load, change

from lab.judge import judge
from lab.model.evidence import EventKind, Evidence
from lab.model.topology import Topology
from lab.model.verdict import Finding, Invariant, Outcome

ONE_CORE = Topology(1, 1, 2)
#: Two in the window, one between the last release and the load's end.
EARLY = [(-1, 4 * MS, 4 * MS + 100_000), (-1, 6 * MS, 6 * MS + 100_000)]
LATE = (-1, RELEASE_AT_NS + 200_000, RELEASE_AT_NS + 300_000)


def tell_control(sends: list[tuple[int, int, int]], entries: dict[int, list[int]]) -> Load:
    """Tell of a rendezvous in which NMIs can enter at all times, by the entries of each vCPU."""
    load = Load(mechanism="stop-machine", topology=ONE_CORE, sends=sends)
    load.drop(EventKind.NMI_ENTRY).drop(EventKind.SELF_NMI)
    for vcpu, times in entries.items():
        for at_ns in times:
            load.add(at_ns, EventKind.NMI_ENTRY, vcpu)
    return load


def tell_held(sends: list[tuple[int, int, int]], entries: dict[int, list[int]]) -> Load:
    """Tell of a rendezvous in the NMI handler, by the entries of each vCPU beside those of its self-NMI."""
    load = Load(topology=ONE_CORE, sends=sends).drop(EventKind.NMI_ENTRY)
    for vcpu in range(2):
        load.add(100_200 + 1_000 * vcpu, EventKind.NMI_ENTRY, vcpu)
        for at_ns in entries.get(vcpu, []):
            load.add(at_ns, EventKind.NMI_ENTRY, vcpu)
    return load


def find(evidence: Evidence, name: str = "nmis-delivered") -> Invariant:
    return next(one for one in judge(evidence).invariants if one.name == name)


def test_a_control_whose_nmis_were_lost_is_not_said_to_have_stood_them() -> None:
    """The one NMI that entered was sent after the release."""
    entered = [LATE[1] + 50_000]
    verdict = judge(tell_control([*EARLY, LATE], {0: entered, 1: entered}).watch().build())

    assert verdict.outcome is Outcome.INVALID
    assert verdict.nmis.proven_in_window == 0
    assert "vCPU 1 did not enter NMI 0" in verdict.reason


def test_an_nmi_that_its_thread_enters_at_once_counts() -> None:
    sends = EARLY[:1]
    entered = {0: [WINDOW_AT_NS + WINDOW_NS + 10_000], 1: [sends[0][1] + 50_000]}
    verdict = judge(tell_control(sends, entered).watch().build())

    assert verdict.nmis.proven_in_window == 1
    assert find(tell_control(sends, entered).watch().build()).finding is Finding.HELD


def test_an_nmi_that_waits_for_the_handlers_end_counts_when_it_is_entered_then() -> None:
    entered = [RELEASE_AT_NS + 50_000]
    verdict = judge(tell_held(EARLY, {0: entered, 1: entered}).watch().build())

    assert verdict.outcome is Outcome.PASS
    assert verdict.nmis.proven_in_window == 2


def test_one_that_is_entered_long_after_the_handlers_end_does_not_count() -> None:
    """What entered then may have been the NMI that was sent just before."""
    sends = [*EARLY, (-1, END_AT_NS + 2 * MS, END_AT_NS + 2 * MS + 50_000)]
    entered = [END_AT_NS + 2 * MS + 20_000]
    load = tell_held(sends, {0: entered, 1: entered})
    verdict = judge(load.build())

    assert verdict.nmis.proven_in_window == 0
    assert verdict.outcome is Outcome.INVALID


def test_a_thread_that_has_left_the_load_without_it_has_lost_it() -> None:
    """Between its release and the load's end it left the NMI handler, and ran on."""
    delivered = find(tell_held(EARLY, {}).watch().build())

    assert delivered.finding is Finding.UNSEEN
    assert delivered.reason == (
        "vCPU 0 did not enter NMI 0, though it left the rendezvous after that was acknowledged: it was lost, or never"
        " sent"
    )


def test_one_thread_loses_what_another_takes() -> None:
    """The sibling masks LINT1, and says so nowhere: that the NMIs were sent shows at the primary."""
    verdict = judge(tell_held(EARLY, {0: [RELEASE_AT_NS + 50_000]}).watch().build())

    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason == (
        "nmis-delivered broken: vCPU 1 never entered NMI 0 or 1, one of which vCPU 0 entered: it left the rendezvous"
        " without it"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("injections.problem", "cut", id="log-cut"),
        pytest.param("guest.ledger_after.1.ordinary", 9, id="ledger-disagrees"),
        pytest.param("observer.records_lost", 1, id="records-lost"),
    ],
)
def test_a_lost_nmi_accuses_only_with_all_witnesses_in_order(path: str, value: Any) -> None:
    evidence = tell_held(EARLY, {0: [RELEASE_AT_NS + 50_000]}).watch().build()

    assert find(change(evidence, path, value)).finding is Finding.UNSEEN


def test_an_entry_that_something_else_explains_does_not_prove_a_sending() -> None:
    """The primary's may have been the one that it was sent alone."""
    sends = [*EARLY, (0, 8 * MS, 8 * MS + 100_000)]
    delivered = find(tell_held(sends, {0: [RELEASE_AT_NS + 50_000]}).watch().build())

    assert delivered.finding is Finding.UNSEEN


def test_a_vcpu_that_the_host_did_not_run_proves_nothing() -> None:
    entered = [LATE[1] + 50_000]
    evidence = tell_control([*EARLY, LATE], {0: entered, 1: entered}).watch().build()
    starved = change(evidence, "observer.gaps_ns", (200 * MS, 200 * MS))

    assert find(evidence).finding is Finding.UNSEEN
    assert find(starved).finding is Finding.HELD
    assert judge(starved).nmis.proven_in_window == 0


def test_what_is_the_only_cause_of_an_entry_that_came_late_is_no_unknown_entry() -> None:
    """Whether the sending is untrue or the emulator was late, the kernel sent nothing."""
    entered = [RELEASE_AT_NS + 200_000]
    load = tell_control(EARLY[:1], {0: entered, 1: entered})

    assert find(load.watch().build()).finding is Finding.UNSEEN
    assert judge(load.build()).nmis.proven_in_window == 0


@pytest.mark.parametrize("waited_ms", [0, 50])
def test_after_the_load_the_time_without_a_host_cpu_is_allowed_for(waited_ms: int) -> None:
    after = [(-1, END_AT_NS + MS, END_AT_NS + MS + 50_000), (-1, END_AT_NS + 31 * MS, END_AT_NS + 31 * MS + 50_000)]
    entered = [END_AT_NS + 31 * MS + 20_000]
    load = tell_held(after, {0: entered, 1: entered}).watch()
    load.sentinels = [(vcpu, send + 40 * MS, reply + 40 * MS) for vcpu, send, reply in load.sentinels]
    load.drop(EventKind.NMI_ENTRY, 0)
    evidence = load.add(100_200, EventKind.NMI_ENTRY, 0).add(entered[0], EventKind.NMI_ENTRY, 0).build()
    for vcpu in range(2):
        evidence = change(evidence, f"timings.vcpus.{vcpu}.waited_ns", waited_ms * MS)
    lost = [reason for reason in [find(evidence).reason] if "did not enter NMI 0" in reason]

    assert bool(lost) is (waited_ms == 0)


def test_a_hold_is_no_time_in_which_its_thread_ran() -> None:
    entered = [12 * MS + 50_000]
    load = tell_control(EARLY[:1], {0: [WINDOW_AT_NS + WINDOW_NS + 10_000], 1: [*entered]})
    load.add(3 * MS, EventKind.HELD, 1).add(12 * MS, EventKind.LET_GO, 1)

    assert judge(load.watch().build()).nmis.proven_in_window == 1


def test_a_thread_that_sends_itself_one_had_none_pending() -> None:
    """The NMI came before: it cannot have merged with the self-NMI, by whose entry nothing of it is left."""
    early = [(-1, -4 * MS, -4 * MS + 100_000), *EARLY]
    entered = [RELEASE_AT_NS + 50_000]
    delivered = find(tell_held(early, {0: entered, 1: entered}).watch().build())

    assert delivered.finding is Finding.UNSEEN
    assert "vCPU 0 did not enter NMI 0, though it ran on" in delivered.reason
    at_once = tell_held(early, {0: [-4 * MS + 50_000, *entered], 1: [-4 * MS + 50_000, *entered]})
    assert find(at_once.watch().build()).finding is Finding.HELD
