# SPDX-License-Identifier: GPL-2.0-or-later
"""Which lines of the kernel's log are complaints, and which only look like one."""

import pytest

from lab.judge.dmesg import Cause, find_complaints

COMPLAINTS = {
    "------------[ cut here ]------------": None,
    "WARNING: CPU: 1 PID: 18 at arch/x86/kernel/nmi.c:560 exc_nmi+0x1c4/0x1d0": "WARNING",
    "WARNING: possible circular locking dependency detected": "WARNING",
    "[ BUG: Invalid wait context ]": "BUG",
    "[BUG: bad contention detected!]": "BUG",
    "[ WARNING: bad unlock balance detected! ]": "WARNING",
    "kernel BUG at kernel/stop_machine.c:100!": "BUG",
    "BUG: kernel NULL pointer dereference, address: 0000000000000000": "BUG",
    "BUG: scheduling while atomic: swapper/0/0/0x00000002": "BUG",
    "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [migration/1:18]": "soft lockup",
    "NMI watchdog: Watchdog detected hard LOCKUP on cpu 1": "hard lockup",
    "watchdog: Watchdog detected hard LOCKUP on cpu 1": "hard lockup",
    "Oops: 0000 [#1] PREEMPT SMP": "Oops",
    "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI": "Oops",
    "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP": "Oops",
    "Kernel panic - not syncing: Timeout during microcode update!": "panic",
    "rcu: INFO: rcu_sched self-detected stall on CPU": "rcu stall",
    "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:": "rcu stall",
    "rcu: rcu_sched kthread starved for 5250 jiffies! g100 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=1": "rcu stall",
    "INFO: task sh:101 blocked for more than 120 seconds.": "hung task",
    "INFO: NMI handler (mclab_nmi+0x0/0x10) took too long to run: 12.345 msecs": "slow NMI handler",
    "Uhhuh. NMI received for unknown reason 20 on CPU 1.": "unknown NMI",
    "Dazed and confused, but trying to continue": "unknown NMI",
    "microcode: Timeout while waiting for CPUs rendezvous, remaining: 1": "rendezvous timeout",
    "unchecked MSR access error: RDMSR from 0x1b0 at rIP: 0xffffffff81000000 (native_read_msr+0x0/0x10)": "MSR access",
    "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable because the skew": "clocksource",
    # What only looks like one.
    "NMI watchdog: Perf NMI watchdog permanently disabled": None,
    "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.": None,
    "perf: interrupt took too long (2500 > 2490), lowering kernel.perf_event_max_sample_rate to 80000": None,
    "RIP: 0010:__wait_for_cpus+0x1c/0x60": None,
    "microcode: Attempting late microcode loading - it is dangerous and taints the kernel.": None,
    "microcode: You should switch to early loading, if possible.": None,
    "microcode: Reload succeeded, microcode revision: 0x1 -> 0x2": None,
    "x86/CPU: CPU features have changed after loading microcode, but might not take effect.": None,
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled": None,
    "rcu: Hierarchical RCU implementation.": None,
    "NMI: debug bugs: none": None,
}


@pytest.mark.parametrize(
    "prefix", ["", "[   12.345678] ", "<4>[   12.345678] ", "[   12.345678][   T18] ", "[12345.678901][    C1] "]
)
@pytest.mark.parametrize(("line", "family"), COMPLAINTS.items())
def test_a_line_is_a_complaint_only_by_how_its_message_begins(prefix: str, line: str, family: str | None) -> None:
    found = find_complaints([prefix + line])

    assert [proof.text.split(":")[0] for proof in found] == ([family] if family else [])


def test_only_what_a_slow_host_can_cause_is_of_the_clock() -> None:
    lines = ["WARNING: CPU: 0", "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!"]

    assert len(find_complaints(lines, Cause.CLOCK)) == 1
    assert len(find_complaints(lines, Cause.KERNEL)) == 1
    assert len(find_complaints(lines)) == 2


def test_hostile_lines_are_bounded_and_printable() -> None:
    found = find_complaints(["WARNING: \x1b[2J\u202e" + "x" * 1_000_000] * 500)

    assert len(found) == 20
    assert all(proof.text.isprintable() and len(proof.text) < 250 for proof in found)
