# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether NMIs that are not the mechanism's own reach the kernel's handlers, as it shows from outside on any kernel."""

from collections.abc import Callable

import pytest
from evidence_builder import MS, RELEASE_AT_NS, WINDOW_AT_NS, Load, change, load_of_stock

from lab.judge import judge
from lab.model.evidence import Ending, EventKind, Evidence
from lab.model.scenario import Siblings
from lab.model.verdict import Finding, Invariant, Outcome

NAME = "nmis-passed-on"
KERNELS = ("nmi-self", "stop-machine", "upstream", "stock-nmi", "stock-rendezvous")
#: Who had NMIs pending in the window, and enters them behind it; in a control, primaries alone.
VCPU = 2
SENTINEL_NS = RELEASE_AT_NS + 31 * MS


def tell(mechanism: str) -> Load:
    load = load_of_stock(mechanism)
    if mechanism == "stop-machine":
        load.drop(EventKind.SELF_NMI)
        load.steps = [step for step in load.steps if step.kind is not EventKind.NMI_ENTRY or step.at_ns > WINDOW_AT_NS]
    return watch(load).handle()


def watch(load: Load) -> Load:
    """Send each vCPU a sentinel when all that was pending has long been entered, as the lab does."""
    for vcpu in range(load.topology.vcpus):
        at_ns = SENTINEL_NS + MS * vcpu
        load.sentinels.append((vcpu, at_ns, at_ns + 100_000))
        load.add(at_ns + 50_000, EventKind.NMI_ENTRY, vcpu)
    return load


def find_pending_ns(load: Load) -> int:
    """Return when what was pending in the window is entered."""
    entries = [step.at_ns for step in load.steps if (step.kind, step.vcpu) == (EventKind.NMI_ENTRY, VCPU)]
    return next(at_ns for at_ns in sorted(entries) if at_ns > WINDOW_AT_NS)


def drop_calls(load: Load, behind_ns: int = 0, until_ns: int = MS) -> Load:
    """Leave out calls of handlers, by their time behind the entry of what was pending."""
    pending_ns = find_pending_ns(load)
    load.steps = [
        step
        for step in load.steps
        if (step.kind, step.vcpu) != (EventKind.NMI_HANDLER, VCPU)
        or not behind_ns <= step.at_ns - pending_ns < until_ns
    ]
    return load


def find(evidence: Evidence, name: str = NAME) -> Invariant:
    return next(one for one in judge(evidence).invariants if one.name == name)


@pytest.mark.parametrize("mechanism", KERNELS)
def test_each_entry_but_the_mechanisms_own_is_seen_to_reach_the_handlers(mechanism: str) -> None:
    evidence = tell(mechanism).build()
    found = find(evidence)
    assert (found.finding, found.required) == (Finding.HELD, True)
    assert found.reason.endswith("NMI entries that were not the mechanism's own led to ordinary handlers")
    assert judge(evidence).outcome is Outcome.PASS, judge(evidence).reason
    assert find(evidence, "nmis-serviced").finding is Finding.HELD


@pytest.mark.parametrize("mechanism", KERNELS)
def test_an_nmi_that_comes_after_the_thread_is_done_and_is_claimed_is_lost(mechanism: str) -> None:
    evidence = drop_calls(tell(mechanism)).build()
    verdict = judge(evidence)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith(f"{NAME} broken: an NMI entry of vCPU {VCPU} led to no ordinary handler")
    assert [proof.vcpu for proof in find(evidence).proofs] == [VCPU]


@pytest.mark.parametrize("mechanism", ["upstream", "stock-nmi", "stock-rendezvous"])
def test_one_that_a_handler_of_the_first_chain_claims_is_lost_where_no_ledger_of_ours_is_there(mechanism: str) -> None:
    load = drop_calls(tell(mechanism), 11)
    assert "led to 1 of at least 2 calls of NMI handlers" in find(load.build()).reason
    assert judge(load.build()).outcome is Outcome.FAIL

    # One for a backtrace, which the kernel sent itself, ends there.
    load.add(find_pending_ns(load) - 1_000, EventKind.BACKTRACE, 0)
    assert find(load.build()).finding is Finding.HELD


def test_several_that_were_claimed_are_told_as_many() -> None:
    load = tell("upstream")
    at_ns = find_pending_ns(load) + 500_000
    load.add(at_ns, EventKind.NMI_ENTRY, VCPU).sends.append((VCPU, at_ns - 2_000, at_ns - 1_000))
    found = find(drop_calls(load).build())
    assert found.finding is Finding.BROKEN
    assert f"2 NMI entries of vCPU {VCPU} led to no ordinary handler" in found.reason


@pytest.mark.parametrize(("calls", "finding"), [(4, Finding.HELD), (2, Finding.BROKEN)])
def test_an_nmi_that_came_inside_another_is_handled_behind_it(calls: int, finding: Finding) -> None:
    load = drop_calls(tell("upstream"))
    pending_ns = find_pending_ns(load)
    load.add(pending_ns + 5, EventKind.NMI_ENTRY, VCPU)
    for number in range(calls):
        load.add(pending_ns + 20 + number, EventKind.NMI_HANDLER, VCPU)
    assert find(load.build()).finding is finding


@pytest.mark.parametrize("mechanism", KERNELS)
def test_a_vcpu_that_entered_none_owes_none(mechanism: str) -> None:
    load = tell(mechanism)
    for kind in (EventKind.NMI_ENTRY, EventKind.NMI_HANDLER):
        load.drop(kind, VCPU)
    assert find(load.build()).finding is Finding.HELD


def test_a_landmark_that_is_not_hit_by_any_vcpu_or_too_often_may_be_another_kernels() -> None:
    never = tell("upstream").drop(EventKind.NMI_HANDLER).build()
    assert find(never).reason == "the kernel's NMI handlers were never seen called"
    often = drop_calls(tell("upstream"))
    for at_ns in range(0, 5 * MS, MS):
        often.add(SENTINEL_NS + 2 * MS + at_ns, EventKind.NMI_HANDLER, 0)
    assert "was hit where no NMI can have led to it" in find(often.build()).reason
    for evidence in (never, often.build()):
        assert find(evidence).finding is Finding.UNSEEN
        assert find(evidence, "nmis-serviced").finding is Finding.UNSEEN
        assert judge(evidence).outcome is Outcome.INVALID


@pytest.mark.parametrize("missing", [EventKind.LOAD_BEGIN, EventKind.CALL_IN])
def test_where_the_mechanisms_own_entries_are_not_known_nobody_is_accused(missing: EventKind) -> None:
    load = tell("upstream").drop(missing).drop(EventKind.WAIT_LOOP)
    assert find(load.build()).finding is Finding.UNSEEN
    assert judge(load.build()).outcome is Outcome.INVALID
    # Where no NMI is the mechanism's own, its landmarks do not matter.
    lost = drop_calls(tell("stock-rendezvous")).drop(EventKind.CALL_IN)
    assert find(lost.build()).finding is Finding.BROKEN


def test_what_the_last_one_led_to_may_not_have_been_recorded() -> None:
    evidence = drop_calls(tell("upstream"), MS, 100 * MS).build()
    assert find(evidence).finding is Finding.UNSEEN
    assert judge(evidence).outcome is Outcome.INVALID
    assert f"what vCPU {VCPU}'s last NMI led to was not seen" in judge(evidence).reason


def test_entries_of_a_cpu_that_was_offline_by_then_have_no_handler() -> None:
    evidence = drop_calls(tell("nmi-self")).build()
    dropped = change(evidence, f"guest.ledger_after.{VCPU}.dropped", 1)
    assert find(dropped).finding is Finding.HELD
    offline = Load(mechanism="upstream", siblings=Siblings.OFFLINE, sends=[(1, 4 * MS, 5 * MS), (0, 4 * MS, 5 * MS)])
    offline.handle()
    offline.steps = [
        step for step in offline.steps if step.kind is not EventKind.NMI_HANDLER or step.vcpu not in offline.offline
    ]
    assert find(offline.build()).finding is Finding.HELD


def test_of_two_entries_that_came_together_the_one_that_met_its_cpu_offline_owes_no_call() -> None:
    def build(*, dropped: int, called: bool) -> Evidence:
        load = tell("nmi-self")
        pending_ns = find_pending_ns(load)
        if not called:
            drop_calls(load)
        load.add(pending_ns - 10_000, EventKind.NMI_ENTRY, VCPU)
        return change(load.build(), f"guest.ledger_after.{VCPU}.dropped", dropped)

    assert find(build(dropped=0, called=True)).finding is Finding.BROKEN
    assert find(build(dropped=1, called=True)).finding is Finding.HELD
    assert find(build(dropped=1, called=False)).finding is Finding.BROKEN
    assert find(build(dropped=2, called=False)).finding is Finding.HELD


UNKNOWN: dict[str, Callable[[Evidence], Evidence]] = {
    "records-lost": lambda evidence: change(evidence, "observer.records_lost", 1),
    "not-complete": lambda evidence: change(evidence, "ending", Ending.DEADLINE),
}


@pytest.mark.parametrize("spoil", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_whole_accuses_nobody(spoil: Callable[[Evidence], Evidence]) -> None:
    lost = spoil(drop_calls(tell("upstream")).build())
    assert find(lost).finding is Finding.UNSEEN
    assert judge(lost).outcome is not Outcome.PASS


def test_where_the_handlers_are_not_watched_nothing_is_required() -> None:
    found = find(Load().build())
    assert (found.finding, found.required) == (Finding.UNSEEN, False)
    assert judge(Load().build()).outcome is Outcome.PASS


def test_an_nmi_that_the_mechanism_took_for_its_own_is_reported_on_any_kernel() -> None:
    """It starts the rendezvous, and no handler runs after it but for the sentinel's."""
    load = load_of_stock("upstream", sends=[(1, 50_000, 60_000)])
    load.steps = [step for step in load.steps if step.kind is not EventKind.NMI_ENTRY or step.at_ns < RELEASE_AT_NS]
    found = find(watch(load).handle().build(), "nmis-serviced")
    assert not found.required
    assert found.finding is not Finding.HELD
    assert find(load.build()).finding is Finding.HELD
