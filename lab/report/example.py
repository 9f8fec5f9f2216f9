# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the trial that best shows how a mechanism broke: its evidence folder has the shortest proof."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from lab.errors import EvidenceError
from lab.evidence.folder import read_evidence, read_verdict
from lab.expected.expect import QUIET
from lab.model.verdict import Finding, Invariant, Outcome, TrialRecord, Verdict
from lab.report.figures import NEVER_REQUIRED
from lab.report.timeline import Timeline, draw_timeline

#: The search for the shortest proof reads this number of verdicts.
MAX_CANDIDATES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A trial in which a mechanism broke.

    :param broken: the broken invariants with their proofs, ``quiet`` first
    :param problem: why there is no drawing; empty if there is a drawing
    :param stall: if the guest stopped answering: where its vCPUs were, one line for each vCPU
    """

    record: TrialRecord
    reason: str
    broken: tuple[Invariant, ...]
    timeline: Timeline | None
    problem: str
    stall: tuple[str, ...] = ()


def find_evidence(run_folder: Path, evidence: str) -> Path:
    """Return the evidence folder that a record names.

    :raise EvidenceError: the folder does not exist, or is outside the run's folder; a record must not point elsewhere
    """
    named = PurePosixPath(evidence)
    if not evidence or "\0" in evidence:
        raise EvidenceError("no evidence was kept")
    if named.is_absolute() or ".." in named.parts:
        raise EvidenceError("its evidence lies outside the run's folder: refused")
    try:
        folder = (run_folder / named).resolve()
        inside = folder.is_relative_to(run_folder.resolve())
        kept = inside and folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise EvidenceError("its evidence cannot be found") from error
    if not inside:
        raise EvidenceError("its evidence lies outside the run's folder: refused")
    if not kept:
        raise EvidenceError("its evidence is gone")
    return folder


def link_evidence(evidence: str) -> str:
    """Return a relative link to a folder from :func:`find_evidence`. The dot prevents that a browser reads a scheme."""
    return "./" + quote(os.fsencode(str(PurePosixPath(evidence)))) + "/"


def find_example(run_folder: Path, records: Iterable[TrialRecord]) -> Example | None:
    """Return the broken trial of a mechanism with the shortest proof of ``quiet``, or of another broken invariant.

    If no evidence can be read, the first broken trial is the example, and its ``problem`` says so.
    """
    broken = [record for record in records if _is_broken(record)]
    if not broken:
        return None
    ranked = sorted(broken, key=_rank)
    judged: list[tuple[TrialRecord, Verdict]] = []
    for record in ranked[: 4 * MAX_CANDIDATES]:
        with contextlib.suppress(EvidenceError):
            judged.append((record, read_verdict(find_evidence(run_folder, record.evidence))))
        if len(judged) == MAX_CANDIDATES:
            break
    if not judged:
        return Example(
            record=ranked[0],
            reason=ranked[0].reason,
            broken=(),
            timeline=None,
            problem="no evidence of a broken trial can be read in this run's folder",
        )
    record, verdict = min(judged, key=lambda pair: (_rank(pair[0]), _proof_length(pair[1])))
    invariants = _sort_broken(verdict.invariants)
    timeline, problem = _draw(find_evidence(run_folder, record.evidence), invariants)
    return Example(
        record=record,
        reason=verdict.reason,
        broken=invariants,
        timeline=timeline,
        problem=problem,
        stall=verdict.stall,
    )


def _is_broken(record: TrialRecord) -> bool:
    return any(finding is Finding.BROKEN and name not in NEVER_REQUIRED for name, finding in record.invariants.items())


def _rank(record: TrialRecord) -> tuple[bool, bool]:
    """Sort key of trials: FAIL first; among them, trials that broke ``quiet`` first."""
    return record.outcome is not Outcome.FAIL, record.invariants.get(QUIET) is not Finding.BROKEN


def _sort_broken(invariants: Iterable[Invariant]) -> tuple[Invariant, ...]:
    broken = [invariant for invariant in invariants if invariant.finding is Finding.BROKEN]
    return tuple(sorted(broken, key=_by_weight))


def _by_weight(invariant: Invariant) -> tuple[bool, bool, bool]:
    return invariant.name != QUIET, not invariant.required, invariant.name in NEVER_REQUIRED


def _proof_length(verdict: Verdict) -> tuple[bool, int]:
    """Sort key of verdicts: the length of the first proof. A verdict without a proof comes last."""
    broken = _sort_broken(verdict.invariants)
    return not (broken and broken[0].proofs), len(broken[0].proofs) if broken else 0


def _draw(folder: Path, invariants: Sequence[Invariant]) -> tuple[Timeline | None, str]:
    core = next((proof.core for invariant in invariants for proof in invariant.proofs if proof.core >= 0), -1)
    try:
        timeline = draw_timeline(read_evidence(folder), core)
    except EvidenceError as error:
        # The path of the folder on this machine does not help a reader on another machine.
        return None, str(error).replace(str(folder), folder.name)
    return timeline, "" if timeline is not None else "the observer saw no window, so there is nothing to draw"
