# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats the trials of a test case for reports. All text from a guest is cleaned."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from lab.guest.text import clean_text
from lab.model.scenario import Scenario
from lab.model.scenario_file import to_words
from lab.model.verdict import Outcome, TrialRecord

#: A storm of thousands may fail. The first failures are enough to begin with; JUnit's properties name all trials.
MAX_LISTED: Final = 20


class CaseTrial(msgspec.Struct, frozen=True, kw_only=True):
    """One trial of a test case.

    :param record: None if the trial did not end
    """

    scenario: Scenario
    seed: int
    folder: Path
    record: TrialRecord | None = None


def list_properties(trials: Sequence[CaseTrial]) -> Iterator[tuple[str, str]]:
    """Return names and values: first all seeds, then scenario, outcome and evidence folder of each trial."""
    if not trials:
        return
    yield "seeds", " ".join(str(each.seed) for each in trials)
    for number, each in enumerate(trials):
        name = f"trial-{number:03}"
        yield f"{name}.mechanism", each.scenario.mechanism
        yield f"{name}.scenario", shlex.join(to_words(each.scenario))
        yield f"{name}.seed", str(each.seed)
        yield f"{name}.outcome", each.record.outcome.value if each.record else "none: it did not end"
        if each.record:
            yield f"{name}.reason", clean_text(each.record.reason)
            yield f"{name}.evidence", clean_text(str(each.folder))


def format_trials(trials: Sequence[CaseTrial]) -> str:
    """Return lines that name each trial with its seed, and the commands to judge and to repeat the trial.

    Trials that PASS come last.
    """
    order = sorted(trials, key=lambda each: each.record is not None and each.record.outcome is Outcome.PASS)
    lines = []
    for each in order[:MAX_LISTED]:
        what = f"{each.scenario.mechanism} {each.scenario.topology} seed {each.seed}"
        if each.record is None:
            words = shlex.join((*to_words(each.scenario), "--seed", str(each.seed)))
            lines += [f"no end  {what}", f"  lab trial {words} --out DIR"]
        else:
            folder = shlex.quote(str(each.folder))
            lines += [f"{each.record.label}  {what}: {each.record.reason}"]
            lines += [f"  lab judge {folder}", f"  lab replay {folder}"]
    if len(order) > MAX_LISTED:
        lines.append(f"{len(order) - MAX_LISTED} more are in JUnit's properties (--junitxml)")
    return clean_text("\n".join(lines))
