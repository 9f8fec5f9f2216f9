# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the observer's account of a trial is whole, its windows are where an update is, and it can be trusted at all.

The observer numbers its records without holes (design section 5), so a hole, a repetition or a window without its edges
shows that something between the guest and the judge lost records. From then on nothing follows from an event's absence.
Where a window does not close where its WRMSR leads, it is not known to be an update that it was opened by: then nothing
follows from the records of updates, neither that one was disturbed nor how many there were. An observer that looked for
the landmarks of another kernel, or took one thread for another, proves nothing at all, and nothing is judged by it.
"""

from itertools import pairwise

from lab.judge.finding import clean
from lab.model.evidence import EventKind, Evidence, ObserverEvent, WindowSeen
from lab.model.topology import Topology

#: What the observer records of a vCPU beside what that executes.
_NOT_ITS_OWN = (
    EventKind.IN_FLIGHT,
    EventKind.HELD,
    EventKind.LET_GO,
    EventKind.HOLD_OVERRUN,
    EventKind.RESUMED,
)

#: Digits of a build id that a person is shown.
_SHOWN = 12

#: Of WRMSR, 0f 30, where no length was recorded: it ends its block, so the next one begins behind it.
WRMSR_BYTES = 2


def is_contradicted(seen: WindowSeen, events: tuple[ObserverEvent, ...]) -> bool:
    """Say whether a window's edges are recorded elsewhere; an edge whose record is lost is not contradicted."""
    edges = ((EventKind.WINDOW_OPEN, seen.open_seq), (EventKind.WINDOW_CLOSE, seen.close_seq))
    for kind, seq in edges:
        recorded = [event.seq for event in events if event.kind is kind and event.vcpu == seen.primary]
        if recorded and seq not in recorded:
            return True
    return False


def why_misplaced(events: tuple[ObserverEvent, ...], faulted: frozenset[int] = frozenset()) -> str:
    """Say which window closed neither behind its WRMSR nor at the entry of an NMI; empty when none did.

    A pending NMI enters before the next instruction, and its entry is the next block then, and the vCPU's next record.
    A WRMSR that faults leads to the handler of its fault.

    :param faulted: the numbers of the records of updates whose WRMSR was made to fault
    """
    for index, event in enumerate(events):
        if event.kind is not EventKind.WINDOW_CLOSE:
            continue
        own = [each for each in events[:index] if each.vcpu == event.vcpu]
        opened = [each for each in own if each.kind is EventKind.WINDOW_OPEN]
        if not opened or event.pc == opened[-1].pc + (opened[-1].detail or WRMSR_BYTES):
            continue
        if any(each.seq in faulted and each.seq > opened[-1].seq for each in own):
            continue
        later = (each for each in events[index + 1 :] if each.vcpu == event.vcpu)
        after = next((each for each in later if each.kind not in _NOT_ITS_OWN), None)
        if after is None or after.kind is not EventKind.NMI_ENTRY or after.pc != event.pc:
            where = f"vCPU {event.vcpu}'s window opened at {opened[-1].pc:#x} and closed at {event.pc:#x}"
            return f"{where}, which is not where a WRMSR there leads"
    return ""


def why_lost(
    evidence: Evidence, topology: Topology, events: tuple[ObserverEvent, ...], repeat: ObserverEvent | None
) -> str:
    """Say why the observer's account is not whole; empty when it is.

    :param events: its records by sequence number, each once
    :param repeat: the first of a second load
    """
    observer = evidence.observer
    if observer is None:
        return "the observer's evidence is missing"
    if observer.records_lost:
        return f"the observer lost {observer.records_lost} records"
    # The observer keeps one window per core and trial, and counts those of a second load as lost (window.c).
    kept = {seen.core for seen in observer.windows if repeat is not None and seen.open_seq < repeat.seq}
    if not 0 <= observer.windows_lost <= len(kept):
        return f"the observer lost {observer.windows_lost} windows"
    if len(events) != len(observer.events):
        return "the observer's records hold repetitions"
    for before, after in pairwise(events):
        if after.seq != before.seq + 1:
            return f"the observer's records jump from {before.seq} to {after.seq}"
    if any(not -1 <= event.vcpu < topology.vcpus for event in events):
        return "the observer's records name vCPUs that the guest does not have"
    return _why_windows_lost(evidence, topology, events)


def why_untrusted(evidence: Evidence, topology: Topology, repeat: ObserverEvent | None) -> str:
    """Say why the records are not of this kernel and its threads; empty when nothing speaks for that."""
    images, observer = evidence.images, evidence.observer
    if images is not None and images.build_id and images.guest_build_id not in ("", images.build_id):
        ours, theirs = clean(images.build_id)[:_SHOWN], clean(images.guest_build_id)[:_SHOWN]
        return f"the landmarks are those of build {ours}, and the guest runs build {theirs}"
    if observer is not None and observer.points_wrong:
        wrong = observer.points_wrong
        return f"the landmarks do not match this kernel: at {wrong} of their addresses there is no WRMSR to MSR 0x79"
    return _why_mistaken(evidence, topology, repeat)


def _why_windows_lost(evidence: Evidence, topology: Topology, events: tuple[ObserverEvent, ...]) -> str:
    windows = evidence.observer.windows if evidence.observer is not None else ()
    opened = sorted((event.seq, event.vcpu) for event in events if event.kind is EventKind.WINDOW_OPEN)
    if opened != sorted((seen.open_seq, seen.primary) for seen in windows):
        return "the observer's windows and their opening records do not match"
    closed = sorted((event.seq, event.vcpu) for event in events if event.kind is EventKind.WINDOW_CLOSE)
    if closed != sorted((seen.close_seq, seen.primary) for seen in windows if seen.close_seq):
        return "the observer's windows and their closing records do not match"
    for seen in windows:
        if not 0 <= seen.primary < topology.vcpus or topology.core_of(seen.primary) != seen.core:
            return f"a window names core {seen.core} and vCPU {seen.primary}, which do not belong together"
        if seen.close_seq and not (seen.open_seq < seen.close_seq and seen.open_ns <= seen.close_ns):
            return f"core {seen.core}'s window closes before it opens"
    return ""


def _why_mistaken(evidence: Evidence, topology: Topology, repeat: ObserverEvent | None) -> str:
    """Say which thread the observer takes for another: it saw one update that the guest says another one did.

    Then nothing that it tells of a vCPU is known to be that one's doing, and no kernel can be accused by it.
    """
    state = evidence.guest.state if evidence.guest is not None else None
    if state is None or evidence.observer is None or repeat is not None:
        return ""
    updated = {each.cpu for each in state.cpus if each.update_begin_tsc}
    for seen in evidence.observer.windows:
        others = sorted(updated.intersection(topology.threads_of(seen.core)))
        if others and seen.primary not in updated:
            told = f"the rendezvous state says CPU {others[0]}"
            return f"the observer saw vCPU {seen.primary} update core {seen.core}, {told}"
    return ""
