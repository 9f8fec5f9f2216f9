# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's functions, code and other symbols, from its vmlinux."""

import difflib
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast

import capstone
import msgspec
import numpy as np
import numpy.typing as npt
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from lab.errors import UsageError
from lab.kernelimage.elf import find_build_id

#: Elf64_Sym, see elf(5).
_SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
#: Functions, and code of entry_64.S that is not called (SYM_CODE_START), such as asm_exc_nmi.
_CODE_TYPES: Final = (0, 2)  # STT_NOTYPE, STT_FUNC
#: Data, labels in data, and numbers (``.set``).
_OBJECT_TYPES: Final = (0, 1)  # STT_NOTYPE, STT_OBJECT
_SHN_UNDEF: Final = 0
_SHF_ALLOC: Final = 0x2
_SHF_EXECINSTR: Final = 0x4
#: Suffix that the compiler adds to the name of a function that it specialised for its callers.
_CLONE: Final = re.compile(r"(?:\.(?:constprop|isra)\.\d+)+$", re.ASCII)
#: What the compiler names a part of a function that it has split off.
_PART: Final = re.compile(r"(?:\.(?:constprop|isra)\.\d+)*\.part\.\d+(?:\.(?:constprop|isra)\.\d+)*$", re.ASCII)
_POINTER_BYTES: Final = 8
#: Bytes that may fill the space behind a function's last instruction.
_PADDING: Final = b"\x00\x90\xcc"
#: An error offers this many similar names if a name does not exist.
_NEAREST: Final = 3

#: Capstone 5 reads neither WRMSRNS nor the forms of WRMSRNS and RDMSR that contain the MSR's number.
_WRMSRNS: Final = b"\x0f\x01\xc6"
_WRMSRNS_IMMEDIATE: Final = re.compile(rb"\xc4[\xe7\xc7]\x7a\xf6[\xc0-\xc7](....)", re.DOTALL)
#: Two such encodings exist. The prefix distinguishes them: F3 writes, F2 reads.
_RDMSR_IMMEDIATE: Final = re.compile(rb"\xc4[\xe7\xc7]\x7b\xf6[\xc0-\xc7](....)", re.DOTALL)

T = TypeVar("T")


class MsrAccess(msgspec.Struct, frozen=True, kw_only=True):
    """An instruction that capstone does not know, with the needed part of capstone's interface.

    :param msr: the MSR's number in the instruction; None if the number is in ECX
    """

    address: int
    size: int
    mnemonic: str
    msr: int | None = None
    op_str: str = ""
    operands: tuple[Any, ...] = ()
    prefix: tuple[int, ...] = (0, 0, 0, 0)

    def group(self, _group: int) -> bool:
        """Return False: the instruction is neither a call nor a jump nor a return."""
        return False

    def regs_access(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the general registers that it reads and writes. The lab needs only those that it writes: none."""
        return (), ()

    def reg_name(self, _register: int) -> str:
        """Return a register's name."""
        raise LookupError("no register is told of")


Instruction: TypeAlias = capstone.CsInsn | MsrAccess


class Function(msgspec.Struct, frozen=True):
    """One function. ``end`` is the first address behind it."""

    name: str
    start: int
    end: int


class Object(msgspec.Struct, frozen=True):
    """A symbol that is not a function: data, a label in data, or a number. A number is in ``start``."""

    name: str
    start: int
    size: int


class Section(msgspec.Struct, frozen=True):
    """A part of vmlinux that the boot loads into memory."""

    start: int
    data: bytes


class Kernel:
    """Functions by name and by address, their code, and other symbols by name. :func:`read_kernel` makes it."""

    def __init__(
        self,
        functions: tuple[Function, ...],
        text: dict[int, bytes],
        objects: tuple[Object, ...] = (),
        data: dict[int, bytes] | None = None,
        labels: tuple[Function, ...] = (),
        sections: Mapping[str, Section] | None = None,
        build_id: str = "",
    ) -> None:
        self.build_id = build_id
        self._functions = functions
        self._code_at: dict[int, list[Function]] = {}
        for code in (*functions, *labels):
            self._code_at.setdefault(code.start, []).append(code)
        self._made: dict[str, object] = {}
        self._disassembled: dict[Function, tuple[Instruction, ...]] = {}
        #: Sections of vmlinux with content, by name.
        self.sections = sections or {}
        self._starts = np.array([function.start for function in functions], dtype=np.uint64)
        self._named: dict[str, list[Function]] = {}
        self._clones: dict[str, list[Function]] = {}
        self._parts: dict[str, list[Function]] = {}
        for function in functions:
            self._named.setdefault(function.name, []).append(function)
            source_name = _CLONE.sub("", function.name)
            if source_name != function.name:
                self._clones.setdefault(source_name, []).append(function)
            whole = _PART.sub("", function.name)
            if whole != function.name:
                self._parts.setdefault(whole, []).append(function)
        self._text = text
        self._objects: dict[str, list[Object]] = {}
        for found in objects:
            self._objects.setdefault(found.name, []).append(found)
        self._data = data or {}

    def find(self, name: str) -> Function:
        """Return the function of a name, or else its specialised variant from the compiler.

        :raise UsageError: there is no such function, and the text offers similar names; or there are several
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
        """Return the same function as :meth:`find`; None if there is no such function.

        :raise UsageError: there are several
        """
        return self.find(name) if name in self._named or name in self._clones else None

    def find_all(self, name: str) -> tuple[Function, ...]:
        """Return all functions of a name, and all their specialised variants."""
        return (*self._named.get(name, ()), *self._clones.get(name, ()))

    def find_parts(self, name: str) -> tuple[Function, ...]:
        """Return what the compiler split off a function: callers that have the rest inlined call that part alone."""
        return tuple(self._parts.get(name, ()))

    def remember(self, what: str, make: Callable[["Kernel"], T]) -> T:
        """Return a value derived from this kernel. Compute the value only once."""
        if what not in self._made:
            self._made[what] = make(self)
        return cast(T, self._made[what])

    def has_object(self, name: str) -> bool:
        """Say whether there is a symbol of a name that is not a function."""
        return name in self._objects

    def find_object(self, name: str) -> Object:
        """Return the object of a symbol that is not a function.

        :raise UsageError: there is no such symbol, or there are several
        """
        found = self._objects.get(name, [])
        if len(found) != 1:
            raise UsageError(f"this kernel has {len(found)} symbols '{name}' that are no functions: one is needed")
        return found[0]

    def read_object(self, name: str) -> bytes:
        """Return an object's constant data.

        :raise UsageError: there is no such object, or it is not constant data
        """
        found = self.find_object(name)
        for start, data in self._data.items():
            if start <= found.start and found.start + found.size <= start + len(data):
                return data[found.start - start : found.start - start + found.size]
        raise UsageError(f"'{name}' is not among the constants of this kernel")

    def find_at(self, address: int) -> Function | None:
        """Return the function that contains an address."""
        index = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        if index < 0 or address >= self._functions[index].end:
            return None
        return self._functions[index]

    def find_code(self, address: int) -> Function | None:
        """Return the code that a call to an address enters: a function, or the code behind a label without a size."""
        there = self._code_at.get(address)
        return there[0] if there else self.find_at(address)

    def find_label(self, address: int) -> Function | None:
        """Return the code behind the innermost label at an address; several thunks may share a symbol's size."""
        there = self._code_at.get(address)
        return min(there, key=lambda code: code.end) if there else self.find_at(address)

    def list_names(self, address: int) -> tuple[str, ...]:
        """Return all names of the code that begins at an address. A thunk has several names."""
        return tuple(code.name for code in self._code_at.get(address, ()))

    def find_named(self, pattern: re.Pattern[str]) -> frozenset[int]:
        """Return the addresses of all code whose whole name matches a pattern."""
        return frozenset(
            start for start, there in self._code_at.items() if any(pattern.fullmatch(code.name) for code in there)
        )

    def find_object_at(self, address: int) -> Object | None:
        """Return the data that contains an address."""
        for there in self._objects.values():
            for found in there:
                if found.start <= address < found.start + found.size:
                    return found
        return None

    def read_pointer(self, address: int) -> int | None:
        """Return the eight bytes at an address in vmlinux; None if vmlinux has no bytes there."""
        for section in self.sections.values():
            at = address - section.start
            if 0 <= at <= len(section.data) - _POINTER_BYTES:
                return int.from_bytes(section.data[at : at + _POINTER_BYTES], "little")
        return None

    def find_code_section(self, address: int) -> int | None:
        """Return the begin of the code section that contains an address."""
        return next((start for start, data in self._text.items() if start <= address < start + len(data)), None)

    @property
    def code(self) -> Mapping[int, bytes]:
        """All code, by the address of its first byte."""
        return self._text

    def symbolise(self, address: int) -> str:
        """Return ``symbol+0x..``; empty for an address outside all functions."""
        function = self.find_at(address)
        return "" if function is None else f"{function.name}+{address - function.start:#x}"

    def read(self, function: Function) -> bytes:
        """Return a function's code.

        :raise UsageError: the function is in no code section
        """
        for start, data in self._text.items():
            if start <= function.start and function.end <= start + len(data):
                return data[function.start - start : function.end - start]
        raise UsageError(f"landmark '{function.name}' has no code in this kernel")

    def disassemble(self, function: Function) -> tuple[Instruction, ...]:
        """Return a function's instructions with their operands, up to the first instruction that is not readable."""
        known = self._disassembled.get(function)
        if known is None:
            known = self._disassembled[function] = tuple(disassemble(self.read(function), function.start))
        return known

    def why_unreadable(self, function: Function) -> str:
        """Return where a function's readable instructions end before the function ends; empty if all are readable."""
        instructions = self.disassemble(function)
        end = instructions[-1].address + instructions[-1].size if instructions else function.start
        if not self.read(function)[end - function.start :].strip(_PADDING):
            return ""
        return f"what is at {function.name}+{end - function.start:#x} cannot be disassembled"


def disassemble(code: bytes, address: int) -> Iterator[Instruction]:
    """Yield the instructions of some code, up to the first instruction that is not readable."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    done = 0
    while done < len(code):
        for instruction in engine.disasm(code[done:], address + done):
            yield instruction
            done = instruction.address + instruction.size - address
        unknown = _read_msr_access(code[done:], address + done)
        if unknown is None:
            return
        yield unknown
        done += unknown.size


def _read_msr_access(code: bytes, address: int) -> MsrAccess | None:
    if code.startswith(_WRMSRNS):
        return MsrAccess(address=address, size=len(_WRMSRNS), mnemonic="wrmsrns")
    for pattern, mnemonic in ((_WRMSRNS_IMMEDIATE, "wrmsrns"), (_RDMSR_IMMEDIATE, "rdmsr")):
        if match := pattern.match(code):
            msr = int.from_bytes(match[1], "little")
            return MsrAccess(address=address, size=len(match[0]), mnemonic=mnemonic, msr=msr)
    return None


def read_kernel(vmlinux: Path) -> Kernel:
    """Read a vmlinux.

    :raise UsageError: the file is not readable, is not an x86-64 kernel, or is stripped
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
            labels = _read_labels(
                symbols.data(), names, {index: int(each["sh_addr"]) + each.data_size for index, each in code.items()}
            )
            sections = {
                each.name: Section(int(each["sh_addr"]), bytes(each.data()))
                for each in elf.iter_sections()
                if each["sh_flags"] & _SHF_ALLOC and each["sh_type"] == "SHT_PROGBITS" and each["sh_addr"]
            }
            build_id = find_build_id(elf)
    except OSError as error:
        raise UsageError(f"vmlinux '{vmlinux}' cannot be read: {error.strerror}") from error
    except (ELFError, ValueError, struct.error) as error:
        raise UsageError(f"vmlinux '{vmlinux}' is not an ELF file") from error
    return Kernel(functions, text, objects, data, labels, sections, build_id)


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


def _read_labels(symbols: bytes, names: bytes, ends: Mapping[int, int]) -> tuple[Function, ...]:
    """Return code without a size, such as a thunk. Each piece extends to the next code with a name.

    :param ends: per code section, the first address behind it
    """
    table = _read_table(symbols)
    table = np.sort(
        table[np.isin(table["info"] & 0xF, _CODE_TYPES) & np.isin(table["section"], tuple(ends))],
        order="value",
        kind="stable",
    )
    starts = np.unique(table["value"])
    labels = []
    for entry in table[table["size"] == 0]:
        behind = int(np.searchsorted(starts, entry["value"], side="right"))
        end = ends[int(entry["section"])]
        if behind < len(starts):
            end = min(end, int(starts[behind]))
        labels.append(Function(_read_name(names, entry["name"]), int(entry["value"]), end))
    return tuple(label for label in labels if label.start < label.end)


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
