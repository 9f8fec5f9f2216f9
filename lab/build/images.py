# SPDX-License-Identifier: GPL-2.0-or-later
"""All that a guest is booted from, built together."""

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
    """Files in the cache; the hashes are those of the moment they were built.

    :param kernel: the bzImage
    :param kernel_release: what ``uname -r`` prints
    :param qemu: what they are booted on, which the observer is built for
    :param match: how kernel and vmlinux are known to belong together
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
        """Return what evidence says of them.

        :param running: the version that a running QEMU says it has: another one may have been installed meanwhile
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
    """Build everything, or find it in the cache; what is quick to fail comes first.

    :param qemu: what is to be booted on
    :param kernel_patch: one more, on top of those of the base
    :param observer_patch: changes the observer first
    :raise BuildError: a recipe failed
    :raise HostError: a package or space is missing
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
