# SPDX-License-Identifier: GPL-2.0-or-later
"""The possible values of a function's registers at each of its instructions, derived only from the function's own code.

The analysis follows constants through moves, arithmetic and the stack, along all paths through the function. A value
from a caller, from a callee or from memory is unknown. For a value loaded from a fixed address, the analysis knows this
address.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import capstone
import capstone.x86
import msgspec

from lab.kernelimage.flow import ADDRESS, is_call, list_next
from lab.kernelimage.vmlinux import Function, Instruction, Kernel

#: The analysis treats a larger set of values as unknown.
MAX_VALUES: Final = 8
_STACK: Final = "rsp"
#: Registers that a callee may overwrite (System V ABI).
_SCRATCH: Final = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
_LEGACY: Final = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")


class Loaded(msgspec.Struct, frozen=True):
    """The value that a fixed address contains at the time of a read."""

    address: int


Value = int | Loaded
#: None means unknown.
Values = frozenset[Value] | None


class State(msgspec.Struct, frozen=True):
    """The known values before one instruction.

    :param registers: by the name of the whole register, or of its low part if only this part is known; a missing
        register is unknown
    :param depth: distance of the stack pointer from its value at the function's entry; None means unknown
    :param stack: values by this distance, eight bytes each
    """

    registers: Mapping[str, frozenset[Value]] = {}
    depth: int | None = 0
    stack: Mapping[int, frozenset[Value]] = {}


class _Part(msgspec.Struct, frozen=True):
    """The register and the bits that a register's name stands for."""

    whole: str
    shift: int
    bits: int


def _list_parts() -> dict[str, _Part]:
    parts = dict[str, _Part]()
    for name in _LEGACY:
        whole, low = f"r{name}", f"{name[0]}l" if name.endswith("x") else f"{name}l"
        parts |= {whole: _Part(whole, 0, 64), f"e{name}": _Part(whole, 0, 32), name: _Part(whole, 0, 16)}
        parts[low] = _Part(whole, 0, 8)
        if name.endswith("x"):
            parts[f"{name[0]}h"] = _Part(whole, 8, 8)
    for number in range(8, 16):
        whole = f"r{number}"
        parts |= {f"{whole}{end}": _Part(whole, 0, bits) for end, bits in (("", 64), ("d", 32), ("w", 16), ("b", 8))}
    return parts


_PARTS: Final = _list_parts()

_Two = Callable[[int, int], int]
#: Operations on two operands. The first operand takes the result.
_BINARY: Final[Mapping[str, _Two]] = {
    "add": lambda one, other: one + other,
    "sub": lambda one, other: one - other,
    "and": lambda one, other: one & other,
    "or": lambda one, other: one | other,
    "xor": lambda one, other: one ^ other,
    "shl": lambda one, other: one << (other & 63),
    "sal": lambda one, other: one << (other & 63),
    "shr": lambda one, other: one >> (other & 63),
    "imul": lambda one, other: one * other,
}
_UNARY: Final[Mapping[str, Callable[[int], int]]] = {
    "inc": lambda one: one + 1,
    "dec": lambda one: one - 1,
    "neg": lambda one: -one,
    "not": lambda one: ~one,
}
_MOVES: Final = ("mov", "movabs", "movzx")
_SIGNED: Final = ("movsx", "movsxd")
_COMPUTED: Final = (*_MOVES, *_SIGNED, *_BINARY, "lea")
_WORD: Final = 8
K = TypeVar("K", str, int)


def find_states(kernel: Kernel, function: Function) -> Mapping[int, State]:
    """Return the known values before each instruction of a function.

    Code that no path from the function's entry reaches is reached in another way, so the analysis knows nothing there.
    """
    code = {int(each.address): each for each in kernel.disassemble(function)}
    states: dict[int, State] = {}
    _spread(kernel, function, code, states, function.start, State())
    for address in code:
        if address not in states:
            _spread(kernel, function, code, states, address, State(depth=None))
    return states


def read_register(state: State, name: str) -> Values:
    """Return the possible values of a register, by any of its names."""
    part = _PARTS[name]
    if part.whole not in state.registers:
        return state.registers.get(name)
    return _map(lambda whole: whole >> part.shift, state.registers[part.whole], part.bits)


def read_operand(state: State, instruction: Instruction, operand: capstone.x86.X86Op) -> Values:
    """Return the possible values of an operand."""
    bits = 8 * int(operand.size)
    if operand.type == capstone.x86.X86_OP_IMM:
        return frozenset((int(operand.imm) & ((1 << bits) - 1),))
    if operand.type == capstone.x86.X86_OP_REG:
        name = instruction.reg_name(operand.reg)
        return read_register(state, name) if name in _PARTS else None
    address = find_fixed_address(instruction, operand)
    if address is not None:
        return frozenset((Loaded(address),)) if bits == 64 else None
    slot = _find_slot(state, operand)
    return _map(lambda whole: whole, state.stack.get(slot), bits) if slot is not None else None


def find_fixed_address(instruction: Instruction, operand: capstone.x86.X86Op) -> int | None:
    """Return the address of an operand in memory; None if the address depends on registers or a segment."""
    if operand.type != capstone.x86.X86_OP_MEM or operand.mem.segment or operand.mem.index:
        return None
    if not operand.mem.base:
        return int(operand.mem.disp) & ADDRESS
    if operand.mem.base == capstone.x86.X86_REG_RIP:
        return int(instruction.address + instruction.size + operand.mem.disp) & ADDRESS
    return None


def _spread(
    kernel: Kernel,
    function: Function,
    code: Mapping[int, Instruction],
    states: dict[int, State],
    start: int,
    state: State,
) -> None:
    """Follow all paths from one instruction, until the analysis finds nothing new."""
    coming = [(start, state)]
    while coming:
        address, state = coming.pop()
        if address not in code:
            continue
        known = states.get(address)
        joined = state if known is None else _join(known, state)
        if joined == known:
            continue
        states[address] = joined
        behind = _execute(joined, code[address])
        coming += [(each, behind) for each in list_next(kernel, function, code[address])]


def _join(one: State, other: State) -> State:
    same = one.depth == other.depth
    return State(
        registers=_join_values(one.registers, other.registers),
        depth=one.depth if same else None,
        stack=_join_values(one.stack, other.stack) if same else {},
    )


def _join_values(one: Mapping[K, frozenset[Value]], other: Mapping[K, frozenset[Value]]) -> dict[K, frozenset[Value]]:
    joined = {name: values | other[name] for name, values in one.items() if name in other}
    return {name: values for name, values in joined.items() if len(values) <= MAX_VALUES}


def _execute(state: State, instruction: Instruction) -> State:
    """Return the known values after an instruction."""
    if is_call(instruction):
        kept = {name: values for name, values in state.registers.items() if _PARTS[name].whole not in _SCRATCH}
        return State(registers=kept, depth=state.depth)
    name = instruction.mnemonic.split()[-1]
    operands = instruction.operands
    if name == "push":
        return _push(state, read_operand(state, instruction, operands[0]))
    if name == "pop" and operands[0].type == capstone.x86.X86_OP_REG:
        return _pop(state, instruction)
    if len(operands) >= 2 and operands[0].type == capstone.x86.X86_OP_REG:
        target = instruction.reg_name(operands[0].reg)
        if target == _STACK:
            return _move_stack(state, instruction)
        if target in _PARTS and name == "xchg":
            return _exchange(state, instruction)
        if target in _PARTS and (name in _COMPUTED or name.startswith("cmov")):
            return _write(state, target, _compute(state, instruction))
    if len(operands) == 1 and name in _UNARY and operands[0].type == capstone.x86.X86_OP_REG:
        values = _map(_UNARY[name], read_operand(state, instruction, operands[0]), 8 * int(operands[0].size))
        return _write(state, instruction.reg_name(operands[0].reg), values)
    if name == "mov" and operands[0].type == capstone.x86.X86_OP_MEM:
        return _store(state, instruction)
    return _forget(state, instruction)


def _compute(state: State, instruction: Instruction) -> Values:
    """Return the values that an instruction leaves in the register of its first operand."""
    name, target = instruction.mnemonic.split()[-1], instruction.operands[0]
    source = instruction.operands[1]
    bits = 8 * int(target.size)
    if name == "lea":
        return _read_sum(state, instruction, source, bits)
    if name in ("xor", "sub") and source.type == capstone.x86.X86_OP_REG and source.reg == target.reg:
        return frozenset((0,))
    given = read_operand(state, instruction, source)
    if name in _MOVES:
        return given
    if name in _SIGNED:
        top = 1 << (8 * int(source.size) - 1)
        return _map(lambda value: (value ^ top) - top, given, bits)
    if name == "imul" and len(instruction.operands) > 2:
        return _combine(_BINARY[name], given, read_operand(state, instruction, instruction.operands[2]), bits)
    own = read_operand(state, instruction, target)
    if name.startswith("cmov"):
        return None if own is None or given is None else own | given
    return _combine(_BINARY[name], own, given, bits)


def _read_sum(state: State, instruction: Instruction, operand: capstone.x86.X86Op, bits: int) -> Values:
    """Return the possible addresses of an operand in memory."""
    fixed = find_fixed_address(instruction, operand)
    if fixed is not None:
        return frozenset((fixed & ((1 << bits) - 1),))
    total: Values = frozenset((int(operand.mem.disp),))
    for register, scale in ((operand.mem.base, 1), (operand.mem.index, int(operand.mem.scale))):
        name = instruction.reg_name(register) if register else ""
        if not name:
            continue
        part = read_register(state, name) if name in _PARTS and name != _STACK else None
        total = _combine(lambda one, other, scale=scale: one + scale * other, total, part, bits)  # type: ignore[misc]
    return total


def _map(change: Callable[[int], int], values: Values, bits: int) -> Values:
    """Apply a change to all of some values. The result is unknown if one of the values comes from memory."""
    if values is None:
        return None
    if any(isinstance(value, Loaded) for value in values):
        return values if bits == 64 and change(-1) == -1 else None
    return frozenset(change(value) & ((1 << bits) - 1) for value in values if isinstance(value, int))


def _combine(operation: _Two, one: Values, other: Values, bits: int) -> Values:
    if one is None or other is None:
        return None
    whole = [value for value in (*one, *other) if isinstance(value, int)]
    if len(whole) != len(one) + len(other):
        return None
    mask = (1 << bits) - 1
    found = frozenset(
        operation(first, second) & mask
        for first in one
        for second in other
        if isinstance(first, int) and isinstance(second, int)
    )
    return found if len(found) <= MAX_VALUES else None


def _write(state: State, name: str, values: Values) -> State:
    """Return the state after a write to a register.

    A write of 32 bits clears the upper half. A smaller write keeps the other bits.
    """
    part = _PARTS.get(name)
    if part is None:
        return state
    whole = state.registers.get(part.whole)
    kept = {register: there for register, there in state.registers.items() if _PARTS[register].whole != part.whole}
    target = part.whole
    if part.bits < 32 and whole is not None:
        mask = ((1 << part.bits) - 1) << part.shift
        values = _combine(lambda old, new: old & ~mask | new << part.shift, whole, values, 64)
    elif part.bits < 32:
        target = name
    registers = kept if values is None else {**kept, target: values}
    return msgspec.structs.replace(state, registers=registers)


def _push(state: State, values: Values) -> State:
    if state.depth is None:
        return state
    depth = state.depth - _WORD
    return msgspec.structs.replace(state, depth=depth, stack=_put(state.stack, depth, values))


def _pop(state: State, instruction: Instruction) -> State:
    values = None if state.depth is None else state.stack.get(state.depth)
    depth = None if state.depth is None else state.depth + _WORD
    name = instruction.reg_name(instruction.operands[0].reg)
    return _write(msgspec.structs.replace(state, depth=depth), name, values)


def _put(stack: Mapping[int, frozenset[Value]], slot: int, values: Values) -> dict[int, frozenset[Value]]:
    """Return the stack after a write to one slot. Slots that partly overlap this slot become unknown."""
    kept = {at: there for at, there in stack.items() if abs(at - slot) >= _WORD}
    return kept if values is None else {**kept, slot: values}


def _move_stack(state: State, instruction: Instruction) -> State:
    """Follow the stack pointer if an instruction adds a constant to it. After any other change, forget the stack."""
    name, source = instruction.mnemonic, instruction.operands[1]
    if name in ("add", "sub") and source.type == capstone.x86.X86_OP_IMM and state.depth is not None:
        by = int(source.imm)
        return msgspec.structs.replace(state, depth=state.depth + (by if name == "add" else -by))
    return msgspec.structs.replace(state, depth=None, stack={})


def _exchange(state: State, instruction: Instruction) -> State:
    one, other = instruction.operands[:2]
    if other.type != capstone.x86.X86_OP_REG:
        return _forget(state, instruction)
    values, given = (read_operand(state, instruction, each) for each in (one, other))
    return _write(_write(state, instruction.reg_name(one.reg), given), instruction.reg_name(other.reg), values)


def _find_slot(state: State, operand: capstone.x86.X86Op) -> int | None:
    """Return the stack slot of an operand; None if the operand may be something else."""
    if operand.type != capstone.x86.X86_OP_MEM or operand.mem.index or state.depth is None:
        return None
    if operand.mem.base != capstone.x86.X86_REG_RSP:
        return None
    return state.depth + int(operand.mem.disp)


def _store(state: State, instruction: Instruction) -> State:
    """Record a store to the stack. A store to an unknown address may change the stack, too."""
    operand, source = instruction.operands[:2]
    if find_fixed_address(instruction, operand) is not None:
        return state
    slot = _find_slot(state, operand)
    if slot is None:
        return msgspec.structs.replace(state, stack={})
    values = read_operand(state, instruction, source) if int(operand.size) == _WORD else None
    return msgspec.structs.replace(state, stack=_put(state.stack, slot, values))


def _forget(state: State, instruction: Instruction) -> State:
    """Forget all values that an instruction may have changed."""
    _, written = instruction.regs_access()
    names = {_PARTS[name].whole for name in map(instruction.reg_name, written) if name in _PARTS}
    kept = {name: values for name, values in state.registers.items() if _PARTS[name].whole not in names}
    moved = _STACK in names
    writes = any(
        operand.type == capstone.x86.X86_OP_MEM and operand.access & capstone.CS_AC_WRITE
        for operand in instruction.operands
    )
    stack = {} if moved or writes else state.stack
    return State(registers=kept, depth=None if moved else state.depth, stack=stack)
