# SPDX-License-Identifier: GPL-2.0-or-later
"""The axes of a scenario: what each changes in what the witnesses see."""

import pytest

from conftest import Trial, Tried
from lab.mechanisms.mechanism import is_play_dead
from lab.model.evidence import EventKind, Hazard
from lab.model.scenario import Aim, Parking, Siblings
from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome

pytestmark = pytest.mark.e2e

ONE_CORE = Topology(1, 1, 2)


def broken(tried: Tried) -> set[str]:
    return {name for name, finding in tried.record.invariants.items() if finding is Finding.BROKEN}


def proofs(tried: Tried, name: str) -> list[str]:
    return [proof.text for one in tried.verdict.invariants if one.name == name for proof in one.proofs]


def hazards(tried: Tried) -> set[Hazard]:
    assert tried.evidence.observer is not None
    return {event.hazard for event in tried.evidence.observer.events if event.kind is EventKind.HAZARD}


@pytest.mark.parametrize("aim", list(Aim))
def test_mainline_holds_the_offline_sibling_of_one_core(trial: Trial, aim: Aim) -> None:
    fields = {"topology": ONE_CORE, "siblings": Siblings.OFFLINE, "aim": aim}
    tries = [trial("upstream", seed=seed, **fields) for seed in range(6)]
    reasons = [each.verdict.reason for each in tries if each.record.outcome is not Outcome.PASS]
    assert all(not broken(each) - {"still"} for each in tries), reasons
    passed = [each for each in tries if each.record.outcome is Outcome.PASS]
    assert len(passed) >= 4, reasons
    for each in passed:
        assert each.finding("offline-siblings-return") is Finding.HELD
        assert each.evidence.observer is not None
        (window,) = each.evidence.observer.windows
        # It is held in an NMI of its own, and not merely left alone in HLT.
        assert {block.symbol.split("+")[0] for block in window.siblings[0].blocks} == {"wait_for_ctrl"}


def test_mainline_lets_an_offline_sibling_go_when_cpu_0_is_done_not_its_own_core(trial: Trial) -> None:
    """``load_primary()`` of CPU 0 calls ``release_offline_cpus()``, which releases those of all cores.

    What happens follows from which core is done first, and from nothing else.
    """
    late = [
        # Cores do not begin together: the first window is long enough for the second to have opened by its end.
        trial("upstream", seed=seed, siblings=Siblings.OFFLINE, stretch_per_core_us=(100_000, 400_000))
        for seed in (1, 2)
    ]
    for each in late:
        assert each.record.outcome is Outcome.FAIL
        assert {"quiet", "harmless", "released-after-update"} <= broken(each)
        assert "vCPU 3 was let go" in proofs(each, "released-after-update")[0]
        assert any("vCPU 3 executed iret at asm_exc_nmi" in text for text in proofs(each, "harmless"))
    early = [
        trial("upstream", seed=seed, nmis=0, siblings=Siblings.OFFLINE, stretch_per_core_us=(400_000, 1_000))
        for seed in (1, 2)
    ]
    for each in early:
        assert not broken(each) - {"still"}, each.verdict.reason


def test_a_hand_placed_nmi_enters_on_a_sibling_that_was_let_go_too_early(trial: Trial) -> None:
    """The second witness: one that is still held in its NMI could not take another."""
    fields = {"siblings": Siblings.OFFLINE, "stretch_per_core_us": (1_000, 60_000), "aim": Aim.SIBLING, "nmis": 20}
    tries = [trial("upstream", seed=seed, **fields) for seed in range(4)]
    entered = [each for each in tries if "no-nmi-entry-in-window" in broken(each)]
    assert entered, [each.verdict.reason for each in tries]
    for each in entered:
        assert all(text.startswith("vCPU 3 entered asm_exc_nmi+0x0") for text in proofs(each, "no-nmi-entry-in-window"))


def test_an_offline_sibling_comes_back_with_the_new_revision(trial: Trial) -> None:
    for seed in range(2):
        tried = trial("upstream", seed=seed, topology=ONE_CORE, siblings=Siblings.RETURNING)
        assert tried.finding("offline-siblings-return") is Finding.HELD, tried.verdict
        assert tried.evidence.guest is not None
        assert tried.evidence.guest.online == (0,)
        returned = tried.evidence.guest.returned
        assert returned is not None
        assert returned.revisions == (tried.evidence.guest.target_revision,) * 2


def test_the_old_rendezvous_leaves_offline_siblings_alone(trial: Trial) -> None:
    tried = trial("stop-machine", seed=1, siblings=Siblings.OFFLINE)
    assert tried.record.outcome is Outcome.FAIL
    assert broken(tried) - {"still"} == {"all-waiting-before-update"}
    assert tried.evidence.observer is not None
    resting = {each.vcpu: each for each in tried.evidence.observer.resting}
    for vcpu in (1, 3):
        assert resting[vcpu].halted
        assert is_play_dead(resting[vcpu].symbol)


def test_an_nmi_reaches_an_offline_sibling_only_when_it_is_aimed_at_it(trial: Trial) -> None:
    reached = trial("stop-machine", seed=3, siblings=Siblings.OFFLINE, aim=Aim.SIBLING)
    assert {"quiet", "harmless", "no-nmi-entry-in-window"} <= broken(reached)
    assert Hazard.IRET in hazards(reached)
    missed = trial("stop-machine", seed=3, siblings=Siblings.OFFLINE, aim=Aim.BROADCAST)
    assert missed.finding("no-nmi-entry-in-window") is Finding.HELD
    assert missed.finding("harmless") is Finding.HELD
    assert missed.finding("nmis-delivered") is Finding.HELD


def test_without_fsgsbase_an_nmi_entry_reads_and_writes_other_registers(trial: Trial) -> None:
    fields = {"topology": ONE_CORE, "nmis": 20}
    with_it = [hazards(trial("stop-machine", seed=seed, **fields)) for seed in range(2)]
    without = [hazards(trial("stop-machine", seed=seed, fsgsbase=False, **fields)) for seed in range(2)]
    assert Hazard.GSBASE in set.union(*with_it)
    assert Hazard.MSR not in set.union(*with_it)
    assert Hazard.GSBASE not in set.union(*without)
    assert Hazard.MSR in set.union(*without)


def test_what_is_seen_of_a_sibling_parked_in_mwait_is_the_emulators(trial: Trial) -> None:
    fields = {"topology": ONE_CORE, "siblings": Siblings.OFFLINE, "parking": Parking.MWAIT}
    left_alone = trial("stop-machine", seed=1, **fields)
    assert left_alone.record.outcome is Outcome.FAIL
    assert broken(left_alone) - {"still"} == {"all-waiting-before-update"}
    assert left_alone.finding("quiet") is left_alone.finding("harmless") is Finding.UNSEEN
    assert Hazard.MWAIT in hazards(left_alone)
    held = [trial("upstream", seed=seed, **fields) for seed in range(3)]
    assert all(not broken(each) - {"still"} for each in held)
    assert any(each.record.outcome is Outcome.PASS for each in held), [each.verdict.reason for each in held]


def test_cores_may_be_done_far_apart(trial: Trial) -> None:
    tried = trial("upstream", seed=4, far_apart=True)
    assert not broken(tried) - {"still"}, tried.verdict.reason
    lasted_us = sorted(span.us for span in tried.record.durations.host_windows_us)
    assert lasted_us[-1] >= 50_000
    assert sorted(tried.evidence.plan.stretch_us) == [1_000, 50_000]


def test_a_kernel_that_insists_on_least_revisions_takes_an_update_that_names_one(trial: Trial) -> None:
    tries = {forced: trial("upstream", seed=5, min_revision=forced) for forced in (True, False)}
    for forced, each in tries.items():
        assert not broken(each) - {"still"}, each.verdict.reason
        assert each.finding("errno-and-messages") is Finding.HELD
        assert each.evidence.guest is not None
        warned = any("without minimal revision check" in line for line in each.evidence.guest.dmesg)
        assert warned is not forced


def test_without_nmis_a_control_has_nothing_to_show(trial: Trial) -> None:
    tries = [trial("stop-machine", seed=seed, nmis=0) for seed in range(3)]
    assert all(not broken(each) - {"still"} for each in tries), [each.verdict.reason for each in tries]
    passed = [each for each in tries if each.record.outcome is Outcome.PASS]
    assert passed
    assert all("no NMIs asked: " in each.verdict.reason for each in passed)


@pytest.mark.parametrize("shape", ["2x2x2", "1x4x2"])
def test_more_cores_than_the_host_has(trial: Trial, shape: str) -> None:
    """Siblings that the host never runs show nothing, and accuse nobody."""
    topology = Topology.parse(shape)
    caught = trial("stop-machine", seed=1, topology=topology)
    assert caught.record.outcome in (Outcome.FAIL, Outcome.INVALID)
    sound = trial("nmi-self", seed=1, topology=topology)
    assert sound.record.outcome in (Outcome.PASS, Outcome.INVALID), sound.verdict.reason
    assert sound.evidence.observer is not None
    assert len(sound.evidence.observer.windows) == 4
