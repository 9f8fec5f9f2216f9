# SPDX-License-Identifier: GPL-2.0-or-later
"""What siblings executed while their core was being updated: the mail's question, and both of its answers.

Source of every fact here: the observer, which sees each block and each hazardous instruction before it executes.

Where the update itself holds the siblings (``Mechanism.stalled``), nothing is promised of the block in flight when a
window opens: it runs to its end. What it executes is told with each finding, and breaks none. A sibling that began no
block in the window can have executed nothing else in it.
"""

from collections.abc import Callable

from lab.judge.facts import Facts, Window, to_us
from lab.judge.finding import broken, clean, held, unseen
from lab.judge.liveness import MIN_WINDOWS_PER_CORE, why_unseen
from lab.model.evidence import NASTY, BlockCount, EventKind, Hazard, ObserverEvent, SiblingView
from lab.model.verdict import Invariant, Proof

Breaks = Callable[[Facts, Window], list[Proof]]
Doubt = Callable[[Facts, Window], str]


def judge_quiet(facts: Facts) -> Invariant:
    """Hold when no sibling executed a block outside the wait region in its core's window."""
    text = "no sibling began a block" if facts.mechanism.stalled else "no sibling left its wait region"
    return _over_windows(facts, "quiet", find_noise, why_not_quiet, text)


def judge_still(facts: Facts) -> Invariant:
    """Hold when each sibling's blocks of a window all belong to one function, the one in flight apart.

    A loop is known by its function alone: the observer tells which blocks ran, not how they branch. So ``still`` held
    means one function; a loop that calls another (6.1 waits in ``ndelay()``) is reported broken, and never required.
    """
    return _over_windows(facts, "still", _find_wandering, why_not_quiet, "each sibling stayed in one function")


def judge_harmless(facts: Facts) -> Invariant:
    """Hold when no sibling executed an instruction of the nasty classes in its core's window.

    The classes that every NMI entry or exit has with FSGSBASE (``gsbase``, ``dr-cr``) and ``other`` are named apart.
    """
    apart = sorted(
        {event.hazard.value for window in facts.windows for _, event in _hazards(facts, window, nasty=False)}
    )
    text = "no sibling executed an instruction of the classes " + ", ".join(hazard.value for hazard in NASTY)
    also = f"; shown apart: {', '.join(apart)} was seen" if apart else ""
    return _over_windows(facts, "harmless", _find_hazards, _why_not_harmless, text, also)


def judge_no_nmi_entry(facts: Facts) -> Invariant:
    """Hold when no sibling reached the first instruction of the NMI entry in its core's window."""
    text = "no sibling entered an NMI"
    return _over_windows(facts, "no-nmi-entry-in-window", _find_entries, why_unseen, text)


def find_noise(facts: Facts, window: Window) -> list[Proof]:
    """Return what siblings were seen to execute outside the wait region in a window.

    Only a sibling whose call-in was seen is accused: where that landmark is not hit, the addresses of the wait region
    are not known to be this kernel's. One that was left offline has none. Without a rendezvous there is no wait region
    that a block could belong to.
    """
    proofs = []
    for vcpu in window.siblings:
        if not facts.has_landmarks(vcpu) or _was_let_go(window, vcpu):
            continue
        outside = [event for event in facts.of_kind(EventKind.OUTSIDE, vcpu) if window.holds(event)]
        seen = [event for event in outside if not facts.parks_at(vcpu, event.symbol)]
        proofs += [_proof(facts, window, event, f"vCPU {vcpu} entered {facts.where(event)}") for event in seen]
        view = window.view_of(vcpu)
        if view is not None:
            proofs += [] if facts.mechanism.stalled else _noise_in_flight(facts, window, view)
            proofs += _noise_in_view(facts, window, view, listed={event.pc for event in seen})
    return proofs


def why_not_quiet(facts: Facts, window: Window) -> str:
    """Say why a window cannot count for ``quiet``; empty when it can."""
    doubt = why_unseen(facts, window)
    if doubt:
        return doubt
    for vcpu in window.siblings:
        if not facts.has_landmarks(vcpu):
            rendezvous = facts.mechanism.landmarks.call_in
            return f"the call-in of vCPU {vcpu} was not seen" if rendezvous else "the load's begin was not seen"
    return _why_not_listed(window) or _why_on_edge(facts, window, EventKind.OUTSIDE)


def _why_not_listed(window: Window) -> str:
    """Say whose table is not whole; the reader counts blocks and hazards that found no place as ``blocks_lost``."""
    core = window.seen.core
    for vcpu in window.siblings:
        view = window.view_of(vcpu)
        if view is not None and view.blocks_lost:
            return f"{view.blocks_lost} blocks of vCPU {vcpu} found no place in the table of core {core}'s window"
        if view is not None and not _adds_up(view):
            return f"the table of vCPU {vcpu} in core {core}'s window does not hold all its blocks"
    return ""


def _adds_up(view: SiblingView) -> bool:
    inside = sum(block.count for block in view.blocks if block.in_region)
    outside = sum(block.count for block in view.blocks if not block.in_region)
    return (inside, outside) == (view.region_blocks, view.outside_blocks)


def _why_on_edge(facts: Facts, window: Window, kind: EventKind) -> str:
    """Say whose record of a window is numbered outside it: preempted while writing, it may have been inside."""
    for event in facts.of_kind(kind):
        if event.vcpu in window.siblings and not window.holds(event):
            return (
                f"vCPU {event.vcpu} left a record of kind {kind.value} on the edge of core {window.seen.core}'s window"
            )
    return ""


def _was_let_go(window: Window, vcpu: int) -> bool:
    """Say whether the bound of its stall ended before the window: what the sibling did then is the lab's own doing."""
    view = window.view_of(vcpu)
    return view is not None and view.stall_overrun


def _is_in_flight(facts: Facts, window: Window, event: ObserverEvent) -> bool:
    """Say whether a sibling's record is of the block in flight, of which a stalled mechanism promises nothing."""
    view = window.view_of(event.vcpu)
    if view is None or not facts.mechanism.stalled:
        return False
    return not (view.stall_overrun or view.region_blocks or view.outside_blocks)


def _tell_in_flight(facts: Facts) -> list[Proof]:
    """Return what the blocks in flight were, and what they executed, where nothing is promised of them."""
    proofs = []
    for window in facts.windows if facts.mechanism.stalled else ():
        for vcpu in window.siblings:
            view = window.view_of(vcpu)
            proofs += _noise_in_flight(facts, window, view) if view is not None else []
        for kind, what in ((EventKind.HAZARD, "executed"), (EventKind.NMI_ENTRY, "entered an NMI")):
            for event in _in_window(facts, window, kind):
                if _is_in_flight(facts, window, event):
                    hazard = f" {event.hazard.value}" if kind is EventKind.HAZARD else ""
                    text = f"vCPU {event.vcpu} {what}{hazard} in the block in flight, at {facts.where(event)}"
                    proofs.append(_proof(facts, window, event, text))
    return proofs


def _noise_in_flight(facts: Facts, window: Window, view: SiblingView) -> list[Proof]:
    if not view.in_flight_pc or view.in_flight_region or facts.parks_at(view.vcpu, view.in_flight_symbol):
        return []
    core = window.seen.core
    symbol = clean(view.in_flight_symbol) or f"{view.in_flight_pc:#x}"
    text = f"vCPU {view.vcpu} was in {symbol} when core {core}'s window opened"
    return [Proof(text=text, seq=window.seen.open_seq, vcpu=view.vcpu, core=core, at_us=0.0, symbol=symbol)]


def _noise_in_view(facts: Facts, window: Window, view: SiblingView, listed: set[int]) -> list[Proof]:
    core = window.seen.core
    proofs = []
    outside = [block for block in view.blocks if not block.in_region and block.count > 0]
    strays = [block for block in outside if not facts.parks_at(view.vcpu, block.symbol)]
    for block in strays:
        if block.pc not in listed:
            symbol = _symbol(block)
            text = f"vCPU {view.vcpu} executed {symbol} {block.count} times in core {core}'s window"
            proofs.append(Proof(text=text, seq=block.first_seq, vcpu=view.vcpu, core=core, symbol=symbol))
    if facts.mechanism.siblings_absent and view.region_blocks > 0:
        text = f"vCPU {view.vcpu} executed {view.region_blocks} blocks of the loop that it was to be gone from"
        proofs.append(Proof(text=f"{text} in core {core}'s window", vcpu=view.vcpu, core=core))
    if view.outside_blocks > 0 and not (outside or listed):
        text = f"vCPU {view.vcpu} executed {view.outside_blocks} blocks outside its wait region in core {core}'s window"
        proofs.append(Proof(text=text, vcpu=view.vcpu, core=core))
    return proofs


def _find_wandering(_facts: Facts, window: Window) -> list[Proof]:
    proofs = []
    for vcpu in window.siblings:
        view = window.view_of(vcpu)
        functions = sorted({_symbol(block).split("+")[0] for block in view.blocks if block.count > 0}) if view else []
        if len(functions) > 1:
            text = f"vCPU {vcpu} executed {len(functions)} functions in core {window.seen.core}'s window: "
            text = clean(text + ", ".join(functions))
            proofs.append(Proof(text=text, vcpu=vcpu, core=window.seen.core, symbol=functions[0]))
    return proofs


def _hazards(facts: Facts, window: Window, *, nasty: bool) -> list[tuple[int, ObserverEvent]]:
    return [
        (event.vcpu, event)
        for event in _in_window(facts, window, EventKind.HAZARD)
        if (event.hazard in NASTY) is nasty and not _is_in_flight(facts, window, event)
    ]


def _in_window(facts: Facts, window: Window, kind: EventKind) -> list[ObserverEvent]:
    """Return the siblings' records of a kind in their core's window, but for siblings that the lab itself let go."""
    return [
        event
        for event in facts.of_kind(kind)
        if event.vcpu in window.siblings and window.holds(event) and not _was_let_go(window, event.vcpu)
    ]


def _find_hazards(facts: Facts, window: Window) -> list[Proof]:
    return [
        _proof(facts, window, event, f"vCPU {vcpu} executed {event.hazard.value} at {facts.where(event)}")
        for vcpu, event in _hazards(facts, window, nasty=True)
        if not _is_parking(facts, event)
    ]


def _is_parking(facts: Facts, event: ObserverEvent) -> bool:
    """Say whether a hazard is the MONITOR or MWAIT that a thread parks by: as offline, or as the mechanism has it."""
    by_mechanism = event.symbol.partition("+")[0] in facts.mechanism.landmarks.parking
    return event.hazard is Hazard.MWAIT and (by_mechanism or facts.parks_at(event.vcpu, event.symbol))


def _why_not_harmless(facts: Facts, window: Window) -> str:
    doubt = why_unseen(facts, window) or _why_not_listed(window)
    if doubt:
        return doubt
    core = window.seen.core
    if any(event.hazard is Hazard.NONE for _, event in _hazards(facts, window, nasty=False)):
        return f"a hazard without a class was recorded in core {core}'s window"
    for vcpu, event in _hazards(facts, window, nasty=True):
        if _is_parking(facts, event):
            return (
                f"vCPU {vcpu} executed {event.hazard.value} at {facts.where(event)} in core {core}'s window, which is"
                " the emulator's: its MWAIT does not wait"
            )
    for vcpu in window.siblings:
        view = window.view_of(vcpu)
        # The snapshot names the block, not how far into it the sibling was: its hazards may lie on either side.
        if facts.mechanism.stalled:
            continue
        if view is not None and view.in_flight_pc and not view.in_flight_region:
            return f"vCPU {vcpu} was in a block that nobody classified when core {core}'s window opened"
    return _why_on_edge(facts, window, EventKind.HAZARD)


def _find_entries(facts: Facts, window: Window) -> list[Proof]:
    return [
        _proof(facts, window, event, f"vCPU {event.vcpu} entered {facts.where(event)}")
        for event in _in_window(facts, window, EventKind.NMI_ENTRY)
        if not _is_in_flight(facts, window, event)
    ]


def _over_windows(facts: Facts, name: str, breaks: Breaks, doubt: Doubt, held_text: str, also: str = "") -> Invariant:
    proofs = [proof for window in facts.windows for proof in breaks(facts, window)]
    in_flight = _tell_in_flight(facts)
    if in_flight:
        also += f"; of the block in flight nothing is promised: {in_flight[0].text}" + _and_more(in_flight)
    if proofs:
        return broken(name, proofs, proofs[0].text + _and_more(proofs) + also)
    if facts.lost:
        return unseen(name, facts.lost)
    for core in facts.cores:
        doubts = [doubt(facts, window) for window in facts.windows if window.seen.core == core]
        if doubts.count("") < MIN_WINDOWS_PER_CORE:
            return unseen(name, next(filter(None, doubts), f"core {core} had no window") + also)
    return held(name, f"{held_text} in {len(facts.windows)} windows{also}", in_flight)


def _and_more(proofs: list[Proof]) -> str:
    return f" (and {len(proofs) - 1} more)" if len(proofs) > 1 else ""


def _symbol(block: BlockCount) -> str:
    return clean(block.symbol) or f"{block.pc:#x}"


def _proof(facts: Facts, window: Window, event: ObserverEvent, text: str) -> Proof:
    core = window.seen.core
    at_us = to_us(event.mono_ns - window.seen.open_ns)
    return Proof(
        text=f"{text} {at_us:.1f} us into core {core}'s window",
        seq=event.seq,
        vcpu=event.vcpu,
        core=core,
        at_us=at_us,
        symbol=facts.where(event),
    )
