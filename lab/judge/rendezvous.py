# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the rendezvous came first and the release last, and nothing was left of either.

Sources: the observer's landmarks and WRMSR 0x79 records; ``callers_left`` of ``microcode_lab/state`` for the counters.
"""

from lab.judge.facts import Facts, Window, to_us
from lab.judge.finding import NO_ENGINE, broken, broken_unless, held, unseen
from lab.judge.starvation import why_starved
from lab.mechanisms.base import Witness
from lab.model.evidence import EventKind, ObserverEvent
from lab.model.verdict import Invariant, Proof


def judge_all_waiting(facts: Facts) -> Invariant:
    """Hold when every thread of a core had called in, and none had been let go, when its window opened."""
    name = "all-waiting-before-update"
    if not facts.mechanism.landmarks.call_in:
        return unseen(name, "this mechanism has no rendezvous: no thread announces that it waits")
    proofs = []
    doubts = []
    for window in facts.windows:
        for vcpu in _threads(facts, window):
            call_in = facts.call_in(vcpu)
            if call_in is None and facts.has_landmarks(vcpu) and not facts.lost:
                proofs.append(_proof_of_no_call_in(facts, window, vcpu))
            elif call_in is None:
                doubts.append(f"the call-in of vCPU {vcpu} was not seen")
            # 6.1 leaves through the function it called in by: with records lost this may be the way out.
            elif call_in.seq > window.seen.open_seq and not facts.lost:
                proofs.append(_proof(facts, window, call_in, f"vCPU {vcpu} called in only"))
            early = [event for event in facts.releases(vcpu) if event.seq < window.seen.open_seq]
            proofs += [_proof(facts, window, event, f"vCPU {vcpu} was let go") for event in early]
    if proofs:
        return broken(name, proofs)
    return seen_on_all_cores(facts, name, doubts, "every thread had called in and none been let go before the update")


def judge_released_after(facts: Facts) -> Invariant:
    """Hold when no thread of a core was let go in its window and each was after it.

    A thread that was never seen let go is no proof of a defect: a hang is judged by ``within-deadline``.
    """
    name = "released-after-update"
    if not facts.mechanism.landmarks.release:
        return unseen(name, "this mechanism has no rendezvous: no thread is let go")
    proofs = []
    doubts = []
    for window in facts.windows:
        if not window.seen.close_seq:
            doubts.append(f"core {window.seen.core}'s window never closed")
        for vcpu in _threads(facts, window):
            if vcpu in facts.offline and facts.call_in(vcpu) is None:
                # Nobody held it, so nobody can let it go: that is all-waiting-before-update.
                continue
            inside = [event for event in facts.releases(vcpu) if window.holds(event)]
            proofs += [_proof(facts, window, event, f"vCPU {vcpu} was let go") for event in inside]
            if not any(event.seq > window.end_seq for event in facts.releases(vcpu)):
                doubts.append(f"vCPU {vcpu} was not seen let go after the update")
    if proofs:
        return broken(name, proofs)
    return seen_on_all_cores(facts, name, doubts, "every thread was let go after the update of its core")


def judge_repeatable(facts: Facts) -> Invariant:
    """Hold when a second write, with nothing newer to load, ended as this kernel ends it and updated nothing.

    6.1 lets it succeed, 6.12 returns ENOENT (``load_late_locked()``).
    A second load is right where the first one failed: there was something newer left.
    """
    name = "load-repeatable"
    if facts.has_engine and not facts.takes:
        return unseen(name, "the update did not take effect, so a second write would begin a second load")
    if not facts.has_engine:
        return unseen(name, f"{NO_ENGINE}, and a second write would begin a second load")
    if facts.misplaced:
        return unseen(name, facts.misplaced)
    kinds = (EventKind.WINDOW_OPEN, EventKind.RETRY, EventKind.EARLY)
    if facts.end is not None:
        end_seq = facts.end.seq
        late = [event for event in facts.events if event.kind in kinds and event.seq > end_seq]
        if late:
            text = "executed WRMSR 0x79 after the load had ended"
            return broken(name, [plain_proof(facts, event, f"vCPU {event.vcpu} {text}") for event in late])
    guest = facts.evidence.guest
    if facts.repeat is not None:
        return _judge_second_load(facts, name, facts.repeat)
    if guest is None:
        return unseen(name, "the guest's evidence is missing")
    right = facts.base.repeat_errno
    if guest.repeat_errno < 0:
        return unseen(name, "the second write to reload did not return")
    if guest.repeat_errno != right:
        text = f"the second write to reload {_describe_errno(guest.repeat_errno)}" + (
            f" instead of {right}" if right else ""
        )
        return broken_unless(name, [Proof(text=text)], why_starved(facts))
    if facts.lost or facts.end is None:
        return unseen(name, facts.lost or "the load's end was not seen")
    return held(name, f"the second write {_describe_errno(right)} and no core was updated after the load")


def judge_counters(facts: Facts) -> Invariant:
    """Hold when the mechanism's counters held nothing after the load."""
    name = "counters-settled"
    if not facts.has(Witness.STATE):
        return unseen(name, "this kernel does not show its counters")
    guest = facts.evidence.guest
    if guest is None or guest.state is None:
        return unseen(name, "the rendezvous state is missing")
    left = guest.state.callers_left
    if left:
        proofs = [Proof(text=f"the mechanism's counters still hold {left} callers after the load")]
        return broken_unless(name, proofs, why_starved(facts))
    return held(name, "the mechanism's counters hold no caller after the load")


def _judge_second_load(facts: Facts, name: str, begin: ObserverEvent) -> Invariant:
    updates = (EventKind.WINDOW_OPEN, EventKind.RETRY)
    proofs = [plain_proof(facts, begin, "the second write to reload began a second late load")]
    proofs += [
        plain_proof(facts, event, f"vCPU {event.vcpu} executed WRMSR 0x79 in the second late load")
        for event in facts.every_event
        if event.seq > begin.seq and event.kind in updates
    ]
    guest = facts.evidence.guest
    if guest is not None and guest.load_errno > 0:
        return unseen(name, f"the first load failed with errno {guest.load_errno}, so the second was due", proofs)
    succeeded = guest is not None and guest.load_errno == 0
    return broken_unless(name, proofs, "" if succeeded else why_starved(facts))


def _describe_errno(number: int) -> str:
    return f"failed with errno {number}" if number else "succeeded"


def _threads(facts: Facts, window: Window) -> tuple[int, ...]:
    return facts.topology.threads_of(window.seen.core) if window.siblings else ()


def seen_on_all_cores(facts: Facts, name: str, doubts: list[str], held_text: str) -> Invariant:
    """Say that an invariant held, unless the account is not whole, a core had no window, or there are doubts."""
    if facts.lost:
        return unseen(name, facts.lost)
    without = [f"core {core} had no window" for core in facts.cores if not _has_window(facts, core)]
    if without or doubts:
        return unseen(name, (without + doubts)[0])
    return held(name, f"{held_text} on {len(facts.cores)} cores")


def _has_window(facts: Facts, core: int) -> bool:
    return any(window.seen.core == core for window in facts.windows)


def _proof_of_no_call_in(facts: Facts, window: Window, vcpu: int) -> Proof:
    core = window.seen.core
    state = "was offline and had" if vcpu in facts.offline else "had"
    text = f"vCPU {vcpu} {state} not called in when core {core}'s window opened"
    return Proof(text=text, seq=window.seen.open_seq, vcpu=vcpu, core=core, at_us=0.0)


def _proof(facts: Facts, window: Window, event: ObserverEvent, text: str) -> Proof:
    core = window.seen.core
    at_us = window.at_us(event)
    when = f"{at_us:.1f} us into" if at_us >= 0 else f"{-at_us:.1f} us before"
    return Proof(
        text=f"{text} {when} core {core}'s window",
        seq=event.seq,
        vcpu=event.vcpu,
        core=core,
        at_us=at_us,
        symbol=facts.where(event),
    )


def plain_proof(facts: Facts, event: ObserverEvent, text: str) -> Proof:
    """Return the proof that one record is, its time counted from the load's begin."""
    at_us = to_us(event.mono_ns - facts.begin.mono_ns) if facts.begin is not None else None
    return Proof(text=text, seq=event.seq, vcpu=event.vcpu, at_us=at_us, symbol=facts.where(event))
