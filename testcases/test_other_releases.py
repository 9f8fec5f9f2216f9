# SPDX-License-Identifier: GPL-2.0-or-later
"""A slice of everything on the QEMUs of other releases of Debian, whose plugin interfaces are others than this host's.

Each is fetched and unpacked once. Where Debian's archive is out of reach that is said, and nothing is tried, but in
continuous integration, where it is a failure.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.build.qemu import examine_qemu
from lab.build.qemu_release import build_qemu
from lab.errors import HostError
from lab.evidence.folder import read_evidence
from lab.host.paths import ROOT
from lab.model.evidence import Sees

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

LAB = (sys.executable, "-m", "lab.cli")
#: Releases by what their QEMU shows the observer, of versions 4 and 7 of the interface.
RELEASES = {
    "trixie": {Sees.REGISTERS, Sees.INLINE, Sees.UPDATES},
    "trixie-backports": {Sees.REGISTERS, Sees.INLINE, Sees.INTERRUPTS, Sees.UPDATES},
}
SMALL = ("--topology", "1x1x2")
#: Three kernels, caught by three different ways of looking.
MUTANTS = ("reads-msr-while-waiting", "updates-twice", "offline-not-released")
PATIENCE_S = 800


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def qemu(release: str) -> Path:
    try:
        return build_qemu(release, lambda _: None)
    except HostError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no QEMU of {release} here: {error}")


def lab(qemu: Path, *words: str | Path) -> tuple[int, dict[str, Any]]:
    command = (*LAB, *words, "--qemu", qemu, "--json")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode in (0, 1, 3), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_controls_are_caught_and_sound_mechanisms_are_not_accused(qemu: Path, tmp_path: Path) -> None:
    names = ("stop-machine", "nmi-spin-as-posted", "nmi-self", "upstream")
    chosen = [word for name in names for word in ("--mechanism", name)]
    _, found = lab(qemu, "run", *chosen, *SMALL, "--trials", "4", "--seed", "7", "--out", tmp_path / "run")
    outcomes = {each["name"]: each["outcomes"] for each in found["mechanisms"]}
    # On a crowded host more than one trial in ten shows nothing, which is no success; no trial may accuse a sound one.
    assert not any(each["error"] for each in outcomes.values()), outcomes
    for control in names[:2]:
        assert outcomes[control]["failed"] >= 1
    for sound in names[2:]:
        assert outcomes[sound]["failed"] == 0
        assert outcomes[sound]["passed"] >= 1


def test_the_observer_sees_what_this_interface_shows(release: str, qemu: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    lab(qemu, "trial", "--mechanism", "nmi-self", *SMALL, "--seed", "7", "--out", folder)
    observer = read_evidence(folder).observer
    assert observer is not None
    assert set(observer.sees) == RELEASES[release]
    assert observer.interface == examine_qemu(qemu).level


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught_there_too(qemu: Path, mutant: str, tmp_path: Path) -> None:
    status, found = lab(qemu, "mutants", mutant, "--trials", "19", "--seed", "1", "--out", tmp_path / "kills")
    assert status == 0, found


def test_a_small_sweep_ends_complete_and_clean(qemu: Path, tmp_path: Path) -> None:
    window = ("--role", "sibling", "--from", "window", "--to", "window")
    status, swept = lab(qemu, "sweep", "--mechanism", "nmi-self", *window, "--out", tmp_path / "sweep")
    assert swept["broken"] == []
    assert swept["points_known"] >= 5
    assert status == 0, swept
