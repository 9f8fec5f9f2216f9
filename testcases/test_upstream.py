# SPDX-License-Identifier: GPL-2.0-or-later
"""Mainline's own rendezvous, on a kernel that knows nothing of the lab."""

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from conftest import Seeds, Trial, find_images, find_kernel
from lab.guest.machine import Machine
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.judge import judge
from lab.model.boot import Boot
from lab.model.evidence import EventKind
from lab.model.plan import draw_plan
from lab.model.scenario import Aim, Scenario
from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome
from lab.trial.opening import open_session

pytestmark = pytest.mark.e2e

BASE = "linux-6.12"
SHAPE = Topology(1, 1, 2)
TRIALS = 20


@pytest.mark.parametrize("aim", list(Aim))
def test_mainline_is_never_accused(trial: Trial, seeds: Seeds, aim: Aim) -> None:
    tries = [trial("upstream", seed=seed, aim=aim) for seed in seeds(TRIALS)]
    reasons = [each.verdict.reason for each in tries if each.record.outcome is not Outcome.PASS]
    outcomes = [each.record.outcome for each in tries]
    assert outcomes.count(Outcome.FAIL) == outcomes.count(Outcome.ERROR) == 0, reasons
    # How many show nothing is up to the host: a sibling that it never ran, an NMI that came too late.
    assert 2 * outcomes.count(Outcome.PASS) > len(tries), reasons
    waited_in = set[str]()
    for each in tries:
        assert each.finding("quiet") is not Finding.BROKEN
        assert each.finding("dmesg-clean") is Finding.HELD, each.verdict
        assert each.finding("counters-settled") is Finding.UNSEEN
        assert each.evidence.observer is not None
        views = [view for window in each.evidence.observer.windows for view in window.siblings]
        waited_in |= {block.symbol.split("+")[0].split(".")[0] for view in views for block in view.blocks}
    # One loop would be too narrow: primaries begin while their siblings are still on their way between two.
    assert waited_in == {"wait_for_cpus", "load_secondary_wait", "wait_for_ctrl"}


def test_each_thread_sends_itself_one_nmi_and_is_let_go_once(trial: Trial) -> None:
    tried = trial("upstream", seed=3)
    assert tried.evidence.observer is not None
    for vcpu in range(4):
        own = [event for event in tried.evidence.observer.events if event.vcpu == vcpu]
        for kind in (EventKind.SELF_NMI, EventKind.CALL_IN, EventKind.RELEASE):
            assert sum(event.kind is kind for event in own) == 1, (vcpu, kind)


def test_two_kernels_take_turns(trial: Trial) -> None:
    for seed in range(7, 12):
        outcomes = [trial(name, seed=seed).record.outcome for name in ("upstream", "stop-machine", "upstream")]
        assert Outcome.FAIL not in (outcomes[0], outcomes[2])
        # On a crowded host no NMI may come into a window.
        if outcomes[1] is not Outcome.INVALID:
            break
    assert outcomes[1] is Outcome.FAIL


def test_mainline_without_its_nmis_is_caught() -> None:
    """The same kernel, told by a write to its memory that this vendor needs no NMI rendezvous: a negative control."""
    scenario = Scenario(mechanism="upstream", topology=SHAPE)
    with (
        admit(SHAPE.vcpus, Deadline.after(600)),
        open_session(find_images(BASE), find_kernel(BASE), Boot(base=BASE, topology=SHAPE)) as session,
    ):
        _clear_use_nmi(session.machine)
        verdicts = [judge(session.run_trial(scenario, draw_plan(scenario, seed)).evidence) for seed in range(8)]
    # On a busy host some show nothing; none may call it good.
    caught = [verdict for verdict in verdicts if verdict.outcome is Outcome.FAIL]
    assert len(caught) >= 4, [verdict.reason for verdict in verdicts]
    assert Outcome.PASS not in {verdict.outcome for verdict in verdicts}
    left = entered = 0
    for verdict in caught:
        found = {one.name: one for one in verdict.invariants}
        # An NMI that enters at the end of a window leaves by its IRET after it.
        left += any("executed iret" in proof.text for proof in found["harmless"].proofs)
        entry = found["no-nmi-entry-in-window"]
        entered += entry.finding is Finding.BROKEN
        # One that had entered before the window opened leaves its wait there all the same.
        assert entry.finding is not Finding.BROKEN or entry.proofs[0].symbol == "asm_exc_nmi+0x0"
    assert min(left, entered) >= len(caught) // 2


def _clear_use_nmi(machine: Machine) -> None:
    """Clear ``microcode_intel_ops.use_nmi``, whose place load_cpus_stopped() shows: it tests it before anything."""
    kernel = find_kernel(BASE)
    code = kernel.disassemble(kernel.find("load_cpus_stopped"))
    flag = next(each for each in code if each.mnemonic == "test").operands[0]
    with open(find_images(BASE).vmlinux, "rb") as source:
        symbols = ELFFile(source).get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        found = symbols.get_symbol_by_name("microcode_intel_ops")
    assert found is not None
    (symbol,) = found
    machine.memory.write_kernel(symbol["st_value"] + flag.mem.disp, 0, 1, Deadline.after(5))
