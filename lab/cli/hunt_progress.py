# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a hunt for mutants is: a line when one is begun, and one when its fate is known."""

from collections.abc import Callable

from lab.campaign.definition import CampaignSpec, choose_trial
from lab.campaign.kills import weigh_mutant
from lab.expected.hunt import Fate, Kill
from lab.model.verdict import TrialRecord


class HuntProgress:
    """Told of each trial that ends.

    :param tell: is told the lines
    """

    def __init__(self, spec: CampaignSpec, tell: Callable[[str], None]) -> None:
        self._spec = spec
        self._tell = tell
        self._names = tuple(spec.mutants)
        self._begun: set[str] = set()
        self._records: dict[str, list[TrialRecord]] = {part.name: [] for part in spec.parts}

    def take(self, record: TrialRecord) -> None:
        """Take a trial that has been stored."""
        part = choose_trial(self._spec, record.trial).part
        self._records[part.name].append(record)
        if part.mutant not in self._begun:
            self._begun.add(part.mutant)
            # Its name comes first: in a log, lines that begin alike are thinned out.
            self._tell(f"{part.mutant}: mutant {self._names.index(part.mutant) + 1} of {len(self._names)}")
        kill = weigh_mutant(self._spec, self._spec.mutants[part.mutant], self._records)
        if kill.fate is not Fate.OPEN:
            self._tell(f"{part.mutant}: {_tell_kill(kill)}")


def _tell_kill(kill: Kill) -> str:
    by = f" by {', '.join(kill.by)}" if kill.by else f", {kill.reason}"
    return f"{kill.fate.value}{by} after {kill.trials} trials"
