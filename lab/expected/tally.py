# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether each mechanism did what a trustworthy lab must see of it. Pure: records in, results out.

The rule, the same for every mechanism: no trial ended in ERROR, and at most one in ten is INVALID. On top of it,

- a *control* (``caught``) must be caught: at least one trial FAILs with the invariant broken that it is a control of;
- a mechanism *held to be sound* (``clean``) must not be accused: no trial FAILs, and at least one PASSes;
- a control of which a scenario may show something and need not (``either``) must not be accused of anything else: each
  trial that FAILs has broken what it is a control of, and at least one PASSes or FAILs;
- one that is known to let some through (``measured``) promises nothing about its siblings, and the judge requires
  nothing there; all else must hold: no trial FAILs, and at least one PASSes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lab.expected.expect import QUIET, Expected
from lab.mechanisms.mechanism import Expectation
from lab.model.verdict import NO_NMIS_ASKED, Finding, Outcome, TrialRecord

HARMLESS = "harmless"

#: More INVALID trials than one in this many say that the host was not fit to run them.
INVALID_ONE_IN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """In how many trials one invariant was found how."""

    held: int = 0
    broken: int = 0
    unseen: int = 0

    @property
    def trials(self) -> int:
        """How many trials there were."""
        return self.held + self.broken + self.unseen


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCounts:
    """How many trials ended how.

    :param passed_without_nmis: of those that passed, how many asked for no NMI
    """

    passed: int = 0
    failed: int = 0
    invalid: int = 0
    error: int = 0
    passed_without_nmis: int = 0

    @property
    def trials(self) -> int:
        """How many trials there were."""
        return self.passed + self.failed + self.invalid + self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """What trials show in which an NMI was proven pending on a live sibling in its core's window.

    :param quiet: how the invariant was found in those trials, and ``harmless``
    :param sent: NMIs of all trials
    :param masked: trials in which NMIs met a sibling's masked LINT1 in its core's window
    """

    quiet: Tally = Tally()
    harmless: Tally = Tally()
    sent: int = 0
    masked: int = 0

    @property
    def trials(self) -> int:
        """How many there were."""
        return self.quiet.trials


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismResult:
    """What the trials of one mechanism amount to.

    :param met: it did what its expectation says
    :param reason: why, or why not, in one sentence
    :param struck: those trials alone in which an NMI reached a sibling
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
    """Say whether a trial FAILed with one of the invariants broken that its scenario is a control of."""
    broken = any(record.invariants.get(one) is Finding.BROKEN for one in expected.caught_by)
    return record.outcome is Outcome.FAIL and broken


def weigh_mechanism(name: str, expected: Expected, records: Iterable[TrialRecord]) -> MechanismResult:
    """Hold one mechanism's records against its expectation; records of others are left out."""
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
    """Count how trials ended."""
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
    """Hold every mechanism that was asked for against its expectation, in the order asked."""
    by_name: dict[str, list[TrialRecord]] = {name: [] for name in expectations}
    for record in records:
        if record.mechanism in by_name:
            by_name[record.mechanism].append(record)
    return tuple(weigh_mechanism(name, expected, by_name[name]) for name, expected in expectations.items())


def run_met(results: Iterable[MechanismResult]) -> bool:
    """Tell whether every mechanism met its expectation; a run of none met nothing."""
    met = [result.met for result in results]
    return bool(met) and all(met)


def _tally(records: Iterable[TrialRecord], name: str) -> Tally:
    counter = Counter(record.invariants.get(name, Finding.UNSEEN) for record in records)
    return Tally(held=counter[Finding.HELD], broken=counter[Finding.BROKEN], unseen=counter[Finding.UNSEEN])


def weigh_counts(expected: Expected, counts: OutcomeCounts, caught: int) -> tuple[bool, str]:
    """Say whether trials did what is expected of them, and why in one sentence.

    :param caught: how many ended in FAIL with one of the invariants broken that the expectation names
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
