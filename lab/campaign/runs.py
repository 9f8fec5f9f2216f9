# SPDX-License-Identifier: GPL-2.0-or-later
"""``lab run`` as a campaign: every mechanism asked for, trial by trial in turn, all of their evidence kept."""

from pathlib import Path
from typing import Final

import msgspec

from lab.campaign.database import NAME, open_reader
from lab.campaign.definition import ATTEMPT, CampaignSpec, Front, Order, Part, limit_turns
from lab.campaign.facts import read_facts
from lab.campaign.old_runs import MechanismAsked, Run, RunInfo, read_old_run
from lab.campaign.reader import group_records, read_campaign_spec, read_records
from lab.errors import UsageError
from lab.expected.expect import Expected, expect
from lab.expected.tally import run_met, weigh_run
from lab.mechanisms.table import find_mechanism
from lab.model.scenario import Scenario
from lab.model.verdict import TrialRecord

#: Exit status of a run of which an expectation was not met.
NOT_MET: Final = 1


def make_run_spec(
    command: tuple[str, ...], scenarios: tuple[Scenario, ...], trials: int, seed: int, dump_memory_mib: int = 0
) -> CampaignSpec:
    """Return a run as a campaign.

    The scenarios take turns, so that whatever else the host does falls on all of them alike.

    :param command: the words of the command line
    :param trials: of each scenario
    :param seed: of the whole run; each trial's seed follows from it, its mechanism and its index
    """
    parts = tuple(Part(name=each.mechanism, scenario=each, trials=trials) for each in scenarios)
    return CampaignSpec(
        summary=f"{trials} trials of each of {', '.join(each.mechanism for each in scenarios)}",
        seed=seed,
        parts=parts,
        limits=limit_turns(parts, dump_memory_mib=dump_memory_mib),
        order=Order.TURNS,
        keeps_guests=True,
        front=Front.RUN,
        command=command,
    )


def is_run(folder: Path) -> bool:
    """Say whether a folder is that of a run, of this lab or of an older one, and not of a campaign of another kind.

    :raise EvidenceError: its store is damaged, or of another lab
    """
    return find_front(folder) is Front.RUN


def find_front(folder: Path) -> Front:
    """Return which command a folder is of: one that an older lab left without a store, ``lab run``.

    :raise EvidenceError: its store is damaged, or of another lab
    """
    if not (folder / NAME).exists():
        return Front.RUN
    try:
        return read_campaign_spec(folder)[1].front
    except UsageError:
        # It holds none, or several.
        return Front.CAMPAIGN


def read_run(folder: Path) -> Run:
    """Read a run, also one that is still being written, or that an older lab wrote.

    :raise EvidenceError: the folder holds no run, or a damaged one
    """
    if not (folder / NAME).exists():
        return read_old_run(folder)
    _, spec = read_campaign_spec(folder)
    records = tuple(
        msgspec.structs.replace(record, evidence=f"{record.evidence}/{ATTEMPT}") if record.evidence else record
        for record in read_records(folder)
    )
    with open_reader(folder) as connection:
        ((version, started, state),) = connection.execute("SELECT lab_version, started, state FROM campaigns")
        about = connection.execute("SELECT about FROM sittings ORDER BY id DESC LIMIT 1").fetchone()
    facts = read_facts(about[0] if about is not None else "", folder / NAME)
    asked = tuple(_ask(part.scenario) for part in spec.parts)
    finished = state == "finished"
    met = run_met(weigh_run({each.name: each.expected for each in asked}, records))
    info = RunInfo(
        lab_version=version,
        started=started,
        command=spec.command,
        mechanisms=asked,
        trials_asked=spec.limits.trials or 0,
        scenario=spec.parts[0].scenario,
        images=facts.images,
        host={**facts.host, "run seed": str(spec.seed)},
        finished=finished,
        exit_status=(0 if met else NOT_MET) if finished else None,
    )
    return Run(info=info, records=records, torn=0)


def read_scenarios(folder: Path) -> dict[str, tuple[Expected, list[TrialRecord]]]:
    """Return the scenarios of a run or campaign by name: what is expected of each, and its records.

    :raise UsageError: the folder holds several campaigns
    :raise EvidenceError: the folder holds no run and no campaign, or a damaged one
    """
    if is_run(folder):
        run = read_run(folder)
        return {
            asked.name: (asked.expected, [record for record in run.records if record.mechanism == asked.name])
            for asked in run.info.mechanisms
        }
    _, spec = read_campaign_spec(folder)
    records = group_records(folder, (part.name for part in spec.parts))
    return {part.name: (spec.expect(part), records[part.name]) for part in spec.parts}


def _ask(scenario: Scenario) -> MechanismAsked:
    mechanism, expected = find_mechanism(scenario.mechanism), expect(scenario)
    return MechanismAsked(
        name=mechanism.name,
        summary=mechanism.summary,
        expectation=expected.kind,
        caught_by=expected.caught_by,
        why=expected.why,
    )
