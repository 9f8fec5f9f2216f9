# SPDX-License-Identifier: GPL-2.0-or-later
"""WRMSR 0x79 is found however its number gets to ECX; where that cannot be told, the kernel is refused."""

from pathlib import Path

import pytest
from assembled import assemble, make_function

from lab.errors import UsageError
from lab.kernelimage.update_sites import find_update_sites
from lab.kernelimage.vmlinux import Kernel

#: Written in bytes, since assemblers do not know it yet: wrmsrns %rax, $0x79.
WRMSRNS_79 = ".byte 0xc4, 0xe7, 0x7a, 0xf6, 0xc0, 0x79, 0, 0, 0"


def find(kernel: Kernel) -> list[str]:
    return [kernel.symbolise(site) for site in find_update_sites(kernel)]


def apply(body: str) -> str:
    return make_function("apply_microcode_intel", body)


@pytest.mark.parametrize(
    ("body", "site"),
    [
        ("mov $0x79, %ecx; wrmsr", 5),
        ("mov $0x79, %rcx; wrmsr", 7),
        ("xor %ecx, %ecx; mov $0x79, %cl; wrmsr", 4),
        ("sub %ecx, %ecx; mov $0x79, %cl; wrmsr", 4),
        ("xor %ecx, %ecx; mov $0x79, %cx; wrmsr", 6),
        ("push $0x79; pop %rcx; wrmsr", 3),
        ("push $0x79; push $0x10; pop %rax; pop %rcx; wrmsr", 6),
        ("mov $0x70, %eax; lea 9(%rax), %ecx; wrmsr", 8),
        ("lea 0x79, %ecx; wrmsr", 7),
        ("mov $0x79, %ebx; call other; mov %ebx, %ecx; wrmsr", 12),
        ("mov $0x79, %r12d; mov %r12, %rcx; wrmsr", 9),
        ("mov $0x79, %al; movzx %al, %ecx; wrmsr", 5),
        ("mov $0x79, %al; movsx %al, %ecx; wrmsr", 5),
        ("xor %ecx, %ecx; or $0x79, %ecx; wrmsr", 5),
        ("mov $0x79, %ecx; or $0, %ecx; wrmsr", 8),
        ("mov $0x78, %ecx; inc %ecx; wrmsr", 7),
        ("mov $0x79, %eax; xchg %eax, %ecx; wrmsr", 6),
        ("mov $0x179, %ecx; and $0xff, %ecx; wrmsr", 11),
        ("sub $16, %rsp; movq $0x79, 8(%rsp); mov 8(%rsp), %rcx; add $16, %rsp; wrmsr", 22),
        ("mov $0x79, %ecx; wrmsrns", 5),
        ("mov $0x79, %ecx; ds wrmsr", 5),
        (WRMSRNS_79, 0),
        # Either of two numbers, by a jump or a conditional move.
        ("mov $0x8b, %ecx; test %edi, %edi; je 1f; mov $0x79, %ecx; 1: wrmsr", 14),
        ("mov $0x8b, %ecx; mov $0x79, %eax; cmovne %eax, %ecx; wrmsr", 13),
        # A loop comes back to the same one.
        ("mov $0x79, %ecx; 1: wrmsr; dec %edi; jne 1b", 5),
    ],
)
def test_a_site_is_found_however_its_number_comes(tmp_path: Path, body: str, site: int) -> None:
    kernel = assemble(tmp_path, apply(f"{body}; ret") + make_function("other", "ret"))
    assert find(kernel) == [f"apply_microcode_intel+{site:#x}"]


@pytest.mark.parametrize(
    ("body", "sites"),
    [
        ("mov $0x79, %ecx; wrmsr; wrmsr; ret", [5, 7]),
        ("mov $0x79, %ecx; wrmsr; mov $0x8b, %ecx; wrmsr; ret", [5]),
        ("mov $0x8b, %ecx; wrmsr; ret", []),
        # 32 bits clear what is above them, eight do not.
        ("mov $0x100, %ecx; mov $0x79, %cl; wrmsr; ret", []),
        # Both ways of a jump lead to one.
        ("mov $0x79, %ecx; je 1f; wrmsr; ret; 1: wrmsr; ret", [7, 10]),
        ("mov $0x79, %ecx; rdmsr; ret", []),
    ],
)
def test_only_what_the_number_reaches_is_a_site(tmp_path: Path, body: str, sites: list[int]) -> None:
    kernel = assemble(tmp_path, apply(body))
    assert find(kernel) == [f"apply_microcode_intel+{site:#x}" for site in sites]


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ("mov %edi, %ecx; wrmsr; ret", 2),
        ("mov $0x79, %ecx; call other; wrmsr; ret", 10),
        ("mov table(%rip), %ecx; wrmsr; ret", 6),
        ("pop %rcx; wrmsr; ret", 1),
        ("mov $0x79, %cl; wrmsr; ret", 2),
        ("mov $0x79, %ecx; test %edi, %edi; je 1f; mov %edi, %ecx; 1: wrmsr; ret", 11),
        # What no way leads to is reached from elsewhere.
        ("mov $0x79, %ecx; ret; wrmsr; ret", 6),
        ("mov %edi, %ecx; wrmsrns; ret", 2),
    ],
)
def test_an_unknown_number_on_the_path_of_the_update_is_refused_by_name(tmp_path: Path, body: str, at: int) -> None:
    other = make_function("early", "mov $0x79, %ecx; wrmsr; ret") + make_function("other", "ret")
    kernel = assemble(tmp_path, apply(body) + other + ".data; table: .long 0x79")
    with pytest.raises(UsageError, match=rf"WRMSR at apply_microcode_intel\+{at:#x} .* cannot be told"):
        find_update_sites(kernel)


def test_a_shared_function_that_writes_any_msr_is_refused_on_that_path_only(tmp_path: Path) -> None:
    shared = make_function("native_write_msr", "mov %edi, %ecx; mov %esi, %eax; wrmsr; ret")
    early = make_function("early", "mov $0x79, %ecx; wrmsr; ret")
    elsewhere = assemble(tmp_path, early + shared + make_function("outside", "call native_write_msr; ret"))
    assert find(elsewhere) == ["early+0x5"]
    on_path = assemble(tmp_path, early + shared + apply("mov $0x79, %edi; jmp native_write_msr"))
    with pytest.raises(
        UsageError,
        match=r"native_write_msr\+0x4 is on the path of the update \(apply_microcode_intel, native_write_msr",
    ):
        find_update_sites(on_path)


def test_a_function_of_that_path_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    kernel = assemble(tmp_path, apply("mov $0x79, %ecx; wrmsr; .byte 0x06; nop; ret"))
    with pytest.raises(UsageError, match=r"'apply_microcode_intel', and what is at .*\+0x7 cannot be disassembled"):
        find_update_sites(kernel)


def test_a_printing_function_ends_that_path(tmp_path: Path) -> None:
    printing = make_function("_printk", "mov %edi, %ecx; wrmsr; ret")
    kernel = assemble(tmp_path, apply("mov $0x79, %ecx; wrmsr; call _printk; ret") + printing)
    assert find(kernel) == ["apply_microcode_intel+0x5"]


def test_a_case_of_a_switch_is_followed(tmp_path: Path) -> None:
    body = "mov $0x79, %ecx; jmp *table(,%rdi,8); one: wrmsr; ret; two: mov %edi, %ecx; ret"
    kernel = assemble(tmp_path, apply(body) + ".section .rodata; table: .quad one, two, 0")
    assert find(kernel) == ["apply_microcode_intel+0xc"]
