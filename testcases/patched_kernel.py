# SPDX-License-Identifier: GPL-2.0-or-later
"""A bzImage with code overwritten in it, for a kernel whose defect is there from its boot on."""

import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Final

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

#: The x86 boot protocol's ``setup_sects``, ``payload_offset`` and ``payload_length`` (Documentation/arch/x86/boot.rst).
_SECTORS_AT: Final = 0x1F1
_PAYLOAD_AT: Final = 0x248
_SECTOR_BYTES: Final = 512
#: Python's zlib packs a little worse than gzip(1), so something has to go: names that only reports would show.
_SPARE: Final = "kallsyms_names"
_SPARED_BYTES: Final = 64 * 1024


def find_payload(image: bytes) -> tuple[int, int]:
    """Return where a bzImage's packed kernel begins, and how long it is."""
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    return ((image[_SECTORS_AT] or 4) + 1) * _SECTOR_BYTES + offset, length


def patch_kernel(image: bytes, vmlinux: Path, code: Mapping[str, bytes]) -> bytes:
    """Return a bzImage, packed by gzip, with the beginning of some functions overwritten."""
    start, length = find_payload(image)
    kernel = bytearray(zlib.decompress(image[start : start + length], wbits=31))
    places = _find_symbols(vmlinux, (*code, _SPARE))
    for name, data in {**code, _SPARE: bytes(_SPARED_BYTES)}.items():
        at = _find_offset(kernel, places[name])
        kernel[at : at + len(data)] = data
    packer = zlib.compressobj(9, zlib.DEFLATED, 31, 9)
    packed = packer.compress(bytes(kernel)) + packer.flush()
    assert len(packed) <= length, (len(packed), length)
    return image[:start] + packed.ljust(length, b"\0") + image[start + length :]


def _find_symbols(vmlinux: Path, names: tuple[str, ...]) -> dict[str, int]:
    with open(vmlinux, "rb") as source:
        table = ELFFile(source).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {each.name: int(each["st_value"]) for each in table.iter_symbols() if each.name in names}


def _find_offset(kernel: bytes | bytearray, address: int) -> int:
    for segment in ELFFile(BytesIO(kernel)).iter_segments("PT_LOAD"):
        if segment["p_vaddr"] <= address < segment["p_vaddr"] + segment["p_filesz"]:
            return int(address - segment["p_vaddr"] + segment["p_offset"])
    raise AssertionError(f"{address:#x} is in no segment")
