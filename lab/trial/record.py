# SPDX-License-Identifier: GPL-2.0-or-later
"""From kept evidence to a verdict beside it, and to the record that outlives it."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lab.evidence.folder import write_evidence, write_verdict
from lab.judge import judge
from lab.judge.bucket import find_bucket
from lab.model.evidence import Evidence
from lab.model.verdict import MAX_FRACTIONS, Outcome, TrialRecord, Verdict
from lab.trial.session import Kept

#: In place of a phase that is one of two.
UNSURE: Final = "unsure"

#: A window of 50 ms lasts no longer than 10000 times what the host's clock can tell apart in it.
FRACTION_DIGITS: Final = 4


def make_record(number: int, evidence: Evidence, verdict: Verdict, evidence_name: str) -> TrialRecord:
    """Return what is kept of a trial.

    :param evidence_name: its folder, relative to that of the run
    """
    fractions = list_fractions(evidence, verdict)
    return TrialRecord(
        trial=number,
        mechanism=evidence.scenario.mechanism,
        topology=str(evidence.scenario.topology),
        seed=evidence.plan.seed,
        outcome=verdict.outcome,
        reason=verdict.reason,
        invariants={invariant.name: invariant.finding for invariant in verdict.invariants},
        nmis=verdict.nmis,
        durations=verdict.durations,
        windows_judged=verdict.windows_judged,
        windows_unseen=verdict.windows_unseen,
        kernel_sha256=evidence.images.kernel_sha256 if evidence.images is not None else "",
        evidence=evidence_name,
        coverage=dict(
            Counter(f"{each.pending.value if each.pending else UNSURE} {each.role.value}" for each in verdict.landings)
        ),
        fractions={phase: sample(shots, evidence.plan.seed, phase) for phase, shots in fractions.items()},
        shots={phase: len(shots) for phase, shots in fractions.items()},
        match=evidence.images.best_match if evidence.images is not None else None,
        bucket=find_bucket(evidence, verdict),
        wait_region=evidence.observer.wait_region if evidence.observer is not None else (),
        first_load=evidence.plan.first_load,
    )


def list_fractions(evidence: Evidence, verdict: Verdict) -> dict[str, tuple[float, ...]]:
    """Return how far into its phase each random NMI of a plan landed, by phase.

    A broadcast lands on many vCPUs at once, and is one shot all the same: that at the core it was for. One that a hold
    waited for is where the hold is, and no shot.
    """
    topology = evidence.scenario.topology
    fractions: dict[str, dict[int, float]] = {}
    for each in verdict.landings:
        injection = evidence.plan.injections[each.nmi] if 0 <= each.nmi < len(evidence.plan.injections) else None
        if injection is None or injection.hold >= 0 or each.pending is None or each.fraction is None:
            continue
        aimed_at = topology.core_of(injection.vcpu) if injection.vcpu >= 0 else injection.core
        if topology.core_of(each.vcpu) == aimed_at:
            fractions.setdefault(each.pending.value, {}).setdefault(each.nmi, round(each.fraction, FRACTION_DIGITS))
    return {phase: tuple(found.values()) for phase, found in fractions.items()}


def sample(shots: Sequence[float], seed: int, phase: str) -> tuple[float, ...]:
    """Return MAX_FRACTIONS of a phase's shots, each as likely as any other, or all of fewer.

    A plan's shots are in order of time, so that its first ones lie early in their phase. The same trial gives the same
    sample.

    :param seed: of the trial's plan
    """
    if len(shots) <= MAX_FRACTIONS:
        return tuple(shots)
    return tuple(random.Random(f"{seed}/{phase}").sample(shots, MAX_FRACTIONS))


def keep_trial(folder: Path, kept: Kept, number: int, evidence_name: str) -> tuple[Verdict, TrialRecord]:
    """Write a trial's evidence, judge it, write the verdict beside it.

    :raise HostError: no space, or not writable
    """
    write_evidence(folder, kept.evidence, kept.raw)
    verdict = judge(kept.evidence)
    write_verdict(folder, verdict)
    return verdict, make_record(number, kept.evidence, verdict, evidence_name)


def keep_unless_passed(folder: Path, kept: Kept, number: int, evidence_name: str) -> TrialRecord:
    """Do as :func:`keep_trial`, but keep of a trial that passed the record alone: thousands of them fill a disk.

    :raise HostError: no space, or not writable
    """
    verdict = judge(kept.evidence)
    if verdict.outcome is Outcome.PASS:
        return make_record(number, kept.evidence, verdict, "")
    return keep_trial(folder, kept, number, evidence_name)[1]
