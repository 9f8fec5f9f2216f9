# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait regions closed over what compilers, mitigations and debugging put between a wait and its loop.

A mechanism declares the stretches of code that wait, and the functions that these call to wait (``wait_calls``). The
region is those stretches, and all that is reached from them by direct calls, jumps, and pointers whose values vmlinux
tells, under two rules:

- From the stretches themselves only the declared functions are followed, and what a build inserts: thunks of
  mitigations, stubs of tracing, checks of preemption. A wait that calls anything else has left its region: otherwise a
  broken kernel would itself say what it may execute.
- From those, all is followed but what no waiting thread may do (:mod:`lab.kernelimage.exclusions`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.kernelimage.alternatives import list_replacements
from lab.kernelimage.code_ranges import find_stretch
from lab.kernelimage.constants import Loaded, State, Values, find_states, read_operand, read_register
from lab.kernelimage.exclusions import why_excluded
from lab.kernelimage.flow import find_thunk_register, is_branch, is_call, is_return_thunk, list_next, target_of
from lab.kernelimage.pointers import find_targets
from lab.kernelimage.vmlinux import Function, Instruction, Kernel
from lab.mechanisms.code_places import CopiedStretch, Stretch

#: What a build inserts into functions whose source has nothing of it, beside the thunks: tracing, checks of preemption
#: (CONFIG_DEBUG_PREEMPT), coverage (CONFIG_KCOV), trampolines of static calls.
_INSERTED: Final = re.compile(
    r"__fentry__|mcount|ftrace_(?:stub|caller|regs_caller)"
    r"|preempt_count_(?:add|sub)|debug_smp_processor_id|__this_cpu_preempt_check"
    r"|__sanitizer_cov_trace_\w+",
    re.ASCII,
)


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Code of a wait region.

    :param why: through what it is reached
    """

    name: str
    start: int
    end: int
    why: str


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """What code of a wait region calls or jumps to, and what is none of it.

    :param name: of the function, or what is known of the pointer
    :param by: ``symbol+0x..`` of the instruction
    """

    name: str
    by: str
    why: str


class WaitRegion(msgspec.Struct, frozen=True):
    """All code that a waiting thread may execute."""

    held: tuple[Held, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of its functions, in order."""
        return tuple(sorted({each.name for each in self.held}))


def close_region(kernel: Kernel, stretches: tuple[Stretch, ...], wait_calls: tuple[str, ...]) -> WaitRegion:
    """Return the wait region of a mechanism.

    :param wait_calls: names of functions; those that this kernel does not have were compiled into others
    :raise UsageError: a stretch is not there, its code cannot be read, or where a followed function goes cannot be told
    """
    return _Closing(kernel, wait_calls).run(stretches)


class _Stretch(msgspec.Struct, frozen=True):
    """Code to look at.

    :param declared: a part of the mechanism's own stretches
    """

    function: Function
    start: int
    end: int
    declared: bool


class _Closing:
    """The region as it grows."""

    def __init__(self, kernel: Kernel, wait_calls: tuple[str, ...]) -> None:
        self.kernel = kernel
        self.allowed = {function.start for name in wait_calls for function in kernel.find_all(name)}
        self.held: dict[int, Held] = {}
        self.left_out: dict[tuple[str, str], LeftOut] = {}
        self.coming: list[_Stretch] = []

    def run(self, stretches: tuple[Stretch, ...]) -> WaitRegion:
        for stretch in stretches:
            for start, end in find_stretch(self.kernel, stretch):
                self._declare(stretch, start, end)
        while self.coming:
            self._follow(self.coming.pop(0))
        held = sorted(self.held.values(), key=lambda each: (each.start, each.end))
        names = {each.name for each in held}
        left_out = sorted(
            (each for each in self.left_out.values() if each.name not in names), key=lambda each: (each.by, each.name)
        )
        return WaitRegion(tuple(held), tuple(left_out))

    def _declare(self, stretch: Stretch, start: int, end: int) -> None:
        if isinstance(stretch, CopiedStretch):
            name = stretch.copies.template
        else:
            function = self.kernel.find_at(start)
            assert function is not None
            cut = self.kernel.why_unreadable(function)
            if cut:
                raise UsageError(f"'{function.name}' is a part of it, and {cut}")
            name = function.name
            self.coming.append(_Stretch(function, start, end, True))
        self.held[start] = Held(name=name, start=start, end=end, why="declared")

    def _follow(self, stretch: _Stretch) -> None:
        kernel, function = self.kernel, stretch.function
        if is_thunk(kernel, function.start):
            self._follow_thunk(function)
            return
        live = find_states(kernel, function)
        for instruction in kernel.disassemble(function):
            if stretch.start <= instruction.address < stretch.end and is_branch(instruction):
                at = kernel.symbolise(int(instruction.address))
                for target, through in self._find_targets(function, instruction, live, stretch.declared):
                    self._reach(target, at + through, stretch.declared)
        for replacement in list_replacements(kernel, function):
            for instruction in replacement:
                goes_to = target_of(instruction) if is_branch(instruction) else None
                if goes_to is None or self._is_replaced(goes_to) or function.start <= goes_to < function.end:
                    continue
                self._reach(goes_to, f"what may replace a part of {function.name}", stretch.declared)

    def _is_replaced(self, target: int) -> bool:
        """Say whether a jump of a replacement stays in it."""
        section = self.kernel.sections.get(".altinstr_replacement")
        return section is not None and section.start <= target < section.start + len(section.data)

    def _follow_thunk(self, function: Function) -> None:
        """Follow what a thunk jumps to by itself; where it is sent to, those say who call it."""
        replaced = (each for found in list_replacements(self.kernel, function) for each in found)
        branches = (each for each in (*self.kernel.disassemble(function), *replaced) if is_branch(each))
        for target in map(target_of, branches):
            if target is not None and is_thunk(self.kernel, target):
                self._reach(target, function.name, False)

    def _find_targets(
        self, function: Function, instruction: Instruction, live: Mapping[int, State], declared: bool
    ) -> Iterator[tuple[int, str]]:
        """Yield where a call or jump goes outside of its function, each with the pointer that it goes through."""
        target = target_of(instruction)
        if target is not None and function.start <= target < function.end:
            return
        register = None
        if target is not None:
            yield target, ""
            register = find_thunk_register(self.kernel, target)
            if register is None:
                return
        elif list_next(self.kernel, function, instruction) and not is_call(instruction):
            return
        state = live[int(instruction.address)]
        values = (
            read_register(state, register)
            if register is not None
            else read_operand(state, instruction, instruction.operands[0])
        )
        yield from self._resolve(instruction, register or instruction.op_str, values, declared)

    def _resolve(
        self, instruction: Instruction, pointer: str, values: Values, declared: bool
    ) -> Iterator[tuple[int, str]]:
        """Yield all functions that a pointer can hold.

        Of the mechanism's own stretches, which have the primary's way in them too, one that cannot be told leads out.

        :raise UsageError: it cannot be told
        """
        at = self.kernel.symbolise(int(instruction.address))
        try:
            if values is None:
                raise UsageError(f"what the pointer '{pointer}' holds cannot be told")
            for value in values:
                if not isinstance(value, Loaded):
                    yield value, ""
                    continue
                found = self.kernel.find_object_at(value.address)
                name = found.name if found is not None else f"{value.address:#x}"
                for target in sorted(find_targets(self.kernel, value.address)):
                    yield target, f" through {name}"
        except UsageError as error:
            if not declared:
                raise UsageError(f"'{at}' calls through a pointer: {error}") from error
            self._leave_out("a call through a pointer", at, str(error))

    def _reach(self, target: int, by: str, declared: bool) -> None:
        if any(held.start <= target < held.end for held in self.held.values()):
            return
        thunk = is_thunk(self.kernel, target)
        code = self.kernel.find_label(target) if thunk else self.kernel.find_code(target)
        if code is None:
            self._leave_out(f"{target:#x}", by, "it is no code of vmlinux")
            return
        why = "" if thunk else self._why_not(code, declared)
        if why:
            self._leave_out(code.name, by, why)
            return
        self.held[code.start] = Held(name=code.name, start=code.start, end=code.end, why=by)
        self.coming.append(_Stretch(code, code.start, code.end, False))

    def _why_not(self, code: Function, declared: bool) -> str:
        why = why_excluded(self.kernel, code)
        if why:
            return why
        if declared and code.start not in self.allowed and not self._is_inserted(code.start):
            return "the mechanism's wait does not call it"
        return ""

    def _is_inserted(self, address: int) -> bool:
        return any(_INSERTED.fullmatch(name) for name in self.kernel.list_names(address))

    def _leave_out(self, name: str, by: str, why: str) -> None:
        self.left_out.setdefault((name, by), LeftOut(name=name, by=by, why=why))


def is_thunk(kernel: Kernel, address: int) -> bool:
    """Say whether there is a thunk of a mitigation at an address, under whatever name."""
    return is_return_thunk(kernel, address) or find_thunk_register(kernel, address) is not None
