# SPDX-License-Identifier: GPL-2.0-or-later
"""How hard a suite of test cases pushes: how many trials each case runs, of which seeds, and for how long."""

import itertools
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.host.deadline import Deadline
from lab.model.duration import read_seconds
from lab.model.plan import MAX_SEED, derive_seed

SEED: Final = "--lab-seed"
TRIALS: Final = "--lab-trials"
TIME: Final = "--lab-for"

#: At one trial a second this takes eleven days.
MAX_TRIALS: Final = 1_000_000
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
#: The same for all cases, so that mechanisms are tried with the same plans.
_STREAM: Final = "suite"


class Push(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks of each case that draws its seeds from here.

    :param seed: all seeds follow from it; None for 0, 1, 2 and so on
    :param trials: how many each case runs at most, None for as many as it does by itself
    :param for_s: cases run further trials for so long, in seconds; None for no longer than they do by themselves
    """

    seed: int | None = None
    trials: int | None = None
    for_s: float | None = None

    def draw(self, usual: int) -> Iterator[int]:
        """Return the seeds of a case's trials, one after the other: the same ones wherever it runs.

        The time begins to run with the first. A case does at least what it does by itself, also when there is no time.

        :param usual: how many trials the case runs by itself
        """
        least = usual if self.trials is None or self.for_s is not None else self.trials
        deadline = None if self.for_s is None else Deadline.after(self.for_s)
        for index in itertools.count():
            if index == self.trials or (index >= least and (deadline is None or deadline.expired)):
                return
            yield index if self.seed is None else derive_seed(self.seed, _STREAM, index)

    def share(self, cases: int, workers: int) -> "Push":
        """Return what each of some cases has to do, so that all of them together take the time that was given.

        :param cases: how many draw their seeds from here
        :param workers: how many cases run at a time
        """
        if self.for_s is None or not cases:
            return self
        return msgspec.structs.replace(self, for_s=self.for_s * min(workers, cases) / cases)

    @property
    def longer_s(self) -> float:
        """How much longer than by itself a case may take, in seconds."""
        # What runs trials is no part of a suite that runs none.
        from lab.trial.session import TRIAL_S

        return self.for_s if self.for_s is not None else (self.trials or 0) * TRIAL_S


def read_push(seed: str | None, trials: str | None, time: str | None) -> Push:
    """Return what was asked for, each None where it was not.

    :raise UsageError: one of them is not allowed; the text names it
    """
    return Push(
        seed=None if seed is None else _read_number(SEED, seed, 0, MAX_SEED),
        trials=None if trials is None else _read_number(TRIALS, trials, 1, MAX_TRIALS),
        for_s=None if time is None else read_seconds(TIME, time),
    )


def _read_number(option: str, text: str, low: int, high: int) -> int:
    if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise UsageError(f"{option} is '{text}': allowed is a whole number from {low} to {high}")
    return int(text)
