# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps on real guests: every place is tried, what is broken is found, and a sweep that was killed goes on."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lab.evidence.folder import read_evidence
from lab.host.deadline import Deadline
from lab.host.paths import ROOT
from lab.judge import judge
from lab.model.boot import Granularity
from lab.model.evidence import Covered, EventKind
from lab.model.phase import Phase
from lab.model.topology import Topology
from lab.model.verdict import Outcome
from lab.sweep.journal import JOURNAL, Found, Tried, read_lines

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

LAB = (sys.executable, "-m", "lab.cli")
#: Other workers may hold the host's vCPUs: a sweep of a hundred points takes half a minute on a free host.
PATIENCE_S = 1200
IN_WINDOW = ("--role", "sibling", "--from", "window", "--to", "window")


def sweep(*words: str | Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        (*LAB, "sweep", "--json", *words), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode in (0, 1, 3), done.stderr
    return done.returncode, json.loads(done.stdout)


def list_lines(folder: Path) -> tuple[list[Found], list[Tried]]:
    lines, _ = read_lines(folder)
    return [each for each in lines if isinstance(each, Found)], [each for each in lines if isinstance(each, Tried)]


def test_a_sweep_of_a_rendezvous_without_protection_finds_where_it_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    status, swept = sweep("--mechanism", "stop-machine", *IN_WINDOW, "--until-broken", "4", "--out", folder)
    assert status == 1
    assert swept["stopped"] == "4 points were broken, as many as asked for"
    assert not swept["complete"]
    loud = [each for each in swept["broken"] if "quiet" in each["invariants"]]
    assert loud
    for each in loud[:3]:
        evidence = read_evidence(Path(each["evidence"]))
        assert judge(evidence).outcome is Outcome.FAIL
        # A later attempt may hold a thread at its call-in, too, to make it the last.
        assert each["address"] in [hold.at for hold in evidence.plan.holds]
        assert each["symbol"]
    _, tried = list_lines(folder)
    kept = {path.name for path in (folder / "broken").iterdir()}
    assert kept == {each.evidence.removeprefix("broken/") for each in tried if each.outcome is Outcome.FAIL}


def test_a_sweep_of_a_sound_mechanism_tries_all_that_comes_again_and_finds_nothing(tmp_path: Path) -> None:
    status, swept = sweep("--mechanism", "nmi-self", *IN_WINDOW, "--out", tmp_path / "sweep")
    assert swept["broken"] == []
    assert swept["stopped"] == ""
    # What a load did once by chance may not come again; it is counted, and nothing else is left out. There are some
    # fifteen points here, and the busier the host, the more of them are such.
    left = swept["points_known"] - swept["points_tried"]
    assert sum(swept["untried"].values()) == left <= swept["points_known"] // 4
    assert set(swept["untried"]) <= {"the thread did not come there again in .. loads"}
    assert status == (0 if left == 0 else 3)


def test_a_campaign_tries_the_points_of_a_sweep_again(tmp_path: Path) -> None:
    words = ("--mechanism", "stop-machine", *IN_WINDOW, "--until-broken", "3", "--out", tmp_path / "swept")
    _, swept = sweep(*words)
    file = tmp_path / "night.toml"
    file.write_text('summary = "points"\n[limits]\nretries = 1\n[[scenarios]]\nsweep = "swept"\n')
    ran = subprocess.run(
        (*LAB, "campaign", "start", file, "--trials", "6", "--workers", "0", "--out", tmp_path / "night", "--json"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    # On a crowded host more than one trial in ten shows nothing, and the scenario did not do what it must.
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "night" / "campaign.sqlite")) as store:
        trials = store.execute("SELECT number, outcome, reproduces, failed, reason FROM trials").fetchall()
        tries = store.execute("SELECT number, outcome FROM attempts ORDER BY number, attempt").fetchall()
    assert len(trials) == 6
    # Each is a plan of holds alone, and a failing one is tried again. A late arrival in a loop that spins may not come,
    # and a busy host may not run a sibling: such a try shows nothing, and counts for neither.
    for number, outcome, reproduces, failed, reason in trials:
        tried = [each for of, each in tries if of == number]
        assert reproduces
        assert (outcome, failed) == (tried[0], tried.count("FAIL")), reason
        assert len(tried) == (2 if outcome == "FAIL" else 1)
        assert set(tried) <= {"PASS", "FAIL", "INVALID"}, reason
    assert any(outcome == "FAIL" for _, outcome, *_ in trials), trials
    assert swept["points_tried"] >= 3


def test_a_sweep_that_was_killed_goes_on_with_each_point_once(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = ("--mechanism", "nmi-self", "--role", "sibling", "--from", "armed", "--to", "closing", "--out", folder)
    killed = subprocess.Popen(
        (*LAB, "sweep", *words), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = Deadline.after(PATIENCE_S)
    while not (folder / JOURNAL).is_file() or len(list_lines(folder)[1]) < 5:
        assert killed.poll() is None
        deadline.check("five points to be tried")
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = list_lines(folder)[1]
    status, swept = sweep("--resume", "--out", folder)
    found, tried = list_lines(folder)
    assert tried[: len(before)] == before
    assert set(Counter(each.point for each in tried).values()) == {1}
    assert len(tried) == swept["points_known"] > len(before)
    assert found
    assert status == (0 if swept["complete"] else 3)
    assert not swept["broken"]


def count_block_heads(covered: tuple[Covered, ...]) -> int:
    return len({each.pc for each in covered if each.vcpu == 0 and each.phase is Phase.ARMED})


def test_with_instruction_granularity_every_instruction_is_a_block_head(trial: Any, guests: Any) -> None:
    heads = {}
    for granularity in Granularity:
        fields: dict[str, Any] = {"topology": Topology(1, 1, 2), "nmis": 0, "granularity": granularity}
        tried = trial("nmi-self", **fields)
        assert tried.record.outcome is Outcome.PASS, tried.record.reason
        assert tried.evidence.scenario.granularity is granularity
        scenario = tried.evidence.scenario
        kept = guests(scenario.boot).run_trial(scenario, tried.evidence.plan, cover=True)
        assert kept.evidence.observer.cover.lost == 0
        heads[granularity] = count_block_heads(kept.evidence.observer.cover.blocks)
    assert heads[Granularity.INSTRUCTION] > 3 * heads[Granularity.BLOCK] > 0


def test_what_a_thread_does_once_it_has_left_is_no_part_of_the_load(trial: Any, guests: Any) -> None:
    tried = trial("nmi-self", topology=Topology(1, 1, 2), nmis=0)
    scenario = tried.evidence.scenario
    kept = guests(scenario.boot).run_trial(scenario, tried.evidence.plan, cover=True)
    assert any(event.kind is EventKind.RELEASE for event in kept.evidence.observer.events)
    by_phase: dict[Phase, set[str]] = {}
    for each in kept.evidence.observer.cover.blocks:
        by_phase.setdefault(each.phase, set()).add(each.symbol.partition("+")[0])
    masked = {(each.phase, each.symbol.partition("+")[0]): each.masked for each in kept.evidence.observer.cover.blocks}
    assert masked[Phase.WINDOW, "mclab_nmi_wait_for_primary"]
    assert not masked[Phase.GATHER, "multi_cpu_stop"]
    assert not masked[Phase.RELEASE, "multi_cpu_stop"]
    assert "multi_cpu_stop" in by_phase[Phase.RELEASE]
    assert "__schedule" not in by_phase[Phase.RELEASE]
    assert "__schedule" in by_phase[Phase.AFTER]
