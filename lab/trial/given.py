# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that the user brings: a bzImage to boot, and the vmlinux that tells what is where in it."""

import shutil
from pathlib import Path

import msgspec

from lab.build import initramfs, observer
from lab.build.cache import Progress, cached, read_sums
from lab.build.images import ImageSet
from lab.build.initramfs import build_initramfs
from lab.build.observer import build_observer
from lab.errors import UsageError
from lab.host.files import hash_file
from lab.kernelimage.banner import read_version
from lab.kernelimage.bzimage import BzImage, read_bzimage
from lab.kernelimage.landmarks import find_landmarks
from lab.kernelimage.recognise import recognise
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.mechanisms.base import Base
from lab.mechanisms.table import mechanisms_of
from lab.model.evidence import Match
from lab.model.qemu import Qemu


class GivenKernel(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel fit for trials.

    :param packed: what its bzImage says of itself
    :param match: how vmlinux is known to belong to it
    :param kernel: read from vmlinux
    :param base: what kind of kernel it is, which says what mechanisms it holds
    """

    image: Path
    vmlinux: Path
    packed: BzImage
    match: Match
    kernel: Kernel
    base: Base


def take_kernel(image: Path, vmlinux: Path) -> GivenKernel:
    """Check a user's kernel; nothing is built or booted for it yet.

    :raise UsageError: as :func:`look_at_kernel`, or the kernel has no late loading whose parts can be told apart
    """
    given = look_at_kernel(image, vmlinux)
    try:
        find_landmarks(given.kernel, mechanisms_of(given.base.name))
    except UsageError as error:
        raise UsageError(f"kernel '{image}': {error}; 'lab landmarks' tells what was found") from error
    return given


def look_at_kernel(image: Path, vmlinux: Path) -> GivenKernel:
    """Read a user's kernel, whose landmarks may be missing.

    :raise UsageError: a file is missing or is not what it should be, the two do not belong together, or the kernel has
        no late loading
    """
    for what, path in (("kernel", image), ("vmlinux", vmlinux)):
        if not path.is_file():
            raise UsageError(f"{what} '{path}' is {'no regular file' if path.exists() else 'not there'}")
    packed = read_bzimage(image)
    kernel = read_kernel(vmlinux)
    match = _match(image, packed, vmlinux, kernel)
    try:
        base = recognise(kernel, packed.release)
    except UsageError as error:
        raise UsageError(f"kernel '{image}': {error}") from error
    return GivenKernel(image=image, vmlinux=vmlinux, packed=packed, match=match, kernel=kernel, base=base)


def build_around(given: GivenKernel, progress: Progress, qemu: Qemu) -> ImageSet:
    """Build what else a guest needs. What is booted is a copy of the kernel, so that it stays what it is.

    :raise UsageError: the kernel has changed since it was checked
    :raise HostError: a package or space is missing
    """
    plugin = build_observer(progress, qemu.level) / observer.NAME
    archive = build_initramfs(progress) / initramfs.NAME
    kept = _keep(given, progress)
    return ImageSet(
        kernel=kept,
        kernel_release=given.packed.release,
        vmlinux=given.vmlinux,
        initramfs=archive,
        observer=plugin,
        kernel_sha256=read_sums(kept.parent)[kept.name],
        vmlinux_sha256=hash_file(given.vmlinux),
        initramfs_sha256=read_sums(archive.parent)[archive.name],
        observer_sha256=read_sums(plugin.parent)[plugin.name],
        qemu=qemu,
        match=given.match,
    )


def _match(image: Path, packed: BzImage, vmlinux: Path, kernel: Kernel) -> Match:
    """Say how the two are known to belong together: landmarks of another build would be anywhere."""
    build_id, version = kernel.build_id, read_version(kernel)
    foreign = f"vmlinux '{vmlinux}' does not belong to kernel '{image}'"
    if build_id and packed.build_id:
        if build_id != packed.build_id:
            raise UsageError(f"{foreign}: their build ids are {build_id} and {packed.build_id}")
        return Match.BUILD_ID
    if not version:
        raise UsageError(f"vmlinux '{vmlinux}' has neither build id nor version to compare with kernel '{image}'")
    if version != packed.version:
        raise UsageError(f"{foreign}: it is '{version}', and the kernel '{packed.version}'")
    return Match.VERSION


def _keep(given: GivenKernel, progress: Progress) -> Path:
    """Return a copy in the cache, named by its content."""
    digest = hash_file(given.image)

    def copy(folder: Path) -> None:
        shutil.copyfile(given.image, folder / "bzImage")

    kept = cached("given", digest, copy, progress) / "bzImage"
    if read_sums(kept.parent)[kept.name] != digest or read_bzimage(kept) != given.packed:
        shutil.rmtree(kept.parent)
        raise UsageError(f"kernel '{given.image}' changed while it was being read")
    return kept
