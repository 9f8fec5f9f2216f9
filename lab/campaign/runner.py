# SPDX-License-Identifier: GPL-2.0-or-later
"""The first campaign: every mechanism asked for, trial by trial in turn, on one warm guest."""

from collections.abc import Callable
from typing import Final

import msgspec

from lab.campaign.store import RunStore
from lab.spec.plan import derive_seed, draw_plan
from lab.spec.scenario import Scenario
from lab.spec.verdict import TrialRecord
from lab.trial.pool import WarmGuest
from lab.trial.record import keep_trial

TRIALS: Final = "trials"


def name_trial(number: int, mechanism: str) -> str:
    """Return a trial's evidence folder, relative to that of its run."""
    return f"{TRIALS}/{number:05}-{mechanism}"


def run_trials(
    guest: WarmGuest,
    store: RunStore,
    scenarios: tuple[Scenario, ...],
    trials: int,
    seed: int,
    progress: Callable[[TrialRecord], None],
) -> tuple[TrialRecord, ...]:
    """Run so many trials of each scenario, and store each as it ends.

    The scenarios take turns, so that whatever else the host does falls on all of them alike.

    :param seed: of the whole run; each trial's seed follows from it, its mechanism and its index
    :raise HostError: the host failed; what has been stored stays
    """
    records = []
    number = 0
    for index in range(trials):
        for scenario in scenarios:
            number += 1
            plan = draw_plan(scenario, derive_seed(seed, scenario.mechanism, index))
            name = name_trial(number, scenario.mechanism)
            _, record = keep_trial(store.folder / name, guest.run_trial(scenario, plan), number, name)
            store.append(record)
            records.append(record)
            progress(record)
    return tuple(records)


def vary(scenario: Scenario, mechanisms: tuple[str, ...]) -> tuple[Scenario, ...]:
    """Return the same scenario for each mechanism."""
    return tuple(msgspec.structs.replace(scenario, mechanism=name) for name in mechanisms)
