# SPDX-License-Identifier: GPL-2.0-or-later
import ctypes
import random
from collections.abc import Callable

import capstone
import pytest
from observer_bench import CFLAGS, SOURCES

from lab.host.deadline import Deadline
from lab.host.proc import run
from lab.model.evidence import Hazard
from lab.observer.layout import HAZARDS

Decode = Callable[..., Hazard]

#: By capstone's mnemonic; moves to and from control and debug registers need their operands, see classify().
CLASSES = {
    "rdmsr": Hazard.MSR,
    "wrmsr": Hazard.MSR,
    "iret": Hazard.IRET,
    "iretd": Hazard.IRET,
    "iretq": Hazard.IRET,
    "rsm": Hazard.IRET,
    "monitor": Hazard.MWAIT,
    "mwait": Hazard.MWAIT,
    "cpuid": Hazard.CPUID,
    "swapgs": Hazard.SWAPGS,
    "rdfsbase": Hazard.GSBASE,
    "rdgsbase": Hazard.GSBASE,
    "wrfsbase": Hazard.GSBASE,
    "wrgsbase": Hazard.GSBASE,
    "hlt": Hazard.OTHER,
    "wbinvd": Hazard.OTHER,
    "wbnoinvd": Hazard.OTHER,
    "verw": Hazard.OTHER,
}


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Decode:
    library = tmp_path_factory.mktemp("hazards") / "hazards.so"
    flags = [*CFLAGS, "-shared", "-fPIC"]
    run(["gcc", *flags, "-o", library, SOURCES / "hazards.c"], deadline=Deadline.after(60))
    hazard_of = ctypes.CDLL(str(library)).hazard_of
    hazard_of.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    hazard_of.restype = ctypes.c_int

    def decode(data: bytes, size: int | None = None) -> Hazard:
        return HAZARDS[hazard_of(data, len(data) if size is None else size)]

    return decode


def classify(mnemonic: str, operands: str) -> Hazard:
    """Return the class of an instruction as capstone prints it."""
    name = mnemonic.split()[-1]
    if name == "mov" and any(word.startswith("dr") for word in operands.replace(",", " ").split()):
        return Hazard.DR_CR
    if name == "mov" and "cr3" in operands:
        return Hazard.DR_CR
    return CLASSES.get(name, Hazard.NONE)


@pytest.mark.parametrize(
    ("code", "hazard"),
    [
        ("0f30", Hazard.MSR),
        ("0f32", Hazard.MSR),
        ("cf", Hazard.IRET),
        ("48cf", Hazard.IRET),
        ("66cf", Hazard.IRET),
        ("0faa", Hazard.IRET),
        ("0f01c8", Hazard.MWAIT),
        ("0f01c9", Hazard.MWAIT),
        ("0fa2", Hazard.CPUID),
        ("480fa2", Hazard.CPUID),
        ("0f01f8", Hazard.SWAPGS),
        ("f3480faed8", Hazard.GSBASE),  # wrgsbase rax
        ("f3490faecf", Hazard.GSBASE),  # rdgsbase r15
        ("f30faed0", Hazard.GSBASE),  # wrfsbase eax
        ("0f21f8", Hazard.DR_CR),  # mov rax, dr7
        ("0f23f8", Hazard.DR_CR),
        ("0f20d8", Hazard.DR_CR),  # mov rax, cr3
        ("0f22df", Hazard.DR_CR),
        ("410f22d8", Hazard.DR_CR),  # mov cr3, r8
        ("f4", Hazard.OTHER),
        ("0f09", Hazard.OTHER),
        ("f30f09", Hazard.OTHER),
        ("0f00e8", Hazard.OTHER),  # verw eax
        ("0f002d00000000", Hazard.OTHER),
        # Neighbours that are none.
        ("0f01f9", Hazard.NONE),  # rdtscp
        ("0f01d0", Hazard.NONE),  # xgetbv
        ("0f31", Hazard.NONE),  # rdtsc
        ("0f33", Hazard.NONE),  # rdpmc
        ("0f22c0", Hazard.NONE),  # mov cr0
        ("0f22e0", Hazard.NONE),  # mov cr4
        ("440f22c0", Hazard.NONE),  # mov cr8: REX.R
        ("440f22d8", Hazard.NONE),  # cr11 is none
        ("0faed8", Hazard.NONE),  # without F3: stmxcsr's group, invalid
        ("0fae18", Hazard.NONE),  # stmxcsr
        ("f30fae20", Hazard.NONE),  # ptwrite
        ("f30faee8", Hazard.NONE),  # incsspd
        ("f30fae00", Hazard.NONE),  # memory form
        ("f3f20faed8", Hazard.NONE),  # REPNE is the last
        ("0f00e0", Hazard.NONE),  # verr
        ("0f0b", Hazard.NONE),
        ("f390", Hazard.NONE),  # pause
        ("b9790000", Hazard.NONE),
        ("b87f0f3000", Hazard.NONE),  # 0f 30 as an immediate
        ("e80f300000", Hazard.NONE),
        ("c5f877", Hazard.NONE),  # vzeroupper
        ("40", Hazard.NONE),  # inc eax outside 64-bit mode
        ("", Hazard.NONE),
        ("0f", Hazard.NONE),
        ("0f01", Hazard.NONE),
        ("f3f3f3", Hazard.NONE),
    ],
)
def test_encoding_has_its_class(code: str, hazard: Hazard, decode: Decode) -> None:
    assert decode(bytes.fromhex(code)) is hazard


@pytest.mark.parametrize("bits", [capstone.CS_MODE_64, capstone.CS_MODE_32, capstone.CS_MODE_16])
def test_agrees_with_capstone(bits: int, decode: Decode) -> None:
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, bits)
    source = random.Random(bits)
    opcodes = (*b"\x00\x01\x09\x20\x21\x22\x23\x30\x31\x32\xa2\xaa\xae", *source.sample(range(256), 40))
    prefixes = [b"", b"\x66", b"\xf3", b"\xf2", b"\x2e", b"\xf3\x66"]
    if bits == capstone.CS_MODE_64:
        prefixes += [b"\x48", b"\x41", b"\xf3\x48", b"\x66\x49"]
    seen: dict[Hazard, int] = {}
    for opcode in opcodes:
        for modrm in range(256):
            for escape in (b"\x0f", b""):
                data = source.choice(prefixes) + escape + bytes([opcode, modrm]) + source.randbytes(12)
                for _, size, mnemonic, operands in disassembler.disasm_lite(data, 0, count=1):
                    expected = classify(mnemonic, operands)
                    assert decode(data[:size]) is expected, f"{data[:size].hex()}: {mnemonic} {operands}"
                    seen[expected] = seen.get(expected, 0) + 1
    always = {Hazard.NONE, Hazard.MSR, Hazard.IRET, Hazard.MWAIT, Hazard.CPUID, Hazard.DR_CR, Hazard.OTHER}
    assert always <= set(seen)
    assert (bits != capstone.CS_MODE_64) or {Hazard.SWAPGS, Hazard.GSBASE} <= set(seen)


@pytest.mark.parametrize("code", ["0f30", "48cf", "0f01c9", "0fa2", "0f01f8", "f3480faed8", "0f20d8", "f30f09"])
def test_bytes_behind_the_instruction_are_not_read(code: str, decode: Decode) -> None:
    whole = bytes.fromhex(code)
    assert decode(whole) is not Hazard.NONE
    for size in range(len(whole)):
        assert decode(whole, size) is Hazard.NONE
