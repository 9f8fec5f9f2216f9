# SPDX-License-Identifier: GPL-2.0-or-later
"""The first campaign: every mechanism asked for, trial by trial in turn, on one warm guest per kernel."""

import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from lab import __version__
from lab.campaign.run_store import TRIALS, MechanismAsked, RunInfo, RunStore
from lab.expected.expect import Expected, expect
from lab.expected.tally import run_met, weigh_run
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import Images
from lab.model.plan import derive_seed, draw_plan
from lab.model.scenario import Scenario
from lab.model.verdict import TrialRecord
from lab.trial.pool import WarmGuests
from lab.trial.record import keep_trial

#: A guest that does not boot takes a minute and a half to say so, and one that did not three times never will.
MAX_FAILED_BOOTS: Final = 3
#: Exit status of a run of which an expectation was not met.
NOT_MET: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of a run.

    :param expectations: by mechanism, of those asked for
    :param records: of the trials that were run
    :param stopped: why the others were not, in one sentence; empty when all were
    """

    expectations: Mapping[str, Expected]
    records: tuple[TrialRecord, ...]
    stopped: str = ""

    @property
    def exit_status(self) -> int:
        """0 when every mechanism asked for did what is expected of it, else 1."""
        return 0 if not self.stopped and run_met(weigh_run(self.expectations, self.records)) else NOT_MET


def describe_run(
    command: tuple[str, ...], scenarios: tuple[Scenario, ...], trials: int, seed: int, images: tuple[Images, ...]
) -> RunInfo:
    """Return what is asked of a run that begins now on this host.

    :param trials: of each scenario
    :param seed: of the whole run
    :param images: of each kernel that the scenarios need
    """
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return RunInfo(
        lab_version=__version__,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        mechanisms=tuple(_ask(scenario) for scenario in scenarios),
        trials_asked=trials * len(scenarios),
        scenario=scenarios[0],
        images=images,
        host={
            "cores": str(os.cpu_count() or 0),
            "memory": f"{memory_gib:.1f} GiB",
            "kernel": os.uname().release,
            "vCPU budget": str(os.cpu_count() or 0),
            "run seed": str(seed),
        },
    )


def _ask(scenario: Scenario) -> MechanismAsked:
    mechanism, expected = find_mechanism(scenario.mechanism), expect(scenario)
    return MechanismAsked(
        name=mechanism.name,
        summary=mechanism.summary,
        expectation=expected.kind,
        caught_by=expected.caught_by,
        why=expected.why,
    )


def name_trial(number: int, mechanism: str) -> str:
    """Return a trial's evidence folder, relative to that of its run."""
    return f"{TRIALS}/{number:05}-{mechanism}"


def run_trials(
    guests: WarmGuests,
    store: RunStore,
    scenarios: tuple[Scenario, ...],
    trials: int,
    seed: int,
    progress: Callable[[TrialRecord], None],
) -> Ran:
    """Run so many trials of each scenario, and store each as it ends.

    The scenarios take turns, so that whatever else the host does falls on all of them alike. The run is stopped
    when there was no guest several times in a row, since there will be none for the rest.

    :param seed: of the whole run; each trial's seed follows from it, its mechanism and its index
    :raise HostError: the host failed; what has been stored stays
    """
    expectations = {scenario.mechanism: expect(scenario) for scenario in scenarios}
    records = []
    number = 0
    for index in range(trials):
        for scenario in scenarios:
            number += 1
            plan = draw_plan(scenario, derive_seed(seed, scenario.mechanism, index))
            name = name_trial(number, scenario.mechanism)
            kept = guests.run_trial(scenario, plan)
            _, record = keep_trial(store.folder / name, kept, number, name)
            store.append(record)
            records.append(record)
            progress(record)
            if guests.failed_boots >= MAX_FAILED_BOOTS:
                stopped = (
                    f"no guest was there for {guests.failed_boots} trials in a row, so the run was stopped after"
                    f" {number} of {trials * len(scenarios)}: {kept.evidence.reason} (what the last one's console"
                    f" said is in '{store.folder / name}')"
                )
                return Ran(expectations=expectations, records=tuple(records), stopped=stopped)
    return Ran(expectations=expectations, records=tuple(records))
