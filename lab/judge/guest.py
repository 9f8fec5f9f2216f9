# SPDX-License-Identifier: GPL-2.0-or-later
"""How the guest came out of the load: alive, in time, and with the new revision on every CPU.

Sources: the lab's clock and console; sysfs ``microcode/version`` and ``microcode_lab/state`` for the revisions.
"""

from lab.judge.facts import NS_PER_US, Facts
from lab.judge.finding import NO_ENGINE, broken, broken_unless, clean, held, unseen
from lab.judge.starvation import why_not_shown_running, why_starved
from lab.mechanisms.base import Witness
from lab.model.engine import Engine, is_taken_by
from lab.model.evidence import Ending
from lab.model.verdict import Invariant, Proof

_ENDINGS = {
    Ending.PANIC: "the guest panicked",
    Ending.GONE: "the guest reset or QEMU ended",
    Ending.DEADLINE: "the deadline passed with the guest still there",
}

#: The console's last lines; a panic's own lines are among them.
_QUOTED_LINES = 10


def judge_deadline(facts: Facts) -> Invariant:
    """Hold when the load returned before its deadline.

    A panic, a reset or a hang is a defect of the kernel only if the load had begun and every vCPU is shown running.
    That is shown until the load's end only, so a deadline that passed after it accuses nobody.
    """
    name = "within-deadline"
    evidence = facts.evidence
    if evidence.ending is Ending.LAB:
        return unseen(name, f"the lab failed: {clean(evidence.reason)}")
    timings = evidence.timings
    if evidence.ending is Ending.COMPLETE:
        if timings is None:
            return unseen(name, "the lab's timings are missing")
        if not timings.command_ns <= timings.returned_ns <= timings.deadline_ns:
            return unseen(name, "the timings do not show that the load returned between its command and its deadline")
        took_ms = (timings.returned_ns - timings.command_ns) / NS_PER_US / 1_000
        return held(name, f"the load returned after {took_ms:.1f} ms")
    what = _ENDINGS[evidence.ending] + (f": {clean(evidence.reason)}" if evidence.reason else "")
    quoted = [Proof(text=clean(line)) for line in evidence.console_tail[-_QUOTED_LINES:]]
    proofs = [Proof(text=what), *quoted]
    if facts.begin is None:
        return unseen(name, f"{what}; but the load was not seen to begin", proofs)
    returned = facts.end is not None or (timings is not None and timings.returned_ns != 0)
    if evidence.ending is Ending.DEADLINE and returned:
        return unseen(name, f"{what}; but the load had ended before", proofs)
    # QEMU stopped, or stuck: its vCPUs did not run until the deadline, which no gap between two blocks shows.
    stuck = evidence.stall.problem if evidence.stall is not None else ""
    doubt = clean(stuck) or why_not_shown_running(facts)
    if doubt:
        return unseen(name, f"{what}; but {doubt}", proofs)
    return broken(name, proofs, what)


def judge_revisions(facts: Facts) -> Invariant:
    """Hold when every CPU went from an older revision to the target, by sysfs and, where there is one, by the state.

    Where the scenario's engine does not take the update on a core, the target is what the kernel must not claim there.
    Where the two differ nobody can tell which is right: that is ``witnesses-agree``, and here nothing was seen.
    """
    name = "new-revision-everywhere"
    if not facts.has_engine:
        return unseen(name, NO_ENGINE)
    guest = facts.evidence.guest
    if guest is None:
        return unseen(name, "the guest's evidence is missing")
    target = guest.target_revision
    if len(guest.revisions_after) != len(facts.vcpus) or len(guest.revisions_before) != len(facts.vcpus):
        return unseen(name, f"sysfs gave the revisions of {len(guest.revisions_after)} of {len(facts.vcpus)} CPUs")
    before = [guest.revisions_before[cpu] for cpu in facts.online]
    if any(not 0 <= revision < target for revision in before):
        return unseen(name, f"sysfs shows {max(before):#x} and {min(before):#x} before, not older than {target:#x}")
    inside = {state.cpu: state.revision for state in guest.state.cpus} if guest.state is not None else {}
    doubts = []
    proofs = []
    for cpu in facts.online:
        after = guest.revisions_after[cpu]
        if after < 0:
            doubts.append(f"sysfs shows no revision of CPU {cpu} after the load")
            continue
        if not facts.has(Witness.STATE):
            pass
        elif cpu not in inside:
            doubts.append(f"the rendezvous state does not name CPU {cpu}")
        elif inside[cpu] != after:
            doubts.append(f"sysfs says {after:#x} of CPU {cpu}, the rendezvous state {inside[cpu]:#x}")
            continue
        right = _list_right(facts, cpu, target)
        if after not in right:
            wanted = " or ".join(f"{revision:#x}" for revision in right)
            proofs.append(Proof(text=f"CPU {cpu} ended with revision {after:#x} instead of {wanted}", vcpu=cpu))
    if proofs:
        return broken_unless(name, proofs, why_starved(facts))
    if doubts:
        return unseen(name, doubts[0])
    if not facts.takes:
        engine = facts.evidence.scenario.engine.value
        return held(name, f"no CPU claims what its core did not take (engine: {engine})")
    return held(name, f"all {len(facts.online)} online CPUs ended with {target:#x}")


def _list_right(facts: Facts, cpu: int, target: int) -> tuple[int, ...]:
    """Return what sysfs may show of a CPU after the load."""
    guest, observer = facts.evidence.guest, facts.evidence.observer
    if is_taken_by(facts.evidence.scenario.engine, facts.topology.core_of(cpu)) or guest is None:
        return (target,)
    before = guest.revisions_before[cpu]
    if facts.evidence.scenario.engine is not Engine.OTHER_REVISION or observer is None:
        return (before,)
    # A kernel may show what it read of the CPU, or what it last knew to be right.
    core = facts.topology.core_of(cpu)
    own = (update.after for update in observer.updates if facts.topology.core_of(update.vcpu) == core)
    return tuple(dict.fromkeys((before, *own)))
