# SPDX-License-Identifier: GPL-2.0-or-later
"""Control flow of a function: the possible next instructions of each instruction."""

import re
from typing import Final

import capstone
import capstone.x86

from lab.kernelimage.vmlinux import Function, Instruction, Kernel

#: capstone gives operands as signed numbers, and addresses as unsigned numbers.
ADDRESS: Final = 2**64 - 1
#: More cases than any switch statement of a loader has.
_MAX_CASES: Final = 256
_POINTER_BYTES: Final = 8
#: CONFIG_MITIGATION_RETPOLINE and CONFIG_MITIGATION_ITS replace a call or jump through a register by such a thunk.
_INDIRECT_THUNK: Final = re.compile(r"__x86_indirect_(?:call_|jump_|its_)?thunk_(r(?:[a-d]x|[sd]i|bp|\d+))", re.ASCII)
#: CONFIG_MITIGATION_RETHUNK replaces a return by such a thunk. Its users call it by one name; its code has another
#: name.
_RETURN_THUNK: Final = re.compile(
    r"(?:__pi_)?(?:__x86_|srso_|srso_alias_|retbleed_|its_|call_depth_)return_thunk", re.ASCII
)


def target_of(instruction: Instruction) -> int | None:
    """Return the target of a call or jump; None if the target is in a register or in memory."""
    operand = instruction.operands[0] if instruction.operands else None
    if operand is None or operand.type != capstone.x86.X86_OP_IMM:
        return None
    return int(operand.imm) & ADDRESS


def is_call(instruction: Instruction) -> bool:
    """Return True if an instruction is a call."""
    return bool(instruction.group(capstone.CS_GRP_CALL))


def is_branch(instruction: Instruction) -> bool:
    """Return True if an instruction is a call or a jump, conditional or not."""
    return is_call(instruction) or bool(instruction.group(capstone.CS_GRP_JUMP))


def find_thunk_register(kernel: Kernel, address: int) -> str | None:
    """Return the register of the indirect thunk at an address; None if no such thunk is there."""
    matches = (_INDIRECT_THUNK.fullmatch(name) for name in kernel.list_names(address))
    return next((match[1] for match in matches if match is not None), None)


def is_return_thunk(kernel: Kernel, address: int) -> bool:
    """Return True if a jump to an address is a return, under any of its names."""
    return any(_RETURN_THUNK.fullmatch(name) for name in kernel.list_names(address))


def list_next(kernel: Kernel, function: Function, instruction: Instruction) -> tuple[int, ...]:
    """Return the addresses of the possible next instructions in the same function.

    The function assumes that a call returns.

    For a jump through a table of constants, return all cases. Any other jump through a register or memory counts as a
    way out of the function.
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
    """Read a table of addresses in the constants, up to the first address outside the function."""
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
