# SPDX-License-Identifier: GPL-2.0-or-later
"""Code that a kernel may patch into its own code at boot (``.altinstructions``)."""

import struct
from typing import Final

import msgspec

from lab.kernelimage.vmlinux import Function, Instruction, Kernel, disassemble

_TABLE: Final = ".altinstructions"
_CODE: Final = ".altinstr_replacement"
#: Layouts of ``struct alt_instr``: its size, and the position of its two lengths. One layout per range of versions:
#: since 6.3, before 6.3, and before 5.12.
_LAYOUTS: Final = ((14, 12), (12, 10), (13, 10))
_OFFSETS: Final = struct.Struct("<ii")


class Alternative(msgspec.Struct, frozen=True):
    """One place in the code, and its possible replacement."""

    start: int
    size: int
    replacement: int
    replacement_size: int


def list_replacements(kernel: Kernel, function: Function) -> tuple[tuple[Instruction, ...], ...]:
    """Return the possible replacements for parts of a function, as instructions at the addresses of their section.

    The kernel adjusts relative operands. So calls and jumps have the targets that they have at these addresses.
    """
    section = kernel.sections.get(_CODE)
    if section is None:
        return ()
    found = []
    for each in kernel.remember(_TABLE, _read_alternatives):
        if function.start <= each.start < function.end and each.replacement_size:
            at = each.replacement - section.start
            found.append(tuple(disassemble(section.data[at : at + each.replacement_size], each.replacement)))
    return tuple(found)


def _read_alternatives(kernel: Kernel) -> tuple[Alternative, ...]:
    for size, lengths_at in _LAYOUTS:
        found = _read_as(kernel, size, lengths_at)
        if found is not None:
            return found
    return ()


def _read_as(kernel: Kernel, size: int, lengths_at: int) -> tuple[Alternative, ...] | None:
    """Read the table as if its entries had this layout. Return None if they do not have this layout."""
    table, code = kernel.sections.get(_TABLE), kernel.sections.get(_CODE)
    if table is None or code is None or len(table.data) % size:
        return None
    found = []
    for at in range(0, len(table.data), size):
        start, replacement = _OFFSETS.unpack_from(table.data, at)
        start, replacement = table.start + at + start, table.start + at + 4 + replacement
        length, replaced = table.data[at + lengths_at : at + lengths_at + 2]
        fits = not replaced or code.start <= replacement <= code.start + len(code.data) - replaced
        if not fits or not length or kernel.find_code_section(start) is None:
            return None
        found.append(Alternative(start, length, replacement, replaced))
    return tuple(found)
