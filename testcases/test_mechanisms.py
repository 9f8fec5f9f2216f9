# SPDX-License-Identifier: GPL-2.0-or-later
"""What each mechanism must show under randomised NMIs. A pattern for cases of your own.

``--lab-trials`` and ``--lab-for`` have them run more trials. Shares are then what counts: of five trials, four.
"""

import pytest

from conftest import Seeds, Storm, Trial, Tried
from lab.model.evidence import Sees
from lab.model.scenario import Aim
from lab.model.verdict import Finding, Outcome
from lab.observer.link import ObserverLink

pytestmark = pytest.mark.e2e


def share(some: list[Tried], of: list[Tried]) -> float:
    return len(some) / len(of)


@pytest.mark.parametrize("mechanism", ["stop-machine", "nmi-spin-as-posted"])
def test_a_control_is_caught_by_the_nmi_entry_and_the_iret_of_a_sibling(storm: Storm, mechanism: str) -> None:
    tries = storm(mechanism, trials=5)
    caught = [each for each in tries if each.record.outcome is Outcome.FAIL]
    assert share(caught, tries) >= 0.8
    left = 0
    for each in caught:
        assert each.finding("quiet") is Finding.BROKEN
        assert each.finding("no-nmi-entry-in-window") is Finding.BROKEN
        proofs = {invariant.name: invariant.proofs for invariant in each.verdict.invariants}
        entry = proofs["no-nmi-entry-in-window"][0]
        assert entry.symbol == "asm_exc_nmi+0x0"
        assert entry.vcpu in (1, 3)
        # An NMI that enters at the end of a window leaves by its IRET after it.
        left += any("iret" in proof.text and proof.symbol.startswith("asm_exc_nmi+") for proof in proofs["harmless"])
    assert left >= len(caught) // 2


def test_a_control_breaks_nothing_but_what_it_lacks(trial: Trial) -> None:
    tried = trial("stop-machine", seed=11)
    broken = {name for name, finding in tried.record.invariants.items() if finding is Finding.BROKEN}
    assert broken <= {"quiet", "still", "harmless", "no-nmi-entry-in-window"}


@pytest.mark.parametrize("aim", list(Aim))
def test_the_rendezvous_in_the_nmi_handler_is_never_accused(storm: Storm, aim: Aim) -> None:
    for each in storm("nmi-self", trials=20, aim=aim):
        if each.record.outcome is Outcome.PASS:
            assert each.record.nmis.proven_in_window >= 1


def test_one_guest_serves_mechanisms_in_turn(trial: Trial) -> None:
    outcomes = [trial(name, seed=7).record.outcome for name in ("nmi-self", "stop-machine", "nmi-self")]
    assert outcomes[1] is Outcome.FAIL
    assert Outcome.FAIL not in (outcomes[0], outcomes[2])


def test_the_window_of_each_core_lasts_as_long_as_asked(trial: Trial) -> None:
    tried = trial("nmi-self", seed=5, stretch_per_core_us=(20_000, 60_000))
    assert tried.evidence.observer is not None
    lasted_ns = {window.core: window.close_ns - window.open_ns for window in tried.evidence.observer.windows}
    assert set(lasted_ns) == {0, 1}
    # It may be held longer until every sibling has shown itself alive, never shorter.
    assert lasted_ns[0] >= 20_000_000
    assert lasted_ns[1] >= 60_000_000


@pytest.mark.parametrize("mechanism", ["nmi-siblings", "nmi-broadcast", "park-hlt", "park-mwait", "init-sipi", "smi"])
def test_other_ways_to_keep_siblings_quiet_are_not_accused(storm: Storm, mechanism: str) -> None:
    storm(mechanism, trials=10)


def test_spinning_in_the_handler_keeps_the_iret_out_of_most_windows(storm: Storm) -> None:
    """Not of all: a sibling whose NMI came before its primary asked it to stay is on its way out by then."""
    tries = storm("nmi-spin", trials=10)
    seen = [each for each in tries if each.record.nmis.proven_in_window]
    assert share(seen, tries) >= 0.8
    assert any(each.finding("quiet") is Finding.BROKEN for each in seen)
    assert share([each for each in seen if each.finding("harmless") is Finding.HELD], tries) >= 0.5


@pytest.mark.parametrize("mechanism", ["park-hlt", "park-mwait"])
def test_an_aimed_nmi_gets_past_the_masked_vectors_of_a_parked_sibling(
    trial: Trial, seeds: Seeds, mechanism: str
) -> None:
    tries = [trial(mechanism, seed=seed, aim=Aim.SIBLING) for seed in seeds(5)]
    woken = [each for each in tries if each.finding("no-nmi-entry-in-window") is Finding.BROKEN]
    assert share(woken, tries) >= 0.6
    assert all(each.record.outcome is Outcome.FAIL for each in woken)


def test_the_mwait_that_parks_a_sibling_is_unseen_and_nothing_else_is(trial: Trial, seeds: Seeds) -> None:
    tries = [trial("park-mwait", seed=seed) for seed in seeds(3)]
    passed = [each for each in tries if each.record.outcome is Outcome.PASS]
    assert share(passed, tries) >= 2 / 3, [each.verdict.reason for each in tries]
    for each in passed:
        unseen = {name for name, finding in each.record.invariants.items() if finding is Finding.UNSEEN}
        assert each.evidence.observer is not None
        # What a WRMSR names shows only where the observer reads guest memory.
        blind = set[str]() if Sees.UPDATES in each.evidence.observer.sees else {"right-image"}
        assert unseen == {"harmless", "offline-siblings-return"} | blind


def test_a_sibling_that_was_reset_is_halted_all_through_the_window(trial: Trial, seeds: Seeds) -> None:
    tries = [trial("init-sipi", seed=seed) for seed in seeds(3)]
    passed = [each for each in tries if each.record.outcome is Outcome.PASS]
    assert share(passed, tries) >= 2 / 3, [each.verdict.reason for each in tries]
    for each in passed:
        assert each.evidence.observer is not None
        views = [view for window in each.evidence.observer.windows for view in window.siblings]
        assert [view.vcpu for view in sorted(views, key=lambda view: view.vcpu)] == [1, 3]
        for view in views:
            assert view.halted_at_close
            assert view.region_blocks == view.outside_blocks == 0


def test_siblings_that_a_load_took_offline_are_back_after_it(trial: Trial) -> None:
    """Also when nothing hits the load: what then goes wrong is the mechanism's own doing."""
    tried = trial("init-sipi", seed=3, nmis=0)
    guest = tried.evidence.guest
    assert guest is not None
    assert guest.online == (0, 1, 2, 3)
    assert guest.revisions_after == (guest.target_revision,) * 4
    assert tried.record.outcome is Outcome.PASS, tried.verdict.reason


@pytest.mark.parametrize("aim", [Aim.BROADCAST, Aim.SIBLING])
def test_an_update_that_holds_the_sibling_itself_is_not_accused(storm: Storm, aim: Aim) -> None:
    for each in storm("uniform", trials=10, aim=aim):
        observer = each.evidence.observer
        assert observer is not None
        for window in observer.windows:
            assert window.stalled
            assert all(sibling.stall_overrun or not sibling.blocks for sibling in window.siblings)
        if each.record.outcome is Outcome.PASS:
            assert each.record.nmis.proven_in_window >= 1
            assert each.finding("all-waiting-before-update") is Finding.UNSEEN


def test_a_sibling_is_held_also_where_no_nmi_comes(storm: Storm) -> None:
    tries = storm("uniform", trials=5, nmis=0)
    passed = [each for each in tries if each.record.outcome is Outcome.PASS]
    assert share(passed, tries) >= 0.8, [each.record.reason for each in tries]


def test_the_same_kernel_is_caught_where_nothing_holds_the_sibling(
    trial: Trial, seeds: Seeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel leaves all to the update: one that does not hold the sibling lets every NMI through."""
    real = ObserverLink.arm

    def arm_running(
        self: ObserverLink, trial: int, mechanism_bit: int, stretch_us: tuple[int, ...], **_stalled: bool
    ) -> None:
        real(self, trial, mechanism_bit, stretch_us)

    monkeypatch.setattr(ObserverLink, "arm", arm_running)
    tries = [trial("uniform", seed=seed) for seed in seeds(5)]
    assert all(each.record.outcome is not Outcome.PASS for each in tries)
    caught = [each for each in tries if each.record.outcome is Outcome.FAIL]
    assert share(caught, tries) >= 0.8, [each.verdict.reason for each in tries]
    for each in caught:
        assert each.verdict.reason.startswith("quiet broken")
        assert each.finding("no-nmi-entry-in-window") is Finding.BROKEN


@pytest.mark.parametrize("aim", [Aim.SIBLING, Aim.PRIMARY])
def test_system_management_mode_holds_back_nmis_that_are_sent_straight_to_a_thread(storm: Storm, aim: Aim) -> None:
    storm("smi", trials=10, aim=aim)


def test_a_core_is_updated_in_smm_but_for_that_of_the_boot_cpu(trial: Trial) -> None:
    tried = trial("smi", seed=3)
    assert tried.evidence.observer is not None
    windows = {window.core: window for window in tried.evidence.observer.windows}
    assert windows[0].pc >= 2**47
    for core, primary in ((0, 0), (1, 2)):
        assert windows[core].primary == primary
        (sibling,) = windows[core].siblings
        assert sibling.region_blocks > 0
        assert {block.symbol.split("+")[0] for block in sibling.blocks} == {"mclab_smi_handler"}
    # The SMBASE of CPU n is n steps of 0x2000 above that of reset, 0x30000; its handler is 0x8000 higher.
    assert 0x38000 + 2 * 0x2000 <= windows[1].pc < 0x38000 + 3 * 0x2000
