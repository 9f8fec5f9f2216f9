# SPDX-License-Identifier: GPL-2.0-or-later
"""One trial as Chrome trace events, which Perfetto and chrome://tracing show. Pure: evidence in, values out.

Each vCPU is a thread, and so is the lab. Times are microseconds of the host's clock from the first event on. Spans:
a thread's wait from call-in to release, a window on the primary's thread, a hold, each of the lab's NMIs from its
sending to QEMU's reply. All other records of the observer are instants. Guest times are left out: they are of another
clock.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from lab.model.evidence import EventKind, Evidence, ObserverEvent, Sent
from lab.report.text import clean

_NS_PER_US: Final = 1_000
#: The process that all threads are of, and the lab's thread in it; that of a vCPU is its number and one.
_PROCESS: Final = 1
_LAB: Final = 0
#: A hostile evidence folder may hold a million events. A load has some hundreds.
MAX_EVENTS: Final = 100_000
#: What begins a span, what ends it, and its name.
_SPANS: Final = {
    EventKind.CALL_IN: ((EventKind.RELEASE,), "waits"),
    EventKind.WINDOW_OPEN: ((EventKind.WINDOW_CLOSE,), "window: WRMSR 0x79"),
    EventKind.HELD: ((EventKind.LET_GO, EventKind.HOLD_OVERRUN), "stopped by the lab"),
    EventKind.LOAD_BEGIN: ((EventKind.LOAD_END,), "late load"),
}
_ENDS: Final = frozenset(end for ends, _ in _SPANS.values() for end in ends)


def make_trace(evidence: Evidence) -> dict[str, Any]:
    """Return the trial as the JSON object format of the trace event specification."""
    events = evidence.observer.events[:MAX_EVENTS] if evidence.observer is not None else ()
    sent = evidence.injections.sent[:MAX_EVENTS] if evidence.injections is not None else ()
    times_ns = [event.mono_ns for event in events] + [one.send_ns for one in sent]
    begin_ns = min(times_ns, default=0)
    scenario = evidence.scenario
    return {
        "displayTimeUnit": "ns",
        "otherData": {"mechanism": scenario.mechanism, "topology": str(scenario.topology), "seed": evidence.plan.seed},
        "traceEvents": [
            *_name_threads(scenario.topology.vcpus),
            *_list_spans(events, begin_ns),
            *_list_instants(events, begin_ns),
            *_list_sends(sent, begin_ns),
        ],
    }


def _name_threads(vcpus: int) -> Iterator[dict[str, Any]]:
    names = {_LAB: "the lab", **{vcpu + 1: f"vCPU {vcpu}" for vcpu in range(vcpus)}}
    yield {"ph": "M", "name": "process_name", "pid": _PROCESS, "tid": _LAB, "args": {"name": "late load"}}
    for thread, name in names.items():
        yield {"ph": "M", "name": "thread_name", "pid": _PROCESS, "tid": thread, "args": {"name": name}}


def _list_spans(events: Iterable[ObserverEvent], begin_ns: int) -> Iterator[dict[str, Any]]:
    """Yield a span for each begin that has an end; of a begin without one the instant is left."""
    begun: dict[tuple[int, EventKind], ObserverEvent] = {}
    for event in events:
        if event.kind in _SPANS:
            # 6.1 calls in twice, the second time to wait for the others' updates: that is one wait.
            begun.setdefault((event.vcpu, event.kind), event)
        for kind, (ends, name) in _SPANS.items():
            first = begun.get((event.vcpu, kind))
            if event.kind in ends and first is not None:
                del begun[event.vcpu, kind]
                yield _make_span(name, event.vcpu + 1, first.mono_ns, event.mono_ns, begin_ns)


def _make_span(name: str, thread: int, from_ns: int, to_ns: int, begin_ns: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "pid": _PROCESS,
        "tid": thread,
        "ts": (from_ns - begin_ns) / _NS_PER_US,
        "dur": max(0, to_ns - from_ns) / _NS_PER_US,
    }


def _list_instants(events: Iterable[ObserverEvent], begin_ns: int) -> Iterator[dict[str, Any]]:
    for event in events:
        if event.kind in _ENDS:
            continue
        yield {
            "ph": "i",
            "s": "t",
            "name": event.kind.value,
            "pid": _PROCESS,
            "tid": event.vcpu + 1,
            "ts": (event.mono_ns - begin_ns) / _NS_PER_US,
            "args": {"record": event.seq, "symbol": clean(event.symbol), "hazard": event.hazard.value},
        }


def _list_sends(sent: Iterable[Sent], begin_ns: int) -> Iterator[dict[str, Any]]:
    for one in sent:
        whom = "all" if one.vcpu < 0 else f"vCPU {one.vcpu}"
        reply_ns = one.reply_ns or one.send_ns
        yield _make_span(f"NMI {one.index} to {whom}", _LAB, one.send_ns, reply_ns, begin_ns)
