# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one kept trial again, with the same scenario, plan and images, as often as the user asks.

Two trials end the same way if their outcomes are the same. For a FAIL, at least one invariant must also accuse the
kernel in both trials. Further broken invariants depend on the state of the guest: an NMI in the window breaks ``quiet``
each time, but the host decides whether its IRET comes before the window closes.
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

#: Exit status when a trial ended another way, for example when a failure did not come back.
NOT_AGAIN: Final = 1

#: An outcome that shows something; two trials can be compared only by such.
_SHOWS: Final = (Outcome.PASS, Outcome.FAIL)

#: Runs one trial: :meth:`lab.trial.pool.WarmGuests.run_trial`.
RunTrial = Callable[[Scenario, Plan], Kept]


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one repetition.

    :param same: the repetition ended the same way as the trial
    :param accused: names of the required invariants that the repetition broke
    :param evidence: folder of the repetition, relative to the folder of all repetitions
    """

    same: bool
    outcome: Outcome
    accused: tuple[str, ...]
    reason: str
    evidence: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of all repetitions of a trial.

    :param outcome: the judge's outcome for the trial itself
    :param accused: names of the required invariants that the trial broke
    """

    outcome: Outcome
    accused: tuple[str, ...]
    tries: tuple[Again, ...]

    @property
    def same(self) -> int:
        """The number of repetitions that ended the same way."""
        return sum(each.same for each in self.tries)

    @property
    def silent(self) -> tuple[Again, ...]:
        """The repetitions that show nothing, as on a host that did not run the guest: neither the same nor another."""
        return tuple(each for each in self.tries if each.outcome not in _SHOWS)

    @property
    def exit_status(self) -> int:
        """0 when each repetition ended the same way, 1 when one ended another way, 3 or 4 when one shows nothing.

        For a trial that shows nothing, its outcome's status.
        """
        if self.outcome not in _SHOWS:
            return EXIT_STATUS[self.outcome]
        if not self.tries or self.same + len(self.silent) < len(self.tries):
            return NOT_AGAIN
        return max((EXIT_STATUS[each.outcome] for each in self.silent), default=0)


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
    """Run a trial again and again, and keep the evidence of each repetition.

    :param first: the verdict of ``evidence``
    :param folder: gets one folder for each repetition
    :param done: receives the record of each repetition
    :raise UsageError: this kernel does not have the place of one of the plan's holds
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
