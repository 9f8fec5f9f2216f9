# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs that the guest's kernel sends by itself while a trial runs: for backtraces of all CPUs, as by sysrq-l."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.host.deadline import Deadline
from lab.host.paths import ROOT
from lab.model.boot import Boot
from lab.model.evidence import Ending, EventKind
from lab.model.phase import Phase
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome, Verdict
from lab.trial.pool import WarmGuest
from lab.trial.record import keep_trial
from lab.trial.session import Kept

pytestmark = pytest.mark.e2e

SHAPE = Topology(1, 1, 2)
SEEDS = range(2, 12)
#: What a verdict calls it.
BACKTRACE = "a backtrace's NMI"
#: Asks for backtraces once the next load has said that it begins. The log is read from its oldest line on, so it waits
#: until a line that was not there before shows that all earlier loads are passed over.
ASK_ONCE_IT_LOADS = """
mark=$(cat /proc/sys/kernel/random/uuid)
rm -f /tmp/ready /tmp/asked
(cat /dev/kmsg | {
    while read -r line; do
        case $line in
        *"$mark"*) : >/tmp/ready ;;
        *"ate microcode loading"*) [ -e /tmp/ready ] && break ;;
        esac
    done
    echo l >/proc/sysrq-trigger
    : >/tmp/asked
}) >/dev/null 2>&1 &
echo "$mark" >/dev/kmsg
until [ -e /tmp/ready ]; do sleep 0.1; done
"""
#: So that what one trial asked for late is not the next one's.
WAIT_UNTIL_ASKED = "until [ -e /tmp/asked ]; do sleep 0.1; done"


def run_with_backtraces(guest: WarmGuest, scenario: Scenario) -> Kept:
    """Run one trial in which somebody in the guest asks for backtraces of all CPUs.

    On a busy host who asks may get to run only when the observer no longer looks, or just before that, so that the NMIs
    enter when it no longer does: then once more.
    """
    # The first load of a guest's takes longer than any other.
    guest.run_trial(scenario, draw_plan(scenario, 1))
    with guest.serve() as session:
        for seed in SEEDS:
            assert session.machine.shell.run(ASK_ONCE_IT_LOADS, Deadline.after(60)).status == 0
            kept = session.run_trial(scenario, draw_plan(scenario, seed))
            if shows_entry_after_asking(kept):
                break
            assert session.machine.shell.run(WAIT_UNTIL_ASKED, Deadline.after(60)).status == 0
    return kept


def shows_entry_after_asking(kept: Kept) -> bool:
    """Say whether the vCPU that did not ask for backtraces entered an NMI after another had sent it one for that."""
    observer = kept.evidence.observer
    events = () if observer is None else observer.events
    asked = [event for event in events if event.kind is EventKind.BACKTRACE]
    entries = [event for event in events if event.kind is EventKind.NMI_ENTRY]
    return any(entry.seq > event.seq and entry.vcpu != event.vcpu for event in asked for entry in entries)


def find(verdict: Verdict, name: str) -> Finding:
    return next(one.finding for one in verdict.invariants if one.name == name)


@pytest.mark.parametrize("mechanism", ["nmi-self", "stop-machine", "upstream"])
def test_backtraces_that_the_guest_asks_for_are_accounted_for(
    guests: Callable[[Boot], WarmGuest], mechanism: str, tmp_path: Path
) -> None:
    scenario = Scenario(mechanism=mechanism, topology=SHAPE, nmis=3, phase=Phase.WINDOW)
    kept = run_with_backtraces(guests(scenario.boot), scenario)
    verdict, _ = keep_trial(tmp_path / "trial", kept, 1, "trial")
    evidence = kept.evidence
    assert evidence.ending is Ending.COMPLETE
    assert evidence.observer is not None
    assert evidence.guest is not None
    assert any("sysrq: Show backtrace of all active CPUs" in line for line in evidence.guest.dmesg)

    # One vCPU sends them, and the other enters an NMI for it: with one pending bit, perhaps for another, too.
    (asked,) = (event for event in evidence.observer.events if event.kind is EventKind.BACKTRACE)
    assert asked.symbol == "nmi_raise_cpu_backtrace+0x0"
    assert all(each.closes and not each.unexplained for each in verdict.accounts)
    (entry,) = (each for each in verdict.entries if any(BACKTRACE in took for took in each.took))
    alone = entry.took == (BACKTRACE,)
    assert alone or len(entry.took) > 1
    assert {each.vcpu: each.backtraces for each in verdict.accounts} == {asked.vcpu: 0, 1 - asked.vcpu: int(alone)}
    assert entry.vcpu == 1 - asked.vcpu
    assert entry.seq > asked.seq

    # It accuses nobody, and hides nothing.
    assert find(verdict, "nmis-delivered") is Finding.HELD
    assert find(verdict, "witnesses-agree") is not Finding.BROKEN
    assert find(verdict, "dmesg-clean") is Finding.HELD
    if mechanism != "stop-machine":
        assert verdict.outcome is not Outcome.FAIL, verdict.reason

    told = explain(tmp_path / "trial", "--json")
    texts = [row["text"] for row in json.loads(told)["rows"] if row["who"] >= 0]
    sends = next(number for number, text in enumerate(texts) if text.startswith("sends NMIs for a backtrace"))
    enters = next(
        number for number, text in enumerate(texts) if text.startswith(f"enters {entry.took[0]}") and BACKTRACE in text
    )
    assert sends < enters
    assert ("1 for its backtraces" in explain(tmp_path / "trial")) is alone


def explain(folder: Path, *options: str) -> str:
    """Return what ``lab explain`` prints of a trial."""
    words = [sys.executable, "-m", "lab.cli", "explain", str(folder), *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True, cwd=ROOT)
    return done.stdout
