# SPDX-License-Identifier: GPL-2.0-or-later
"""One finished trial of a test case, and the types of the fixtures that run trials."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lab.evidence.folder import read_evidence, read_verdict
from lab.model.evidence import Evidence
from lab.model.verdict import Finding, TrialRecord, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One finished trial of a case. The folder keeps everything but the record, because a case may run thousands."""

    record: TrialRecord
    folder: Path

    @property
    def evidence(self) -> Evidence:
        """The observations of the witnesses."""
        return read_evidence(self.folder)

    @property
    def verdict(self) -> Verdict:
        """The judge's verdict on the trial."""
        return read_verdict(self.folder)

    def finding(self, name: str) -> Finding:
        """Return the finding of one invariant."""
        return self.record.invariants[name]


#: Type of the fixture ``trial``. Parameters: a mechanism; by keyword a seed, and fields of
#: :class:`lab.model.scenario.Scenario`.
Trial: TypeAlias = Callable[..., Tried]
#: Type of the fixture ``seeds``. Parameter: the usual number of trials of the case.
Seeds: TypeAlias = Callable[[int], Iterator[int]]
#: Type of the fixture ``storm``. Parameters: as ``trial``, and the number of trials.
Storm: TypeAlias = Callable[..., list[Tried]]
