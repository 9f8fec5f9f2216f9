# SPDX-License-Identifier: GPL-2.0-or-later
"""Find all instructions of a kernel that write MSR 0x79, in whatever way the MSR's number reaches them.

The search examines all WRMSRs of a kernel, and the possible values of ECX at each. It refuses the kernel if the path of
the update contains a WRMSR with an unknown number. This WRMSR may be the update itself, and the observer opens no
window at a site that it does not watch.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.kernelimage.constants import State, find_states, read_register
from lab.kernelimage.exclusions import why_excluded_by_name
from lab.kernelimage.flow import find_thunk_register, is_branch, is_return_thunk, target_of
from lab.kernelimage.vmlinux import Function, Instruction, Kernel

#: MSR_IA32_UCODE_WRITE.
UPDATE_MSR: Final = 0x79
#: WRMSR, WRMSRNS, and WRMSRNS with the number in the instruction.
_WRITES: Final = (b"\x0f\x30", b"\x0f\x01\xc6", b"\x7a\xf6")
_MNEMONICS: Final = ("wrmsr", "wrmsrns")
#: Functions that a load calls to update a CPU, before 6.7 and since 6.7.
_APPLY: Final = ("apply_microcode_local", "apply_microcode_intel", "apply_microcode_late", "__apply_microcode")
#: Functions into which the compiler may have inlined these.
_RENDEZVOUS: Final = (
    "__reload_late",
    "load_cpus_stopped",
    "microcode_update_handler",
    "microcode_nmi_handler",
    "load_primary",
    "__load_primary",
    "load_secondary",
)


class MsrWrite(msgspec.Struct, frozen=True):
    """One instruction that writes an MSR.

    :param numbers: of the MSRs that it may write; None if unknown
    """

    address: int
    numbers: frozenset[int] | None


def find_update_sites(kernel: Kernel) -> tuple[int, ...]:
    """Return the addresses of all writes to MSR 0x79.

    :raise UsageError: the path of the update contains a write to an unknown MSR, or code that is not readable
    """
    return kernel.remember("update sites", _find_update_sites)


def _find_update_sites(kernel: Kernel) -> tuple[int, ...]:
    path = _find_apply_path(kernel)
    # Outside this path, such as in early loading, only functions that contain the number need a check.
    writers = {each for each in _find_writers(kernel) if each in path or UPDATE_MSR in kernel.read(each)}
    sites = []
    for function in sorted({*writers, *path}, key=lambda each: each.start):
        if function in path and (cut := kernel.why_unreadable(function)):
            raise UsageError(f"the path of the update leads through '{function.name}', and {cut}")
        for write in list_writes(kernel, function) if function in writers else ():
            if write.numbers is None and function in path:
                raise UsageError(_format_unresolved(kernel, write, path[function]))
            if write.numbers is not None and UPDATE_MSR in write.numbers:
                sites.append(write.address)
    return tuple(sites)


def list_writes(kernel: Kernel, function: Function) -> Iterator[MsrWrite]:
    """Yield a function's writes of MSRs, in order."""
    writes = [each for each in kernel.disassemble(function) if is_write(each)]
    states = find_states(kernel, function) if writes else {}
    for each in writes:
        yield MsrWrite(int(each.address), _find_numbers(each, states[int(each.address)]))


def is_write(instruction: Instruction) -> bool:
    """Return True if an instruction writes an MSR, with any prefix."""
    return instruction.mnemonic.split()[-1] in _MNEMONICS


def _find_numbers(instruction: Instruction, state: State) -> frozenset[int] | None:
    named = getattr(instruction, "msr", None)
    if named is not None:
        return frozenset((named,))
    values = read_register(state, "ecx")
    if values is None:
        return None
    return frozenset(value for value in values if isinstance(value, int))


def _find_writers(kernel: Kernel) -> set[Function]:
    """Return all functions that contain the bytes of such an instruction. The bytes may be in the middle of others."""
    found = set()
    for start, data in kernel.code.items():
        for pattern in _WRITES:
            at = data.find(pattern)
            while at >= 0:
                function = kernel.find_at(start + at)
                if function is not None:
                    found.add(function)
                at = data.find(pattern, at + 1)
    return found


def _find_apply_path(kernel: Kernel) -> dict[Function, str]:
    """Return the functions that the update of a CPU may call, each with the path that reaches it."""
    path = {function: function.name for name in _RENDEZVOUS for function in kernel.find_all(name)}
    coming = [(function, function.name) for name in _APPLY for function in kernel.find_all(name)]
    while coming:
        function, way = coming.pop()
        if function in path:
            continue
        path[function] = way
        for target in _list_callees(kernel, function):
            callee = kernel.find_code(target)
            if callee is not None and not why_excluded_by_name(kernel, callee):
                coming.append((callee, f"{way}, {callee.name}"))
    return path


def _list_callees(kernel: Kernel, function: Function) -> Iterator[int]:
    for each in kernel.disassemble(function):
        target = target_of(each) if is_branch(each) else None
        if target is None or function.start <= target < function.end:
            continue
        if find_thunk_register(kernel, target) is None and not is_return_thunk(kernel, target):
            yield target


def _format_unresolved(kernel: Kernel, write: MsrWrite, way: str) -> str:
    return (
        f"the WRMSR at {kernel.symbolise(write.address)} is on the path of the update ({way}), and which MSR it writes"
        " cannot be told: ECX is no constant there, as in a native_write_msr() that is shared (CONFIG_PARAVIRT_XXL)"
    )
