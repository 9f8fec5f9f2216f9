# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trial that went wrong is filed under."""

import msgspec
import pytest
from evidence_builder import Load, change

from lab.judge import judge
from lab.judge.bucket import find_bucket
from lab.model.evidence import Ending, EventKind, Evidence, Stall, StalledVcpu
from lab.model.verdict import Finding, Invariant, Outcome, Proof, Verdict

UNKNOWN_NMI = "[    1.000000][    C0] Uhhuh. NMI received for unknown reason 21 on CPU 0."
OOPS = (
    "[    1.000001][   T48] BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "[    1.000002][   T48] RIP: 0010:load_primary+0xa/0x40",
)
PANIC = "[    1.000003][   T48] Kernel panic - not syncing: Fatal exception"


def ended(ending: Ending, reason: str = "", **changes: object) -> Evidence:
    return msgspec.structs.replace(Load().build(), ending=ending, reason=reason, **changes)


def bucket_of(evidence: Evidence, outcome: Outcome = Outcome.FAIL) -> str:
    return find_bucket(evidence, Verdict(outcome=outcome))


def stall(*symbols: str, halted: tuple[int, ...] = (), problem: str = "") -> Stall:
    vcpus = (
        StalledVcpu(vcpu=vcpu, pc=0xFFFF_FFFF_8100_0000, symbol=symbol, halted=vcpu in halted, interrupts=False)
        for vcpu, symbol in enumerate(symbols)
    )
    return Stall(vcpus=tuple(vcpus), problem=problem)


def test_what_passed_has_none() -> None:
    evidence = Load().build()
    assert judge(evidence).outcome is Outcome.PASS
    assert find_bucket(evidence, judge(evidence)) == ""


@pytest.mark.parametrize("ending", [Ending.PANIC, Ending.GONE, Ending.DEADLINE, Ending.LAB])
def test_a_crash_has_the_title_of_what_came_first(ending: Ending) -> None:
    evidence = ended(ending, console_tail=(PANIC,), console_report=(*OOPS, PANIC))
    assert bucket_of(evidence) == "BUG: kernel NULL pointer dereference in load_primary"


def test_evidence_of_before_has_its_tail() -> None:
    assert bucket_of(ended(Ending.PANIC, console_tail=(PANIC,))) == "kernel panic: Fatal exception"


@pytest.mark.parametrize(
    ("ending", "reason", "title"),
    [
        (Ending.PANIC, "QEMU reported GUEST_PANICKED", "kernel panic"),
        (Ending.GONE, "QEMU reported SHUTDOWN {'guest': True, 'reason': 'guest-reset'}", "unexpected reboot"),
        (Ending.GONE, "the console showed a second boot", "unexpected reboot"),
        (Ending.GONE, "QEMU ended with status 1", "QEMU ended"),
        (Ending.DEADLINE, "deadline reached", "lost connection"),
        (Ending.LAB, "the SSH connection broke (EOF), while waiting for the guest", "lost connection"),
        (Ending.LAB, "no space", ""),
    ],
)
def test_without_a_word_of_the_kernels_the_ending_names_it(ending: Ending, reason: str, title: str) -> None:
    # What a kernel without a ledger says of the lab's own NMIs is nothing that went wrong.
    assert bucket_of(ended(ending, reason, console_tail=(UNKNOWN_NMI,))) == title


def test_a_stall_is_named_by_where_the_vcpus_are() -> None:
    def title(told: Stall | None, *tail: str) -> str:
        return bucket_of(ended(Ending.DEADLINE, stall=told, console_tail=tail))

    assert title(stall("wait_b+0x1", "wait_a.cold+0x7")) == "stall in wait_a, wait_b"
    assert title(stall("wait_a+0x1", "wait_a+0x9")) == "stall in wait_a"
    assert title(stall("wait_a+0x1", "default_idle+0x13", halted=(1,))) == "stall in wait_a"
    assert title(stall("default_idle+0x13", "default_idle+0x13", halted=(0, 1))) == "lost connection"
    assert title(stall("wait_a+0x1", "", problem="deadline reached")) == "QEMU does not answer"
    assert title(stall("<b>+0x1", "\x1b[2J")) == "lost connection"
    assert title(None) == "no output"
    assert title(None, "a line") == "lost connection"


def test_a_fail_is_named_by_its_first_broken_invariant_and_its_function() -> None:
    evidence = Load().build()
    invariants = (
        Invariant(name="still", finding=Finding.BROKEN, required=False, reason=""),
        Invariant(name="witnesses-agree", finding=Finding.BROKEN, required=True, reason=""),
        Invariant(
            name="quiet",
            finding=Finding.BROKEN,
            required=True,
            reason="",
            proofs=(Proof(text="a"), Proof(text="b", symbol="asm_exc_nmi.part.0+0x10")),
        ),
        Invariant(name="harmless", finding=Finding.BROKEN, required=True, reason=""),
    )
    assert find_bucket(evidence, Verdict(outcome=Outcome.FAIL, invariants=invariants)) == "quiet broken in asm_exc_nmi"
    assert find_bucket(evidence, Verdict(outcome=Outcome.FAIL, invariants=invariants[3:])) == "harmless broken"
    assert find_bucket(evidence, Verdict(outcome=Outcome.INVALID, invariants=invariants)) == ""


def test_a_complaint_in_dmesg_is_named_by_its_title() -> None:
    evidence = Load().build()
    assert evidence.guest is not None
    guest = msgspec.structs.replace(evidence.guest, dmesg=(*evidence.guest.dmesg, *OOPS))
    evidence = msgspec.structs.replace(evidence, guest=guest)
    verdict = judge(evidence)
    assert verdict.outcome is Outcome.FAIL
    assert find_bucket(evidence, verdict) == "BUG: kernel NULL pointer dereference in load_primary"


def test_a_stalled_guest_says_where_each_vcpu_was() -> None:
    assert judge(ended(Ending.DEADLINE, stall=stall("a+0x1", "", halted=(1,)))).stall == (
        "vCPU 0 at a+0x1, interrupts off",
        "vCPU 1 halted at 0xffffffff81000000, interrupts off",
    )
    asked_observer = Stall(vcpus=(StalledVcpu(vcpu=0, pc=1, symbol="a\x1b+0x1", halted=False),), problem="no answer")
    assert judge(ended(Ending.DEADLINE, stall=asked_observer)).stall == (
        "vCPU 0 at a +0x1",
        "by the observer's last blocks: no answer",
    )


def test_a_deadline_next_to_a_qemu_that_does_not_answer_accuses_nobody() -> None:
    load = Load(ending=Ending.DEADLINE).drop(EventKind.LOAD_END)
    evidence = change(load.build(), "timings.returned_ns", 0)
    hung = msgspec.structs.replace(evidence, stall=stall("a+0x1", "b+0x1"))
    stopped = msgspec.structs.replace(evidence, stall=stall("a+0x1", "b+0x1", problem="deadline reached"))
    assert judge(hung).outcome is Outcome.FAIL
    assert judge(stopped).outcome is not Outcome.FAIL
