# SPDX-License-Identifier: GPL-2.0-or-later
"""Two defects of mainline with offline siblings: each is shown on 6.12, and gone with its candidate fix."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import capstone.x86
import pytest

from conftest import find_images
from lab.build.images import build_images
from lab.build.kernel import find_recipe, read_series
from lab.build.qemu import find_qemu
from lab.expected.expect import expect
from lab.judge import judge
from lab.kernelimage.flow import is_branch, target_of
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.model.phase import Role
from lab.model.placed import Placed, Target
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario, Siblings
from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome, Verdict
from lab.trial.pool import WarmGuests

pytestmark = pytest.mark.e2e

BASE = "linux-6.12"
FIXES = find_recipe(BASE, print).folder / "fixes"
RELEASE, DESTINATION = read_series(FIXES)
#: What an xAPIC keeps the destination of the next IPI in, from its page's begin.
ICR2 = 0x310
ONE_CORE, TWO_CORES = Topology(1, 1, 2), Topology(1, 2, 2)
SEEDS = range(1, 6)


@pytest.fixture(scope="module")
def mainline() -> Iterator[tuple[WarmGuests, Kernel]]:
    images = find_images(BASE)
    kernel = read_kernel(images.vmlinux)
    with WarmGuests({BASE: images}, {BASE: kernel}, print) as guests:
        yield guests, kernel


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WarmGuests, Kernel]]:
    # As git am would apply them, one after the other.
    both = tmp_path_factory.mktemp("fixes") / "both.patch"
    both.write_text("".join((FIXES / name).read_text() for name in (RELEASE, DESTINATION)))
    images = build_images(print, find_qemu(), BASE, kernel_patch=both)
    kernel = read_kernel(images.vmlinux)
    with WarmGuests({BASE: images}, {BASE: kernel}, print) as guests:
        yield guests, kernel


def run(guests: WarmGuests, scenario: Scenario, seed: int) -> Verdict:
    scenario.check()
    return judge(guests.run_trial(scenario, draw_plan(scenario, seed)).evidence)


def broken(verdict: Verdict) -> set[str]:
    return {one.name for one in verdict.invariants if one.finding is Finding.BROKEN}


def list_writes_to_icr2(kernel: Kernel) -> list[int]:
    """Return where each block begins that writes ICR2 in the function that CPU 0 sends itself an NMI by."""
    code = kernel.disassemble(kernel.find("default_send_IPI_single_phys"))
    begins = {target_of(each) for each in code if is_branch(each)}
    found, begin = [], code[0].address
    for before, each in itertools.pairwise(code):
        if is_branch(before) or each.address in begins:
            begin = each.address
        target = each.operands[0] if each.operands else None
        if target is not None and target.type == capstone.x86.X86_OP_MEM and target.mem.disp & 0xFFF == ICR2:
            found.append(begin)
    return sorted(set(found))


def place(kernel: Kernel, address: int) -> Scenario:
    """Return a load in which an NMI comes to CPU 0 behind a block, before the write to ICR that follows it."""
    at = kernel.symbolise(address)
    placed = (Placed(at=at, role=Role.PRIMARY, nmi=Target.HELD),)
    return Scenario(mechanism="upstream", topology=ONE_CORE, siblings=Siblings.OFFLINE, nmis=0, placed=placed)


def test_an_nmi_between_two_writes_to_icr_sends_cpu_0s_own_to_a_sibling(mainline: tuple[WarmGuests, Kernel]) -> None:
    guests, kernel = mainline
    places = list_writes_to_icr2(kernel)
    assert places
    verdicts = [run(guests, place(kernel, each), 1) for each in places]
    caught = [place for place, verdict in zip(places, verdicts, strict=True) if verdict.outcome is Outcome.FAIL]
    # The others are of IPIs that are no NMIs, and of waits that ended in a timeout: no load gets there.
    assert len(caught) == 1, [verdict.reason for verdict in verdicts]
    for seed in SEEDS:
        verdict = run(guests, place(kernel, caught[0]), seed)
        assert verdict.outcome is Outcome.FAIL, verdict.reason
        assert {"nmis-delivered"} <= broken(verdict) <= {"nmis-delivered", "nmis-serviced"}, verdict.reason
        assert "entered an NMI that nobody sent" in verdict.reason


def test_the_destination_is_kept_with_the_fix(fixed: tuple[WarmGuests, Kernel]) -> None:
    guests, kernel = fixed
    verdicts = [run(guests, place(kernel, each), seed) for each in list_writes_to_icr2(kernel) for seed in SEEDS]
    assert {verdict.outcome for verdict in verdicts} <= {Outcome.PASS, Outcome.INVALID}
    # Each seed's NMI came to its place once: where no load gets, the trial is INVALID.
    assert sum(verdict.outcome is Outcome.PASS for verdict in verdicts) == len(SEEDS), [
        verdict.reason for verdict in verdicts
    ]


def test_cpu_0_lets_siblings_of_other_cores_go_and_the_fix_keeps_them(
    mainline: tuple[WarmGuests, Kernel], fixed: tuple[WarmGuests, Kernel]
) -> None:
    # Core 1's window lasts longer than core 0's.
    scenario = Scenario(
        mechanism="upstream", topology=TWO_CORES, siblings=Siblings.OFFLINE, stretch_per_core_us=(1_000, 50_000)
    )
    for seed in SEEDS:
        verdict = run(mainline[0], scenario, seed)
        assert verdict.outcome is Outcome.FAIL, verdict.reason
        assert broken(verdict) & set(expect(scenario).caught_by), verdict.reason
    outcomes = [run(fixed[0], scenario, seed) for seed in SEEDS]
    assert {verdict.outcome for verdict in outcomes} <= {Outcome.PASS, Outcome.INVALID}
    assert sum(verdict.outcome is Outcome.PASS for verdict in outcomes) > len(SEEDS) // 2, [
        verdict.reason for verdict in outcomes
    ]


def test_the_series_names_every_fix() -> None:
    assert {RELEASE, DESTINATION} == {path.name for path in Path(FIXES).glob("*.patch")}
