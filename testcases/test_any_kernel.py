# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that the lab knows nothing of: Debian's source as it is, brought as a user brings a bzImage and a vmlinux."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from conftest import Trial, find_images, find_unpatched
from lab.build.kernel import DEFAULT_BASE, UNPATCHED
from lab.build.qemu import find_qemu
from lab.errors import UsageError
from lab.evidence.folder import read_evidence
from lab.host.paths import ROOT
from lab.mechanisms.base import BASES
from lab.model.engine import Engine
from lab.model.evidence import EventKind, Match
from lab.model.verdict import EXIT_STATUS, Finding, Outcome
from lab.trial.given import take_kernel

pytestmark = pytest.mark.e2e

#: On a busy host a trial may show nothing; the more, the surer that one does, and the longer this takes.
SEEDS = (1, 2, 3)
#: Other workers may hold the host's vCPUs, or be building.
PATIENCE_S = 600


def test_the_old_rendezvous_is_caught_in_nmi_handlers(trial: Trial) -> None:
    # As every emulator does it that ignores the update.
    tries = [trial("stock-rendezvous", seed=seed, engine=Engine.REFUSES) for seed in SEEDS]
    reasons = [each.verdict.reason for each in tries]
    outcomes = {each.record.outcome for each in tries}
    assert Outcome.FAIL in outcomes, reasons
    assert not outcomes & {Outcome.PASS, Outcome.ERROR}, reasons
    for caught in (each for each in tries if each.record.outcome is Outcome.FAIL):
        found = {one.name: one for one in caught.verdict.invariants}
        assert caught.finding("quiet") is Finding.BROKEN
        assert found["no-nmi-entry-in-window"].proofs[0].symbol == "asm_exc_nmi+0x0"
        # What the kernel does right is not held against it.
        assert caught.finding("all-waiting-before-update") is Finding.HELD
        assert caught.finding("dmesg-clean") is Finding.HELD
    for each in tries:
        assert each.evidence.guest is not None
        assert each.evidence.observer is not None
        assert each.evidence.guest.load_errno == 1  # EPERM: the update took no effect
        assert each.evidence.guest.revisions_after == each.evidence.guest.revisions_before
        # After their release siblings find the old revision, and try for themselves.
        again = [event.vcpu for event in each.evidence.observer.events if event.kind is EventKind.RETRY]
        assert sorted(again) == [1, 3]


def test_mainlines_rendezvous_is_not_accused(trial: Trial) -> None:
    tries = [trial("stock-nmi", seed=seed, engine=Engine.REFUSES) for seed in SEEDS]
    reasons = [each.verdict.reason for each in tries]
    outcomes = {each.record.outcome for each in tries}
    assert Outcome.PASS in outcomes, reasons
    assert not outcomes & {Outcome.FAIL, Outcome.ERROR}, reasons
    for each in tries:
        assert each.evidence.guest is not None
        assert each.evidence.images is not None
        assert each.evidence.guest.load_errno == 5  # EIO
        assert each.evidence.images.match is Match.BUILD_ID
        if each.record.outcome is Outcome.PASS:
            assert each.finding("errno-and-messages") is Finding.HELD
            assert each.finding("new-revision-everywhere") is Finding.HELD


def test_without_an_engine_a_pass_says_what_it_leaves_open(trial: Trial) -> None:
    tries = [trial("stock-nmi", seed=seed) for seed in SEEDS]
    passed = [each for each in tries if each.record.outcome is Outcome.PASS]
    assert passed, [each.verdict.reason for each in tries]
    for each in passed:
        whole = find_qemu().can_be_engine
        assert ("no engine" in each.verdict.reason) is not whole
        assert each.finding("new-revision-everywhere") is (Finding.HELD if whole else Finding.UNSEEN)


def test_the_command_line_takes_a_kernel(tmp_path: Path) -> None:
    own = find_unpatched("stock-since-6.7")
    files = ("--kernel", str(own.image), "--vmlinux", str(own.vmlinux))
    command = (sys.executable, "-m", "lab.cli", "trial", *files, "--seed", "4", "--json", "--out", str(tmp_path / "t"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout, done.stderr
    told = msgspec.json.decode(done.stdout)
    assert (told["mechanism"], told["vmlinux_match"]) == ("stock-nmi", "build id read in the guest")
    assert told["outcome"] in ("PASS", "INVALID"), told["reason"]
    assert done.returncode == EXIT_STATUS[Outcome(told["outcome"])]
    images = read_evidence(tmp_path / "t").images
    assert images is not None
    assert images.kernel_sha256 == find_images("stock-since-6.7").kernel_sha256
    assert images.kernel_release == own.packed.release


def test_a_campaign_takes_a_kernel_and_its_trials_are_replayed(tmp_path: Path) -> None:
    own = find_unpatched("stock-since-6.7")
    files = ("--kernel", own.image, "--vmlinux", own.vmlinux)
    night, out = tmp_path / "night.toml", tmp_path / "night"
    night.write_text(
        'summary = "of my own"\n[[scenarios]]\nscenario = { mechanism = "stock-nmi", topology = "1x1x2" }\n'
    )

    def lab(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "lab.cli", *map(str, words))
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    done = lab("campaign", "start", night, *files, "--trials", "3", "--workers", "0", "--out", out)
    assert done.returncode == 0, done.stderr
    told = msgspec.json.decode(lab("campaign", "status", out, "--json").stdout)
    assert told["done"] == 3
    one = tmp_path / "one"
    assert lab("campaign", "trial", out, "1", *files, "--out", one).returncode in (0, 3)
    # The lab built it, and so finds it again by what is in it.
    replayed = lab("replay", one, "--times", "1", "--out", tmp_path / "again")
    assert "of 1" in replayed.stdout or "1/1" in replayed.stdout, replayed.stderr
    other = lab(
        "campaign",
        "start",
        ROOT / "testcases/campaigns/all-mechanisms.toml",
        *files,
        "--trials",
        "1",
        "--out",
        tmp_path / "x",
    )
    assert other.returncode == 2
    assert "is not there: this kernel has stock-nmi" in other.stderr


@pytest.mark.parametrize("base", [base.name for base in BASES])
def test_our_own_kernels_are_known_again(base: str) -> None:
    images = find_images(base)
    own = take_kernel(images.kernel, images.vmlinux)
    assert (own.base.name, own.match, own.packed.release) == (base, Match.BUILD_ID, images.kernel_release)


@pytest.mark.parametrize("base", list(UNPATCHED))
def test_a_kernel_without_our_patches_is_known_as_such(base: str) -> None:
    assert find_unpatched(base).base.name == base


def test_the_vmlinux_of_another_build_of_the_same_source_is_refused() -> None:
    ours, stock = find_images(DEFAULT_BASE), find_unpatched("stock-before-6.7")
    with pytest.raises(UsageError, match="does not belong"):
        take_kernel(ours.kernel, stock.vmlinux)
