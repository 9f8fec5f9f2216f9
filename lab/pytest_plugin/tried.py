# SPDX-License-Identifier: GPL-2.0-or-later
"""One trial that a test case has run, and the types of the fixtures that run them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lab.evidence.folder import read_evidence, read_verdict
from lab.model.evidence import Evidence
from lab.model.verdict import Finding, TrialRecord, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One trial that a case has run. All but its record is read from its folder: a case may run thousands."""

    record: TrialRecord
    folder: Path

    @property
    def evidence(self) -> Evidence:
        """What the witnesses saw."""
        return read_evidence(self.folder)

    @property
    def verdict(self) -> Verdict:
        """What the judge said of it."""
        return read_verdict(self.folder)

    def finding(self, name: str) -> Finding:
        """What was found of one invariant."""
        return self.record.invariants[name]


#: Of the fixture ``trial``: a mechanism, and as words a seed and fields of :class:`lab.model.scenario.Scenario`.
Trial: TypeAlias = Callable[..., Tried]
#: Of the fixture ``seeds``: how many a case draws by itself.
Seeds: TypeAlias = Callable[[int], Iterator[int]]
#: Of the fixture ``storm``: as ``trial``, and how many trials.
Storm: TypeAlias = Callable[..., list[Tried]]
