# SPDX-License-Identifier: GPL-2.0-or-later
"""What trials show of a mutant.

A mutant of a kernel is caught by a trial that ends as FAIL and breaks an invariant that its patch names. Any other FAIL
does not count. A mutant of a witness is caught by a trial of a sound mechanism that ends as INVALID, where an invariant
that the patch names no longer holds. Trials of a control are run beside it. Such a mutant has fooled the lab when the
sound mechanism FAILs or the control PASSes. A guest that shows nothing at all is INVALID too. Therefore a trial without
the mutant, the baseline, must PASS.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from lab.expected.mutant import Mutant, Subject
from lab.model.scenario import Scenario
from lab.model.verdict import Finding, Outcome, TrialRecord

#: Trials of a mutant that end in ERROR before it is given up. A guest that does not boot shows nothing, and says so
#: after minutes.
MAX_ERRORS: Final = 3


class Fate(enum.Enum):
    """What became of a mutant."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    #: A broken witness made a sound kernel look broken, or a broken kernel look good.
    FOOLED = "fooled the lab"
    #: The defect shows only on a newer QEMU. The mutant was not tried.
    BEYOND = "needs a newer QEMU"
    #: The lab or the host failed, or without the mutant no trial passed.
    ERROR = "error"
    #: Some of its trials are still to be run.
    OPEN = "not tried out"


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """How a mutant was caught, or why it was not.

    :param by: the invariants that caught the mutant, of those that its patch names, in the judge's order
    :param also: other invariants that were broken in the same trial
    :param trials: number of trials with the mutant, of its scenario and of the control
    :param reason: of the trial that decided, else of the last trial
    :param evidence: the folder of that trial, relative to the folder of the hunt; empty where none is kept
    """

    mutant: str
    subject: Subject
    fate: Fate
    by: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    trials: int = 0
    outcomes: dict[str, int] = {}
    reason: str = ""
    evidence: str = ""


def on_control(mutant: Mutant) -> Scenario:
    """Return the scenario of a kernel that is known to be broken. A mutant must not make this kernel look good."""
    changes = {"mechanism": "stop-machine", "parking": mutant.scenario.parking}
    return msgspec.structs.replace(mutant.scenario, **changes)


def weigh(mutant: Mutant, record: TrialRecord, *, control: bool = False) -> Fate:
    """Say what one trial shows of a mutant. OPEN stands for nothing yet.

    :param control: the trial is of the scenario that :func:`on_control` returns
    """
    if record.outcome is Outcome.ERROR:
        return Fate.ERROR
    if control:
        return Fate.FOOLED if record.outcome is Outcome.PASS else Fate.OPEN
    if record.outcome is mutant.ends_in:
        return Fate.CAUGHT if list_catchers(mutant, record) else Fate.OPEN
    return Fate.FOOLED if record.outcome is Outcome.FAIL else Fate.OPEN


def list_catchers(mutant: Mutant, record: TrialRecord) -> tuple[str, ...]:
    """Return the invariants that the patch names and that a trial broke or, for a witness's mutant, did not hold."""
    broken_only = mutant.ends_in is Outcome.FAIL
    return tuple(
        name
        for name, finding in record.invariants.items()
        if name in mutant.caught_by and finding is not Finding.HELD and not (broken_only and finding is Finding.UNSEEN)
    )


def tell_fate(
    mutant: Mutant,
    tried: Sequence[TrialRecord],
    controls: Sequence[TrialRecord],
    baseline: Sequence[TrialRecord],
    *,
    complete: bool,
) -> Kill:
    """Say what became of a mutant.

    :param tried: records of its scenario
    :param controls: records of its control; empty for a mutant of a kernel
    :param baseline: records of its scenario without the mutant; empty for a mutant of a kernel
    :param complete: no trial of it is left to be run, its baseline included
    """
    trials = sorted([*((each, False) for each in tried), *((each, True) for each in controls)], key=_find_number)
    shown = [(weigh(mutant, record, control=control), record) for record, control in trials]
    fit = is_fit(mutant, baseline)
    fate, decided = next(
        ((fate, record) for fate, record in shown if fate is Fate.FOOLED or (fate is Fate.CAUGHT and fit)),
        _tell_open(shown, complete=complete),
    )
    reason = decided.reason if decided is not None else ""
    if fate is not Fate.FOOLED and not fit:
        fate = Fate.ERROR if complete else Fate.OPEN
        if baseline:
            decided = baseline[-1]
            none = f"without the mutant none of {len(baseline)} trials passed, so INVALID shows nothing"
            reason = f"{none}: {decided.reason}"
    caught = decided if fate is Fate.CAUGHT else None
    return Kill(
        mutant=mutant.name,
        subject=mutant.subject,
        fate=fate,
        by=list_catchers(mutant, caught) if caught is not None else (),
        also=_list_others(mutant, caught) if caught is not None else (),
        trials=len(trials),
        outcomes=dict(Counter(record.outcome.value for record, _ in trials)),
        reason=reason,
        evidence=decided.evidence if decided is not None else "",
    )


def is_fit(mutant: Mutant, baseline: Iterable[TrialRecord]) -> bool:
    """Say whether INVALID trials show something of a mutant: without it one has passed."""
    return mutant.ends_in is Outcome.FAIL or any(record.outcome is Outcome.PASS for record in baseline)


def _tell_open(shown: Sequence[tuple[Fate, TrialRecord]], *, complete: bool) -> tuple[Fate, TrialRecord | None]:
    """Return the fate of a mutant that no trial decided, and the record that says why."""
    errors = [record for fate, record in shown if fate is Fate.ERROR]
    if len(errors) >= MAX_ERRORS or (complete and errors and len(errors) == len(shown)):
        return Fate.ERROR, errors[-1]
    last = shown[-1][1] if shown else None
    return Fate.SURVIVED if complete and shown else Fate.OPEN, last


def _find_number(trial: tuple[TrialRecord, bool]) -> int:
    return trial[0].trial


def _list_others(mutant: Mutant, record: TrialRecord) -> tuple[str, ...]:
    return tuple(
        name
        for name, finding in record.invariants.items()
        if finding is Finding.BROKEN and name not in mutant.caught_by
    )
