# SPDX-License-Identifier: GPL-2.0-or-later
"""One title for what went wrong in a trial: equal failures share it, whatever their seeds, CPUs and addresses. Pure."""

from typing import Final

from lab.judge.judging import AGREEMENT
from lab.judge.titles import bound_title, find_title, name_function
from lab.model.evidence import Ending, Evidence, Stall
from lab.model.verdict import Finding, Invariant, Outcome, Verdict

#: What the console's messages are the evidence of.
_OF_DMESG: Final = "dmesg-clean"
#: By what a reset is known: QEMU's events, and the console.
_REBOOTS: Final = ("guest-reset", "reported RESET", "second boot")
#: What lab.guest.shell says of a guest that is there and whose SSH server is not.
_CONNECTION: Final = "the SSH connection broke"
#: More functions than these make a bucket of each stall.
_MAX_STALLED: Final = 3
#: Where a vCPU that has nothing to do is found.
_IDLE: Final = frozenset({"default_idle", "mwait_idle", "native_halt", "native_safe_halt", "pv_native_safe_halt"})


def find_bucket(evidence: Evidence, verdict: Verdict) -> str:
    """Return what went wrong: a crash's title, else of a FAIL the first broken invariant; empty when neither is."""
    if verdict.outcome is Outcome.PASS:
        return ""
    if evidence.ending is not Ending.COMPLETE:
        return _name_ending(evidence)
    return _name_broken(evidence, verdict) if verdict.outcome is Outcome.FAIL else ""


def _name_ending(evidence: Evidence) -> str:
    title = find_title(evidence.console_report or evidence.console_tail, weak=False)
    if title:
        return title
    if evidence.ending is Ending.LAB:
        return "lost connection" if _CONNECTION in evidence.reason else ""
    if evidence.ending is Ending.PANIC:
        return "kernel panic"
    if evidence.ending is Ending.GONE:
        return "unexpected reboot" if any(text in evidence.reason for text in _REBOOTS) else "QEMU ended"
    return _name_stall(evidence)


def _name_stall(evidence: Evidence) -> str:
    stall = evidence.stall
    if stall is None or not stall.vcpus:
        return "lost connection" if evidence.console_tail else "no output"
    if stall.problem:
        return "QEMU does not answer"
    busy = _find_busy(stall)
    # Nobody is busy, so it is the guest's user space or its network that does not answer.
    return f"stall in {', '.join(busy)}" if busy else "lost connection"


def _find_busy(stall: Stall) -> list[str]:
    names = {name_function(vcpu.symbol) for vcpu in stall.vcpus if not vcpu.halted}
    return sorted(names - _IDLE - {""})[:_MAX_STALLED]


def _name_broken(evidence: Evidence, verdict: Verdict) -> str:
    required = [one for one in verdict.invariants if one.required and one.finding is Finding.BROKEN]
    first = next((one for one in required if one.name != AGREEMENT), None)
    if first is None:
        return ""
    if first.name == _OF_DMESG and evidence.guest is not None and (title := find_title(evidence.guest.dmesg)):
        return title
    function = _find_symbol(first)
    return f"{bound_title(first.name)} broken" + (f" in {function}" if function else "")


def _find_symbol(invariant: Invariant) -> str:
    return next((name for proof in invariant.proofs if (name := name_function(proof.symbol))), "")
