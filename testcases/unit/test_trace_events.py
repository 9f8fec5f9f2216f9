# SPDX-License-Identifier: GPL-2.0-or-later
"""A trial as trace events: spans and instants where the evidence has them, on their threads."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evidence_builder import Load, change
from kept_evidence import FOLDER

from lab.evidence.folder import read_evidence, write_evidence
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


def check_event(event: dict[str, Any]) -> None:
    """Hold an event to the trace event format (the document of that name, of the Chromium project).

    Perfetto's own trace processor is no program of its package: the package fetches the program when it runs.
    """
    assert {type(event["pid"]), type(event["tid"])} == {int}
    assert isinstance(event["name"], str)
    assert event["name"]
    match event["ph"]:
        case "M":
            assert event["name"] in ("process_name", "thread_name")
            assert list(event["args"]) == ["name"]
        case "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
        case "i":
            assert event["ts"] >= 0
            assert event["s"] in ("g", "p", "t")
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("folder", sorted(FOLDER.iterdir()), ids=lambda folder: folder.name)
def test_traces_of_real_trials_are_as_the_format_wants_them(folder: Path) -> None:
    trace = msgspec.json.decode(msgspec.json.encode(make_trace(read_evidence(folder))))
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        check_event(event)
    named = {event["tid"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert {event["tid"] for event in trace["traceEvents"]} <= named
    # Spans of one thread may only nest: viewers drop or cut those that overlap.
    spans = [each for each in trace["traceEvents"] if each["ph"] == "X"]
    for one, two in itertools.combinations(spans, 2):
        first, second = sorted((one, two), key=lambda each: (each["ts"], -each["dur"]))
        apart = second["ts"] >= first["ts"] + first["dur"]
        inside = second["ts"] + second["dur"] <= first["ts"] + first["dur"]
        assert one["tid"] != two["tid"] or apart or inside, (one, two)


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
