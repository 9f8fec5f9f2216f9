# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of each mutant of a hunt, by the trials that have ended."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from lab.campaign.definition import ATTEMPT, CampaignSpec, Part, Until
from lab.campaign.over import Over
from lab.expected.hunt import Fate, Kill, tell_fate
from lab.expected.mutant import Mutant
from lab.model.verdict import TrialRecord


def weigh_mutants(spec: CampaignSpec, records: Mapping[str, Sequence[TrialRecord]]) -> tuple[Kill, ...]:
    """Return what became of each mutant, in the order in which they were asked for. Pure.

    :param records: by scenario, in order of number
    """
    return tuple(weigh_mutant(spec, mutant, records) for mutant in spec.mutants.values())


def weigh_mutant(spec: CampaignSpec, mutant: Mutant, records: Mapping[str, Sequence[TrialRecord]]) -> Kill:
    """Return what became of one mutant; takes what :func:`weigh_mutants` does."""
    parts = [part for part in spec.parts if part.mutant == mutant.name]
    if not parts:
        reason = f"it shows from plugin interface {mutant.least_interface} on, and this QEMU offers an older one"
        return Kill(mutant=mutant.name, subject=mutant.subject, fate=Fate.BEYOND, reason=reason)
    over = Over(spec)
    for part in parts:
        for record in records[part.name]:
            over.note(part.name, record)
    shown = [part for part in parts if part.until is Until.SHOWN]
    kill = tell_fate(
        mutant,
        _collect(records, (part for part in shown if not part.control)),
        _collect(records, (part for part in shown if part.control)),
        _collect(records, (part for part in parts if part.until is Until.PASSED)),
        complete=all(part.name in over or len(records[part.name]) >= part.trials for part in parts),
    )
    return msgspec.structs.replace(kill, evidence=f"{kill.evidence}/{ATTEMPT}") if kill.evidence else kill


def _collect(records: Mapping[str, Sequence[TrialRecord]], parts: Iterable[Part]) -> list[TrialRecord]:
    return [record for part in parts for record in records[part.name]]
