# SPDX-License-Identifier: GPL-2.0-or-later
"""The wait regions as compiled: a thread that stays in one executes no instruction an update may be patching."""

import capstone
import pytest
from capstone import CsInsn

from conftest import find_images, find_kernel
from lab.kernelimage.closure import WaitRegion, close_region
from lab.kernelimage.code_ranges import find_copies, find_places, find_stretch
from lab.kernelimage.landmarks import find_landmarks, make_symboliser
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.mechanisms.code_places import Copied, CopiedStretch
from lab.mechanisms.mechanism import Mechanism
from lab.mechanisms.table import MECHANISMS, STOCK_MECHANISMS, find_mechanism
from lab.model.topology import MAX_VCPUS

pytestmark = pytest.mark.e2e

#: Those that have one: without a rendezvous nobody waits.
WAITING = [mechanism for mechanism in (*MECHANISMS, *STOCK_MECHANISMS) if mechanism.landmarks.wait_region]

#: Told here once more: the rule that keeps hazards out of a region must not be what says that there are none.
HAZARDS = {
    "rdmsr", "wrmsr", "iret", "iretd", "iretq", "rsm", "monitor", "mwait", "monitorx", "mwaitx", "cpuid", "swapgs",
    "rdgsbase", "wrgsbase", "rdfsbase", "wrfsbase", "hlt", "wbinvd", "verw",
}  # fmt: skip

#: What delays a thread, on these kernels; the delay is one of the last, as the CPU has it.
DELAYS = {
    "__const_udelay", "touch_softlockup_watchdog", "delay_loop", "delay_tsc", "delay_halt", "delay_halt_tpause",
}  # fmt: skip
OUTSIDE_NMIS = {"__reload_late", "__wait_for_cpus", *DELAYS}
IN_NMIS = {"mclab_nmi_call_in", "mclab_nmi_load_sibling", "mclab_nmi_wait_for_primary"}
MAINLINE = {"microcode_offline_nmi_handler", "wait_for_cpus", "wait_for_ctrl"}
#: All functions of each wait region, without the function that a path through it is in.
FUNCTIONS = {
    "stop-machine": OUTSIDE_NMIS,
    "nmi-spin-as-posted": OUTSIDE_NMIS | {"mclab_spin_wait_loop"},
    "nmi-spin": OUTSIDE_NMIS | {"mclab_spin_wait_loop", "mclab_spin_nmi_as_meant"},
    "nmi-self": IN_NMIS,
    "nmi-broadcast": IN_NMIS,
    "nmi-siblings": IN_NMIS,
    "park-hlt": {"mclab_park_hlt"},
    "park-mwait": {"mclab_park_mwait"},
    "init-sipi": {"mclab_init_park"},
    "smi": {"mclab_smi_handler"},
    "upstream": MAINLINE,
    "stock-rendezvous": OUTSIDE_NMIS | {"_find_first_bit"},
    "stock-nmi": MAINLINE,
}
#: Where the path of mainline's siblings may have been compiled into.
PATHS = {"load_secondary_wait", "load_secondary", "microcode_update_handler", "microcode_nmi_handler"}

#: A parked thread executes nothing behind the instruction that parks it.
PARKS_IN_HLT = {"mclab_park_hlt", "mclab_init_park"}

#: What code of a wait region may call that is none of it.
LEAVES = {
    # after its release, or when its time is up
    "panic", "_printk", "apply_microcode_local", "mclab_record_release", "mclab_apply",
    # before its call-in
    "_find_first_bit", "mclab_record_arrival", "mclab_record_wait",
    # the primary, around its update
    "mclab_record_update_begin", "mclab_record_update_end",
    # where the rendezvous uses no NMIs, as on AMD
    "touch_softlockup_watchdog",
}  # fmt: skip


def list_instructions(kernel: Kernel, mechanism: Mechanism) -> list[tuple[str, CsInsn]]:
    """Return the instructions of a wait region, each with the name of its function, and check that they are all."""
    found: list[tuple[str, CsInsn]] = []
    copied = [stretch for stretch in mechanism.landmarks.wait_region if isinstance(stretch, CopiedStretch)]
    for stretch in copied:
        found += [(stretch.copies.template, each) for each in list_copied(kernel, stretch)]
    for held in close(kernel, mechanism).held if not copied else ():
        function = kernel.find_at(held.start)
        assert function is not None
        inside = [each for each in kernel.disassemble(function) if held.start <= each.address < held.end]
        assert inside[0].address == held.start, function.name
        # Padding behind the last instruction is no code; what the disassembler could not read would end it early.
        assert held.end - (inside[-1].address + inside[-1].size) < 16
        found += [(function.name, each) for each in inside]
    return found


def close(kernel: Kernel, mechanism: Mechanism) -> WaitRegion:
    return close_region(kernel, mechanism.landmarks.wait_region, mechanism.landmarks.wait_calls)


def disassemble_handler(kernel: Kernel, template: str) -> list[CsInsn]:
    """Return a handler's instructions at their offsets from its begin: SMM begins in 16-bit code."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_16)
    engine.detail = True
    code = kernel.read_object(template)
    instructions = list(engine.disasm(code, 0))
    assert instructions[-1].address + instructions[-1].size == len(code)
    return instructions


def list_copied(kernel: Kernel, stretch: CopiedStretch) -> list[CsInsn]:
    """Return the instructions of a stretch, as they are in the template of the copies."""
    template = kernel.find_object(stretch.copies.template)
    begin, end = (kernel.find_object(label).start - template.start for label in (stretch.begin, stretch.end))
    instructions = disassemble_handler(kernel, stretch.copies.template)
    starts = [each.address for each in instructions]
    assert begin in starts
    assert end in starts
    return [each for each in instructions if begin <= each.address < end]


@pytest.mark.parametrize("mechanism", WAITING, ids=lambda mechanism: mechanism.name)
def test_a_wait_region_holds_no_hazard(mechanism: Mechanism) -> None:
    for name, each in list_instructions(find_kernel(mechanism.base), mechanism):
        halts = {"hlt"} if name in PARKS_IN_HLT else set()
        waits = {"monitor", "mwait"} if name in mechanism.landmarks.parking else set()
        hazards = HAZARDS - halts - waits
        assert each.mnemonic not in hazards, f"{name}: {each.mnemonic} {each.op_str}"
        if each.mnemonic == "mov":
            assert not {"cr3", "dr7"} & set(each.op_str.split(", ")), f"{name}: {each.mnemonic} {each.op_str}"


@pytest.mark.parametrize("mechanism", WAITING, ids=lambda mechanism: mechanism.name)
def test_a_closed_wait_region_holds_what_its_wait_needs_and_no_more(mechanism: Mechanism) -> None:
    """One that grows would let a sibling go there in a window."""
    region = close(find_kernel(mechanism.base), mechanism)
    assert {name.split(".")[0] for name in region.functions} - PATHS == FUNCTIONS[mechanism.name]


@pytest.mark.parametrize("mechanism", WAITING, ids=lambda mechanism: mechanism.name)
def test_a_closed_wait_region_is_the_same_every_time(mechanism: Mechanism) -> None:
    path = find_images(mechanism.base).vmlinux
    assert close(read_kernel(path), mechanism) == close(find_kernel(mechanism.base), mechanism)


@pytest.mark.parametrize("mechanism", WAITING, ids=lambda mechanism: mechanism.name)
def test_a_wait_region_calls_nothing_outside_but_on_its_way_out(mechanism: Mechanism) -> None:
    kernel = find_kernel(mechanism.base)
    instructions = list_instructions(kernel, mechanism)
    region = {name for name, _ in instructions}
    for name, each in instructions:
        if each.mnemonic == "call" and each.op_str.startswith("0x"):
            target = kernel.symbolise(int(each.op_str, 16)).split("+")[0]
            assert target in region | LEAVES, f"{name} calls {target}"


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: mechanism.name)
def test_what_is_called_parking_parks(mechanism: Mechanism) -> None:
    instructions = list_instructions(find_kernel(mechanism.base), mechanism)
    for parking in mechanism.landmarks.parking:
        assert {"monitor", "mwait"} <= {each.mnemonic for name, each in instructions if name == parking}


def test_a_sibling_counts_in_the_block_that_halts_it() -> None:
    """Else INIT could meet it after the count and before the HLT, and the NMI behind it would reset the machine."""
    instructions = [each for _, each in list_instructions(find_kernel("linux-6.1"), find_mechanism("init-sipi"))]
    at = [each.mnemonic for each in instructions].index("hlt")
    count, halt = instructions[at - 1 : at + 1]
    assert count.mnemonic == "inc"
    # QEMU ends a block where a page ends.
    assert count.address // 4096 == (halt.address + halt.size - 1) // 4096


@pytest.mark.parametrize(
    ("base", "functions"),
    [
        ("linux-6.1", {"apply_microcode_early", "apply_microcode_intel", "mclab_smi_handler"}),
        ("linux-6.12", {"__apply_microcode", "load_ucode_intel_ap"}),
    ],
)
def test_every_update_site_is_a_landmark(base: str, functions: set[str]) -> None:
    kernel = find_kernel(base)
    here = [mechanism for mechanism in MECHANISMS if mechanism.base == base]
    marks, symbolise = find_landmarks(kernel, here), make_symboliser(kernel, here)
    sites = [symbolise(point.address).split("+")[0] for point in marks.points if point.kind == "wrmsr79"]
    assert {site.split(".")[0] for site in sites} == functions


@pytest.mark.parametrize("base", ["linux-6.1", "linux-6.12"])
def test_each_kernel_says_where_it_sends_nmis_for_backtraces(base: str) -> None:
    kernel = find_kernel(base)
    here = [mechanism for mechanism in MECHANISMS if mechanism.base == base]
    (point,) = (each for each in find_landmarks(kernel, here).points if each.kind == "backtrace")
    assert kernel.symbolise(point.address) == "nmi_raise_cpu_backtrace+0x0"


def test_the_wait_of_mainline_ends_where_its_release_is_reported() -> None:
    """Of siblings, online or not, with the last instruction of their wait; of primaries, outside of every wait."""
    kernel = find_kernel("linux-6.12")
    mechanism = find_mechanism("upstream")
    marks = find_landmarks(kernel, [mechanism])
    releases = {point.address for point in marks.points if point.kind == "release"}
    wait = kernel.find("wait_for_ctrl")
    code = kernel.disassemble(wait)
    exits = {each.address for each in code if each.group(capstone.CS_GRP_RET)}
    assert exits < releases
    (of_primary,) = releases - exits
    ranges = [found for stretch in mechanism.landmarks.wait_region for found in find_stretch(kernel, stretch)]
    assert not any(start <= of_primary < end for start, end in ranges)
    # Nothing but an exit leads out of the wait.
    jumps = [each.operands[0].imm & (2**64 - 1) for each in code if each.group(capstone.CS_GRP_JUMP)]
    assert all(wait.start <= target < wait.end for target in jumps)


def test_the_wait_in_smm_is_all_that_a_sibling_executes_there_until_it_leaves() -> None:
    """Blocks do not cross the region's edges, so that none of them counts as outside."""
    kernel = find_kernel("linux-6.1")
    (stretch,) = find_mechanism("smi").landmarks.wait_region
    assert isinstance(stretch, CopiedStretch)
    region = list_copied(kernel, stretch)
    handler = disassemble_handler(kernel, stretch.copies.template)
    before = next(each for each in handler if each.address + each.size == region[0].address)
    assert before.mnemonic == "jmp"
    assert region[0].mnemonic == "lock dec"
    assert region[-1].group(capstone.CS_GRP_JUMP)
    # The ways out are those of a thread whose time is up, and the primary's.
    inside = {each.address for each in region}
    ends = {each.operands[0].imm for each in region if each.group(capstone.CS_GRP_JUMP)} - inside
    assert [each.op_str for each in handler if each.address in ends] == ["eax, 2", "eax, 3", "edi, 2"]


def test_every_update_in_smm_is_a_landmark_in_every_copy() -> None:
    kernel = find_kernel("linux-6.1")
    update = find_mechanism("smi").landmarks.update
    assert isinstance(update, Copied)
    written = [each for each in disassemble_handler(kernel, update.copies.template) if each.mnemonic == "wrmsr"]
    copies = find_copies(kernel, update.copies)
    # CONFIG_NR_CPUS less the one whose handler is the firmware's.
    assert len(copies) == MAX_VCPUS - 1
    assert find_places(kernel, update) == tuple(copy.start + each.address for copy in copies for each in written)
