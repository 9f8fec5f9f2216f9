# SPDX-License-Identifier: GPL-2.0-or-later
"""The possible targets of a function pointer: its value in vmlinux, and all values that code stores there."""

from collections.abc import Iterator
from typing import Final

import capstone
import capstone.x86
import numpy as np
import numpy.typing as npt

from lab.errors import UsageError
from lab.kernelimage.constants import Loaded, find_fixed_address, find_states, read_operand
from lab.kernelimage.flow import ADDRESS, is_branch
from lab.kernelimage.vmlinux import Function, Instruction, Kernel

#: An instruction contains an address in four bytes. A constant of 0, 1, 2 or 4 bytes may follow them.
_TAILS: Final = (0, 1, 2, 4)
_DISPLACEMENT_BYTES: Final = 4


def find_targets(kernel: Kernel, pointer: int) -> frozenset[int]:
    """Return the addresses of all functions that a pointer can point to.

    :param pointer: address of the pointer
    :raise UsageError: the targets are unknown; the text says why
    """
    return kernel.remember(f"pointer {pointer:#x}", lambda kernel: _find_targets(kernel, pointer))


def _find_targets(kernel: Kernel, pointer: int) -> frozenset[int]:
    found = kernel.find_object_at(pointer)
    first = found.start if found is not None else pointer
    name = found.name if found is not None else f"{pointer:#x}"
    targets = {kernel.read_pointer(pointer) or 0}
    for function in sorted(_find_users(kernel, first, pointer), key=lambda each: each.start):
        for instruction in kernel.disassemble(function):
            _refuse_escape(kernel, instruction, range(first, pointer + 1), name)
            if _is_store(instruction, pointer):
                targets |= _find_stored(kernel, function, instruction, name)
    return frozenset(targets - {0})


def _find_users(kernel: Kernel, first: int, last: int) -> set[Function]:
    """Return all functions that contain four bytes that may name an address in the range."""
    users = set()
    for start, data in kernel.code.items():
        for at in _find_displacements(data, start, first, last):
            function = kernel.find_at(start + int(at))
            if function is not None:
                users.add(function)
    return users


def _find_displacements(data: bytes, start: int, first: int, last: int) -> Iterator[int]:
    """Yield the positions in code where four bytes may be a displacement or a constant for an address in the range."""
    for shift in range(_DISPLACEMENT_BYTES):
        usable = (len(data) - shift) // _DISPLACEMENT_BYTES * _DISPLACEMENT_BYTES
        values: npt.NDArray[np.int64] = np.frombuffer(data, "<i4", usable // _DISPLACEMENT_BYTES, shift).astype(
            np.int64
        )
        at = shift + _DISPLACEMENT_BYTES * np.arange(len(values), dtype=np.int64)
        signed_first, signed_last = (each - (1 << 64) if each >> 63 else each for each in (first, last))
        base = start - (1 << 64) if start >> 63 else start
        hits = (values >= signed_first) & (values <= signed_last)
        for tail in _TAILS:
            goes_to = base + at + _DISPLACEMENT_BYTES + tail + values
            hits |= (goes_to >= signed_first) & (goes_to <= signed_last)
        yield from at[hits]


def _refuse_escape(kernel: Kernel, instruction: Instruction, named: range, name: str) -> None:
    """Refuse a pointer if code takes its address, or the address of its object: then any code may store there.

    :raise UsageError: this instruction takes the address
    """
    if is_branch(instruction):
        return
    for operand in instruction.operands:
        indexed = operand.type == capstone.x86.X86_OP_MEM and (operand.mem.index or _is_based(operand))
        if instruction.mnemonic == "lea":
            address = find_fixed_address(instruction, operand)
        elif operand.type == capstone.x86.X86_OP_IMM:
            address = int(operand.imm) & ADDRESS
        elif indexed and operand.access & capstone.CS_AC_WRITE:
            address = int(operand.mem.disp) & ADDRESS
        else:
            continue
        if address is not None and address in named:
            raise UsageError(f"the address of '{name}' is taken at {kernel.symbolise(instruction.address)}")


def _is_based(operand: capstone.x86.X86Op) -> bool:
    return operand.mem.base not in (0, capstone.x86.X86_REG_RIP)


def _is_store(instruction: Instruction, pointer: int) -> bool:
    return any(
        operand.type == capstone.x86.X86_OP_MEM
        and operand.access & capstone.CS_AC_WRITE
        and find_fixed_address(instruction, operand) == pointer
        for operand in instruction.operands
    )


def _find_stored(kernel: Kernel, function: Function, instruction: Instruction, name: str) -> set[int]:
    """Return the values that an instruction may store.

    :raise UsageError: the values are unknown
    """
    state = find_states(kernel, function)[int(instruction.address)]
    values = read_operand(state, instruction, instruction.operands[1]) if instruction.mnemonic == "mov" else None
    if values is None or any(isinstance(value, Loaded) for value in values):
        raise UsageError(f"what {kernel.symbolise(instruction.address)} stores in '{name}' cannot be told")
    return {value for value in values if isinstance(value, int)}
