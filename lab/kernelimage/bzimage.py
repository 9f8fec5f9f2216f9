# SPDX-License-Identifier: GPL-2.0-or-later
"""The properties of a bzImage: its version, and the notes of the kernel packed into it.

Offsets are those of the x86 boot protocol (Documentation/arch/x86/boot.rst), valid since version 2.08.
"""

import struct
from io import BytesIO
from pathlib import Path
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.kernelimage.elf import read_build_id
from lab.kernelimage.payload import unpack

_MAGIC_AT: Final = 0x202
_MAGIC: Final = b"HdrS"
_PROTOCOL: Final = struct.Struct("<H")
_PROTOCOL_AT: Final = 0x206
#: The first version with ``payload_offset`` and ``payload_length``.
_FIRST_PROTOCOL: Final = 0x0208
_SECTORS_AT: Final = 0x1F1
_SECTOR_BYTES: Final = 512
#: The meaning of zero in ``setup_sects``.
_DEFAULT_SECTORS: Final = 4
_VERSION: Final = struct.Struct("<H")
_VERSION_AT: Final = 0x20E
#: ``kernel_version`` counts from this offset.
_VERSION_BASE: Final = 0x200
_MAX_VERSION_BYTES: Final = 400
_PAYLOAD: Final = struct.Struct("<II")
_PAYLOAD_AT: Final = 0x248
_HEADER_BYTES: Final = 0x250

#: A distribution's kernel has 15 MiB. A kernel with all drivers built in has about 60 MiB.
MAX_IMAGE_BYTES: Final = 512 * 2**20


class BzImage(msgspec.Struct, frozen=True):
    """A bzImage.

    :param version: as in its setup header: release, builder, number and time of the build
    :param build_id: of the kernel inside, in hex; empty if the kernel has none, or if the lab cannot unpack the kernel
    """

    version: str
    build_id: str

    @property
    def release(self) -> str:
        """The output of ``uname -r`` on this kernel."""
        return self.version.split(" ")[0]


def read_bzimage(path: Path) -> BzImage:
    """Read a bzImage.

    :raise UsageError: the file is not readable, or is not a bzImage
    """
    try:
        with open(path, "rb") as source:
            data = source.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"kernel '{path}' cannot be read: {error.strerror}") from error
    if len(data) < _HEADER_BYTES or data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC or len(data) > MAX_IMAGE_BYTES:
        raise UsageError(f"kernel '{path}' is no bzImage: it has no setup header of the x86 boot protocol")
    if _PROTOCOL.unpack_from(data, _PROTOCOL_AT)[0] < _FIRST_PROTOCOL:
        raise UsageError(f"kernel '{path}' is of a boot protocol before 2.08, older than any late loading")
    version = _read_version(data)
    if not version:
        raise UsageError(f"kernel '{path}' does not name its version in its setup header")
    return BzImage(version=version, build_id=_read_build_id(data))


def _read_version(data: bytes) -> str:
    at = _VERSION.unpack_from(data, _VERSION_AT)[0]
    if not at:
        return ""
    text = data[at + _VERSION_BASE : at + _VERSION_BASE + _MAX_VERSION_BYTES].split(b"\0")[0]
    return text.decode("ascii", errors="backslashreplace").strip()


def _read_build_id(data: bytes) -> str:
    offset, length = _PAYLOAD.unpack_from(data, _PAYLOAD_AT)
    start = ((data[_SECTORS_AT] or _DEFAULT_SECTORS) + 1) * _SECTOR_BYTES + offset
    packed = data[start : start + length]
    return read_build_id(BytesIO(unpack(packed)))
