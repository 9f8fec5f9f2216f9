# SPDX-License-Identifier: GPL-2.0-or-later
"""What each command says of guests that show nothing: no exit status is 0, and nothing is green.

The guests are real, and so is the lab; its observer alone loses what it sees, so that every trial is INVALID. What an
exit status 0 or a green mark would say here, it would say without any evidence. ``explain`` and ``report`` judge
nothing: they tell what is there, and are held to what they say of it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_guest import make_blind_cache

from lab.build.images import ImageSet
from lab.build.mutant_list import choose_mutants, find_patch
from lab.build.observer import NAME, build_observer
from lab.build.qemu import find_qemu
from lab.host.paths import ROOT
from lab.report.page import PAGE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

#: Other workers may hold the host's vCPUs.
PATIENCE_S = 240
SMALL = ("--topology", "1x1x2", "--stretch-us", "1000")
TRIAL = ("trial", "--mechanism", "nmi-self", *SMALL)
CAMPAIGN = """
summary = "guests that show nothing"
[limits]
retries = 0
[[scenarios]]
scenario = { mechanism = "nmi-self", topology = "1x1x2", stretch_per_core_us = [1000] }
"""

Lab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def lab(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Run a command of the lab whose observer loses what it sees."""
    cache = tmp_path_factory.mktemp("blind")
    (blind,) = choose_mutants(["drops-records"])
    make_blind_cache(images, build_observer(print, find_qemu().level, find_patch(blind)) / NAME, cache)

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, "-m", "lab.cli", *words),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )

    return run


@pytest.fixture(scope="module")
def blind(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evidence of a trial that shows nothing."""
    folder = tmp_path_factory.mktemp("trial") / "evidence"
    done = lab(*TRIAL, "--seed", "1", "--out", folder, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["outcome"]) == (3, "INVALID"), told["reason"]
    assert "lost" in told["reason"]
    return folder


def find_met(value: Any) -> Iterator[object]:
    """Yield all that a command's JSON says of what was met."""
    if isinstance(value, dict):
        yield from (each for name, each in value.items() if name in ("met", "complete", "reproduced"))
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from find_met(each)


def assert_nothing_is_green(done: subprocess.CompletedProcess[str], *pages: Path) -> None:
    assert "Traceback" not in done.stderr, done.stderr
    if done.stdout.startswith("{"):
        assert True not in find_met(json.loads(done.stdout)), done.stdout
    assert not re.search(r"\byes\b", done.stdout), done.stdout
    for page in pages:
        text = page.read_text()
        assert not re.search(r'class="met (?:big )?yes"', text)
        assert '<p class="good">' not in text
        assert "✓" not in text.replace("✓ and ✗ are about", "")
        assert "No instruction at all," not in text


def test_a_trial_and_its_judge_show_nothing(lab: Lab, blind: Path) -> None:
    judged = lab("judge", blind)
    assert (judged.returncode, judged.stdout.split()[0]) == (3, "INVALID")


def test_a_trial_that_asks_for_no_nmi_needs_evidence_all_the_same(lab: Lab, tmp_path: Path) -> None:
    done = lab("trial", "--mechanism", "stop-machine", *SMALL, "--nmis", "0", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout.split()[0]) == (3, "INVALID")


def test_a_trial_that_shows_nothing_again_is_no_reproduction(lab: Lab, blind: Path, tmp_path: Path) -> None:
    done = lab("replay", blind, "--times", "1", "--out", tmp_path / "again")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "that others end so shows nothing" in done.stderr


def test_a_trial_that_shows_nothing_is_not_made_smaller(lab: Lab, blind: Path, tmp_path: Path) -> None:
    done = lab("minimise", blind, "--out", tmp_path / "out")
    assert (done.returncode, "only a FAIL can be made smaller" in done.stderr) == (2, True)


def test_its_story_begins_with_its_outcome(lab: Lab, blind: Path) -> None:
    done = lab("explain", blind)
    assert (done.returncode, done.stdout.split()[0]) == (0, "INVALID")


@pytest.mark.parametrize("nmis", [(), ("--nmis", "0")])
def test_a_run_is_not_met(lab: Lab, tmp_path: Path, nmis: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    # Of a control a break may be seen all the same, which is evidence.
    done = lab("run", "--mechanism", "nmi-self", *SMALL, *nmis, "--trials", "2", "--out", out)
    assert done.returncode == 1, done.stdout + done.stderr
    assert_nothing_is_green(done, out / PAGE)
    again = lab("report", out, "--json")
    assert_nothing_is_green(again, out / PAGE)
    assert json.loads(again.stdout)["met"] is False


def test_no_cell_is_sound(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lab("sound", "--only", "stop-machine", "--trials", "2", "--out", out)
    assert done.returncode == 1, done.stdout + done.stderr
    assert_nothing_is_green(done, *out.glob(PAGE))
    assert "held to be sound, and 0 of 1 trials PASS: 1 or more must" in done.stderr


def test_a_sweep_is_not_complete(lab: Lab, tmp_path: Path) -> None:
    words = ("--role", "sibling", "--from", "closing", "--to", "closing")
    done = lab("sweep", "--mechanism", "nmi-self", *words, "--out", tmp_path / "out", "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    assert_nothing_is_green(done)


def test_a_mutant_of_a_witness_is_not_caught(lab: Lab, tmp_path: Path) -> None:
    done = lab("mutants", "nmis-never-sent", "--trials", "1", "--out", tmp_path / "out")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "without the mutant none of" in done.stdout
    assert re.search(r"^nmis-never-sent +lab +error ", done.stdout, re.MULTILINE), done.stdout


def test_a_campaign_is_not_met(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "blind.toml").write_text(CAMPAIGN)
    out = tmp_path / "out"
    done = lab("campaign", "start", tmp_path / "blind.toml", "--trials", "2", "--workers", "0", "--out", out)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT MET" in done.stdout
    assert_nothing_is_green(done, out / PAGE)
    alone = lab("campaign", "trial", out, "1", "--out", tmp_path / "one")
    assert (alone.returncode, alone.stdout.split()[0]) == (3, "INVALID")
