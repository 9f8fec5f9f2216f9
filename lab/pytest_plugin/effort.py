# SPDX-License-Identifier: GPL-2.0-or-later
"""The effort of a suite: how many trials each case runs, with which seeds, and for how long."""

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

#: With one trial a second this takes eleven days.
MAX_TRIALS: Final = 1_000_000
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
#: The same name for all cases, so that all mechanisms get the same plans.
_STREAM: Final = "suite"


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks of each case that draws its seeds from here.

    :param seed: the seed from which all other seeds follow; None for the seeds 0, 1, 2 and so on
    :param trials: maximum number of trials of each case; None for the case's usual number
    :param for_s: each case runs further trials for this time, in seconds; None for no further trials
    """

    seed: int | None = None
    trials: int | None = None
    for_s: float | None = None

    def draw(self, usual: int) -> Iterator[int]:
        """Return the seeds of a case's trials, one after the other. The seeds are the same on every host and worker.

        The time begins with the first seed. A case runs at least its usual number of trials, even after the time is
        over. ``trials`` limits the number in any case.

        :param usual: the usual number of trials of the case
        """
        least = usual if self.trials is None or self.for_s is not None else self.trials
        deadline = None if self.for_s is None else Deadline.after(self.for_s)
        for index in itertools.count():
            if index == self.trials or (index >= least and (deadline is None or deadline.expired)):
                return
            yield index if self.seed is None else derive_seed(self.seed, _STREAM, index)

    def share(self, cases: int, workers: int) -> "Effort":
        """Return the effort of one case, so that all cases together take the given time.

        :param cases: number of cases that draw their seeds from here
        :param workers: number of cases that run at a time
        """
        if self.for_s is None or not cases:
            return self
        return msgspec.structs.replace(self, for_s=self.for_s * min(workers, cases) / cases)

    @property
    def longer_s(self) -> float:
        """How much longer than usual a case may take, in seconds."""
        # A suite without trials must not import the code that runs trials.
        from lab.trial.session import TRIAL_S

        return self.for_s if self.for_s is not None else (self.trials or 0) * TRIAL_S


def read_effort(seed: str | None, trials: str | None, time: str | None) -> Effort:
    """Return the requested effort. A value is None where the command line does not ask for it.

    :raise UsageError: a value is not allowed; the text names the option
    """
    return Effort(
        seed=None if seed is None else _read_number(SEED, seed, 0, MAX_SEED),
        trials=None if trials is None else _read_number(TRIALS, trials, 1, MAX_TRIALS),
        for_s=None if time is None else read_seconds(TIME, time),
    )


def _read_number(option: str, text: str, low: int, high: int) -> int:
    if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
        raise UsageError(f"{option} is '{text}': allowed is a whole number from {low} to {high}")
    return int(text)
