# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab must notice what is broken on purpose: some kernels, and each of its own witnesses.

All of them are hunted by ``make mutants``; every kernel takes a build of its own.
"""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from lab.build.mutant_list import choose_mutants, list_mutants
from lab.build.qemu import find_qemu
from lab.campaign.database import NAME
from lab.campaign.hunt import build_hunt, make_hunt_spec
from lab.campaign.reader import summarise
from lab.campaign.sitting import INLINE, Watch, Where, start_campaign
from lab.cli.ending import KILLS
from lab.expected.hunt import Fate, Kill
from lab.expected.mutant import Mutant
from lab.host.paths import ROOT
from lab.model.verdict import Outcome
from lab.report.campaign_page import write_campaign_report

pytestmark = pytest.mark.e2e

#: One that the judge, one that the landmarks and one that the look at resting siblings must notice.
KERNELS = ("reads-msr-while-waiting", "updates-twice", "offline-not-released")
#: One that survives random storms, and that an NMI at the landmark of its sending breaks.
NARROW = ("sender-first",)
WITNESSES = tuple(mutant.name for mutant in list_mutants() if mutant.ends_in is Outcome.INVALID)
#: Each of these is caught by the first trial that comes to its end in time.
TRIALS = 19
HUNT_S = 600
BEGIN_S = 240


@pytest.mark.parametrize("mutant", choose_mutants([*KERNELS, *NARROW, *WITNESSES]), ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_by_the_invariant_that_it_breaks(mutant: Mutant, tmp_path: Path) -> None:
    qemu = find_qemu()
    spec = make_hunt_spec((), [mutant], qemu.level, TRIALS, 1)
    result = start_campaign(
        tmp_path, spec, lambda spec: build_hunt(spec, lambda _: None, qemu), Where(workers=INLINE), Watch()
    )
    assert result.finished, result
    (summary,) = summarise(tmp_path)
    (kill,) = summary.kills
    assert kill.fate is Fate.CAUGHT, kill
    assert set(kill.by) <= set(mutant.caught_by)
    assert (tmp_path / kill.evidence / "verdict.json").is_file()
    assert summary.met
    assert kill.fate.value in write_campaign_report(tmp_path).read_text()


def lab(*words: str | Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "lab.cli", *map(str, words))


def resume(folder: Path) -> None:
    words = lab("campaign", "resume", folder)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=HUNT_S, check=False)
    assert done.returncode == 0, done.stderr


def count_trials(folder: Path) -> int:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(folder / NAME)) as store:
        return int(store.execute("SELECT count(*) FROM trials").fetchone()[0])
    return 0


def test_a_hunt_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Nothing of it is lost, and no mutant whose fate was known is tried again."""
    folder = tmp_path / "hunt"
    names = ("nmis-never-sent", "updates-twice", "stale-vmlinux")
    with subprocess.Popen(
        lab("mutants", *names, "--seed", "7", "--out", folder), cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE
    ) as hunt:
        end = time.monotonic() + BEGIN_S
        while count_trials(folder) < 2 and hunt.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(hunt.pid, signal.SIGKILL)
    before = count_trials(folder)
    assert before >= 2
    resume(folder)
    kills = msgspec.json.decode((folder / KILLS).read_bytes(), type=list[Kill])
    assert [(kill.mutant, kill.fate) for kill in kills] == [(name, Fate.CAUGHT) for name in names]
    resume(folder)
    assert msgspec.json.decode((folder / KILLS).read_bytes(), type=list[Kill]) == kills
