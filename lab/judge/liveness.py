# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a window can show anything: a sibling that the host never ran proves nothing by its silence.

With more vCPUs than host cores a third of 1 ms windows held no sibling block at all (design section 5).
"""

from dataclasses import dataclass

from lab.judge.facts import Facts, Window
from lab.judge.nmis import explain
from lab.judge.starvation import NS_PER_MS
from lab.model.evidence import Sent, SiblingView, WindowSeen

#: The shortest of the wait loops is two blocks; twice that shows the loop turning, not just being entered.
MIN_REGION_BLOCKS = 4

#: The first WRMSR 0x79 of a core in a load opens its window, so there is one per core, and each has to count.
MIN_WINDOWS_PER_CORE = 1

#: One NMI known to have been pending while a live sibling waited is what a trial is for.
MIN_PROVEN_NMIS = 1


def why_unseen(facts: Facts, window: Window) -> str:
    """Say why a window cannot show that its siblings did nothing; empty when it can."""
    core = window.seen.core
    if facts.lost:
        return facts.lost
    if not window.seen.close_seq:
        return f"core {core}'s window never closed"
    if window.seen.stalled is not facts.mechanism.stalled:
        did = "stalled the siblings" if window.seen.stalled else "let the siblings run on"
        return f"the observer {did} in core {core}'s window, other than this mechanism needs it"
    for vcpu in window.siblings:
        view = window.view_of(vcpu)
        if view is None:
            return f"core {core}'s window has no account of vCPU {vcpu}"
        doubt = _why_not_alive(facts, window, view)
        if doubt:
            return f"vCPU {vcpu} {doubt} in core {core}'s window"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """The plan's NMIs proven sent and acknowledged within a window.

    :param siblings: pending on a sibling in its core's window
    :param primaries: pending on a primary in its core's window, and on no sibling in one
    :param masked: met a sibling's masked LINT1 in its core's window, whomever else they reached
    """

    siblings: int
    primaries: int
    masked: int

    @property
    def total(self) -> int:
        """NMIs that were pending on some thread of a core in its window."""
        return self.siblings + self.primaries


def count_proven(facts: Facts) -> Proven:
    """Count the plan's NMIs proven pending in a window: sent and acknowledged inside it, its siblings alive afterwards.

    An NMI to any thread of the core counts: whom it is aimed at is the plan's choice. QEMU sets the pending bit before
    it replies (design section 5), but that it did shows only in what follows: the thread enters it as soon as it can.
    """
    siblings: set[Sent] = set()
    primaries: set[Sent] = set()
    masked: set[Sent] = set()
    for window in facts.windows:
        if why_unseen(facts, window):
            continue
        for vcpu in facts.topology.threads_of(window.seen.core):
            inside = [sent for sent in facts.planned_to(vcpu) if _within(sent, window)]
            reached = explain(facts, vcpu).prompt.intersection(inside)
            if vcpu in window.siblings:
                siblings |= reached
                masked |= {sent for sent in inside if facts.surely_masked(sent, vcpu)}
            else:
                primaries |= reached
    return Proven(siblings=len(siblings), primaries=len(primaries - siblings), masked=len(masked))


def _why_not_alive(facts: Facts, window: Window, view: SiblingView) -> str:
    if window.seen.stalled:
        return _why_not_stalled(facts, window, view)
    places = (view.in_flight_symbol, *(block.symbol for block in view.blocks))
    if any(facts.parks_at(view.vcpu, place) for place in places):
        return "was parked in MWAIT, which the emulator executes again and again where hardware sleeps,"
    if not view.halted_at_close and view.region_blocks < MIN_REGION_BLOCKS:
        return f"ran {view.region_blocks} blocks of its wait region, less than {MIN_REGION_BLOCKS},"
    for sent in facts.reaching(view.vcpu):
        acknowledged = window.seen.open_ns <= sent.reply_ns <= window.seen.close_ns
        if acknowledged and view.last_ns < sent.reply_ns:
            return f"ran no block of its wait region after NMI {sent.index} was acknowledged"
    return "" if view.halted_at_close else _why_not_alive_at_end(window.seen, view)


def _why_not_alive_at_end(seen: WindowSeen, view: SiblingView) -> str:
    """Say whether a sibling was last seen before the end of the stretch: what it would have done since, nobody knows.

    Behind that end the observer waits for signs of life, up to a bound of its own.
    """
    if view.last_ns >= seen.open_ns + seen.asked_ns:
        return ""
    waited = (
        f", though the observer waited {seen.extended_ns / NS_PER_MS:.1f} ms more for it" if seen.extended_ns else ""
    )
    return (
        f"was last seen in its wait region before the end of the {seen.asked_ns / NS_PER_MS:.1f} ms that were asked"
        f" for{waited},"
    )


def _why_not_stalled(facts: Facts, window: Window, view: SiblingView) -> str:
    """Say why a sibling is not known to have been held.

    One that was halted all the time executes nothing either, unless it was woken: then it has to reach its stall.
    """
    if view.stall_overrun:
        return "was let go by the bound of its stall"
    if 0 < view.stalled_ns <= window.seen.close_ns:
        return ""
    if not view.halted_at_close:
        return "did not reach its stall and was not halted"
    for sent in facts.reaching(view.vcpu):
        if window.seen.open_ns <= sent.reply_ns <= window.seen.close_ns:
            return f"did not reach its stall after NMI {sent.index} was acknowledged"
    return ""


def _within(sent: Sent, window: Window) -> bool:
    return window.seen.open_ns <= sent.send_ns <= sent.reply_ns <= window.seen.close_ns
