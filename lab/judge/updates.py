# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether each core executed WRMSR 0x79 once, or again only where its kernel's own code does so unharmed.

Source: the observer's records of every WRMSR 0x79. The first one of a core opens its window; those behind it are held
against what the kernel's source has a thread do where the update took no effect:

- ``__reload_late()`` before 6.7: a sibling calls ``apply_microcode()`` once, when it has been let go. By then every
  thread of its core has come to the exit rendezvous, so no one is in an update, nor behind one in the code that checks
  it. Where the update took effect, that call writes nothing.
- ``save_mc_for_early()`` there: the update is kept before it is tried, and a thread that comes online writes it.
- since 6.7, and wherever the update took effect: nothing.
"""

from lab.judge.facts import Facts, Window
from lab.judge.finding import broken, unseen
from lab.judge.rendezvous import plain_proof, seen_on_all_cores
from lab.mechanisms.base import Loader
from lab.model.evidence import EventKind, ObserverEvent
from lab.model.scenario import Siblings
from lab.model.verdict import Invariant, Proof


def judge_one_update(facts: Facts) -> Invariant:
    """Hold when each core executed WRMSR 0x79 once in the trial, in the load, but for what its kernel does again.

    An ``early`` record counts against it: the observer was armed for this trial when it was written. But where
    the load's begin was never seen, its landmark is another kernel's, and nothing is known to be outside of the load.
    """
    name = "one-update-per-core"
    if facts.misplaced:
        return unseen(name, facts.misplaced)
    again = facts.of_kind(EventKind.RETRY)
    early = facts.of_kind(EventKind.EARLY) if facts.begin is not None else ()
    proofs = [_proof(facts, event, f"again{why}") for event in again if (why := _why_not_own(facts, event)) is not None]
    proofs += [_proof(facts, event, "outside the late load") for event in early if not _comes_online(facts, event)]
    doubts = []
    for core in facts.cores:
        opened = [event for event in facts.of_kind(EventKind.WINDOW_OPEN) if facts.topology.core_of(event.vcpu) == core]
        if not opened:
            doubts.append(f"core {core} had no window")
        proofs += [plain_proof(facts, event, f"core {core} was updated {len(opened)} times") for event in opened[1:]]
    if proofs:
        return broken(name, proofs)
    tries = len(again) + len(early)
    also = f", and {tries} threads tried again as their kernel has them do where it took no effect" if tries else ""
    return seen_on_all_cores(facts, name, doubts, f"each core executed WRMSR 0x79 once{also}")


def _why_not_own(facts: Facts, event: ObserverEvent) -> str | None:
    """Say what is wrong with a later WRMSR 0x79, empty where it is wrong whenever it comes; None when nothing is."""
    if facts.takes or facts.base.loader is not Loader.BEFORE_6_7:
        return ""
    core = facts.topology.core_of(event.vcpu)
    windows = [window for window in facts.windows if window.seen.core == core]
    if any(window.holds(event) for window in windows):
        return " while its core was being updated"
    # All else shows by what did not come before it.
    if facts.lost:
        return None
    if any(window.seen.primary == event.vcpu for window in windows):
        return " though it was the one that had updated its core"
    if not any(event.seq > release.seq for release in facts.releases(event.vcpu)):
        return " before it was let go"
    if any(other.vcpu == event.vcpu and other.seq < event.seq for other in facts.of_kind(EventKind.RETRY)):
        return " and again"
    running = [window.seen.primary for window in windows if not _has_come_out(facts, window, event)]
    return f" beside vCPU {running[0]}, which had not come to the exit rendezvous" if running else None


def _has_come_out(facts: Facts, window: Window, event: ObserverEvent) -> bool:
    """Say whether the thread that updated a core had called in again behind its window: it waits to leave."""
    call_ins = facts.of_kind(EventKind.CALL_IN, window.seen.primary)
    return any(window.end_seq < each.seq < event.seq for each in call_ins)


def _comes_online(facts: Facts, event: ObserverEvent) -> bool:
    """Say whether a WRMSR 0x79 behind the load is that of a thread that is brought back online."""
    returning = facts.evidence.scenario.siblings is Siblings.RETURNING and event.vcpu in facts.offline
    behind = facts.end is not None and event.seq > facts.end.seq
    return returning and behind and not facts.takes and facts.base.loader is Loader.BEFORE_6_7


def _proof(facts: Facts, event: ObserverEvent, text: str) -> Proof:
    return plain_proof(facts, event, f"vCPU {event.vcpu} executed WRMSR 0x79 {text}")
