# SPDX-License-Identifier: GPL-2.0-or-later
"""Translate the places that a mechanism names into addresses.

A place is found by its symbol. If no function begins at the place, disassembly finds it. If the kernel copies code
before it executes the code, the layout of the copies gives the addresses.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import capstone
import capstone.x86

from lab.errors import UsageError
from lab.kernelimage.flow import find_thunk_register, is_return_thunk, target_of
from lab.kernelimage.vmlinux import Function, Instruction, Kernel
from lab.mechanisms.code_places import (
    Call,
    Copied,
    CopiedStretch,
    Copies,
    Exits,
    Locked,
    Path,
    Place,
    Return,
    Stretch,
    Turn,
)

#: The code behind a call to one of these functions does not belong to the caller's path, or does not exist.
_NEVER_RETURN: Final = ("panic", "__stack_chk_fail")
#: More than the number of CPUs. A larger count is not valid.
MAX_COPIES: Final = 256
_ENDS: Final = (capstone.CS_GRP_RET, capstone.CS_GRP_IRET)


def find_places(kernel: Kernel, place: Place) -> tuple[int, ...]:
    """Return the addresses of a place: one per copy, one per exit of a function, or else one address.

    :raise UsageError: the place is not in this kernel, or is there more than once
    """
    match place:
        case Call():
            return (int(_find_call(kernel, place)[1].address),)
        case Return():
            return (_find_return(kernel, place),)
        case Locked():
            return (_find_locked(kernel, place),)
        case Exits():
            return _find_exits(kernel, place)
        case Copied():
            offset = _find_label(kernel, place.label, place.copies)
            return tuple(copy.start + offset for copy in find_copies(kernel, place.copies))
        case _:
            return (kernel.find(place).start,)


def find_stretch(kernel: Kernel, stretch: Stretch) -> tuple[tuple[int, int], ...]:
    """Return the address ranges of a stretch. The second address of a range is the first address behind it.

    :raise UsageError: the stretch is not in this kernel, or no path leads from its begin to its end
    """
    if isinstance(stretch, Path):
        return _find_path(kernel, stretch)
    if isinstance(stretch, CopiedStretch):
        begin, end = (_find_label(kernel, label, stretch.copies) for label in (stretch.begin, stretch.end))
        if begin >= end:
            raise UsageError(f"'{stretch.end}' does not come behind '{stretch.begin}'")
        return tuple((copy.start + begin, copy.start + end) for copy in find_copies(kernel, stretch.copies))
    function = kernel.find(stretch)
    return ((function.start, function.end),)


def find_copies(kernel: Kernel, copies: Copies) -> tuple[Function, ...]:
    """Return the ranges of the copies, each under the name of its template.

    :raise UsageError: the copies are not in this kernel, or would overlap
    """
    size = kernel.find_object(copies.template).size
    first, step, count = (kernel.find_object(name).start for name in (copies.first, copies.step, copies.count))
    if not size <= step or not 0 < count <= MAX_COPIES:
        raise UsageError(f"{count} copies of '{copies.template}' with {size} bytes do not go {step} bytes apart")
    starts = range(first, first + count * step, step)
    return tuple(Function(copies.template, start, start + size) for start in starts)


def _find_label(kernel: Kernel, label: str, copies: Copies) -> int:
    """Return the distance of a label from the template's begin."""
    template = kernel.find_object(copies.template)
    offset = kernel.find_object(label).start - template.start
    if not 0 <= offset < template.size:
        raise UsageError(f"'{label}' is not in '{copies.template}'")
    return offset


def _find_call(kernel: Kernel, call: Call) -> tuple[Function, Instruction]:
    function = next((found for name in call.within if (found := kernel.find_if(name)) is not None), None)
    if function is None:
        raise UsageError(f"none of the functions {', '.join(call.within)} is in this kernel")
    target = kernel.find(call.callee).start if call.callee else None
    calls = [each for each in kernel.disassemble(function) if _is_call(kernel, each, target)]
    what = f"to '{call.callee}'" if call.callee else "through a pointer"
    if call.turn is not Turn.ONLY and calls:
        calls = _find_turn(kernel, function, calls, call.turn)
        what = f"{what} that no other {'leads to' if call.turn is Turn.FIRST else 'follows'}"
    if len(calls) != 1:
        raise UsageError(f"'{function.name}' has {len(calls)} calls {what}: one was looked for")
    return function, calls[0]


def _find_turn(kernel: Kernel, function: Function, calls: list[Instruction], turn: Turn) -> list[Instruction]:
    """Return a function's calls that no other call leads to, or the calls that lead to no other call."""
    after = {int(each.address): _follow(kernel, function, each) for each in kernel.disassemble(function)}
    behind = {each.address: _reach(int(each.address + each.size), after) for each in calls}
    if turn is Turn.LAST:
        return [each for each in calls if not any(other.address in behind[each.address] for other in calls)]
    return [each for each in calls if not any(each.address in behind[other.address] for other in calls)]


def _is_call(kernel: Kernel, instruction: Instruction, target: int | None) -> bool:
    """Return True if an instruction calls a target. A jump at the end of a function (tail call) counts as a call."""
    is_jump = instruction.group(capstone.CS_GRP_JUMP)
    if not instruction.group(capstone.CS_GRP_CALL) and not is_jump:
        return False
    goes_to = target_of(instruction)
    if target is not None:
        return goes_to == target
    if goes_to is None:
        return not is_jump
    return find_thunk_register(kernel, goes_to) is not None


def _find_return(kernel: Kernel, place: Return) -> int:
    function, call = _find_call(kernel, place.call)
    behind = int(call.address + call.size)
    if not call.group(capstone.CS_GRP_CALL) or behind >= function.end:
        raise UsageError(f"the call to '{place.call.callee}' does not return to '{function.name}'")
    return behind


def _find_locked(kernel: Kernel, place: Locked) -> int:
    locked = [
        int(each.address)
        for each in kernel.disassemble(kernel.find(place.within))
        if each.prefix[0] == capstone.x86.X86_PREFIX_LOCK
    ]
    if len(locked) != 1:
        raise UsageError(f"'{place.within}' has {len(locked)} instructions with a LOCK prefix: one was looked for")
    return locked[0]


def _find_exits(kernel: Kernel, place: Exits) -> tuple[int, ...]:
    function = kernel.find(place.within)
    exits = tuple(int(each.address) for each in kernel.disassemble(function) if _is_exit(kernel, each))
    if not exits:
        raise UsageError(f"'{place.within}' never returns")
    return exits


def _is_exit(kernel: Kernel, instruction: Instruction) -> bool:
    if instruction.group(capstone.CS_GRP_RET):
        return True
    target = target_of(instruction) if instruction.mnemonic == "jmp" else None
    return target is not None and is_return_thunk(kernel, target)


def _find_path(kernel: Kernel, path: Path) -> tuple[tuple[int, int], ...]:
    begin = _find_return(kernel, path.begin)
    function, end = _find_call(kernel, path.end)
    if not function.start <= begin < function.end:
        raise UsageError(f"the way from '{path.begin.call.callee}' to '{path.end.callee}' leaves '{function.name}'")
    instructions = {int(each.address): each for each in kernel.disassemble(function)}
    after = {address: _follow(kernel, function, each) for address, each in instructions.items()}
    after[int(end.address)] = ()
    before: dict[int, list[int]] = defaultdict(list)
    for address, following in after.items():
        for each in following:
            before[each].append(address)
    ways = _reach(begin, after) & _reach(int(end.address), before)
    if begin not in ways:
        raise UsageError(f"no way leads from '{path.begin.call.callee}' to '{path.end.callee}' in '{function.name}'")
    return _join((address, address + int(instructions[address].size)) for address in ways)


def _follow(kernel: Kernel, function: Function, instruction: Instruction) -> tuple[int, ...]:
    """Return the addresses of the possible next instructions in the same function."""
    behind = int(instruction.address + instruction.size)
    if any(instruction.group(group) for group in _ENDS) or instruction.mnemonic == "ud2":
        return ()
    if instruction.group(capstone.CS_GRP_CALL):
        target = target_of(instruction)
        callee = kernel.find_at(target) if target is not None else None
        return () if callee is not None and callee.name in _NEVER_RETURN else (behind,)
    if not instruction.group(capstone.CS_GRP_JUMP):
        return (behind,)
    target = target_of(instruction)
    if target is None:
        raise UsageError(f"'{function.name}' jumps through a pointer, so its ways cannot be followed")
    inside = (target,) if function.start <= target < function.end else ()
    return inside if instruction.mnemonic == "jmp" else (*inside, behind)


def _reach(start: int, following: Mapping[int, Iterable[int]]) -> set[int]:
    seen = set[int]()
    coming = [start]
    while coming:
        address = coming.pop()
        if address not in seen:
            seen.add(address)
            coming += following.get(address, ())
    return seen


def _join(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join ranges that touch."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)
