# SPDX-License-Identifier: GPL-2.0-or-later
"""The hunt for a mutant: trials until one catches it, or there were enough.

A kernel's mutant is caught by a trial that ends as FAIL with one of the invariants broken that its patch names; any
other FAIL does not count. A witness's mutant is caught by a trial of a sound mechanism that ends as INVALID with one of
its invariants no longer held; beside it goes a trial of a control. It has fooled the lab once the sound mechanism FAILs
or the control PASSes. A guest that shows nothing at all is INVALID, too, so the same scenario has to PASS without the
mutant first.
"""

import enum
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from lab.build.cache import Progress
from lab.build.images import build_images
from lab.build.mutants import build_mutant, read_mutants
from lab.campaign.blinded import LAB_MUTANTS, STALE_VMLINUX, find_preparation, on_control, read_stale
from lab.errors import BuildError, UsageError, tell_nearest
from lab.expected.mutant import Mutant, Subject
from lab.kernelimage.vmlinux import read_kernel
from lab.mechanisms.base import find_base
from lab.model.plan import derive_seed, draw_plan
from lab.model.qemu import Qemu
from lab.model.scenario import Scenario
from lab.model.verdict import Finding, Outcome, TrialRecord
from lab.trial.pool import WarmGuests
from lab.trial.record import keep_trial

#: So many trials of the sound images may be INVALID before a witness's mutant is not hunted: a busy host's are.
BASELINE_TRIALS: Final = 5
#: A mutant that keeps its guests from booting shows nothing, and takes minutes to say so.
MAX_FAILED_BOOTS: Final = 2


#: Behind a mutant's name: the folder of the last trial without it.
BASELINE: Final = "-without"


class Fate(enum.Enum):
    """What came of a mutant."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    #: A broken witness made a sound kernel look broken, or a broken one good.
    FOOLED = "fooled the lab"
    #: What it breaks shows on a newer QEMU only: it was not tried.
    BEYOND = "needs a newer QEMU"
    #: The lab or the host failed before it showed.
    ERROR = "error"


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """How one mutant was caught, or not.

    :param by: the invariants of those its patch names that caught it, in the judge's order
    :param also: others that were broken in the same trial
    :param trials: until then, all kinds
    :param build_s: for its images, near 0 when they were in the cache
    :param hunt_s: for its trials and boots
    :param reason: the last trial's
    :param evidence: the last trial's folder, relative to that of the hunt
    """

    mutant: str
    subject: Subject
    fate: Fate
    by: tuple[str, ...]
    also: tuple[str, ...]
    trials: int
    outcomes: dict[str, int]
    build_s: float
    hunt_s: float
    reason: str
    evidence: str


def list_mutants() -> tuple[Mutant, ...]:
    """Return all mutants there are: the patches, then the lab's own.

    :raise UsageError: a patch's message does not say what it must
    """
    return (*read_mutants(), *LAB_MUTANTS)


def choose_mutants(names: list[str]) -> tuple[Mutant, ...]:
    """Return the mutants of those names, or all when there are no names.

    :raise UsageError: there is none of a name; the text lists those there are
    """
    known = {mutant.name: mutant for mutant in list_mutants()}
    for name in names:
        if name not in known:
            # There are more than an error's line shows.
            hint = tell_nearest(name, known) or f": there are {', '.join(known)}"
            raise UsageError(f"mutant '{name}' is unknown{hint}")
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(known.values())


def hunt(
    mutant: Mutant,
    qemu: Qemu,
    folder: Path,
    trials: int,
    seed: int,
    progress: Progress,
    done: Callable[[TrialRecord], None],
) -> Kill:
    """Run trials until a mutant is caught, and keep the last one's evidence; one that does not build is an ERROR.

    :param qemu: what its guests run on
    :param folder: takes the evidence
    :param trials: at most
    :param seed: of the whole hunt; each trial's follows from it, the mutant and its index
    :raise HostError: the host failed
    """
    begin = time.monotonic()
    if qemu.level < mutant.least_interface:
        reason = f"it shows from plugin interface {mutant.least_interface} on, and this QEMU offers {qemu.level}"
        return _give_up(mutant, Fate.BEYOND, reason, 0.0)
    try:
        images = build_mutant(mutant, progress, qemu)
        unfit = _why_unfit(mutant, qemu, folder, seed, progress) if mutant.ends_in is Outcome.INVALID else ""
    except BuildError as error:
        unfit = str(error)
    if unfit:
        return _give_up(mutant, Fate.ERROR, unfit, time.monotonic() - begin)
    stale = mutant == STALE_VMLINUX
    kernel = read_stale(read_mutants(), progress, qemu) if stale else read_kernel(images.vmlinux)
    built = time.monotonic()
    base = find_base(mutant.base).name
    outcomes: Counter[str] = Counter()
    with WarmGuests({base: images}, {base: kernel}, progress, find_preparation(mutant)) as guests:
        for index, scenario in enumerate(_list_scenarios(mutant, trials)):
            plan = draw_plan(scenario, derive_seed(seed, mutant.name, index))
            kept = guests.run_trial(scenario, plan)
            _, record = keep_trial(folder / mutant.name, kept, index + 1, mutant.name)
            outcomes[record.outcome.value] += 1
            done(record)
            fate = weigh(mutant, scenario, record)
            if record.outcome is Outcome.ERROR and 0 < guests.failed_boots < MAX_FAILED_BOOTS:
                # As in a run: a guest that did not boot says nothing of the mutant, and the next one may.
                continue
            if fate is not Fate.SURVIVED:
                break
    caught = fate is Fate.CAUGHT
    return Kill(
        mutant=mutant.name,
        subject=mutant.subject,
        fate=fate,
        by=_list_catchers(mutant, record) if caught else (),
        also=_list_others(mutant, record) if caught else (),
        trials=outcomes.total(),
        outcomes=dict(outcomes),
        build_s=built - begin,
        hunt_s=time.monotonic() - built,
        reason=record.reason,
        evidence=mutant.name,
    )


def _give_up(mutant: Mutant, fate: Fate, reason: str, build_s: float) -> Kill:
    return Kill(
        mutant=mutant.name,
        subject=mutant.subject,
        fate=fate,
        by=(),
        also=(),
        trials=0,
        outcomes={},
        build_s=build_s,
        hunt_s=0.0,
        reason=reason,
        evidence="",
    )


def _why_unfit(mutant: Mutant, qemu: Qemu, folder: Path, seed: int, progress: Progress) -> str:
    """Say why an INVALID trial would show nothing of a witness's mutant; empty once one without the mutant passed."""
    base = find_base(mutant.base).name
    images = build_images(progress, qemu, base)
    name = f"{mutant.name}{BASELINE}"
    with WarmGuests({base: images}, {base: read_kernel(images.vmlinux)}, progress) as guests:
        for index in range(BASELINE_TRIALS):
            plan = draw_plan(mutant.scenario, derive_seed(seed, name, index))
            _, record = keep_trial(folder / name, guests.run_trial(mutant.scenario, plan), index + 1, name)
            if record.outcome is Outcome.PASS:
                return ""
            if guests.failed_boots >= MAX_FAILED_BOOTS:
                break
    return f"without the mutant none of {index + 1} trials passed, so INVALID shows nothing: {record.reason}"


def weigh(mutant: Mutant, scenario: Scenario, record: TrialRecord) -> Fate:
    """Say what one trial shows of a mutant; SURVIVED stands for nothing yet. Pure."""
    if record.outcome is Outcome.ERROR:
        return Fate.ERROR
    if mutant.ends_in is Outcome.FAIL:
        return Fate.CAUGHT if record.outcome is Outcome.FAIL and _list_catchers(mutant, record) else Fate.SURVIVED
    if scenario == mutant.scenario:
        if record.outcome is Outcome.FAIL:
            return Fate.FOOLED
        return Fate.CAUGHT if record.outcome is Outcome.INVALID and _list_catchers(mutant, record) else Fate.SURVIVED
    return Fate.FOOLED if record.outcome is Outcome.PASS else Fate.SURVIVED


def _list_scenarios(mutant: Mutant, trials: int) -> Iterator[Scenario]:
    for _ in range(trials):
        if mutant.ends_in is not Outcome.FAIL:
            # First, so that no mutant is caught before it had the chance to make a broken kernel look good.
            yield on_control(mutant)
        yield mutant.scenario


def _list_catchers(mutant: Mutant, record: TrialRecord) -> tuple[str, ...]:
    broken_only = mutant.ends_in is Outcome.FAIL
    return tuple(
        name
        for name, finding in record.invariants.items()
        if name in mutant.caught_by and finding is not Finding.HELD and not (broken_only and finding is Finding.UNSEEN)
    )


def _list_others(mutant: Mutant, record: TrialRecord) -> tuple[str, ...]:
    return tuple(
        name
        for name, finding in record.invariants.items()
        if finding is Finding.BROKEN and name not in mutant.caught_by
    )
