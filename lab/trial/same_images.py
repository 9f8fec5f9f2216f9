# SPDX-License-Identifier: GPL-2.0-or-later
"""The images that a kept trial was booted from, found again by content, or the reason why they cannot be had."""

from pathlib import Path

import msgspec

from lab.build import initramfs, observer
from lab.build.cache import Progress, read_sums
from lab.build.content import find_entry
from lab.build.images import ImageSet, build_images
from lab.build.kernel import Kernel as BuiltKernel
from lab.build.kernel import build_kernel, read_entry
from lab.build.mutant_list import find_patch, read_mutants
from lab.build.qemu import OPTION
from lab.errors import UsageError
from lab.expected.mutant import Subject
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.mechanisms.base import STOCK_BASES
from lab.model.evidence import Images
from lab.model.qemu import Qemu
from lab.trial.given import GivenKernel, build_around, take_kernel

#: An observer of other sources has another layout, and other landmarks.
_ASK_THAT_LAB = "; the lab that made it can"
_NAME_IT = f"; name the trial's own with {OPTION}"
#: Kinds of kernels that the lab does not make.
_BROUGHT = frozenset(base.name for base in STOCK_BASES)
#: Characters of a kernel's version that a person is shown.
MAX_RELEASE = 80
#: Digits of a hash that a person is shown.
_SHOWN = 12


def find_same(
    images: Images | None, base: str, own: GivenKernel | None, qemu: Qemu, hint: str, progress: Progress
) -> tuple[ImageSet, Kernel]:
    """Return images with the same content, and the kernel read from their vmlinux.

    Everything is looked for in the cache by content first, so that a mutant's kernel, a mutant's observer or one of a
    user's own tree is found wherever it was built from. A kernel that is not there is built: that of the base, and then
    that of the mutant which the hint names.

    :param images: what the trial's evidence says of them
    :param base: of the trial's mechanism
    :param own: the kernel that the user brings instead
    :param qemu: what it is to be run on again
    :param hint: a name that may be a mutant's
    :raise UsageError: one of them, or QEMU, is another; the text names it, and both
    :raise BuildError: a recipe failed
    :raise HostError: a package or space is missing
    """
    if images is None:
        raise UsageError("no guest was booted in this trial: there is nothing that could be run again")
    _compare("QEMU", images.qemu_version, qemu.version, _NAME_IT)
    if images.qemu_sha256:
        _compare("QEMU's program", images.qemu_sha256, qemu.sha256, f" in '{qemu.path}'{_NAME_IT}")
    if own is None and base in _BROUGHT:
        own = _take_brought(images)
    if own is None:
        built, found = _find_built(images, base, qemu, hint, progress), None
    elif own.base.name != base:
        raise UsageError(f"the kernel differs: the trial's is of the kind {base}, the one given {own.base.name}")
    else:
        built, found = build_around(own, progress, qemu), own.kernel
    mine = built.describe()
    _compare("the kernel", images.kernel_sha256, mine.kernel_sha256, _advise(images))
    _compare("vmlinux", images.vmlinux_sha256, mine.vmlinux_sha256, _advise(images))
    _compare("the initramfs", images.initramfs_sha256, mine.initramfs_sha256)
    _compare("the observer", images.observer_sha256, mine.observer_sha256, _ASK_THAT_LAB)
    return built, found or read_kernel(built.vmlinux)


def _take_brought(images: Images) -> GivenKernel:
    """Return a kernel that its user brought, where the lab built it of that user's tree.

    :raise UsageError: the lab did not build the kernel, so that the user has to bring it again
    """
    entry = find_entry("kernel", {"bzImage": images.kernel_sha256, "vmlinux": images.vmlinux_sha256})
    if entry is None:
        release = images.kernel_release[:MAX_RELEASE]
        raise UsageError(f"the trial's kernel ({release}) was brought to the lab: give it with --kernel and --vmlinux")
    kernel = read_entry(entry)
    return take_kernel(kernel.image, kernel.vmlinux)


def _find_built(images: Images, base: str, qemu: Qemu, hint: str, progress: Progress) -> ImageSet:
    wanted = {"bzImage": images.kernel_sha256, "vmlinux": images.vmlinux_sha256}
    kernel_entry = find_entry("kernel", wanted)
    built = build_images(progress, qemu, base)
    if kernel_entry is not None:
        built = _with_kernel(built, read_entry(kernel_entry), images)
    elif built.kernel_sha256 != images.kernel_sha256:
        named = [each for each in read_mutants() if each.name == hint and each.base == base]
        if named and named[0].subject is Subject.KERNEL:
            build_kernel(progress, base, find_patch(named[0]))
            kernel_entry = find_entry("kernel", wanted)
            built = built if kernel_entry is None else _with_kernel(built, read_entry(kernel_entry), images)
    plugin = _find_observer(images.observer_sha256, qemu.level)
    if plugin is not None:
        built = msgspec.structs.replace(built, observer=plugin / observer.NAME, observer_sha256=images.observer_sha256)
    archive = find_entry("initramfs", {initramfs.NAME: images.initramfs_sha256})
    if archive is not None:
        found = archive / initramfs.NAME
        built = msgspec.structs.replace(built, initramfs=found, initramfs_sha256=images.initramfs_sha256)
    return built


def _find_observer(digest: str, level: int) -> Path | None:
    """Return the entry of an observer that this lab can speak with: its own, or a mutant of that."""
    patches = [find_patch(each) for each in read_mutants() if each.subject is Subject.OBSERVER]
    entries = (observer.find_observer(level, patch) for patch in (None, *patches))
    return next((entry for entry in entries if entry and read_sums(entry).get(observer.NAME) == digest), None)


def _with_kernel(built: ImageSet, kernel: BuiltKernel, images: Images) -> ImageSet:
    return msgspec.structs.replace(
        built,
        kernel=kernel.image,
        kernel_release=kernel.release,
        vmlinux=kernel.vmlinux,
        kernel_sha256=images.kernel_sha256,
        vmlinux_sha256=images.vmlinux_sha256,
    )


def _compare(what: str, wanted: str, there: str, advice: str = "") -> None:
    if wanted != there:
        cut = _SHOWN if what != "QEMU" else len(wanted) + len(there)
        raise UsageError(f"{what} differs: the trial's is {wanted[:cut]}, the one there is {there[:cut]}{advice}")


def _advise(images: Images) -> str:
    return f" ({images.kernel_release[:MAX_RELEASE]}); give the trial's own with --kernel and --vmlinux"
