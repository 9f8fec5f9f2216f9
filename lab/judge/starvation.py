# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the host, not the guest, explains a limit that was missed: 6.1's one-second limits follow the host's clock.

Sources: the observer's longest gap between two callbacks of a vCPU, /proc/PID/task/TID/schedstat, and the windows'
holds.
"""

from lab.judge.facts import Facts, Window
from lab.model.evidence import EventKind, VcpuRunning

#: Under a third of the kernel's one-second limits (late_cpus_in, late_cpus_out): two such gaps do not use one up.
MAX_GAP_NS = 300_000_000

#: With twice as many spinning vCPUs as host cores each waits half of the time; four out of five is starvation.
MAX_WAITED_PERCENT = 80

#: The panic of 6.1 comes one second after the first waiter; a window held this long by the lab is the lab's own doing.
MAX_HOLD_NS = 900_000_000

NS_PER_MS = 1_000_000


def why_starved(facts: Facts) -> str:
    """Say which starvation of the guest the evidence shows; empty when it shows none."""
    observer = facts.evidence.observer
    for vcpu, gap_ns in enumerate(observer.gaps_ns if observer is not None else ()):
        if gap_ns > MAX_GAP_NS:
            return f"vCPU {vcpu} did not run for {gap_ns // NS_PER_MS} ms"
    timings = facts.evidence.timings
    for running in timings.vcpus if timings is not None else ():
        if _waited_too_long(running):
            ran_ms, waited_ms = running.ran_ns // NS_PER_MS, running.waited_ns // NS_PER_MS
            return f"vCPU {running.vcpu} ran for {ran_ms} ms and waited {waited_ms} ms for a host CPU"
    for window in facts.windows:
        hold_ns = _measure_hold_ns(facts, window)
        if hold_ns > MAX_HOLD_NS:
            return f"core {window.seen.core}'s window was held for {hold_ns // NS_PER_MS} ms by the lab or its host"
    return _why_held_too_long(facts)


def why_not_shown_running(facts: Facts) -> str:
    """Say why the evidence does not show that every vCPU kept running; empty when it does."""
    observer = facts.evidence.observer
    if observer is None:
        return "the observer's evidence is missing"
    if len(observer.gaps_ns) != len(facts.vcpus):
        return f"the observer gave the gaps of {len(observer.gaps_ns)} of {len(facts.vcpus)} vCPUs"
    return why_starved(facts)


def _why_held_too_long(facts: Facts) -> str:
    """Say which hold of the plan kept a vCPU longer than it should have; empty when none did."""
    last_ns = max((event.mono_ns for event in facts.every_event), default=0)
    for held in facts.every_of_kind(EventKind.HELD):
        ends = [
            event
            for event in facts.every_event
            if event.kind in (EventKind.LET_GO, EventKind.HOLD_OVERRUN)
            and (event.vcpu, event.detail) == (held.vcpu, held.detail)
            and event.seq > held.seq
        ]
        held_ns = (ends[0].mono_ns if ends else last_ns) - held.mono_ns
        if held_ns > MAX_GAP_NS or (ends and ends[0].kind is EventKind.HOLD_OVERRUN):
            return f"vCPU {held.vcpu} was held for {held_ns // NS_PER_MS} ms by hold {held.detail} of the plan"
    return ""


def _measure_hold_ns(facts: Facts, window: Window) -> int:
    """Return how long a primary was kept from its next block; of a window still open, up to the last record."""
    seen = window.seen
    end_ns = seen.close_ns if seen.close_seq else max((event.mono_ns for event in facts.every_event), default=0)
    return max(seen.asked_ns + seen.extended_ns, end_ns - seen.open_ns)


def _waited_too_long(running: VcpuRunning) -> bool:
    total_ns = running.ran_ns + running.waited_ns
    return running.waited_ns > MAX_GAP_NS and running.waited_ns * 100 > total_ns * MAX_WAITED_PERCENT
