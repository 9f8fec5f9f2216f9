# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign is about, and what each of its trials is: a function of the campaign and the trial's number alone."""

import bisect
import enum
import itertools
import random
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.expected.cells import Cell
from lab.expected.expect import Expected, expect
from lab.expected.mutant import Mutant, Tampering
from lab.mechanisms.mechanism import Expectation
from lab.model.placed import Placed
from lab.model.plan import Plan, derive_seed, draw_plan
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome

#: Of one number: 2**31 trials of a tenth of a second take seven years.
MAX_TRIAL: Final = 2**31
MAX_EVIDENCE_MIB: Final = 1_024 * 1_024
DEFAULT_RETRIES: Final = 2
#: Of a trial that is tried once, the one folder of its evidence.
ATTEMPT: Final = "attempt-1"


class Order(enum.Enum):
    """In which order a campaign's trials come."""

    #: Each trial is of a scenario drawn by its weight.
    DRAWN = "drawn"
    #: The scenarios of a block take turns, each until its own number of trials; the blocks come one after the other.
    TURNS = "turns"


class Front(enum.Enum):
    """Which command a campaign is of: how it is told in the end."""

    CAMPAIGN = "campaign"
    RUN = "run"
    SOUND = "sound"
    MUTANTS = "mutants"


class Until(enum.Enum):
    """When no further trial of a scenario begins, although some of its number are left."""

    ALL = "all"
    #: One has broken what the scenario is a control of.
    CAUGHT = "caught"
    #: One has passed.
    PASSED = "passed"
    #: The fate of the scenario's mutant is known.
    SHOWN = "shown"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What ends a campaign, and what it may cost; None for no limit.

    :param trials: how many there are to be, numbered from 1
    :param hours: how long the campaign may run, over all of its sittings
    :param until_failure: no trial begins after so many have ended in FAIL
    :param evidence_mib: how much evidence is kept at most
    :param keep_passes_one_in: one PASS in so many keeps its evidence, 0 for none; what is not PASS always does
    :param trials_per_guest: how many trials a guest serves before it is replaced
    :param retries: how often a trial that ends in FAIL is tried again, each time on a fresh guest
    :param dump_memory_mib: how large a dump of the memory of a guest that stops answering may be, 0 to keep none
    """

    trials: int | None = None
    hours: float | None = None
    until_failure: int | None = None
    evidence_mib: int = 1_024
    keep_passes_one_in: int = 100
    trials_per_guest: int = 200
    retries: int = DEFAULT_RETRIES
    dump_memory_mib: int = 0


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario of a campaign.

    :param weight: it is drawn this often, beside the others' weights
    :param retries: in place of the campaign's own, None for that
    :param points: of a sweep: what ``placed`` may be, of which each trial draws one; empty leaves the scenario as it is
    :param kernel_sha256: the kernel that they are places of, empty where there are none
    :param trials: of a campaign in turns: how many there are of this scenario
    :param block: of a campaign in turns: a scenario takes turns with those of its own block
    :param stream: of a campaign in turns: tells this scenario's seeds from those of others, empty for its name
    :param until: of a campaign in turns: when the rest of its trials is left out
    :param images: which images its guests boot from, empty for those of its mechanism's kernel
    :param tampering: what the lab's own side does wrong on purpose
    :param mutant: of ``lab mutants``: which one its trials are about, empty for none
    :param control: a scenario that the mutant must not make look good
    """

    name: str
    scenario: Scenario
    weight: int = 1
    retries: int | None = None
    points: tuple[tuple[Placed, ...], ...] = ()
    kernel_sha256: str = ""
    trials: int = 0
    block: int = 0
    stream: str = ""
    until: Until = Until.ALL
    images: str = ""
    tampering: Tampering | None = None
    mutant: str = ""
    control: bool = False

    @property
    def whole(self) -> Scenario:
        """The scenario with the NMIs of all its points: what can be expected of it is expected of that."""
        placed = tuple(each for point in self.points for each in point)
        return msgspec.structs.replace(self.scenario, placed=placed) if placed else self.scenario

    @property
    def image_key(self) -> str:
        """The name of the images that its guests boot from."""
        return self.images or self.scenario.boot.base

    @property
    def first(self) -> Scenario:
        """The scenario of one trial: that of the first point, where there are some."""
        return msgspec.structs.replace(self.scenario, placed=self.points[0]) if self.points else self.scenario


class CampaignSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign as it was asked for, with nothing left to be read from elsewhere.

    :param seed: all that is drawn follows from it
    :param parts: of a campaign in turns, those of a block stand together
    :param keeps_guests: a guest whose trial FAILs serves the next one, too, unless it has ended
    :param command: the words of the command line, where they say more than a campaign file
    :param cells: of ``lab sound``: what each part is a cell of, in the page's order, by the part's name
    :param mutants: of ``lab mutants``: all that were asked for, by name; one that cannot show itself has no part
    """

    summary: str
    seed: int
    parts: tuple[Part, ...]
    limits: Limits
    order: Order = Order.DRAWN
    keeps_guests: bool = False
    front: Front = Front.CAMPAIGN
    command: tuple[str, ...] = ()
    cells: dict[str, Cell] = {}
    mutants: dict[str, Mutant] = {}

    def expect(self, part: Part) -> Expected:
        """Return what is expected of a scenario: of a kernel with a mutant, that one of its invariants is broken."""
        if part.until is Until.SHOWN and not part.control:
            mutant = self.mutants[part.mutant]
            if mutant.ends_in is Outcome.FAIL:
                return Expected(Expectation.CAUGHT, mutant.caught_by, mutant.breaks)
        return expect(part.whole)


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """One trial of a campaign."""

    number: int
    part: Part
    plan: Plan

    @property
    def reproduces(self) -> bool:
        """Whether every NMI of the plan has its place by a hold, so that the plan does the same each time."""
        return bool(self.plan.holds) and all(each.hold >= 0 for each in self.plan.injections)


def limit_turns(parts: Iterable[Part], *, keep_passes_one_in: int = 1, dump_memory_mib: int = 0) -> Limits:
    """Return the limits of a campaign in turns: each trial of its scenarios once, and no guest replaced in between."""
    return Limits(
        trials=sum(part.trials for part in parts),
        evidence_mib=MAX_EVIDENCE_MIB,
        keep_passes_one_in=keep_passes_one_in,
        trials_per_guest=MAX_TRIAL,
        retries=0,
        dump_memory_mib=dump_memory_mib,
    )


def choose_trial(spec: CampaignSpec, number: int) -> Chosen:
    """Return which trial has a number.

    :raise UsageError: the campaign has no such trial
    """
    last = MAX_TRIAL if spec.limits.trials is None else spec.limits.trials
    if not 1 <= number <= last:
        raise UsageError(f"trial {number}: this campaign has trials 1 to {last}")
    if spec.order is Order.TURNS:
        part, index = _find_turn(spec.parts, number)
        seed = derive_seed(spec.seed, part.stream or part.name, index)
        return Chosen(number=number, part=part, plan=draw_plan(part.scenario, seed))
    part = _draw_part(spec, number)
    if part.points:
        part = msgspec.structs.replace(part, scenario=_draw_point(spec, part, number), points=())
    seed = derive_seed(spec.seed, f"trial/{part.name}", number)
    return Chosen(number=number, part=part, plan=draw_plan(part.scenario, seed))


def count_retries(spec: CampaignSpec, part: Part) -> int:
    """Return how often a failing trial of a scenario is tried again."""
    return spec.limits.retries if part.retries is None else part.retries


def keeps_pass(spec: CampaignSpec, number: int) -> bool:
    """Say whether a trial keeps its evidence even if it is a PASS."""
    one_in = spec.limits.keep_passes_one_in
    return one_in > 0 and (number - 1) % one_in == 0


def check_kernels(spec: CampaignSpec, kernels: Mapping[str, str]) -> None:
    """Refuse points of another kernel: their addresses mean something else in this one.

    :param kernels: SHA-256 by the name of the images
    :raise UsageError: a scenario has such points
    """
    for part in spec.parts:
        if part.points and kernels.get(part.image_key) != part.kernel_sha256:
            raise UsageError(f"scenario '{part.name}': its sweep is of another kernel: sweep this one first")


def narrow(spec: CampaignSpec, number: int) -> CampaignSpec:
    """Return what a worker has to know for one trial: without the points of scenarios that the trial is none of."""
    if spec.order is Order.TURNS:
        return spec
    chosen = _draw_part(spec, number)
    parts = (part if part.name == chosen.name else msgspec.structs.replace(part, points=()) for part in spec.parts)
    return msgspec.structs.replace(spec, parts=tuple(parts))


def _find_turn(parts: tuple[Part, ...], number: int) -> tuple[Part, int]:
    """Return whose turn a trial is, and which of its scenario's trials it is, from 0."""
    left = number - 1
    for _, group in itertools.groupby(parts, key=lambda part: part.block):
        block = tuple(group)
        if left >= sum(part.trials for part in block):
            left -= sum(part.trials for part in block)
            continue

        def count_before(index: int, block: tuple[Part, ...] = block) -> int:
            return sum(min(part.trials, index) for part in block)

        index = bisect.bisect_right(range(max(part.trials for part in block)), left, key=count_before) - 1
        turn = left - count_before(index)
        return [part for part in block if part.trials > index][turn], index
    raise UsageError(f"trial {number}: this campaign has {number - 1 - left} trials")


def _draw_point(spec: CampaignSpec, part: Part, number: int) -> Scenario:
    at = random.Random(f"{spec.seed}/point/{part.name}/{number}").random() * len(part.points)
    return msgspec.structs.replace(part.scenario, placed=part.points[int(at)])


def _draw_part(spec: CampaignSpec, number: int) -> Part:
    # random() alone, the one method whose sequence Python promises to keep.
    at = random.Random(f"{spec.seed}/scenario/{number}").random() * sum(part.weight for part in spec.parts)
    for part in spec.parts:
        at -= part.weight
        if at < 0:
            return part
    return spec.parts[-1]
