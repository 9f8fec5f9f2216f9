# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests on several QEMUs, side by side in one process, and what says which one a trial ran on.

Further QEMUs than that of the run are named by MCLAB_QEMUS, as PATH names folders.
"""

import contextlib
import os
from pathlib import Path

import pytest

from lab.build.images import ImageSet, build_images
from lab.build.kernel import DEFAULT_BASE
from lab.build.qemu import find_qemu
from lab.errors import UsageError
from lab.kernelimage.vmlinux import Kernel
from lab.model.evidence import Evidence, Images
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Outcome
from lab.trial.pool import WarmGuests
from lab.trial.record import keep_trial
from lab.trial.same_images import find_same

QEMUS = tuple(Path(each) for each in os.environ.get("MCLAB_QEMUS", "").split(os.pathsep) if each)
#: Of a control's trials, one at least must show it to be broken.
TRIALS = 3

pytestmark = [
    pytest.mark.skipif(not QEMUS, reason="MCLAB_QEMUS names no further QEMU"),
    pytest.mark.timeout(900),
]


def run_one(guests: WarmGuests, mechanism: str, seed: int, folder: Path) -> tuple[Outcome, Evidence]:
    scenario = Scenario(mechanism=mechanism, topology=Topology(1, 1, 2))
    kept = guests.run_trial(scenario, draw_plan(scenario, seed))
    _, record = keep_trial(folder / f"{mechanism}-{seed}", kept, seed, mechanism)
    return record.outcome, kept.evidence


def try_mechanisms(images: ImageSet, kernel: Kernel, folder: Path) -> Evidence:
    with WarmGuests({DEFAULT_BASE: images}, {DEFAULT_BASE: kernel}, print) as guests:
        controls = [run_one(guests, "stop-machine", seed, folder) for seed in range(1, TRIALS + 1)]
        sound = [run_one(guests, "nmi-self", seed, folder) for seed in range(1, TRIALS + 1)]
    assert Outcome.FAIL in {outcome for outcome, _ in controls}
    assert {outcome for outcome, _ in sound} <= {Outcome.PASS, Outcome.INVALID}
    assert Outcome.PASS in {outcome for outcome, _ in sound}
    return sound[-1][1]


@pytest.mark.parametrize("path", QEMUS, ids=str)
def test_a_control_is_caught_and_a_sound_mechanism_is_not_accused(path: Path, kernel: Kernel, tmp_path: Path) -> None:
    qemu = find_qemu(path)
    evidence = try_mechanisms(build_images(print, qemu), kernel, tmp_path)
    assert evidence.images is not None
    assert (evidence.images.qemu_version, evidence.images.qemu_sha256) == (qemu.version, qemu.sha256)
    assert evidence.images.plugin_interface == qemu.level


@pytest.mark.parametrize("path", QEMUS, ids=str)
def test_guests_on_two_qemus_run_at_once_and_neither_poses_as_the_other(
    path: Path, images: ImageSet, kernel: Kernel, tmp_path: Path
) -> None:
    other = build_images(print, find_qemu(path))
    found: list[Images | None] = []
    with contextlib.ExitStack() as stack:
        for each in (images, other):
            guests = stack.enter_context(WarmGuests({DEFAULT_BASE: each}, {DEFAULT_BASE: kernel}, print))
            found.append(run_one(guests, "nmi-self", 1, tmp_path / str(len(found)))[1].images)
    here, there = found
    assert here == images.describe()
    assert there == other.describe()
    assert find_same(there, DEFAULT_BASE, None, other.qemu, "", print)[0] == other
    with pytest.raises(UsageError, match=r"QEMU differs: the trial's is .*, the one there is .*; name the trial's own"):
        find_same(there, DEFAULT_BASE, None, images.qemu, "", print)
