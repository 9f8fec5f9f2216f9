# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a failing trial smaller while it still fails by one of the same invariants, k times of n.

The order of the attempts: no NMI at all; fewer NMIs (ddmin); each NMI with a drawn time moved to the place where it
landed; fewer holds (ddmin again); one core; default axes; shorter windows.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.judge import judge
from lab.judge.judging import list_accused
from lab.model.evidence import Evidence
from lab.model.placed import UNPINNED
from lab.model.plan import Injection
from lab.model.verdict import Landing, Outcome, Verdict
from lab.reduce.case import (
    Case,
    keep_placed,
    keep_timed,
    make_case,
    turn_into_phase,
    turn_into_place,
    with_fewer_cores,
    with_plain_axes,
    with_shorter_stretch,
)
from lab.reduce.ddmin import ddmin
from lab.reduce.landing_places import list_places, order_landings
from lab.reduce.replay import RunTrial
from lab.trial.record import keep_trial
from lab.trial.session import Kept

#: Folder with the evidence of the last failed trial, inside the folder of results.
LAST: Final = "last-failing"
MAX_NEED: Final = 100


class Need(msgspec.Struct, frozen=True):
    """The required number of failed trials, and the number of trials."""

    fails: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Need":
        """Read ``K/N``.

        :raise UsageError: the text has another form
        """
        fails, slash, of = text.partition("/")
        numbers = [int(part) for part in (fails, of) if part.isascii() and part.isdecimal() and len(part) < 4]
        if not slash or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1] <= MAX_NEED:
            raise UsageError(f"need '{text[:40]}' is not K/N with 1 <= K <= N <= {MAX_NEED}, such as 3/3")
        return cls(*numbers)


class Minimised(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a search for a smaller failing trial.

    :param wanted: names of invariants; a smaller trial must break at least one of them
    :param reproduced: the trial failed again as often as required; otherwise there is no smaller trial to show
    :param exhausted: the limit on trials ended the search
    """

    before: Case
    after: Case
    wanted: tuple[str, ...]
    trials: int
    reproduced: bool
    exhausted: bool


class _OutOfTrialsError(Exception):
    """The search has reached its limit on trials."""


def minimise(
    evidence: Evidence,
    run_trial: RunTrial,
    need: Need,
    folder: Path,
    tell: Callable[[str], None],
    trials: int,
    keep: Callable[[Case], None] = lambda _: None,
) -> Minimised:
    """Make a failing trial smaller.

    :param evidence: evidence of the trial; the caller has checked its plan
    :param folder: folder of results, which gets the folder LAST
    :param tell: receives a line for each step
    :param trials: the maximum number of trials
    :param keep: receives each case that is the smallest so far
    :raise UsageError: the trial does not fail
    :raise HostError: the host failed
    """
    return _Search(evidence, check_fails(evidence), run_trial, need, folder, tell, trials, keep).run()


def check_fails(evidence: Evidence) -> Verdict:
    """Return the verdict of a trial that can become smaller.

    :raise UsageError: the trial does not fail, or the plan's holds differ from the holds of its scenario
    """
    first = judge(evidence)
    if first.outcome is not Outcome.FAIL:
        raise UsageError(f"the trial ended as {first.outcome.value}, and only a FAIL can be made smaller")
    make_case(evidence)
    return first


class _Search:
    """The state of one search: the smallest case so far, and the evidence of its last failed trial."""

    def __init__(
        self,
        evidence: Evidence,
        first: Verdict,
        run_trial: RunTrial,
        need: Need,
        folder: Path,
        tell: Callable[[str], None],
        trials: int,
        keep: Callable[[Case], None],
    ) -> None:
        self._keep = keep
        self._run_trial = run_trial
        self._need = need
        self._folder = folder
        self._tell = tell
        self._bound = trials
        self._trials = 0
        self._wanted = frozenset(list_accused(first))
        self._names = list_accused(first)
        self._first = make_case(evidence)
        self._case = self._first
        self._evidence, self._verdict = evidence, first
        self._proven = False

    def run(self) -> Minimised:
        exhausted = False
        try:
            self._shrink()
        except _OutOfTrialsError:
            exhausted = True
        return Minimised(
            before=self._first,
            after=self._case,
            wanted=self._names,
            trials=self._trials,
            reproduced=self._proven,
            exhausted=exhausted,
        )

    def _shrink(self) -> None:
        bare = keep_placed(keep_timed(self._case, ()), ())
        if self._takes("no NMIs", (bare,)):
            pass
        elif self._case.timed:
            if self._takes("all as it was", (self._case,)):
                self._drop_timed()
            self._place_timed()
        else:
            self._takes("all as it was", (self._case,))
        if not self._proven:
            return
        self._drop_placed()
        self._takes("one core", with_fewer_cores(self._case))
        for _ in range(2):
            self._takes("default axes", with_plain_axes(self._case))
        self._takes("shorter windows", with_shorter_stretch(self._case))

    def _drop_timed(self) -> None:
        """Drop NMIs that come at drawn times. If the case has placed NMIs, try first to drop all drawn NMIs."""
        whole = self._case
        if whole.scenario.placed and self._takes("the holds alone", (keep_timed(whole, ()),)):
            return
        numbers = ddmin(
            range(len(whole.timed)),
            lambda part: self._takes(f"{len(part)} of {len(whole.timed)} NMIs", (_pick(whole, part),)),
        )
        self._case = _pick(whole, numbers)

    def _drop_placed(self) -> None:
        whole = self._case
        if len(whole.scenario.placed) + len(whole.timed) > 1 and whole.scenario.placed:
            count = len(whole.scenario.placed)
            kept = ddmin(
                range(count), lambda part: self._takes(f"{len(part)} of {count} holds", (keep_placed(whole, part),))
            )
            self._case = keep_placed(whole, kept)

    def _place_timed(self) -> None:
        """Move NMIs to the places where they landed.

        The evidence of one trial decides all places, because the NMIs of the next trial may land elsewhere.
        """
        evidence, verdict = self._evidence, self._verdict
        numbered = list(zip(self._match(evidence), self._case.timed, strict=True))
        if not self._proven:
            self._place_one(evidence, verdict, numbered)
            return
        for number, timed in numbered:
            any(self._place(evidence, timed, landing) for landing in order_landings(verdict, number))

    def _place(self, evidence: Evidence, timed: Injection, landing: Landing) -> bool:
        """Move one NMI to the place where it landed on one vCPU, or send the NMI in that phase."""
        places = list_places(evidence, landing)
        cases = (turn_into_place(self._case, timed, placed) for placed in places)
        if self._takes(f"NMI {landing.nmi} put where it landed, in {_where(landing)}", cases):
            return True
        phase = landing.pending
        if len(self._case.timed) > 1 or self._case.scenario.placed or phase is None or phase not in UNPINNED:
            return False
        case = turn_into_phase(self._case, phase, landing.role)
        return self._takes(f"NMI {landing.nmi} sent in {phase.value}", (case,))

    def _match(self, evidence: Evidence) -> list[int]:
        """Return the number that each NMI of the case has in the plan of the evidence."""
        pool = list(enumerate(evidence.plan.injections))
        numbers = []
        for timed in self._case.timed:
            at = next((index for index, (_, each) in enumerate(pool) if each == timed), None)
            numbers.append(-1 if at is None else pool.pop(at)[0])
        return numbers

    def _place_one(self, evidence: Evidence, verdict: Verdict, numbered: list[tuple[int, Injection]]) -> None:
        """Try each NMI alone, at each place where it landed. The drawn times alone do not reproduce the failure."""
        for number, timed in numbered:
            alone = keep_timed(self._case, (timed,))
            for landing in order_landings(verdict, number):
                cases = (turn_into_place(alone, timed, placed) for placed in list_places(evidence, landing))
                if self._takes(f"NMI {number} alone, put where it landed, in {_where(landing)}", cases):
                    return

    def _takes(self, what: str, cases: Iterable[Case]) -> bool:
        """Continue with the first case that fails often enough. Return whether there is such a case."""
        for case in cases:
            if self._fails(what, case):
                self._case = case
                self._proven = True
                return True
        return False

    def _fails(self, what: str, case: Case) -> bool:
        try:
            case.scenario.check()
            plan = case.plan
        except UsageError:
            return False
        failed = 0
        last: tuple[Kept, Verdict] | None = None
        for number in range(self._need.of):
            if self._trials >= self._bound:
                raise _OutOfTrialsError
            self._trials += 1
            try:
                kept = self._run_trial(case.scenario, plan)
            except UsageError:
                # This kernel does not have the place.
                return False
            verdict = judge(kept.evidence)
            if verdict.outcome is Outcome.FAIL and self._wanted & set(list_accused(verdict)):
                failed += 1
                last = kept, verdict
            left = self._need.of - number - 1
            if failed >= self._need.fails or failed + left < self._need.fails:
                break
        enough = failed >= self._need.fails
        self._tell(f"{what}: failed {failed} of {number + 1}, {'kept' if enough else 'not'}; {self._trials} trials")
        if enough and last is not None:
            self._evidence, self._verdict = last[0].evidence, last[1]
            keep_trial(self._folder / LAST, last[0], self._trials, LAST)
            self._keep(case)
        return enough


def _pick(case: Case, numbers: Iterable[int]) -> Case:
    return keep_timed(case, tuple(case.timed[number] for number in numbers))


def _where(landing: Landing) -> str:
    phase = landing.entered or landing.pending
    return phase.value if phase is not None else "one of two phases"
