# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutants of images/mutants, and images with one of them in."""

from pathlib import Path

from lab.build.cache import Progress
from lab.build.images import ImageSet, build_images
from lab.errors import BuildError, UsageError
from lab.expected.mutant import Mutant, Subject, parse_mutant
from lab.host.files import read_text
from lab.host.paths import IMAGES
from lab.mechanisms.base import BASES, STOCK_BASES
from lab.model.qemu import Qemu

MUTANTS = IMAGES / "mutants"
#: More than any patch of one idea.
MAX_PATCH_BYTES = 64 * 1024
#: Folders of images/mutants by what their patches are of.
_FOLDERS = {**{base.name: Subject.KERNEL for base in (*BASES, *STOCK_BASES)}, "observer": Subject.OBSERVER}


def read_mutants() -> tuple[Mutant, ...]:
    """Return all mutants that are patches, in order of kernel and name.

    :raise UsageError: a patch's message does not say what it must, or its folder is of another kernel
    """
    found = []
    for folder, subject in _FOLDERS.items():
        for path in sorted((MUTANTS / folder).glob("*.patch")):
            mutant = parse_mutant(read_text(path, MAX_PATCH_BYTES, "mutant"), path.stem, subject)
            if subject is Subject.KERNEL and mutant.base != folder:
                raise UsageError(f"mutant '{mutant.name}': its scenario is of {mutant.base}, its folder {folder}")
            found.append(mutant)
    return tuple(found)


def build_mutant(mutant: Mutant, progress: Progress, qemu: Qemu) -> ImageSet:
    """Build images with a mutant in, or find them in the cache; those of a mutant that is no patch are sound.

    :raise BuildError: it does not apply or does not compile
    :raise HostError: a package or space is missing
    """
    try:
        match mutant.subject:
            case Subject.KERNEL:
                return build_images(progress, qemu, mutant.base, kernel_patch=find_patch(mutant))
            case Subject.OBSERVER:
                return build_images(progress, qemu, mutant.base, observer_patch=find_patch(mutant))
            case Subject.LAB:
                return build_images(progress, qemu, mutant.base)
    except BuildError as error:
        raise BuildError(f"mutant '{mutant.name}': {error}") from error


def find_patch(mutant: Mutant) -> Path:
    """Return the patch that makes a mutant."""
    folder = mutant.base if mutant.subject is Subject.KERNEL else mutant.subject.value
    return MUTANTS / folder / f"{mutant.name}.patch"
