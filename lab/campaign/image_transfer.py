# SPDX-License-Identifier: GPL-2.0-or-later
"""Images by content: a host that lacks one is given it once, and whatever it has is used only if its hash is right."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from lab.build.images import ImageSet
from lab.build.qemu import match_qemu
from lab.errors import HostError
from lab.host.files import hash_file, write_whole
from lab.host.paths import find_cache

#: Below the cache: files that came from another host, each named by its SHA-256.
RECEIVED: Final = "received"
FILES: Final = ("kernel", "vmlinux", "initramfs", "observer")


class ImagesMissing(HostError):
    """The host lacks files of a campaign.

    :param digests: SHA-256 of each
    """

    def __init__(self, digests: tuple[str, ...]) -> None:
        self.digests = digests
        super().__init__(f"{len(digests)} image files are not on this host: {', '.join(each[:12] for each in digests)}")


def find_images(images: ImageSet) -> ImageSet:
    """Return the same images by paths of this host.

    :raise ImagesMissing: some are not on it
    :raise HostError: the cache cannot be used, or it does not have the same QEMU
    """
    found: dict[str, Path] = {}
    missing = []
    for name in FILES:
        digest: str = getattr(images, f"{name}_sha256")
        path = _find(getattr(images, name), digest)
        if path is None:
            missing.append(digest)
        else:
            found[name] = path
    if missing:
        raise ImagesMissing(tuple(missing))
    return msgspec.structs.replace(images, **found, qemu=match_qemu(images.qemu))


def receive_images(files: Mapping[str, bytes]) -> None:
    """Keep files on this host, by their SHA-256.

    :raise HostError: no space, not writable, or a file is not what its hash says
    """
    folder = find_cache() / RECEIVED
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise HostError(f"'{folder}' could not be made: {error.strerror}") from error
    for digest, data in files.items():
        path = folder / digest
        write_whole(path, data)
        if hash_file(path) != digest:
            path.unlink(missing_ok=True)
            raise HostError(f"image {digest[:12]} came damaged to this host")


class ImageSource:
    """Holds a campaign's images open, so that they can be sent even when the cache was cleared meanwhile."""

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        self._descriptors = descriptors

    def read(self, digest: str) -> bytes:
        """Return a file's content.

        :raise HostError: it is none of the campaign's, or could not be read
        """
        if digest not in self._descriptors:
            raise HostError(f"image {digest[:12]} is none of this campaign's")
        descriptor = self._descriptors[digest]
        try:
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        except OSError as error:
            raise HostError(f"image {digest[:12]} could not be read: {error.strerror}") from error


@contextlib.contextmanager
def open_images(images: Mapping[str, ImageSet]) -> Iterator[ImageSource]:
    """Open all files of a campaign's images.

    :raise HostError: one cannot be opened
    """
    with contextlib.ExitStack() as stack:
        descriptors: dict[str, int] = {}
        for each in images.values():
            for name in FILES:
                path: Path = getattr(each, name)
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise HostError(f"image '{path}' cannot be opened: {error.strerror}") from error
                stack.callback(os.close, descriptor)
                descriptors[getattr(each, f"{name}_sha256")] = descriptor
        yield ImageSource(descriptors)


def _find(path: Path, digest: str) -> Path | None:
    received = find_cache() / RECEIVED / digest
    for candidate in (path, received):
        with contextlib.suppress(HostError):
            if candidate.is_file() and hash_file(candidate) == digest:
                return candidate
    return None
