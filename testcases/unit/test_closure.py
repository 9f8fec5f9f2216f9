# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait regions closed over what builds put into a wait, and over nothing that a waiting thread may not do."""

from pathlib import Path

import pytest
from assembled import assemble, make_function

from lab.errors import UsageError
from lab.kernelimage.closure import WaitRegion, close_region
from lab.kernelimage.vmlinux import Kernel

#: A loop that calls what it is made with.
WAIT = "1: {calls}; cmpl $0, ready(%rip); je 1b; ret"
DATA = ".data; ready: .long 0\n"


def make_kernel(folder: Path, calls: str, *functions: tuple[str, str], data: str = "") -> Kernel:
    source = make_function("wait", WAIT.format(calls=calls))
    return assemble(folder, source + "".join(make_function(*each) for each in functions) + DATA + data)


def close(kernel: Kernel, *wait_calls: str) -> WaitRegion:
    return close_region(kernel, ("wait",), wait_calls)


def why_left_out(region: WaitRegion) -> dict[str, str]:
    return {each.name: each.why for each in region.left_out}


def test_declared_calls_are_held_with_all_that_they_call(tmp_path: Path) -> None:
    kernel = make_kernel(tmp_path, "call delay", ("delay", "jmp loop"), ("loop", "dec %rdi; jne loop; ret"))
    region = close(kernel, "delay")
    assert region.functions == ("delay", "loop", "wait")
    assert {each.name: each.why for each in region.held} == {
        "wait": "declared",
        "delay": "wait+0x0",
        "loop": "delay+0x0",
    }


def test_what_the_wait_itself_calls_beside_them_is_left_out(tmp_path: Path) -> None:
    """Otherwise a broken kernel would itself say what its siblings may execute."""
    kernel = make_kernel(tmp_path, "call delay; call mischief", ("delay", "ret"), ("mischief", "ret"))
    region = close(kernel, "delay")
    assert region.functions == ("delay", "wait")
    assert why_left_out(region) == {"mischief": "the mechanism's wait does not call it"}


@pytest.mark.parametrize("name", ["__fentry__", "preempt_count_sub", "debug_smp_processor_id"])
def test_what_a_build_inserts_is_held_from_everywhere(tmp_path: Path, name: str) -> None:
    kernel = make_kernel(tmp_path, f"call {name}", (name, "call check; ret"), ("check", "ret"))
    assert close(kernel).functions == tuple(sorted(("wait", name, "check")))


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("_printk", "ret", "it prints or reports"),
        ("__warn_printk", "ret", "it prints or reports"),
        ("__printk_ratelimit", "ret", "it prints or reports"),
        ("debug_locks_off", "ret", "it prints or reports"),
        ("panic", "ret", "it never returns"),
        ("__stack_chk_fail", "ret", "it never returns"),
        ("schedule", "ret", "it sleeps or schedules"),
        ("preempt_schedule_thunk", "ret", "it sleeps or schedules"),
        ("_raw_spin_lock", "ret", "it takes a lock"),
        ("lock_acquire", "ret", "it takes a lock"),
        ("asm_exc_nmi", "ret", "it enters or leaves an exception"),
        ("checks", "mov $0x10, %ecx; rdmsr; ret", "it holds rdmsr at checks+0x5"),
        ("checks", "cpuid; ret", "it holds cpuid at checks+0x0"),
        ("checks", "mov %rax, %cr3; ret", "it holds mov at checks+0x0"),
        ("checks", "xor %eax, %eax; mwait; ret", "it holds mwait at checks+0x2"),
        ("checks", "nop; .byte 0x06; ret", "what is at checks+0x1 cannot be disassembled"),
        ("delay.cold", "ret", "its compiler holds it to be unlikely: a way on which something complains"),
    ],
)
def test_what_no_waiting_thread_may_do_is_left_out_however_deep(tmp_path: Path, name: str, body: str, why: str) -> None:
    kernel = make_kernel(tmp_path, "call delay", ("delay", f"je {name}; ret"), (name, body))
    region = close(kernel, "delay", name)
    assert region.functions == ("delay", "wait")
    assert why_left_out(region) == {name: why}


THUNKS = """
.section .text.thunks, "ax"
FUNC __x86_indirect_thunk_array
.globl __x86_indirect_thunk_rax, __x86_indirect_thunk_rbx
__x86_indirect_thunk_rax: call 1f; 2: pause; jmp 2b; 1: mov %rax, (%rsp); jmp alias_of_return
.balign 32
__x86_indirect_thunk_rbx: call 1f; 2: pause; jmp 2b; 1: mov %rbx, (%rsp); jmp alias_of_return
END __x86_indirect_thunk_array
.globl __x86_return_thunk, alias_of_return
__x86_return_thunk:
alias_of_return: ret; int3
.text
"""


def test_thunks_without_a_size_are_held_by_address_and_their_calls_by_what_the_pointer_can_hold(tmp_path: Path) -> None:
    source = (
        THUNKS
        + make_function("wait", WAIT.format(calls="call delay").replace("ret", "jmp alias_of_return"))
        + make_function("delay", "mov delay_fn(%rip), %rax; jmp __x86_indirect_thunk_rax")
        + make_function("delay_loop", "jmp __x86_return_thunk")
        + make_function("delay_tsc", "rdtsc; jmp __x86_return_thunk")
        + make_function("never", "ret")
        + make_function("choose", "movq $delay_tsc, delay_fn(%rip); ret")
    )
    data = ".globl delay_fn; .type delay_fn, @object; .size delay_fn, 8; delay_fn: .quad delay_loop"
    region = close(assemble(tmp_path, source + DATA + data), "delay")
    held = {each.name: each for each in region.held}
    assert held.keys() - {"alias_of_return", "__x86_return_thunk"} == {
        "wait", "delay", "delay_loop", "delay_tsc", "__x86_indirect_thunk_rax",
    }  # fmt: skip
    assert held["delay_tsc"].why == "delay+0x7 through delay_fn"
    assert held["__x86_indirect_thunk_rax"].end - held["__x86_indirect_thunk_rax"].start == 32
    assert not region.left_out


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("mov %rdi, delay_fn(%rip); ret", r"what changes\+0x0 stores in 'delay_fn' cannot be told"),
        ("lea delay_fn(%rip), %rax; ret", r"the address of 'delay_fn' is taken at changes\+0x0"),
        ("mov $delay_fn, %rdi; ret", r"the address of 'delay_fn' is taken at changes\+0x0"),
        ("mov %rax, delay_fn(,%rdi,8); ret", r"the address of 'delay_fn' is taken at changes\+0x0"),
    ],
)
def test_a_pointer_that_can_hold_anything_is_refused_by_name(tmp_path: Path, extra: str, told: str) -> None:
    data = ".globl delay_fn; .type delay_fn, @object; .size delay_fn, 8; delay_fn: .quad loop"
    functions = (("delay", "jmp *delay_fn(%rip)"), ("loop", "ret"), ("changes", extra))
    kernel = make_kernel(tmp_path, "call delay", *functions, data=data)
    with pytest.raises(UsageError, match=rf"'delay\+0x0' calls through a pointer: {told}"):
        close(kernel, "delay")


def test_a_pointer_from_nowhere_is_refused_in_what_is_followed_and_leads_out_of_the_wait_itself(tmp_path: Path) -> None:
    kernel = make_kernel(tmp_path, "call delay", ("delay", "call *8(%rdi); ret"))
    with pytest.raises(UsageError, match=r"'delay\+0x0' calls through a pointer: what the pointer .* cannot be told"):
        close(kernel, "delay")
    region = close(make_kernel(tmp_path, "call *8(%rdi)"))
    assert [(each.name, each.by) for each in region.left_out] == [("a call through a pointer", "wait+0x0")]


@pytest.mark.parametrize(
    "layout", [".long 4; .byte 5, 4f - 3f", ".word 4; .byte 5, 4f - 3f", ".word 4; .byte 5, 4f - 3f, 0"]
)
@pytest.mark.parametrize(
    ("replacement", "functions", "left_out"),
    [
        ("call patched", ("delay", "patched", "wait"), {}),
        ("verw 8(%rax)", ("wait",), {"delay": "it holds verw at 0x"}),
    ],
)
def test_what_may_be_put_in_place_at_boot_is_followed(
    tmp_path: Path, layout: str, replacement: str, functions: tuple[str, ...], left_out: dict[str, str]
) -> None:
    table = (
        f'.section .altinstr_replacement, "ax"; 3: {replacement}; 4:\n'
        f'.section .altinstructions, "a"; .long delay - ., 3b - .; {layout.replace("4f - 3f", "4b - 3b")}\n'
    )
    kernel = make_kernel(tmp_path, "call delay", ("delay", "nopl 0(%rax,%rax); ret"), ("patched", "ret"), data=table)
    region = close(kernel, "delay")
    assert region.functions == functions
    assert {name: why[:19] for name, why in why_left_out(region).items()} == left_out
