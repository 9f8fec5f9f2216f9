# SPDX-License-Identifier: GPL-2.0-or-later
"""Close wait regions over code that compilers, mitigations and debugging put between a wait and its loop.

A mechanism declares the stretches of code that wait, and the functions that these stretches call to wait
(``wait_calls``). The region contains these stretches, and the code that they reach by direct calls, by jumps, and by
pointers whose values are known from vmlinux. Two rules apply:

- From the stretches, the closure follows only the declared functions and the code that a build inserts: thunks of
  mitigations, stubs of tracing, checks of preemption. A wait that calls any other function has left its region.
  Otherwise a broken kernel would itself decide what it may execute.
- From these functions, the closure follows everything except what no waiting thread may do
  (:mod:`lab.kernelimage.exclusions`).
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

#: Functions that a build inserts although the source does not contain them, apart from thunks: tracing, checks of
#: preemption (CONFIG_DEBUG_PREEMPT), coverage (CONFIG_KCOV), trampolines of static calls.
_INSERTED: Final = re.compile(
    r"__fentry__|mcount|ftrace_(?:stub|caller|regs_caller)"
    r"|preempt_count_(?:add|sub)|debug_smp_processor_id|__this_cpu_preempt_check"
    r"|__sanitizer_cov_trace_\w+",
    re.ASCII,
)


class RegionPart(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of code in a wait region.

    :param why: how the region reaches this code
    """

    name: str
    start: int
    end: int
    why: str


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """The target of a call or jump from a wait region that is not part of the region.

    :param name: of the function, or what is known of the pointer
    :param by: ``symbol+0x..`` of the instruction
    """

    name: str
    by: str
    why: str


class WaitRegion(msgspec.Struct, frozen=True):
    """All code that a waiting thread may execute."""

    held: tuple[RegionPart, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def functions(self) -> tuple[str, ...]:
        """The sorted names of its functions."""
        return tuple(sorted({each.name for each in self.held}))


def close_region(kernel: Kernel, stretches: tuple[Stretch, ...], wait_calls: tuple[str, ...]) -> WaitRegion:
    """Return the wait region of a mechanism.

    :param wait_calls: names of functions; if this kernel does not have such a function, its compiler inlined the
        function
    :raise UsageError: a stretch is missing, its code is not readable, or the target of a followed function is unknown
    """
    return _Closing(kernel, wait_calls).run(stretches)


class _Stretch(msgspec.Struct, frozen=True):
    """Code to examine.

    :param declared: part of the mechanism's own stretches
    """

    function: Function
    start: int
    end: int
    declared: bool


class _Closing:
    """The region during its construction."""

    def __init__(self, kernel: Kernel, wait_calls: tuple[str, ...]) -> None:
        self.kernel = kernel
        self.allowed = {function.start for name in wait_calls for function in kernel.find_all(name)}
        self.parts: dict[int, RegionPart] = {}
        self.left_out: dict[tuple[str, str], LeftOut] = {}
        self.coming: list[_Stretch] = []

    def run(self, stretches: tuple[Stretch, ...]) -> WaitRegion:
        for stretch in stretches:
            for start, end in find_stretch(self.kernel, stretch):
                self._declare(stretch, start, end)
        while self.coming:
            self._follow(self.coming.pop(0))
        parts = sorted(self.parts.values(), key=lambda each: (each.start, each.end))
        names = {each.name for each in parts}
        left_out = sorted(
            (each for each in self.left_out.values() if each.name not in names), key=lambda each: (each.by, each.name)
        )
        return WaitRegion(tuple(parts), tuple(left_out))

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
        self.parts[start] = RegionPart(name=name, start=start, end=end, why="declared")

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
        """Return True if a jump of a replacement stays in the replacement."""
        section = self.kernel.sections.get(".altinstr_replacement")
        return section is not None and section.start <= target < section.start + len(section.data)

    def _follow_thunk(self, function: Function) -> None:
        """Follow the fixed jumps of a thunk. Its callers determine its variable target."""
        replaced = (each for found in list_replacements(self.kernel, function) for each in found)
        branches = (each for each in (*self.kernel.disassemble(function), *replaced) if is_branch(each))
        for target in map(target_of, branches):
            if target is not None and is_thunk(self.kernel, target):
                self._reach(target, function.name, False)

    def _find_targets(
        self, function: Function, instruction: Instruction, live: Mapping[int, State], declared: bool
    ) -> Iterator[tuple[int, str]]:
        """Yield the targets of a call or jump outside its function. Name the pointer that leads to each target."""
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
        """Yield all functions that a pointer can point to.

        A mechanism's own stretches also contain the primary's path. There, an unknown pointer counts as a way out.

        :raise UsageError: the targets are unknown
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
        if any(part.start <= target < part.end for part in self.parts.values()):
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
        self.parts[code.start] = RegionPart(name=code.name, start=code.start, end=code.end, why=by)
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
    """Return True if a thunk of a mitigation is at an address, under any of its names."""
    return is_return_thunk(kernel, address) or find_thunk_register(kernel, address) is not None
