# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a function goes on behind one of its instructions."""

import re
from typing import Final

import capstone
import capstone.x86

from lab.kernelimage.vmlinux import Function, Instruction, Kernel

#: capstone gives operands as signed numbers, and addresses as unsigned ones.
ADDRESS: Final = 2**64 - 1
#: More than any switch of a loader has.
_MAX_CASES: Final = 256
_POINTER_BYTES: Final = 8
#: What a call or jump through a register becomes under CONFIG_MITIGATION_RETPOLINE and CONFIG_MITIGATION_ITS.
_INDIRECT_THUNK: Final = re.compile(r"__x86_indirect_(?:call_|jump_|its_)?thunk_(r(?:[a-d]x|[sd]i|bp|\d+))", re.ASCII)
#: What a return becomes under CONFIG_MITIGATION_RETHUNK; its users know it by one name, and its code by another.
_RETURN_THUNK: Final = re.compile(
    r"(?:__pi_)?(?:__x86_|srso_|srso_alias_|retbleed_|its_|call_depth_)return_thunk", re.ASCII
)


def target_of(instruction: Instruction) -> int | None:
    """Return where a call or jump goes; None when a register or memory says."""
    operand = instruction.operands[0] if instruction.operands else None
    if operand is None or operand.type != capstone.x86.X86_OP_IMM:
        return None
    return int(operand.imm) & ADDRESS


def is_call(instruction: Instruction) -> bool:
    """Say whether an instruction calls."""
    return bool(instruction.group(capstone.CS_GRP_CALL))


def is_branch(instruction: Instruction) -> bool:
    """Say whether an instruction calls or jumps, conditionally or not."""
    return is_call(instruction) or bool(instruction.group(capstone.CS_GRP_JUMP))


def find_thunk_register(kernel: Kernel, address: int) -> str | None:
    """Return the register through which the indirect thunk at an address jumps; None when it is no such thunk."""
    matches = (_INDIRECT_THUNK.fullmatch(name) for name in kernel.list_names(address))
    return next((match[1] for match in matches if match is not None), None)


def is_return_thunk(kernel: Kernel, address: int) -> bool:
    """Say whether a jump to an address is a return, under whatever name."""
    return any(_RETURN_THUNK.fullmatch(name) for name in kernel.list_names(address))


def list_next(kernel: Kernel, function: Function, instruction: Instruction) -> tuple[int, ...]:
    """Return what may be executed next in the same function; a call is taken to return.

    Of a jump through a table of constants all cases are returned; any other jump through a register or memory is
    taken to leave the function.
    """
    behind = int(instruction.address + instruction.size)
    if any(instruction.group(group) for group in (capstone.CS_GRP_RET, capstone.CS_GRP_IRET)):
        return ()
    if instruction.mnemonic == "ud2":
        return ()
    if not instruction.group(capstone.CS_GRP_JUMP):
        return (behind,)
    target = target_of(instruction)
    targets = _list_cases(kernel, function, instruction) if target is None else (target,)
    inside = tuple(each for each in targets if function.start <= each < function.end)
    return inside if instruction.mnemonic.endswith("jmp") else (*inside, behind)


def _list_cases(kernel: Kernel, function: Function, instruction: Instruction) -> tuple[int, ...]:
    """Read a table of addresses in the constants, up to the first that is not in the function."""
    operand = instruction.operands[0]
    if operand.type != capstone.x86.X86_OP_MEM or not operand.mem.index or operand.mem.base:
        return ()
    table, cases = operand.mem.disp & ADDRESS, list[int]()
    while len(cases) < _MAX_CASES:
        address = kernel.read_pointer(table + _POINTER_BYTES * len(cases))
        if address is None or not function.start <= address < function.end:
            break
        cases.append(address)
    return tuple(cases)
