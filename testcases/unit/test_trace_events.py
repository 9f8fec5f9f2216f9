# SPDX-License-Identifier: GPL-2.0-or-later
"""A trial as trace events: spans and instants where the evidence has them, on their threads."""

import subprocess
import sys
from pathlib import Path

import msgspec
from evidence_builder import Load, change

from lab.evidence.folder import write_evidence
from lab.host.paths import ROOT
from lab.model.evidence import EventKind
from lab.report.trace_events import MAX_EVENTS, make_trace

EVIDENCE = Load().build()


def find(name: str, **fields: object) -> list[dict[str, object]]:
    events = make_trace(EVIDENCE)["traceEvents"]
    return [
        each for each in events if each["name"] == name and all(each.get(key) == value for key, value in fields.items())
    ]


def test_each_window_is_a_span_of_its_primary() -> None:
    assert EVIDENCE.observer is not None
    begin_ns = min(event.mono_ns for event in EVIDENCE.observer.events)
    wanted = {
        (seen.primary + 1, (seen.open_ns - begin_ns) / 1_000, (seen.close_ns - seen.open_ns) / 1_000)
        for seen in EVIDENCE.observer.windows
    }
    assert {(each["tid"], each["ts"], each["dur"]) for each in find("window: WRMSR 0x79")} == wanted


def test_each_thread_waits_once_and_has_its_name() -> None:
    vcpus = range(EVIDENCE.scenario.topology.vcpus)
    assert sorted(str(each["tid"]) for each in find("waits")) == [str(vcpu + 1) for vcpu in vcpus]
    names = {each["tid"]: each["args"] for each in find("thread_name")}
    assert names == {0: {"name": "the lab"}, **{vcpu + 1: {"name": f"vCPU {vcpu}"} for vcpu in vcpus}}


def test_no_event_is_before_the_first_nor_shorter_than_nothing() -> None:
    events = make_trace(EVIDENCE)["traceEvents"]
    assert min(each["ts"] for each in events if "ts" in each) == 0
    assert all(each["dur"] >= 0 for each in events if "dur" in each)
    assert {each["ph"] for each in events} == {"M", "X", "i"}


def test_a_begin_without_an_end_is_an_instant_alone() -> None:
    assert EVIDENCE.observer is not None
    left = tuple(event for event in EVIDENCE.observer.events if event.kind is not EventKind.RELEASE)
    events = make_trace(change(EVIDENCE, "observer.events", left))["traceEvents"]
    assert [each for each in events if each["name"] == "waits"] == []
    assert [each for each in events if each["name"] == "call-in"]


def test_a_trial_without_an_observer_is_empty_and_a_huge_one_is_cut() -> None:
    nothing = msgspec.structs.replace(EVIDENCE, observer=None, injections=None)
    assert {each["ph"] for each in make_trace(nothing)["traceEvents"]} == {"M"}
    assert EVIDENCE.observer is not None
    many = EVIDENCE.observer.events * (MAX_EVENTS // len(EVIDENCE.observer.events) + 2)
    events = make_trace(change(EVIDENCE, "observer.events", many))["traceEvents"]
    assert sum(each["ph"] == "i" for each in events) <= MAX_EVENTS


def test_the_command_writes_json(tmp_path: Path) -> None:
    write_evidence(tmp_path / "trial", EVIDENCE, {})
    command = (sys.executable, "-m", "lab.cli", "export", str(tmp_path / "trial"), "--format", "trace")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert msgspec.json.decode(done.stdout) == msgspec.json.decode(msgspec.json.encode(make_trace(EVIDENCE)))
    refused = subprocess.run(
        (*command[:4], str(tmp_path), *command[5:]), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
