# SPDX-License-Identifier: GPL-2.0-or-later
"""``lab mutants`` as a campaign: the scenarios of each mutant, its images, and what became of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from lab.build.images import ImageSet, build_images
from lab.build.mutants import build_mutant
from lab.campaign.definition import CampaignSpec, Front, Order, Part, Until, limit_turns
from lab.errors import BuildError
from lab.expected.hunt import on_control
from lab.expected.mutant import Mutant
from lab.model.qemu import Qemu
from lab.model.verdict import Outcome

#: So many trials without a mutant may be INVALID before its witness is not tried: those of a busy host are.
BASELINE_TRIALS: Final = 5
#: Behind a mutant's name: its scenario without it, and its control.
BASELINE: Final = "-without"
CONTROL: Final = "-control"


class MutantImages(Mapping[str, ImageSet]):
    """Images by the name of their mutant or of their base.

    :param failed: in place of images, why they could not be built
    """

    def __init__(self, built: Mapping[str, ImageSet], failed: Mapping[str, BuildError]) -> None:
        self._built = built
        self._failed = failed

    def __getitem__(self, name: str) -> ImageSet:
        """Return the images.

        :raise BuildError: they could not be built
        """
        if name in self._failed:
            raise self._failed[name]
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._built)

    def __len__(self) -> int:
        return len(self._built)


def make_hunt_spec(
    command: tuple[str, ...], mutants: Iterable[Mutant], level: int, trials: int, seed: int
) -> CampaignSpec:
    """Return the hunt for mutants as a campaign. A mutant gets no further trial once its fate is known.

    :param command: the words of the command line
    :param level: of QEMU's plugin interface; a mutant that needs a newer one is not tried
    :param trials: of each mutant, at most
    :param seed: of the whole hunt; each trial's seed follows from it, its scenario and its index
    """
    asked = {mutant.name: mutant for mutant in mutants}
    parts: list[Part] = []
    for block, mutant in enumerate(asked.values()):
        if level >= mutant.least_interface:
            parts += _list_parts(mutant, trials, 2 * block)
    return CampaignSpec(
        summary=f"whether the lab notices what is broken on purpose: {len(asked)} mutants",
        seed=seed,
        parts=tuple(parts),
        limits=limit_turns(parts),
        order=Order.TURNS,
        keeps_guests=True,
        front=Front.MUTANTS,
        command=command,
        mutants=asked,
    )


def _list_parts(mutant: Mutant, trials: int, block: int) -> Iterator[Part]:
    name = mutant.name
    hunted = Part(
        name=name,
        scenario=mutant.scenario,
        trials=trials,
        block=block + 1,
        until=Until.SHOWN,
        images=name,
        tampering=mutant.tampering,
        mutant=name,
    )
    if mutant.ends_in is Outcome.INVALID:
        yield Part(
            name=f"{name}{BASELINE}",
            scenario=mutant.scenario,
            trials=BASELINE_TRIALS,
            block=block,
            until=Until.PASSED,
            mutant=name,
        )
        # First, so that no mutant is caught before it had the chance to make a broken kernel look good.
        control = on_control(mutant)
        yield msgspec.structs.replace(hunted, name=f"{name}{CONTROL}", scenario=control, control=True)
    yield hunted


def build_hunt(spec: CampaignSpec, tell: Callable[[str], None], qemu: Qemu) -> MutantImages:
    """Build the images of all mutants, or find them in the cache. One that does not build keeps no other from it.

    :raise HostError: a package is missing, or the disk is full
    """
    built: dict[str, ImageSet] = {}
    failed: dict[str, BuildError] = {}
    keys = {part.image_key: part for part in spec.parts}
    for number, (key, part) in enumerate(keys.items(), 1):
        tell(f"building images {number} of {len(keys)}: {key}")
        try:
            if part.images:
                built[key] = build_mutant(spec.mutants[part.mutant], tell, qemu)
            else:
                built[key] = build_images(tell, qemu, key)
        except BuildError as error:
            failed[key] = error
    return MutantImages(built, failed)
