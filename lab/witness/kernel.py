# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's functions, code and other symbols, read from its vmlinux."""

import difflib
import re
import struct
from pathlib import Path
from typing import Final

import capstone
import msgspec
import numpy as np
import numpy.typing as npt
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from lab.errors import UsageError

#: Elf64_Sym, see elf(5).
_SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
#: Functions, and what entry_64.S declares as code that is not called (SYM_CODE_START), such as asm_exc_nmi.
_CODE_TYPES: Final = (0, 2)  # STT_NOTYPE, STT_FUNC
#: Data, labels in it, and numbers (``.set``).
_OBJECT_TYPES: Final = (0, 1)  # STT_NOTYPE, STT_OBJECT
_SHN_UNDEF: Final = 0
_SHF_EXECINSTR: Final = 0x4
#: What the compiler appends to the name of a function that it specialised for its callers.
_CLONE: Final = re.compile(r"(?:\.(?:constprop|isra)\.\d+)+$", re.ASCII)
#: How many names an error offers in place of one that does not exist.
_NEAREST: Final = 3

#: ``mov $0x79, %ecx``: MSR_IA32_UCODE_WRITE on its way to WRMSR.
_MOV_79: Final = b"\xb9" + struct.pack("<I", 0x79)
_ECX: Final = ("ecx", "rcx", "cx", "cl")
#: The disassembler gives addresses as signed numbers.
_ALL_BITS: Final = 2**64 - 1


class Function(msgspec.Struct, frozen=True):
    """One function; ``end`` is the first address behind it."""

    name: str
    start: int
    end: int


class Object(msgspec.Struct, frozen=True):
    """What a symbol that is no function stands for: data, a label in it, or a number, which is ``start`` then."""

    name: str
    start: int
    size: int


class Kernel:
    """Functions by name and by address, their code, and other symbols by name. Make it with :func:`read_kernel`."""

    def __init__(
        self,
        functions: tuple[Function, ...],
        text: dict[int, bytes],
        objects: tuple[Object, ...] = (),
        data: dict[int, bytes] | None = None,
    ) -> None:
        self._functions = functions
        self._starts = np.array([function.start for function in functions], dtype=np.uint64)
        self._named: dict[str, list[Function]] = {}
        self._clones: dict[str, list[Function]] = {}
        for function in functions:
            self._named.setdefault(function.name, []).append(function)
            source_name = _CLONE.sub("", function.name)
            if source_name != function.name:
                self._clones.setdefault(source_name, []).append(function)
        self._text = text
        self._objects: dict[str, list[Object]] = {}
        for found in objects:
            self._objects.setdefault(found.name, []).append(found)
        self._data = data or {}

    def find(self, name: str) -> Function:
        """Return the function of that name, or else what the compiler made of it.

        :raise UsageError: there is none, and the text offers the nearest names, or there are several
        """
        found = self._named.get(name) or self._clones.get(name, [])
        if len(found) == 1:
            return found[0]
        if found:
            places = ", ".join(f"{function.start:#x}" for function in found)
            raise UsageError(f"landmark '{name}' is ambiguous in this kernel: functions of that name at {places}")
        nearest = difflib.get_close_matches(name, self._named, n=_NEAREST)
        hint = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        raise UsageError(f"landmark '{name}' is not in this kernel{hint}")

    def find_if(self, name: str) -> Function | None:
        """Return the function that :meth:`find` does, and None where there is none at all.

        :raise UsageError: there are several
        """
        return self.find(name) if name in self._named or name in self._clones else None

    def find_object(self, name: str) -> Object:
        """Return what a symbol that is no function stands for.

        :raise UsageError: there is none, or there are several
        """
        found = self._objects.get(name, [])
        if len(found) != 1:
            raise UsageError(f"this kernel has {len(found)} symbols '{name}' that are no functions: one is needed")
        return found[0]

    def read_object(self, name: str) -> bytes:
        """Return an object's constant data.

        :raise UsageError: there is no such object, or it is not among the constants
        """
        found = self.find_object(name)
        for start, data in self._data.items():
            if start <= found.start and found.start + found.size <= start + len(data):
                return data[found.start - start : found.start - start + found.size]
        raise UsageError(f"'{name}' is not among the constants of this kernel")

    def find_at(self, address: int) -> Function | None:
        """Return the function that an address lies in."""
        index = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        if index < 0 or address >= self._functions[index].end:
            return None
        return self._functions[index]

    def symbolise(self, address: int) -> str:
        """Return ``symbol+0x..``, or nothing for an address outside every function."""
        function = self.find_at(address)
        return "" if function is None else f"{function.name}+{address - function.start:#x}"

    def read(self, function: Function) -> bytes:
        """Return a function's code.

        :raise UsageError: it is in no section of code
        """
        for start, data in self._text.items():
            if start <= function.start and function.end <= start + len(data):
                return data[function.start - start : function.end - start]
        raise UsageError(f"landmark '{function.name}' has no code in this kernel")

    def disassemble(self, function: Function) -> tuple[capstone.CsInsn, ...]:
        """Return a function's instructions, with their operands."""
        engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        engine.detail = True
        return tuple(engine.disasm(self.read(function), function.start))

    def find_update_sites(self) -> tuple[int, ...]:
        """Return the addresses of all WRMSR to MSR 0x79.

        They are found by the constant on its way to ECX (the MSR's number is one, at every site of the loader) and
        every WRMSR that is reached from there with ECX unchanged: a compiler loads it once for two in a row.
        """
        sites: set[int] = set()
        for start, data in self._text.items():
            at = data.find(_MOV_79)
            while at >= 0:
                function = self.find_at(start + at)
                if function is not None:
                    sites.update(self._follow(function, start + at))
                at = data.find(_MOV_79, at + 1)
        return tuple(sorted(sites))

    def _follow(self, function: Function, moved_at: int) -> set[int]:
        """Walk all ways through a function from behind the move, each up to where ECX is something else."""
        code = {instruction.address: instruction for instruction in self.disassemble(function)}
        sites: set[int] = set()
        if moved_at not in code:
            return sites
        seen: set[int] = set()
        ways = [moved_at + code[moved_at].size]
        while ways:
            address = ways.pop()
            if address in seen or address not in code:
                continue
            seen.add(address)
            instruction = code[address]
            if instruction.mnemonic == "wrmsr":
                sites.add(address)
            if not _changes_ecx(instruction):
                ways += _find_next(instruction)
        return sites


def _changes_ecx(instruction: capstone.CsInsn) -> bool:
    """Say whether ECX may be another behind an instruction: a function that is called may use it as it likes."""
    if instruction.group(capstone.CS_GRP_CALL):
        return True
    _, written = instruction.regs_access()
    return any(instruction.reg_name(register) in _ECX for register in written)


def _find_next(instruction: capstone.CsInsn) -> list[int]:
    """Return where a function goes on behind one of its instructions; of a jump through a register nobody knows."""
    behind = [instruction.address + instruction.size]
    if instruction.group(capstone.CS_GRP_RET) or instruction.group(capstone.CS_GRP_IRET):
        return []
    if not instruction.group(capstone.CS_GRP_JUMP):
        return behind
    target = instruction.operands[0]
    targets = [int(target.imm) & _ALL_BITS] if target.type == capstone.x86.X86_OP_IMM else []
    return targets if instruction.mnemonic == "jmp" else [*behind, *targets]


def read_kernel(vmlinux: Path) -> Kernel:
    """Read a vmlinux.

    :raise UsageError: it cannot be read, is no x86-64 kernel, or is stripped
    """
    try:
        with open(vmlinux, "rb") as source:
            elf = ELFFile(source)
            if elf["e_machine"] != "EM_X86_64":
                raise UsageError(f"vmlinux '{vmlinux}' is not for x86-64")
            symbols = elf.get_section_by_name(".symtab")
            if symbols is None:
                raise UsageError(f"vmlinux '{vmlinux}' is stripped: a symbol table is needed to find landmarks")
            names = elf.get_section(symbols["sh_link"]).data()
            code = {
                index: section
                for index, section in enumerate(elf.iter_sections())
                if section["sh_flags"] & _SHF_EXECINSTR and section["sh_type"] == "SHT_PROGBITS"
            }
            text = {int(section["sh_addr"]): bytes(section.data()) for section in code.values()}
            constants = elf.get_section_by_name(".rodata")
            data = {int(constants["sh_addr"]): bytes(constants.data())} if constants is not None else {}
            functions = _read_functions(symbols.data(), names, tuple(code))
            objects = _read_objects(symbols.data(), names, tuple(code))
    except OSError as error:
        raise UsageError(f"vmlinux '{vmlinux}' cannot be read: {error.strerror}") from error
    except (ELFError, ValueError, struct.error) as error:
        raise UsageError(f"vmlinux '{vmlinux}' is not an ELF file") from error
    return Kernel(functions, text, objects, data)


def _read_functions(symbols: bytes, names: bytes, sections: tuple[int, ...]) -> tuple[Function, ...]:
    table = _read_table(symbols)
    is_code = np.isin(table["info"] & 0xF, _CODE_TYPES) & np.isin(table["section"], sections)
    table = table[is_code & (table["size"] != 0)]
    table = np.sort(table, order="value", kind="stable")
    return tuple(
        Function(
            name=_read_name(names, entry["name"]),
            start=int(entry["value"]),
            end=int(entry["value"] + entry["size"]),
        )
        for entry in table
    )


def _read_objects(symbols: bytes, names: bytes, sections: tuple[int, ...]) -> tuple[Object, ...]:
    table = _read_table(symbols)
    table = table[np.isin(table["info"] & 0xF, _OBJECT_TYPES) & ~np.isin(table["section"], (_SHN_UNDEF, *sections))]
    return tuple(
        Object(name=_read_name(names, entry["name"]), start=int(entry["value"]), size=int(entry["size"]))
        for entry in table
    )


def _read_table(symbols: bytes) -> npt.NDArray[np.void]:
    return np.frombuffer(symbols[: len(symbols) // _SYMBOL.itemsize * _SYMBOL.itemsize], dtype=_SYMBOL)


def _read_name(names: bytes, offset: int) -> str:
    return names[offset : names.index(b"\0", offset)].decode(errors="backslashreplace")
