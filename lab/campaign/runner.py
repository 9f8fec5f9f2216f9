# SPDX-License-Identifier: GPL-2.0-or-later
"""How ``lab sound`` describes the run of one cell."""

import datetime
import os
from typing import Final

from lab import __version__
from lab.campaign.retention import TRIALS
from lab.campaign.run_store import MechanismAsked, RunInfo
from lab.expected.expect import expect
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import Images
from lab.model.scenario import Scenario

#: A guest that does not boot takes a minute and a half to say so, and one that did not three times never will.
MAX_FAILED_BOOTS: Final = 3
#: Exit status of a run of which an expectation was not met.
NOT_MET: Final = 1


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
