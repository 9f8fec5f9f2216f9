# SPDX-License-Identifier: GPL-2.0-or-later
"""What a thread may never do while it waits, on any path. Functions that do this never become part of a wait region.

The rule checks the purpose of a function, and its instructions. Linux builds checks into every function, and each check
has a path on which it complains. The rule excludes these paths, so a thread on such a path has left its wait region.
"""

import re
from typing import Final

from lab.kernelimage.alternatives import list_replacements
from lab.kernelimage.vmlinux import Function, Instruction, Kernel

#: The rules in order. The first rule that matches a name gives the reason.
_BY_NAME: Final = {
    "prints or reports": (
        r"_*v?printk.*|_dev_\w+|__warn.*|warn_slowpath.*|dump_stack.*|show_\w+|print_\w+|debug_show_.*"
        r"|add_taint|___?ratelimit|\w*_report\w*|report_\w+|lockdep_rcu_suspicious|console_\w+|debug_locks_off|BUG_func"
    ),
    "never returns": (r"(?:__)?panic|nmi_panic|__stack_chk_fail|do_exit|make_task_dead|die|rewind_stack.*|__ubsan_\w+"),
    "sleeps or schedules": (
        r"_*schedule(?:_\w+)?|preempt_schedule\w*|_*cond_resched\w*|__might_\w+|mutex_\w+|down_\w+|wake_up_\w+"
        r"|try_to_wake_up|wait_for_completion\w*|rcu_\w*qs\w*|rcu_\w*note\w*"
    ),
    "takes a lock": (
        r"_*raw_(?:spin|read|write)_\w+|(?:native_)?queued_(?:spin|read|write)_\w+|pv_queued_\w+"
        r"|_*lock_(?:acquire|release|is|acquired|contended|downgrade|pin|unpin|set)\w*"
        r"|lockdep_(?:init|hardirqs|softirqs|register)\w*"
    ),
    "enters or leaves an exception": (
        r"asm_\w+|exc_\w+|irqentry_\w+|nmi_(?:enter|exit|handle|restore)\w*|default_do_nmi|irq_(?:enter|exit)\w*"
        r"|error_entry|error_return|paranoid_\w+|do_(?:nmi|int3|trap)\w*|swapgs_\w+|native_i?ret\w*"
    ),
}
_RULES: Final = tuple((reason, re.compile(pattern, re.ASCII)) for reason, pattern in _BY_NAME.items())
#: Suffixes that compilers add to the names of parts of functions and of specialised functions.
_SUFFIX: Final = re.compile(r"(?:\.(?:constprop|isra|part|cold|llvm)(?:\.\d+)?)+$", re.ASCII)

#: The instructions that images/observer/hazards.c knows, and other instructions of their kind.
HAZARDS: Final = frozenset((
    "rdmsr", "wrmsr", "wrmsrns", "rdmsrlist", "wrmsrlist", "iret", "iretd", "iretq", "rsm", "sysret", "sysretq",
    "sysexit", "monitor", "mwait", "monitorx", "mwaitx", "cpuid", "swapgs", "rdgsbase", "wrgsbase", "rdfsbase",
    "wrfsbase", "hlt", "wbinvd", "wbnoinvd", "invd", "verw", "vmcall", "vmmcall", "xsetbv",
))  # fmt: skip
_MOVED: Final = frozenset(("cr0", "cr3", "cr4", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7"))


def why_excluded_by_name(kernel: Kernel, function: Function) -> str:
    """Return the purpose that excludes a function from waits; empty if none of its names shows such a purpose."""
    for name in (function.name, *kernel.list_names(function.start)):
        plain = _SUFFIX.sub("", name)
        for reason, pattern in _RULES:
            if pattern.fullmatch(plain):
                return f"it {reason}"
    return ""


def why_excluded(kernel: Kernel, function: Function) -> str:
    """Return why a function cannot be part of a wait region; empty if it can."""
    why = why_excluded_by_name(kernel, function)
    if why:
        return why
    if ".cold" in function.name:
        return "its compiler holds it to be unlikely: a way on which something complains"
    cut = kernel.why_unreadable(function)
    if cut:
        return cut
    found = find_hazard(kernel, function)
    return f"it holds {found}" if found else ""


def find_hazard(kernel: Kernel, function: Function) -> str:
    """Return the first hazard of a function, or of a possible replacement at boot; empty if there is none."""
    replacements = (each for found in list_replacements(kernel, function) for each in found)
    for instruction in (*kernel.disassemble(function), *replacements):
        if is_hazard(instruction):
            return f"{instruction.mnemonic} at {kernel.symbolise(instruction.address) or hex(instruction.address)}"
    return ""


def is_hazard(instruction: Instruction) -> bool:
    """Return True if an update may be patching the instruction."""
    name = instruction.mnemonic.split()[-1] if instruction.mnemonic else ""
    return name in HAZARDS or (name == "mov" and bool(_MOVED & set(instruction.op_str.split(", "))))
