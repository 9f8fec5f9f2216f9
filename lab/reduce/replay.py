# SPDX-License-Identifier: GPL-2.0-or-later
"""One kept trial run again: the same scenario, plan and images, as often as asked.

Two trials ended the same way when their outcomes are the same and, of a FAIL, at least one invariant that accused the
kernel the first time accuses it again. Which further ones show depends on where the guest happened to be: an NMI in the
window breaks ``quiet`` each time, and whether its IRET comes before the window's close is up to the host.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from lab.judge.judging import list_accused
from lab.model.evidence import Evidence
from lab.model.plan import Plan
from lab.model.scenario import Scenario
from lab.model.verdict import EXIT_STATUS, Outcome, TrialRecord, Verdict
from lab.trial.record import keep_trial
from lab.trial.session import Kept

#: Exit status when a trial did not end the same way each time, or when a failure did not come back.
NOT_AGAIN: Final = 1

#: Runs one trial: :meth:`lab.trial.pool.WarmGuests.run_trial`.
RunTrial = Callable[[Scenario, Plan], Kept]


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """How one repetition ended.

    :param same: as the trial did
    :param accused: names of the required invariants that it broke
    :param evidence: its folder, relative to that of all
    """

    same: bool
    outcome: Outcome
    accused: tuple[str, ...]
    reason: str
    evidence: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial when it was run again.

    :param outcome: how the trial itself is judged
    :param accused: names of the required invariants that the trial broke
    """

    outcome: Outcome
    accused: tuple[str, ...]
    tries: tuple[Again, ...]

    @property
    def same(self) -> int:
        """How many ended the same way."""
        return sum(each.same for each in self.tries)

    @property
    def exit_status(self) -> int:
        """0 when each ended the same way, else 1; of a trial that shows nothing, the status of its outcome."""
        if self.outcome not in (Outcome.PASS, Outcome.FAIL):
            return EXIT_STATUS[self.outcome]
        return 0 if self.tries and self.same == len(self.tries) else NOT_AGAIN


def ends_the_same(first: Verdict, again: Verdict) -> bool:
    """Say whether two trials ended the same way. Pure."""
    if first.outcome is not again.outcome:
        return False
    return first.outcome is not Outcome.FAIL or bool(set(list_accused(first)) & set(list_accused(again)))


def replay(
    evidence: Evidence,
    first: Verdict,
    run_trial: RunTrial,
    times: int,
    folder: Path,
    done: Callable[[TrialRecord], None],
) -> Replayed:
    """Run a trial again and again, and keep the evidence of each.

    :param first: the verdict of ``evidence``
    :param folder: takes one folder for each repetition
    :param done: told of each
    :raise UsageError: a hold of the plan has no place in this kernel
    :raise HostError: the host failed
    """
    tries = []
    for number in range(1, times + 1):
        name = f"again-{number:03}"
        kept = run_trial(evidence.scenario, evidence.plan)
        verdict, record = keep_trial(folder / name, kept, number, name)
        tries.append(
            Again(
                same=ends_the_same(first, verdict),
                outcome=verdict.outcome,
                accused=list_accused(verdict),
                reason=verdict.reason,
                evidence=name,
            )
        )
        done(record)
    return Replayed(outcome=first.outcome, accused=list_accused(first), tries=tuple(tries))
