# SPDX-License-Identifier: GPL-2.0-or-later
"""``lab bisect`` on a real kernel's history: the commit that breaks the rendezvous on purpose is found.

The first run on a host compiles the kernel once and three times a file of it. Later runs find all four in the cache.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bisect_history import git, make_history

from lab.evidence.folder import read_evidence
from lab.host.paths import IMAGES, ROOT
from lab.judge import judge
from lab.model.verdict import Finding, Outcome

pytestmark = pytest.mark.e2e

CONFIG = IMAGES / "kernels" / "linux-6.12" / "config"


@pytest.mark.timeout(3_600)
def test_the_commit_that_breaks_the_rendezvous_is_found(tmp_path: Path) -> None:
    tree, commits = make_history()
    words = ["--tree", tree, "--good", commits[0], "--bad", "main", "--scenario", "upstream-far-apart"]
    words += ["--config", CONFIG, "--trials", "2", "--out", tmp_path / "out", "--json"]
    command = (sys.executable, "-m", "lab.cli", "bisect", *map(str, words))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3_500, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["first_bad"]["commit"] == commits[2]
    assert found["before"]["commit"] == commits[1]
    before, after = (judge(read_evidence(Path(found[key]["evidence"]))) for key in ("before", "first_bad"))
    assert before.outcome is Outcome.PASS
    assert after.outcome is Outcome.FAIL
    broken = {each.name for each in after.invariants if each.required and each.finding is Finding.BROKEN}
    assert broken & {"released-after-update", "quiet"}
    assert {each["commit"]: each["standing"] for each in found["tried"]} == dict(
        zip(commits, ("good", "good", "bad", "bad"), strict=True)
    )
    assert git(tree, "symbolic-ref", "--short", "HEAD") == "main"
    assert git(tree, "status", "--porcelain") == ""
