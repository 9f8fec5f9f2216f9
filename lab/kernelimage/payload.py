# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpack the payload of a bzImage, in each format that the kernel's build can choose (CONFIG_KERNEL_*) but LZO.

A kernel's build appends the unpacked size to most formats (``scripts/Makefile.lib``), so bytes behind the end are no
error.
"""

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Final

import lz4.block
import zstandard

#: An unpacked kernel is mapped below 1 GiB (KERNEL_IMAGE_SIZE). A payload that claims a larger size is not valid.
MAX_KERNEL_BYTES: Final = 2**30

_LZ4_MAGIC: Final = b"\x02\x21\x4c\x18"
_LZ4_SIZE: Final = struct.Struct("<I")
#: Of one unpacked block of the legacy format, which ``lz4 -l`` writes (lib/decompress_unlz4.c).
_LZ4_BLOCK_BYTES: Final = 8 << 20
#: Of one packed block, at most (LZ4_COMPRESSBOUND of lz4.h).
_LZ4_PACKED_BYTES: Final = _LZ4_BLOCK_BYTES + _LZ4_BLOCK_BYTES // 255 + 16
#: The kernel packs itself with windows up to 128 MiB (``zstd -22 --ultra``).
_ZSTD_WINDOW_BYTES: Final = 128 << 20


def unpack(packed: bytes) -> bytes:
    """Return what a payload contains: its own bytes where it is of no known format, and nothing where it is damaged."""
    unpacker = next((unpacker for magic, unpacker in _UNPACKERS if packed.startswith(magic)), None)
    if unpacker is None:
        return packed
    try:
        return unpacker(packed)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, lz4.block.LZ4BlockError):
        return b""
    except (OSError, EOFError, ValueError, MemoryError):
        return b""


def _unpack_gzip(packed: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(packed, MAX_KERNEL_BYTES)


def _unpack_bzip2(packed: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(packed, MAX_KERNEL_BYTES)


def _unpack_xz(packed: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed, MAX_KERNEL_BYTES)


def _unpack_lzma(packed: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(packed, MAX_KERNEL_BYTES)


def _unpack_zstd(packed: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).stream_reader(io.BytesIO(packed))
    with reader:
        return reader.read(MAX_KERNEL_BYTES)


def _unpack_lz4(packed: bytes) -> bytes:
    """Unpack the legacy format: after the magic number, each block has its packed size in front of it."""
    kernel = bytearray()
    at = len(_LZ4_MAGIC)
    while at + _LZ4_SIZE.size <= len(packed):
        (size,) = _LZ4_SIZE.unpack_from(packed, at)
        at += _LZ4_SIZE.size
        # The appended size of the kernel is followed by nothing.
        if at + size > len(packed):
            break
        if not 0 < size <= _LZ4_PACKED_BYTES:
            raise ValueError(f"an lz4 block of {size} bytes")
        kernel += lz4.block.decompress(packed[at : at + size], uncompressed_size=_LZ4_BLOCK_BYTES)
        at += size
        if len(kernel) > MAX_KERNEL_BYTES:
            raise ValueError("an unpacked kernel of more than 1 GiB")
    return bytes(kernel)


#: By the first bytes of the payload.
_UNPACKERS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b\x08", _unpack_gzip),
    (b"BZh", _unpack_bzip2),
    (b"\xfd7zXZ\0", _unpack_xz),
    (b"\x5d\0\0", _unpack_lzma),
    (b"\x28\xb5\x2f\xfd", _unpack_zstd),
    (_LZ4_MAGIC, _unpack_lz4),
)
