# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the kernel's ordinary handlers learn of the NMIs that are not the mechanism's own.

An NMI of somebody else, such as of perf, a watchdog or a crash, that the update's handler claims is lost to whom it was
for. ``default_do_nmi()`` asks the update's handler first, then calls the chain of handlers of NMIs of this CPU, and
where none of them claims it the chain of other sources. So each entry but the mechanism's own leads to a call of a
chain. Nothing in a guest is the source of what the lab sends: where no ledger of ours takes it, nobody in the first
chain may either, and the second is called, too.

Sources: the observer's NMI_ENTRY and NMI_HANDLER records; the kernel's ledger of NMIs.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from lab.judge.facts import Facts, to_us
from lab.judge.finding import broken, held, unseen
from lab.judge.nmis import why_log_doubted
from lab.mechanisms.base import Witness
from lab.model.evidence import EventKind, ObserverEvent
from lab.model.verdict import Invariant, Proof

#: An NMI that an early IRET lets in is handled behind the one that it came in, and several of them as one
#: (``nmi_state`` in arch/x86/kernel/nmi.c).
MAX_NESTED = 2

#: Chains that are called for one NMI: that of its CPU's sources, and one of all others.
MAX_CHAINS = 2

#: An NMI is over by then: the kernel asks nobody for as long. The lab sends its sentinels later than that.
MAX_NMI_NS = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """Entries of one vCPU that may have come inside one another, and what they led to.

    :param entries: how many there were
    :param strange: those that were not the mechanism's own
    :param calls: of chains of handlers
    :param over: their handling is known to have ended: another entry follows them
    """

    entries: int
    strange: tuple[ObserverEvent, ...]
    calls: int
    over: bool


def judge_passed_on(facts: Facts) -> Invariant:
    """Hold when each NMI entry but the mechanism's own led to the kernel's ordinary handlers."""
    name = "nmis-passed-on"
    if not _watches(facts):
        found = unseen(name, "where this kernel calls its NMI handlers is not known")
        return msgspec.structs.replace(found, required=False)
    if facts.lost or not facts.complete:
        return unseen(name, facts.lost or "the trial did not run to its end")
    found_by = {vcpu: find_entered(facts, vcpu) for vcpu in facts.online}
    doubt = _why_own_not_known(facts) or _why_not_this_kernels(_find_all_entered(facts))
    if doubt:
        return unseen(name, doubt)
    proofs: list[Proof] = []
    doubts: list[str] = []
    for vcpu, entered in found_by.items():
        short = [each for each in entered if each.calls < _count_owed(facts, vcpu, each)]
        doubts += [f"what vCPU {vcpu}'s last NMI led to was not seen" for each in short if not each.over]
        proofs += _prove(facts, vcpu, [each for each in short if each.over])
    if proofs:
        return broken(name, proofs)
    if doubts:
        return unseen(name, doubts[0])
    count = sum(len(each.strange) for entered in found_by.values() for each in entered)
    return held(name, f"each of {count} NMI entries that were not the mechanism's own led to ordinary handlers")


def judge_serviced(facts: Facts) -> Invariant:
    """Hold when an ordinary handler ran after each NMI of the lab's.

    Mainline lets a real NMI start the rendezvous and counts it as its own; so this is reported, never required. Which
    entries the mechanism took is known where as many as the ledger calls consumed led straight to its landmarks; on a
    kernel without a ledger, by the calls of its handlers.
    """
    name = "nmis-serviced"
    if facts.lost or not facts.complete:
        return unseen(name, facts.lost or "the trial did not run to its end")
    if not facts.has(Witness.LEDGER) and not _watches(facts):
        return unseen(name, "this kernel keeps no ledger of NMIs")
    doubt = "" if facts.has(Witness.LEDGER) else _why_not_this_kernels(_find_all_entered(facts))
    if doubt:
        return unseen(name, doubt)
    proofs: list[Proof] = []
    doubts: list[str] = []
    for vcpu in facts.online:
        doubt = _why_ledger_doubted(facts, vcpu) if facts.has(Witness.LEDGER) else ""
        if doubt:
            return unseen(name, doubt)
        # From the sentinel's sending on, what was taken may be the sentinel, or both.
        until_ns = min((sent.send_ns for sent in facts.sentinels_to(vcpu)), default=math.inf)
        before = [entry for entry in facts.every_of_kind(EventKind.NMI_ENTRY, vcpu) if entry.mono_ns < until_ns]
        ordinary = _find_ordinary(facts, vcpu)
        last_ns = max((entry.mono_ns for entry in before if entry in ordinary), default=-1)
        for sent in facts.reaching(vcpu):
            if sent.send_ns <= last_ns:
                continue
            text = f"no ordinary handler ran on CPU {vcpu} after NMI {sent.index}"
            if until_ns < math.inf and not any(entry.mono_ns >= sent.send_ns for entry in before):
                doubts.append(f"{text} and before the sentinel")
            else:
                proofs.append(Proof(text=text, vcpu=vcpu))
    if proofs:
        return broken(name, proofs)
    if log_doubt := why_log_doubted(facts):
        doubts.append(log_doubt)
    return unseen(name, doubts[0]) if doubts else held(name, "an ordinary handler ran after each NMI that the lab sent")


def find_entered(facts: Facts, vcpu: int) -> tuple[Entered, ...]:
    """Return what a vCPU's entries led to, in order; those that led to nothing by themselves with the next."""
    entries = facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)
    own = set(facts.consumed(vcpu))
    found = []
    begun: list[ObserverEvent] = []
    for entry, after, calls in _count_calls(facts, vcpu, entries):
        begun.append(entry)
        if calls or after is None or after.mono_ns - entry.mono_ns > MAX_NMI_NS:
            strange = tuple(each for each in begun if each not in own)
            found.append(Entered(entries=len(begun), strange=strange, calls=calls, over=after is not None))
            begun = []
    return tuple(found)


def _find_all_entered(facts: Facts) -> list[Entered]:
    return [each for vcpu in facts.online for each in find_entered(facts, vcpu)]


def _why_own_not_known(facts: Facts) -> str:
    """Say why the mechanism's own entries cannot be told from others: the landmarks that they lead to were not hit."""
    if facts.begin is None:
        return "the load's begin was not seen"
    takes = facts.mechanism.landmarks.takes_nmis
    unknown = [vcpu for vcpu in facts.online if takes and not facts.has_landmarks(vcpu)]
    return f"the call-in of vCPU {unknown[0]} was not seen" if unknown else ""


def _why_not_this_kernels(entered: list[Entered]) -> str:
    """Say why the landmark may be another kernel's: it was never hit in an NMI, or oftener than an NMI calls chains."""
    if any(each.calls > each.entries * MAX_CHAINS for each in entered):
        return "the landmark of the kernel's NMI handlers was hit where no NMI can have led to it"
    if any(each.strange for each in entered) and not any(each.calls for each in entered):
        return "the kernel's NMI handlers were never seen called"
    return ""


def _watches(facts: Facts) -> bool:
    observer = facts.evidence.observer
    return observer is not None and observer.handlers_watched


def _count_calls(
    facts: Facts, vcpu: int, entries: tuple[ObserverEvent, ...]
) -> Iterator[tuple[ObserverEvent, ObserverEvent | None, int]]:
    """Yield each entry with the one after it and the calls of chains between the two."""
    calls = [event.seq for event in facts.every_of_kind(EventKind.NMI_HANDLER, vcpu)]
    for number, entry in enumerate(entries):
        after = entries[number + 1] if number + 1 < len(entries) else None
        end = bisect_left(calls, after.seq) if after is not None else len(calls)
        yield entry, after, end - bisect_left(calls, entry.seq)


def _count_owed(facts: Facts, vcpu: int, entered: Entered) -> int:
    """Return how many calls of chains there are to be at least."""
    # The ledger is in the first chain, and so is who prints backtraces.
    claimed = facts.has(Witness.LEDGER) or facts.backtraces_to(vcpu)
    return min(len(entered.strange), MAX_NESTED) * (1 if claimed else 2)


def _prove(facts: Facts, vcpu: int, short: list[Entered]) -> list[Proof]:
    """Return proofs of NMIs that were lost; none where the ledger says that so many met their CPU offline.

    With a ledger each entry owes one call, and one that met its CPU offline owes none.
    """
    delta = facts.ledger_delta(vcpu)
    dropped = delta.dropped if delta is not None else 0
    if dropped and dropped >= sum(_count_owed(facts, vcpu, each) - each.calls for each in short):
        return []
    return [_proof(facts, vcpu, each) for each in short]


def _proof(facts: Facts, vcpu: int, entered: Entered) -> Proof:
    event = entered.strange[0]
    many = f"{len(entered.strange)} NMI entries" if len(entered.strange) > 1 else "an NMI entry"
    led = f"led to {entered.calls} of at least {_count_owed(facts, vcpu, entered)} calls of NMI handlers"
    at_us = to_us(event.mono_ns - facts.begin.mono_ns) if facts.begin is not None else None
    text = f"{many} of vCPU {vcpu} {led if entered.calls else 'led to no ordinary handler'}"
    return Proof(text=text, seq=event.seq, vcpu=vcpu, at_us=at_us, symbol=facts.where(event))


def _why_ledger_doubted(facts: Facts, vcpu: int) -> str:
    delta = facts.ledger_delta(vcpu)
    if delta is None or delta.total != len(facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)):
        return f"the ledger of CPU {vcpu} is missing or does not fit the observer"
    if delta.dropped:
        return f"which {delta.dropped} of vCPU {vcpu}'s entries met it offline cannot be told"
    if delta.consumed and delta.consumed != len(facts.consumed(vcpu)):
        return f"which {delta.consumed} of vCPU {vcpu}'s entries the mechanism took cannot be told"
    return ""


def _find_ordinary(facts: Facts, vcpu: int) -> tuple[ObserverEvent, ...]:
    """Return the entries that ordinary handlers took."""
    entries = facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)
    if not facts.has(Witness.LEDGER):
        return tuple(entry for entry, _, calls in _count_calls(facts, vcpu, entries) if calls)
    delta = facts.ledger_delta(vcpu)
    consumed = facts.consumed(vcpu) if delta is not None and delta.consumed else ()
    return tuple(entry for entry in entries if entry not in consumed)
