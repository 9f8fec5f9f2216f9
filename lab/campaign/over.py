# SPDX-License-Identifier: GPL-2.0-or-later
"""Which scenarios of a campaign need no further trial, by what their trials have shown."""

from collections import Counter

from lab.campaign.definition import CampaignSpec, Part, Until
from lab.expected.hunt import MAX_ERRORS, Fate, weigh
from lab.expected.tally import is_caught
from lab.model.verdict import Outcome, TrialRecord


class Over:
    """Told of each trial that ends, in any order."""

    def __init__(self, spec: CampaignSpec) -> None:
        self._spec = spec
        self._parts = {part.name: part for part in spec.parts}
        self._over: set[str] = set()
        self._errors: Counter[str] = Counter()
        self._tried: Counter[str] = Counter()

    def __contains__(self, part: str) -> bool:
        """Say whether the rest of a scenario's trials is left out."""
        return part in self._over

    def note(self, name: str, record: TrialRecord) -> None:
        """Take what a trial of a scenario showed into account."""
        part = self._parts[name]
        self._tried[name] += 1
        match part.until:
            case Until.CAUGHT if is_caught(self._spec.expect(part), record):
                self._over.add(name)
            case Until.PASSED:
                self._note_baseline(part, record)
            case Until.SHOWN:
                self._note_mutant(part, record)

    def _note_baseline(self, part: Part, record: TrialRecord) -> None:
        if record.outcome is Outcome.PASS:
            self._over.add(part.name)
        elif self._tried[part.name] >= part.trials and part.name not in self._over:
            # What the mutant shows would mean nothing.
            self._over |= self._find_mutants(part.mutant)

    def _note_mutant(self, part: Part, record: TrialRecord) -> None:
        fate = weigh(self._spec.mutants[part.mutant], record, control=part.control)
        self._errors[part.mutant] += fate is Fate.ERROR
        if fate in (Fate.CAUGHT, Fate.FOOLED) or self._errors[part.mutant] >= MAX_ERRORS:
            self._over |= self._find_mutants(part.mutant)

    def _find_mutants(self, mutant: str) -> set[str]:
        return {part.name for part in self._spec.parts if part.mutant == mutant and part.until is Until.SHOWN}
