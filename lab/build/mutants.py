# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutants of images/mutants, and images that contain a mutant."""

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
#: More than any patch of one idea needs.
MAX_PATCH_BYTES = 64 * 1024
#: Folders of images/mutants, each with the subject of its patches.
_FOLDERS = {**{base.name: Subject.KERNEL for base in (*BASES, *STOCK_BASES)}, "observer": Subject.OBSERVER}


def read_mutants() -> tuple[Mutant, ...]:
    """Return all mutants that are patches, in order of kernel and name.

    :raise UsageError: a patch's message lacks a required part, or its folder belongs to another kernel
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
    """Build images with a mutant, or find them in the cache. Images of a mutant without a patch are sound.

    :raise BuildError: the patch does not apply or does not compile
    :raise HostError: a package is missing, or the disk is full
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
