# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the siblings that were offline during the load.

Sources: the oracle's look at each vCPU once the guest had come to rest; sysfs, after they were brought back.
"""

from lab.judge.facts import Facts
from lab.judge.finding import broken_unless, clean, held, unseen
from lab.judge.starvation import why_starved
from lab.spec.evidence import Resting
from lab.spec.mechanism import is_play_dead
from lab.spec.scenario import Siblings
from lab.spec.verdict import Invariant, Proof


def judge_offline_siblings(facts: Facts) -> Invariant:
    """Hold when each offline sibling waits again to be brought up, and, where it was, came up with the new revision."""
    name = "offline-siblings-return"
    if not facts.offline:
        return unseen(name, "no sibling was offline in this scenario")
    oracle, guest = facts.evidence.oracle, facts.evidence.guest
    resting = {each.vcpu: each for each in oracle.resting} if oracle is not None else {}
    missing = sorted(facts.offline - resting.keys())
    if missing or guest is None:
        return unseen(name, f"where vCPU {missing[0]} was after the load is not known" if missing else "no guest told")
    proofs = [
        Proof(text=f"vCPU {vcpu} was offline and {_describe(resting[vcpu])} after the load", vcpu=vcpu)
        for vcpu in sorted(facts.offline)
        if not _waits(facts, resting[vcpu])
    ]
    returning = facts.evidence.scenario.siblings is Siblings.RETURNING
    if returning:
        if guest.returned is None:
            return unseen(name, "the siblings were not brought back")
        proofs += _find_not_returned(facts)
    if proofs:
        return broken_unless(name, proofs, why_starved(facts))
    back = f" and came back with {guest.target_revision:#x}" if returning else ""
    return held(name, f"{len(facts.offline)} offline siblings waited again after the load{back}")


def _waits(facts: Facts, resting: Resting) -> bool:
    if not is_play_dead(resting.symbol):
        return False
    return resting.halted or facts.parks_at(resting.vcpu, resting.symbol)


def _describe(resting: Resting) -> str:
    place = clean(resting.symbol) or f"{resting.pc:#x}"
    return f"{'halted' if resting.halted else 'running'} in {place}"


def _find_not_returned(facts: Facts) -> list[Proof]:
    guest = facts.evidence.guest
    if guest is None or guest.returned is None:
        return []
    returned, target = guest.returned, guest.target_revision
    if returned.failed:
        return [Proof(text="bringing the offline siblings back failed")]
    proofs = []
    revisions = dict(enumerate(returned.revisions))
    for vcpu in sorted(facts.offline):
        if vcpu not in returned.online:
            proofs.append(Proof(text=f"CPU {vcpu} did not come back online", vcpu=vcpu))
        elif revisions.get(vcpu) != target:
            text = f"CPU {vcpu} came back with revision {revisions.get(vcpu, -1):#x} instead of {target:#x}"
            proofs.append(Proof(text=text, vcpu=vcpu))
    return proofs
