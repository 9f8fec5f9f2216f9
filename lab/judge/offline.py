# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the siblings that were offline during the load.

Sources: the observer's look at each vCPU once the guest had come to rest; sysfs, after they were brought back.
"""

from lab.judge.facts import Facts
from lab.judge.finding import broken_unless, clean, held, unseen
from lab.judge.starvation import why_starved
from lab.mechanisms.mechanism import is_play_dead
from lab.model.evidence import Resting, Returned
from lab.model.scenario import Siblings
from lab.model.verdict import Invariant, Proof


def judge_offline_siblings(facts: Facts) -> Invariant:
    """Hold when each offline sibling waits again to be brought up, and, where it was, came up with the new revision.

    Where no update takes effect there is no new revision to come up with: that it came up is what shows.
    """
    name = "offline-siblings-return"
    if not facts.offline:
        return unseen(name, "no sibling was offline in this scenario")
    observer, guest = facts.evidence.observer, facts.evidence.guest
    seen = observer.resting if observer is not None else ()
    resting = {each.vcpu: each for each in seen}
    # Of two accounts of one vCPU nobody knows which is right.
    missing = sorted(vcpu for vcpu in facts.offline if sum(each.vcpu == vcpu for each in seen) != 1)
    if missing or guest is None:
        return unseen(name, f"where vCPU {missing[0]} was after the load is not known" if missing else "no guest told")
    doubts = [
        f"vCPU {vcpu} was to wait in MWAIT, and was {_describe(resting[vcpu])} after the load"
        for vcpu in sorted(facts.offline)
        if _waits_in_hlt(facts, resting[vcpu])
    ]
    proofs = [
        Proof(text=f"vCPU {vcpu} was offline and {_describe(resting[vcpu])} after the load", vcpu=vcpu)
        for vcpu in sorted(facts.offline)
        if not _waits(facts, resting[vcpu])
    ]
    returning = facts.evidence.scenario.siblings is Siblings.RETURNING
    if returning:
        if guest.returned is None:
            return unseen(name, "the siblings were not brought back")
        proofs += _find_not_returned(facts, guest.returned, doubts)
    if proofs:
        return broken_unless(name, proofs, why_starved(facts))
    if doubts:
        return unseen(name, doubts[0])
    came_with = f" with {guest.target_revision:#x}" if facts.takes else ""
    back = f" and came back{came_with}" if returning else ""
    return held(name, f"{len(facts.offline)} offline siblings waited again after the load{back}")


def _waits(facts: Facts, resting: Resting) -> bool:
    if not is_play_dead(resting.symbol):
        return False
    return resting.halted or facts.parks_at(resting.vcpu, resting.symbol)


def _waits_in_hlt(facts: Facts, resting: Resting) -> bool:
    """Say whether a thread that was to be parked in MWAIT is halted, which MWAIT never does under an emulator."""
    return facts.evidence.scenario.boot.monitor and resting.halted and is_play_dead(resting.symbol)


def _describe(resting: Resting) -> str:
    place = clean(resting.symbol) or f"{resting.pc:#x}"
    return f"{'halted' if resting.halted else 'running'} in {place}"


def _find_not_returned(facts: Facts, returned: Returned, doubts: list[str]) -> list[Proof]:
    guest = facts.evidence.guest
    target = guest.target_revision if guest is not None else 0
    if returned.failed:
        return [Proof(text="bringing the offline siblings back failed")]
    proofs = []
    revisions = dict(enumerate(returned.revisions))
    for vcpu in facts.vcpus:
        revision = revisions.get(vcpu, -1)
        if vcpu not in returned.online:
            text = f"CPU {vcpu} did not come back online" if vcpu in facts.offline else f"CPU {vcpu} went offline"
            proofs.append(Proof(text=text, vcpu=vcpu))
        elif revision < 0:
            doubts.append(f"sysfs shows no revision of CPU {vcpu} after the siblings came back")
        elif facts.takes and revision != target and vcpu in facts.offline:
            text = f"CPU {vcpu} came back with revision {revision:#x} instead of {target:#x}"
            proofs.append(Proof(text=text, vcpu=vcpu))
    return proofs
