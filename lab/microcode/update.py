# SPDX-License-Identifier: GPL-2.0-or-later
"""Synthetic Intel microcode updates that pass all of the kernel's checks (SDM volume 3A, 9.11).

The data are not microcode: an emulator ignores the write, and no CPU accepts data without Intel's signature.
"""

import struct

import msgspec

from lab.errors import UsageError

HEADER_SIZE = 48
#: The SDM's default: 48 bytes of header and 2000 bytes of data.
DEFAULT_DATA_SIZE = 2000
#: A total size is a multiple of this.
BLOCK_SIZE = 1024
#: 15 August 2022, as mmddyyyy in BCD.
DEFAULT_DATE_BCD = 0x08152022

_HEADER = struct.Struct("<12I")
_WORD_LIMIT = 2**32
_FNV_BASIS = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_DIGEST_MASK = 2**64 - 1
#: header_version and loader_version of all existing updates.
_VERSION = 1


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first 48 bytes of an update.

    :param date_bcd: mmddyyyy
    :param signature: CPUID.1 EAX of the CPUs that the update is for
    :param checksum: makes the sum of all 32-bit words zero
    :param platform_mask: bit n stands for platform id n of MSR 0x17
    :param data_size: in bytes
    :param total_size: in bytes, header included
    :param min_req_ver: lowest revision that the update may replace; 0 if not stated (reserved before Linux 6.7)
    """

    header_version: int
    revision: int
    date_bcd: int
    signature: int
    checksum: int
    loader_version: int
    platform_mask: int
    data_size: int
    total_size: int
    meta_size: int
    min_req_ver: int
    reserved: int


def make_update(
    signature: int,
    platform_mask: int,
    revision: int,
    data_size: int = DEFAULT_DATA_SIZE,
    date_bcd: int = DEFAULT_DATE_BCD,
    min_req_ver: int = 0,
) -> bytes:
    """Return an update file that the kernel accepts for CPUs of this signature.

    :param data_size: in bytes; this size plus 48 must be a multiple of 1024
    :param min_req_ver: lowest revision that the update may replace; 0 if not stated
    :raise UsageError: a field is out of its range
    """
    fields = {
        "signature": signature,
        "platform_mask": platform_mask,
        "revision": revision,
        "date_bcd": date_bcd,
        "min_req_ver": min_req_ver,
    }
    for name, value in fields.items():
        if not 0 <= value < _WORD_LIMIT:
            raise UsageError(f"microcode {name} is {value:#x}: allowed is 0 to {_WORD_LIMIT - 1:#x}")
    total_size = HEADER_SIZE + data_size
    if data_size <= 0 or total_size % BLOCK_SIZE or total_size >= _WORD_LIMIT:
        raise UsageError(
            f"microcode data_size is {data_size}: with {HEADER_SIZE} more it must fill blocks of {BLOCK_SIZE}"
        )
    # The kernel reads a data size of 0 as the default size, so the header always states the real size. The data are not
    # all zeros and differ for each revision, so that a mix-up of two updates is visible.
    data = struct.pack(f"<{data_size // 4}I", *((revision + index) % _WORD_LIMIT for index in range(data_size // 4)))

    header = Header(
        header_version=_VERSION,
        revision=revision,
        date_bcd=date_bcd,
        signature=signature,
        checksum=0,
        loader_version=_VERSION,
        platform_mask=platform_mask,
        data_size=data_size,
        total_size=total_size,
        meta_size=0,
        min_req_ver=min_req_ver,
        reserved=0,
    )
    return seal(pack_header(header) + data)


def pack_header(header: Header) -> bytes:
    """Return a header's bytes, whatever values its fields have."""
    return _HEADER.pack(*msgspec.structs.astuple(header))


def read_header(data: bytes) -> Header:
    """Return the header at the beginning of some bytes. Do not check its fields.

    :raise UsageError: there are too few bytes
    """
    if len(data) < HEADER_SIZE:
        raise UsageError(f"microcode file is {len(data)} bytes long: a header takes {HEADER_SIZE}")
    return Header(**dict(zip(Header.__struct_fields__, _HEADER.unpack_from(data), strict=True)))


def seal(body: bytes) -> bytes:
    """Return header and data with the checksum that the kernel requires: the sum of all words is 0."""
    header = msgspec.structs.replace(read_header(body), checksum=0)
    data = body[HEADER_SIZE:]
    checksum = -sum_words(pack_header(header) + data) % _WORD_LIMIT
    return pack_header(msgspec.structs.replace(header, checksum=checksum)) + data


def parse_header(data: bytes) -> Header:
    """Read an update's header, and make the kernel's checks of an update without extended signatures.

    :raise UsageError: the kernel would refuse the update; the text says why
    """
    header = read_header(data)
    if header.header_version != _VERSION or header.loader_version != _VERSION:
        raise UsageError("microcode file is of an unknown format: header and loader version are not 1")
    if header.total_size > len(data) or header.total_size % BLOCK_SIZE:
        raise UsageError(f"microcode total_size is {header.total_size}, in a file of {len(data)} bytes")
    if header.data_size + HEADER_SIZE != header.total_size:
        raise UsageError(f"microcode data_size is {header.data_size}, and total_size {header.total_size}")
    if sum_words(data[: header.total_size]):
        raise UsageError("microcode checksum is wrong: the sum of all words is not 0")
    return header


def sum_words(data: bytes) -> int:
    """Return the sum of all little-endian 32-bit words, modulo 2**32."""
    words: tuple[int, ...] = struct.unpack(f"<{len(data) // 4}I", data)
    return sum(words) % _WORD_LIMIT


def digest_words(data: bytes) -> int:
    """Return the FNV-1a hash over all little-endian 32-bit words, as images/observer/update.c has it."""
    words: tuple[int, ...] = struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])
    digest = _FNV_BASIS
    for word in words:
        digest = (digest ^ word) * _FNV_PRIME & _DIGEST_MASK
    return digest


def firmware_name(signature: int) -> str:
    """Return the file below intel-ucode/ that the kernel asks for: family-model-stepping, such as ``06-55-04``."""
    family = (signature >> 8) & 0xF
    model = (signature >> 4) & 0xF
    if family in (0x6, 0xF):
        model |= (signature >> 12) & 0xF0
    if family == 0xF:
        family += (signature >> 20) & 0xFF
    return f"{family:02x}-{model:02x}-{signature & 0xF:02x}"
