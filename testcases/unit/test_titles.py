# SPDX-License-Identifier: GPL-2.0-or-later
"""What a failure is called, by logs of real ones (testcases/oopses.py made them) and by lines that look like one."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.judge.titles import MAX_REPORT_LINES, MAX_TITLE, bound_title, cut_report, find_title, name_function

DATA = Path(__file__).parent / "data/console"
VICTIM = "version_proc_show"

REAL = {
    "backtraces-by-sysrq": "",
    "bug": "kernel BUG in slow_virt_to_phys",
    "divide-by-zero": f"divide error in {VICTIM}",
    "general-protection": f"general protection fault in {VICTIM}",
    "hung-task": "INFO: task hung in seq_read_iter",
    "invalid-opcode": f"invalid opcode in {VICTIM}",
    "null-dereference": f"BUG: kernel NULL pointer dereference in {VICTIM}",
    "page-fault": f"BUG: unable to handle page fault in {VICTIM}",
    "panic-by-sysrq": "kernel panic: sysrq triggered crash",
    "panic-on-oops": f"BUG: kernel NULL pointer dereference in {VICTIM}",
    "rcu-stall": f"RCU stall in {VICTIM}",
    "slow-nmi-handler": "NMI handler took too long in nmi_cpu_backtrace_handler",
    "soft-lockup": f"soft lockup in {VICTIM}",
    "unknown-nmi": "unknown NMI",
    "unknown-nmi-panic": "kernel panic: NMI: Not continuing",
    "update-timeout": "Timeout while waiting for CPUs rendezvous",
    "warning": f"WARNING in {VICTIM}",
}

#: Kinds that this kernel's settings or an emulator cannot show, in the kernel's words.
LINES = {
    "NMI watchdog: Watchdog detected hard LOCKUP on cpu 1": "hard lockup",
    "BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 32s!": "workqueue lockup",
    "BUG: KASAN: slab-out-of-bounds in load_primary+0x1c/0x80": "BUG: KASAN: slab-out-of-bounds in load_primary",
    "BUG: KFENCE: use-after-free read in reload+0x1c/0x80": "BUG: KFENCE: use-after-free read in reload",
    "BUG: scheduling while atomic: swapper/0/0/0x00000002": "BUG: scheduling while atomic",
    "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580": (
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:N"
    ),
    "[ BUG: Invalid wait context ]": "BUG: Invalid wait context",
    "WARNING: possible circular locking dependency detected": "WARNING: possible circular locking dependency detected",
    "WARNING: suspicious RCU usage": "WARNING: suspicious RCU usage",
    "[ WARNING: bad unlock balance detected! ]": "WARNING: bad unlock balance detected!",
    "WARNING: CPU: 1 PID: 18 at arch/x86/kernel/nmi.c:560 exc_nmi.cold+0x1c4/0x1d0": "WARNING in exc_nmi",
    "unchecked MSR access error: WRMSR to 0x79 (tried to write 0x1) at rIP: 0xffffffff81000000 (apply_late+0x0/0x10)": (
        "unchecked MSR access error in apply_late"
    ),
    "PANIC: double fault, error_code: 0x0": "double fault",
    "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP": (
        "general protection fault"
    ),
    "Oops: divide error: 0000 [#1] PREEMPT SMP": "divide error",
    "stack segment: 0000 [#1] SMP": "stack segment",
    "UBSAN: array-index-out-of-bounds in arch/x86/kernel/cpu/microcode/core.c:310:7": (
        "UBSAN: array-index-out-of-bounds"
    ),
    "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:": "RCU stall",
    "rcu: rcu_sched kthread starved for 5250 jiffies! g100 f0x0": "RCU stall",
    "microcode: load: 3 CPUs timed out": "microcode: load: N CPUs timed out",
    "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable": "clocksource unstable",
    "Kernel panic - not syncing: Microcode load: Primary CPU 2 timed out": "Microcode load: primary CPU timed out",
    "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b": (
        "kernel panic: Attempted to kill init! exitcode=N"
    ),
    "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)": (
        "kernel panic: VFS: Unable to mount root fs on unknown-block(N,N)"
    ),
}

HARMLESS = (
    "NMI watchdog: Perf NMI watchdog permanently disabled",
    "ODEBUG: Out of memory. ODEBUG disabled",
    "** This means that this is a DEBUG kernel and it is                **",
    "RIP: 0010:__wait_for_cpus+0x1c/0x60",
    "perf: interrupt took too long (2500 > 2490), lowering kernel.perf_event_max_sample_rate to 80000",
    "Warning: unable to open an initial console.",
    "WARNING",
    "BUG",
)


def read_log(name: str) -> list[str]:
    return (DATA / f"{name}.txt").read_text().splitlines()


def test_every_log_has_its_title() -> None:
    assert {path.stem for path in DATA.glob("*.txt")} == set(REAL)


@pytest.mark.parametrize(("name", "title"), REAL.items())
def test_a_real_log_gets_its_title(name: str, title: str) -> None:
    lines = read_log(name)
    assert find_title(lines) == title
    report = cut_report(lines)
    assert find_title(report) == title
    assert bool(report) is bool(title)


@pytest.mark.parametrize(("line", "title"), LINES.items())
@pytest.mark.parametrize("prefix", ["", "[   12.345678] ", "[   12.345678][    C1] ", "~ # [   12.345678][   T18] "])
def test_a_line_of_its_own_gets_its_title(prefix: str, line: str, title: str) -> None:
    assert find_title([prefix + line]) == title


@pytest.mark.parametrize("line", HARMLESS)
def test_what_only_looks_like_one_has_no_title(line: str) -> None:
    assert find_title([f"[   12.345678][   T18] {line}", "", f"[   12.345679][   T18] {line}"]) == ""


@pytest.mark.parametrize("name", ["null-dereference", "warning", "rcu-stall"])
def test_the_first_oops_wins_over_what_follows_it(name: str) -> None:
    panic = ["[   13.000000][   T50] Kernel panic - not syncing: Fatal exception"]
    assert find_title(read_log(name) + panic + read_log("divide-by-zero")) == REAL[name]


def test_what_the_labs_own_nmis_and_a_slow_host_bring_about_counts_only_by_itself() -> None:
    before = read_log("unknown-nmi") + read_log("slow-nmi-handler")
    assert find_title(before) == "unknown NMI"
    assert find_title(before + read_log("divide-by-zero")) == REAL["divide-by-zero"]


def test_the_same_defect_elsewhere_and_later_has_the_same_title() -> None:
    text = "\n".join(read_log("page-fault"))
    other = re.sub(
        r"PID: \d+", "PID: 77", re.sub(r"CPU: \d", "CPU: 6", text.replace("ffffc95000000000", "ffffc900aaaa0000"))
    )
    other = re.sub(r"^\[ *\d+\.(\d{6})\]\[ *T\d+\]", r"[12345.\1][ T9999]", other, flags=re.MULTILINE)
    assert other != text
    assert find_title(other.split("\n")) == REAL["page-fault"]


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        ("Kernel panic - not sync", "ing: Fatal exception"),
        ("Kernel panic - not syncing:", "Fatal exception"),
        ("Kernel panic - not syncing: ", "Fatal exception"),
    ],
)
def test_words_that_are_cut_into_two_lines_are_put_together(head: str, rest: str) -> None:
    assert find_title([f"[    1.000000][   T18] {head}", rest]) == "kernel panic: Fatal exception"


def test_a_panic_without_its_second_line_is_one() -> None:
    assert find_title(["[    1.000000][   T18] Kernel panic - not syncing:"]) == "kernel panic"
    assert find_title(["[    1.000000][   T18] BUG: unable to handle page fault for addr"]) == (
        "BUG: unable to handle page fault"
    )


def test_the_function_is_that_of_the_same_cpu_where_several_print_at_once() -> None:
    lines = [
        "[    1.000000][    C0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [a:1]",
        "[    1.000001][    C1] RIP: 0010:other+0x1/0x20",
        "[    1.000002][    C0] RIP: 0010:mine+0x1/0x20",
    ]
    assert find_title(lines) == "soft lockup in mine"


def test_a_stopper_thread_that_waits_is_not_blamed_where_another_is_stuck() -> None:
    stopper = [
        "[    1.000000][    C0] watchdog: BUG: soft lockup - CPU#0 stuck for 3s! [migration/0:11]",
        "[    1.000001][    C0] RIP: 0010:rcu_momentary_eqs+0x25/0x60",
        "[    1.000002][    C0]  <TASK>",
        "[    1.000003][    C0]  ? sort_range+0x20/0x20",
        "[    1.000004][    C0]  multi_cpu_stop+0x5d/0xf0",
    ]
    stuck = [line.replace("C0", "C1").replace("migration/0:11", "cat:48") for line in stopper[:1]]
    stuck.append("[    1.000005][    C1] RIP: 0010:stuck+0x0/0x40")
    assert find_title(stopper) == "soft lockup in multi_cpu_stop"
    assert find_title(stopper + stuck) == "soft lockup in stuck"


def test_user_space_is_no_rip() -> None:
    assert find_title(["kernel BUG at mm/slub.c:1!", "RIP: 0033:0x47cf2a"]) == "kernel BUG"


def test_functions_are_named_as_in_the_source() -> None:
    assert name_function("load_primary.constprop.0.cold+0x12") == "load_primary"
    assert name_function("x.isra.12") == "x"
    assert name_function("") == ""
    assert name_function("0xffffffff81000000") == ""
    assert name_function("<b>+0x1") == ""


def test_a_hostile_guest_cannot_make_it_long_slow_or_unprintable() -> None:
    lines = ["Kernel panic - not syncing: \x1b[2J\u202e<script>" + "x" * 1_000_000] * 1_000
    title = find_title(lines)
    assert title.isascii()
    assert title.isprintable()
    assert len(title) <= MAX_TITLE
    assert len(cut_report(lines)) == MAX_REPORT_LINES
    deep = "BUG: KASAN: bad in " + "f" * 500
    assert len(find_title([deep])) <= MAX_TITLE


@given(st.lists(st.sampled_from([*LINES, *HARMLESS]) | st.text(max_size=60), max_size=30))
def test_a_title_is_bounded_printable_and_has_no_number(lines: list[str]) -> None:
    title = find_title(lines)
    assert len(title) <= MAX_TITLE
    assert title.isascii()
    assert title.isprintable() or not title
    assert not re.search(r"\b\d+\b|0x", title)
    assert find_title(cut_report(lines)) == title


def test_texts_lose_their_numbers() -> None:
    assert bound_title("CPU#1 at ffffffff81000000, 0x1f of 12 in cpu3") == "CPU#N at N, N of N in cpuN"
