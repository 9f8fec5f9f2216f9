# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares the records of each mechanism with its expectation. Pure: records in, results out.

One rule applies to every mechanism: no trial ends in ERROR, and at most one trial in ten is INVALID. The expectation
adds a second rule:

- a *control* (``caught``) must be caught: at least one trial FAILs and breaks an invariant of the control;
- a mechanism *expected sound* (``clean``) must not be accused: no trial FAILs, and at least one trial PASSes;
- a control that a scenario may or may not catch (``either``) must not be accused of anything else: each FAIL breaks an
  invariant of the control, and at least one trial PASSes or FAILs;
- a mechanism *known to be imperfect* (``measured``) promises nothing about its siblings: checks on siblings do not
  decide the verdict; all other invariants must hold: no trial FAILs, and at least one trial PASSes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lab.expected.expect import QUIET, Expected
from lab.mechanisms.mechanism import Expectation
from lab.model.verdict import NO_NMIS_ASKED, Finding, Outcome, TrialRecord

HARMLESS = "harmless"

#: A larger share of INVALID trials than one in this many shows that the host cannot run the trials.
INVALID_ONE_IN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts trials by the finding of one invariant."""

    held: int = 0
    broken: int = 0
    unseen: int = 0

    @property
    def trials(self) -> int:
        """The number of trials."""
        return self.held + self.broken + self.unseen


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCounts:
    """Counts trials by outcome.

    :param passed_without_nmis: PASS trials that asked for no NMI
    """

    passed: int = 0
    failed: int = 0
    invalid: int = 0
    error: int = 0
    passed_without_nmis: int = 0

    @property
    def trials(self) -> int:
        """The number of trials."""
        return self.passed + self.failed + self.invalid + self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """Results of the trials in which an NMI was proven pending on a live sibling in its core's window.

    :param quiet: findings of ``quiet`` in these trials
    :param harmless: findings of ``harmless`` in these trials
    :param sent: NMIs of all trials
    :param masked: trials in which NMIs met a sibling's masked LINT1 in its core's window
    """

    quiet: Tally = Tally()
    harmless: Tally = Tally()
    sent: int = 0
    masked: int = 0

    @property
    def trials(self) -> int:
        """The number of these trials."""
        return self.quiet.trials


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismResult:
    """The result of all trials of one mechanism.

    :param met: the mechanism did what its expectation says
    :param reason: why ``met`` is true or false, in one sentence
    :param struck: results of only those trials in which an NMI reached a sibling
    """

    name: str
    expectation: Expectation
    met: bool
    reason: str
    outcomes: OutcomeCounts
    quiet: Tally
    harmless: Tally
    struck: Struck = Struck()


def is_caught(expected: Expected, record: TrialRecord) -> bool:
    """Say whether a trial FAILs and breaks an invariant that its scenario is a control of."""
    broken = any(record.invariants.get(one) is Finding.BROKEN for one in expected.caught_by)
    return record.outcome is Outcome.FAIL and broken


def weigh_mechanism(name: str, expected: Expected, records: Iterable[TrialRecord]) -> MechanismResult:
    """Compare one mechanism's records with its expectation. Records of other mechanisms are ignored."""
    own = [record for record in records if record.mechanism == name]
    caught = sum(is_caught(expected, record) for record in own)
    counts = count_outcomes(own)
    met, reason = weigh_counts(expected, counts, caught)
    struck = [record for record in own if record.nmis_on_siblings]
    return MechanismResult(
        name=name,
        expectation=expected.kind,
        met=met,
        reason=reason,
        outcomes=counts,
        quiet=_tally(own, QUIET),
        harmless=_tally(own, HARMLESS),
        struck=Struck(
            quiet=_tally(struck, QUIET),
            harmless=_tally(struck, HARMLESS),
            sent=sum(record.nmis.sent for record in own),
            masked=sum(bool(record.nmis.masked) for record in own),
        ),
    )


def count_outcomes(records: Iterable[TrialRecord]) -> OutcomeCounts:
    """Count trials by outcome."""
    records = tuple(records)
    outcomes = Counter(record.outcome for record in records)
    return OutcomeCounts(
        passed=outcomes[Outcome.PASS],
        failed=outcomes[Outcome.FAIL],
        invalid=outcomes[Outcome.INVALID],
        error=outcomes[Outcome.ERROR],
        passed_without_nmis=sum(record.without_nmis for record in records),
    )


def weigh_run(expectations: Mapping[str, Expected], records: Iterable[TrialRecord]) -> tuple[MechanismResult, ...]:
    """Compare the records of every requested mechanism with its expectation, in the order of the request."""
    by_name: dict[str, list[TrialRecord]] = {name: [] for name in expectations}
    for record in records:
        if record.mechanism in by_name:
            by_name[record.mechanism].append(record)
    return tuple(weigh_mechanism(name, expected, by_name[name]) for name, expected in expectations.items())


def run_met(results: Iterable[MechanismResult]) -> bool:
    """Say whether every mechanism met its expectation. A run without mechanisms meets no expectation."""
    met = [result.met for result in results]
    return bool(met) and all(met)


def _tally(records: Iterable[TrialRecord], name: str) -> Tally:
    counter = Counter(record.invariants.get(name, Finding.UNSEEN) for record in records)
    return Tally(held=counter[Finding.HELD], broken=counter[Finding.BROKEN], unseen=counter[Finding.UNSEEN])


def weigh_counts(expected: Expected, counts: OutcomeCounts, caught: int) -> tuple[bool, str]:
    """Say whether the trials meet the expectation, and why, in one sentence.

    :param caught: FAIL trials that broke one of the invariants that the expectation names
    """
    trials = counts.trials
    if trials == 0:
        return False, "no trial was run"
    if counts.error:
        return False, f"{counts.error} of {trials} trials ended in ERROR: the lab or the host failed"
    if counts.invalid * INVALID_ONE_IN > trials:
        return False, f"{counts.invalid} of {trials} trials are INVALID: more than one in {INVALID_ONE_IN} show nothing"
    because = f": {expected.why}" if expected.why else ""
    without = counts.passed_without_nmis
    asked = f" ({NO_NMIS_ASKED}{f' in {without}' if without < counts.passed else ''})" if without else ""
    if expected.kind is Expectation.CAUGHT:
        what = " or ".join(expected.caught_by)
        if not caught:
            return False, f"not caught: no trial of {trials} failed with {what} broken"
        return True, f"caught: {what} broken in {caught} failed trials of {trials}{because}"
    if expected.kind is Expectation.EITHER:
        what = " or ".join(expected.caught_by)
        if counts.failed > caught:
            return False, f"{counts.failed - caught} of {trials} trials FAIL without {what} broken"
        if not counts.passed + counts.failed:
            return False, f"no trial of {trials} passed or failed"
        return True, f"either: {what} broken in {caught} failed trials of {trials}, which may be none{because}"
    if counts.failed:
        return False, f"{counts.failed} of {trials} trials FAIL"
    if not counts.passed:
        return False, f"no trial of {trials} passed"
    return True, f"{expected.kind.value}: {counts.passed} of {trials} trials PASS{asked} and none FAILs{because}"
