# SPDX-License-Identifier: GPL-2.0-or-later
"""The wait regions as compiled: a thread that stays in one executes no instruction an update may be patching."""

import pytest

from lab.spec.mechanism import MECHANISMS, Mechanism
from lab.witness.kernel import Kernel
from lab.witness.landmarks import find_landmarks

pytestmark = pytest.mark.e2e

HAZARDS = {
    "rdmsr", "wrmsr", "iret", "iretd", "iretq", "rsm", "monitor", "mwait", "cpuid", "swapgs", "rdgsbase", "wrgsbase",
    "rdfsbase", "wrfsbase", "hlt", "wbinvd", "verw",
}  # fmt: skip

#: A parked thread executes nothing behind the instruction that parks it.
PARKS_BY = {"park-hlt": {"hlt"}}


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: mechanism.name)
def test_a_wait_region_holds_no_hazard(kernel: Kernel, mechanism: Mechanism) -> None:
    for name in mechanism.landmarks.wait_region:
        instructions = kernel.disassemble(kernel.find(name))
        assert instructions, name
        last = instructions[-1]
        # Padding behind the last instruction is no code; what the disassembler could not read would end it early.
        assert kernel.find(name).end - (last.address + last.size) < 16
        hazards = HAZARDS - PARKS_BY.get(mechanism.name, set())
        found = [f"{name}: {each.mnemonic} {each.op_str}" for each in instructions if each.mnemonic in hazards]
        found += [
            f"{name}: {each.mnemonic} {each.op_str}"
            for each in instructions
            if each.mnemonic == "mov" and any(f"{register}" in each.op_str.split(", ") for register in ("cr3", "dr7"))
        ]
        assert not found


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: mechanism.name)
def test_a_wait_region_calls_nothing_outside_but_on_its_way_out(kernel: Kernel, mechanism: Mechanism) -> None:
    region = set(mechanism.landmarks.wait_region)
    leaves = {
        # after its release, or when its time is up
        "panic", "_printk", "apply_microcode_local", "mclab_record_release", "mclab_apply",
        # before its call-in
        "_find_first_bit", "mclab_record_arrival", "mclab_record_wait",
        # the primary, around its update
        "mclab_record_update_begin", "mclab_record_update_end",
    }  # fmt: skip
    for name in region:
        for each in kernel.disassemble(kernel.find(name)):
            if each.mnemonic == "call" and each.op_str.startswith("0x"):
                target = kernel.symbolise(int(each.op_str, 16)).split("+")[0]
                assert target in region | leaves, f"{name} calls {target}"


def test_every_update_site_is_a_landmark(kernel: Kernel) -> None:
    marks = find_landmarks(kernel, MECHANISMS)
    sites = [kernel.symbolise(point.address).split("+")[0] for point in marks.points if point.kind == "wrmsr79"]
    assert {site.split(".")[0] for site in sites} == {"apply_microcode_early", "apply_microcode_intel"}
