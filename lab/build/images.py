# SPDX-License-Identifier: GPL-2.0-or-later
"""All files to boot a guest from, built together."""

from pathlib import Path

import msgspec

from lab.build import initramfs, observer
from lab.build.cache import Progress, read_sums
from lab.build.initramfs import build_initramfs
from lab.build.kernel import DEFAULT_BASE, build_kernel
from lab.build.observer import build_observer
from lab.model.evidence import Images, Match
from lab.model.qemu import Qemu


class ImageSet(msgspec.Struct, frozen=True, kw_only=True):
    """Files in the cache. The hashes are from the time of the build.

    :param kernel: the bzImage
    :param kernel_release: the output of ``uname -r``
    :param qemu: the QEMU that boots the images; the observer is built for this QEMU
    :param match: how the lab knows that kernel and vmlinux belong together
    """

    kernel: Path
    kernel_release: str
    vmlinux: Path
    initramfs: Path
    observer: Path
    kernel_sha256: str
    vmlinux_sha256: str
    initramfs_sha256: str
    observer_sha256: str
    qemu: Qemu
    match: Match = Match.BUILT

    def describe(self, running: str | None = None) -> Images:
        """Return the description of the images for evidence.

        :param running: the version that the running QEMU reports; somebody may have installed another QEMU meanwhile
        """
        return Images(
            kernel_sha256=self.kernel_sha256,
            vmlinux_sha256=self.vmlinux_sha256,
            initramfs_sha256=self.initramfs_sha256,
            observer_sha256=self.observer_sha256,
            qemu_version=self.qemu.version if running is None else running,
            qemu_sha256=self.qemu.sha256 if running in (None, self.qemu.version) else "",
            plugin_interface=self.qemu.level,
            kernel_release=self.kernel_release,
            match=self.match,
        )


def build_images(
    progress: Progress,
    qemu: Qemu,
    base: str = DEFAULT_BASE,
    *,
    kernel_patch: Path | None = None,
    observer_patch: Path | None = None,
) -> ImageSet:
    """Build everything, or find it in the cache. Steps that fail quickly come first.

    :param qemu: the QEMU that boots the images
    :param kernel_patch: one more patch, on top of the patches of the base
    :param observer_patch: a patch for the observer, applied first
    :raise BuildError: a recipe failed
    :raise HostError: a package is missing, or the disk is full
    """
    plugin = build_observer(progress, qemu.level, observer_patch) / observer.NAME
    archive = build_initramfs(progress) / initramfs.NAME
    kernel = build_kernel(progress, base, kernel_patch)
    kernel_sums = read_sums(kernel.folder)
    return ImageSet(
        kernel=kernel.image,
        kernel_release=kernel.release,
        vmlinux=kernel.vmlinux,
        initramfs=archive,
        observer=plugin,
        kernel_sha256=kernel_sums[kernel.image.name],
        vmlinux_sha256=kernel_sums[kernel.vmlinux.name],
        initramfs_sha256=read_sums(archive.parent)[archive.name],
        observer_sha256=read_sums(plugin.parent)[plugin.name],
        qemu=qemu,
    )
