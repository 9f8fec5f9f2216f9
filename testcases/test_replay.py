# SPDX-License-Identifier: GPL-2.0-or-later
"""A failing trial that a colleague can have: run again, made smaller, told in order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Trial
from lab.build.mutant_list import read_mutants
from lab.build.mutants import build_mutant
from lab.build.qemu import find_qemu
from lab.cli.axes import read_scenario
from lab.evidence.folder import read_evidence
from lab.host.paths import ROOT
from lab.kernelimage.vmlinux import read_kernel
from lab.model.phase import Phase, Role
from lab.model.placed import Placed
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Outcome
from lab.trial.pool import WarmGuests
from lab.trial.record import keep_trial

pytestmark = pytest.mark.e2e

SHAPE = Topology(1, 1, 2)
SEEDS = (1, 2, 3)


def run_lab(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        cwd=ROOT,
    )


def test_a_storm_is_minimised_to_one_nmi_at_one_place_that_fails_each_time(trial: Trial, tmp_path: Path) -> None:
    # A busy host may let no sibling come to a place again in time; then the NMI stays one for the window as a whole.
    for seed in SEEDS:
        storm = trial("stop-machine", seed=seed, topology=Topology(1, 2, 2), stretch_us=(20_000, 20_000), nmis=6)
        assert storm.record.outcome is Outcome.FAIL, storm.record.reason
        out = tmp_path / f"minimal-{seed}"
        done = run_lab("minimise", storm.folder, "--out", out, "--need", "3/3")
        assert done.returncode == 0, done.stdout + done.stderr
        if " in phase window " not in done.stdout:
            break
    assert "NMIs: 6 at drawn times -> 1 at " in done.stdout
    scenario = read_scenario(out / "minimal.toml").scenario
    (placed,) = scenario.placed
    assert (scenario.topology, scenario.nmis, placed.role) == (SHAPE, 0, Role.SIBLING)
    assert scenario.stretch_per_core_us < (20_000,)
    assert len((out / "minimal.toml").read_text().splitlines()) <= 15
    last = read_evidence(out / "last-failing")
    assert len(last.plan.holds) == len(last.plan.injections) == 1
    again = run_lab("replay", out / "last-failing", "--times", "10", "--json")
    assert json.loads(again.stdout)["same"] == 10, again.stdout + again.stderr
    assert again.returncode == 0
    assert sorted(path.name for path in (out / "last-failing-replay").iterdir())[-1] == "again-010"
    alone = run_lab("trial", "--scenario", out / "minimal.toml", "--out", tmp_path / "alone")
    assert alone.returncode == 1, alone.stdout


@pytest.mark.parametrize(
    ("name", "mechanism", "placed"),
    [
        pytest.param(
            "faults-while-waiting",
            "nmi-self",
            Placed(at="mclab_nmi_wait_for_primary+0x0", role=Role.SIBLING, phase=Phase.ARMED),
            id="sibling",
        ),
        pytest.param("primary-waits-in-nmi", "nmi-siblings", Placed(at="window-open", role=Role.PRIMARY), id="primary"),
    ],
)
def test_a_plan_of_holds_alone_fails_each_time_on_a_mutant(
    name: str, mechanism: str, placed: Placed, tmp_path: Path
) -> None:
    """The mutant's kernel is found by its content: nothing else says which it was."""
    mutant = next(each for each in read_mutants() if each.name == name)
    images = build_mutant(mutant, print, find_qemu())
    scenario = Scenario(mechanism=mechanism, topology=SHAPE, nmis=0, stretch_per_core_us=(10_000,), placed=(placed,))
    scenario.check()
    folder = tmp_path / "held"
    with WarmGuests({mutant.base: images}, {mutant.base: read_kernel(images.vmlinux)}, print) as guests:
        kept = guests.run_trial(scenario, draw_plan(scenario, 1))
    verdict, _ = keep_trial(folder, kept, 1, "held")
    assert verdict.outcome is Outcome.FAIL, verdict.reason
    done = run_lab("replay", folder, "--times", "10", "--json")
    told = json.loads(done.stdout)
    silent = [each["reason"] for each in told["replayed"]["tries"] if each["outcome"] != "FAIL"]
    # A host that does not run a vCPU for a while makes a panic prove nothing; so the trial says, and is no other end.
    assert all("but vCPU " in reason for reason in silent), silent
    assert (done.returncode, told["same"], told["silent"]) == (3 if silent else 0, 10 - len(silent), len(silent))
    assert told["same"] > 0, done.stdout


def test_a_storm_on_a_sound_mechanism_cannot_be_minimised(trial: Trial, tmp_path: Path) -> None:
    sound = trial("nmi-self", topology=SHAPE)
    done = run_lab("minimise", sound.folder, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        f"lab: the trial ended as {sound.record.outcome.value}, and only a FAIL can be made smaller",
    )


def test_the_story_of_a_held_trial_is_told_in_order(trial: Trial) -> None:
    # Well into the window.
    placed = Placed(at="any-block", role=Role.SIBLING, phase=Phase.WINDOW, arrival=2_000)
    tried = trial("stop-machine", topology=SHAPE, nmis=0, stretch_per_core_us=(20_000,), placed=(placed,))
    assert tried.record.outcome is Outcome.FAIL, tried.record.reason
    done = run_lab("explain", tried.folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(run_lab("explain", tried.folder, "--json").stdout)
    texts = [row["text"] for row in told["rows"]]
    wanted = (
        "writes to reload",
        "late load begins",
        "WINDOW OPENS",
        "is held at ",
        "sends NMI 0 to vCPU 1",
        "NMI 0 acknowledged",
        "hold 0 lets go",
        "enters NMI 0, in window",
        "WINDOW CLOSES",
        "is let go by the mechanism",
        "late load ends",
    )
    at = [next((number for number, text in enumerate(texts) if text.startswith(each)), -1) for each in wanted]
    assert at == sorted(at), texts
    assert at[0] >= 0, texts
    assert any("quiet" in row["broke"] and "asm_exc_nmi" in row["text"] for row in told["rows"])
    (nmi,) = told["nmis"]
    assert (nmi["pending"], nmi["entered"], nmi["hold"], nmi["by"]) == ("window", "window", 0, "ordinary")
    assert all(account["closes"] for account in told["accounts"])
    for word in ("vCPU 0 primary", "vCPU 1 sibling", "sends NMI 0 to vCPU 1", "!! breaks", "handled by", ": closes"):
        assert word in done.stdout


def test_each_nmi_of_a_storm_is_accounted_for(trial: Trial) -> None:
    tried = trial("nmi-self", topology=SHAPE, nmis=12, stretch_us=(20_000, 20_000))
    assert {landing.nmi for landing in tried.verdict.landings} == set(range(12))
    for account in tried.verdict.accounts:
        causes = account.sent + account.sentinels + account.self_nmis + account.ipis
        assert account.closes, account
        assert account.self_nmis == 1
        assert causes - account.merged - account.never + account.unexplained == account.entries == account.counted
    took = [each for entry in tried.verdict.entries for each in entry.took]
    assert sum(each == "its self-NMI" for each in took) == 2
    assert sum(each == "its sentinel" for each in took) == 2
    for landing in tried.verdict.landings:
        assert bool(landing.entry_seq) is not bool(landing.shared_seq), landing
        assert not landing.shared_seq or landing.shared_with
