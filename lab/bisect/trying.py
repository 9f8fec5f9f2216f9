# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the commit that a tree has checked out, runs a scenario's trials on it, and says what the commit is."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab.bisect.step import Asked, Standing, Step, Tried, find_step, weigh
from lab.build.git_tree import read_commit
from lab.build.own_kernel import OwnKernel, build_own_kernel
from lab.build.qemu import find_qemu
from lab.errors import BuildError, UsageError
from lab.kernelimage.hold_places import find_holds
from lab.mechanisms.table import find_mechanism
from lab.model.placed import to_hold
from lab.model.plan import derive_seed, draw_plan
from lab.model.verdict import Outcome
from lab.trial.given import GivenKernel, build_around, take_kernel
from lab.trial.pool import WarmGuests
from lab.trial.record import keep_trial

#: Tells these seeds from those of a campaign.
_STREAM: Final = "bisect"


def try_commit(asked: Asked, folder: Path, tell: Callable[[str], None]) -> Step:
    """Return what the commit shows that is checked out now.

    :param folder: of the bisection
    :raise LabError: the lab or the host failed, which says nothing of the commit
    """
    commit = read_commit(Path(asked.tree))
    fragment = Path(asked.config) if asked.config else None
    try:
        built = build_own_kernel(Path(asked.tree), None, fragment, tell)
    except BuildError as error:
        return Step(commit=commit, standing=Standing.SKIPPED, reason=str(error))
    try:
        own = take_kernel(built.kernel.image, built.kernel.vmlinux)
        _check(asked, own)
    except UsageError as error:
        kernel = str(built.kernel.folder)
        return Step(commit=commit, standing=Standing.SKIPPED, reason=str(error), kernel=kernel)
    return _try_kernel(asked, folder, commit, built, own, tell)


def _check(asked: Asked, own: GivenKernel) -> None:
    """Check that a kernel can serve the scenario.

    :raise UsageError: it cannot; an earlier or later commit may
    """
    scenario = asked.scenario
    mechanism = find_mechanism(scenario.mechanism)
    if mechanism.base != own.base.name:
        raise UsageError(f"mechanism '{mechanism.name}' is of {mechanism.base}, and this kernel is {own.base.name}")
    find_holds(own.kernel, mechanism, tuple(to_hold(each, scenario.topology) for each in scenario.all_placed))


def _try_kernel(
    asked: Asked, folder: Path, commit: str, built: OwnKernel, own: GivenKernel, tell: Callable[[str], None]
) -> Step:
    on = find_qemu(Path(asked.qemu) if asked.qemu else None)
    images = {own.base.name: build_around(own, tell, on)}
    kept_in = find_step(folder, commit).with_suffix("")
    trials: tuple[Tried, ...] = ()
    found = None
    with WarmGuests(images, {own.base.name: own.kernel}, tell) as guests:
        for index in range(asked.trials + asked.retries):
            seed = derive_seed(asked.seed, _STREAM, index)
            tell(f"{commit[:12]}: trial {index + 1}, so far {_count(trials)}")
            kept = guests.run_trial(asked.scenario, draw_plan(asked.scenario, seed))
            where = kept_in / f"{index + 1:03}"
            name = where.relative_to(folder).as_posix()
            verdict, _ = keep_trial(where, kept, index + 1, name)
            trials = (*trials, Tried(outcome=verdict.outcome, seed=seed, reason=verdict.reason, evidence=name))
            found = weigh(trials, asked.trials)
            if found is not None:
                break
    standing, reason = found or (Standing.SKIPPED, f"{_count(trials)}; the last: {trials[-1].reason}")
    return Step(commit=commit, standing=standing, reason=reason, kernel=str(built.kernel.folder), trials=trials)


def _count(trials: tuple[Tried, ...]) -> str:
    counts = {outcome: sum(each.outcome is outcome for each in trials) for outcome in reversed(Outcome)}
    return ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count) or "none"
