# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that contain a mutant."""

import msgspec

from lab.build.cache import Progress
from lab.build.images import ImageSet, build_images
from lab.build.mutant_list import find_patch, read_mutants
from lab.errors import BuildError, UsageError
from lab.expected.mutant import Mutant, Subject, Tampering
from lab.model.qemu import Qemu


def build_mutant(mutant: Mutant, progress: Progress, qemu: Qemu) -> ImageSet:
    """Build images with a mutant, or find them in the cache. Images of a mutant without a patch boot a sound kernel.

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
                images = build_images(progress, qemu, mutant.base)
                stale = mutant.tampering is Tampering.STALE_LANDMARKS
                return _swap_vmlinux(images, mutant, progress, qemu) if stale else images
    except BuildError as error:
        raise BuildError(f"mutant '{mutant.name}': {error}") from error


def _swap_vmlinux(images: ImageSet, mutant: Mutant, progress: Progress, qemu: Qemu) -> ImageSet:
    """Return images whose vmlinux has all functions of their kernel, at other addresses: that of one of its mutants.

    :raise UsageError: the kernel has no mutant
    """
    for each in read_mutants():
        if each.subject is Subject.KERNEL and each.base == mutant.base:
            other = build_mutant(each, progress, qemu)
            return msgspec.structs.replace(images, vmlinux=other.vmlinux, vmlinux_sha256=other.vmlinux_sha256)
    raise UsageError(f"mutant '{mutant.name}' needs a mutant of {mutant.base}, and there is none")
