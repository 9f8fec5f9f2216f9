# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether each WRMSR 0x79 named the whole update that the lab gave the guest for this load.

Sources: the guest's memory at the instruction's operand, read by the observer as late as the instruction itself; the
bytes that the lab made. A kernel that passes the header's address for the data's, an image that it has freed, or one
that an earlier load left behind, is seen by this, whatever the CPU made of it.
"""

from lab.judge.facts import Facts
from lab.judge.finding import broken, held, unseen
from lab.judge.rendezvous import plain_proof
from lab.model.evidence import EventKind, ObserverEvent, Taken, UpdateSeen
from lab.model.verdict import Invariant

#: Each of them is recorded in front of its update.
_WRITES = (EventKind.WINDOW_OPEN, EventKind.RETRY, EventKind.EARLY)


def judge_right_image(facts: Facts) -> Invariant:
    """Hold when every WRMSR 0x79 of the trial named an update whose bytes are those of the one that was given."""
    name = "right-image"
    if not facts.sees_updates:
        return unseen(name, "this QEMU shows the observer no guest memory (plugin interface 4 is the least)")
    guest, observer = facts.evidence.guest, facts.evidence.observer
    if guest is None or guest.target_digest is None or observer is None:
        return unseen(name, "which update the guest was given is not known")
    if facts.misplaced:
        return unseen(name, facts.misplaced)
    records = {event.seq: event for event in facts.every_of_kind(EventKind.UPDATE)}
    wrong = [
        (records[update.seq], _describe(update))
        for update in observer.updates
        if update.digest != guest.target_digest and update.seq in records
    ]
    if wrong:
        return broken(
            name,
            [
                plain_proof(facts, event, f"vCPU {event.vcpu}'s WRMSR 0x79 named {what}, not the update of this load")
                for event, what in wrong
            ],
        )
    gap = facts.lost or _find_gap(facts, observer.updates)
    if gap:
        return unseen(name, gap)
    return held(name, f"each of {len(records)} WRMSR 0x79 named the whole update that the guest was given")


def _describe(update: UpdateSeen) -> str:
    at = f"{update.operand:#x}"
    if update.taken is Taken.UNREADABLE:
        return f"{at}, where there is no whole update in memory"
    if update.taken is Taken.MALFORMED:
        return f"{at}, which no header of an update is in front of"
    return f"an update to {update.revision:#x} of {update.total_size} bytes at {at}"


def _find_gap(facts: Facts, updates: tuple[UpdateSeen, ...]) -> str:
    """Say which WRMSR's update is missing, empty where each has its own."""
    read: dict[int, list[ObserverEvent]] = {}
    for event in facts.every_of_kind(EventKind.UPDATE):
        read.setdefault(event.vcpu, []).append(event)
    told = {update.seq for update in updates}
    writes = [event for event in facts.every_event if event.kind in _WRITES]
    if not writes:
        return "no WRMSR 0x79 was seen"
    for vcpu in facts.vcpus:
        executed = sum(event.vcpu == vcpu for event in writes)
        looked = len(read.get(vcpu, []))
        if executed != looked:
            return f"vCPU {vcpu} executed WRMSR 0x79 {executed} times, and what it named was read {looked} times"
    if any(event.seq not in told for events in read.values() for event in events):
        return "what a WRMSR 0x79 named was not kept"
    return ""
