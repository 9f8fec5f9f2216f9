# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that stopped answering is asked where its vCPUs are, before it is ended."""

from collections.abc import Callable
from typing import Final

from lab.errors import GuestError
from lab.guest.machine import Machine
from lab.guest.registers import ASK_S, parse_registers, read_registers
from lab.host.deadline import Deadline
from lab.spec.evidence import Stall, StalledVcpu
from lab.witness.oracle.link import OracleLink

#: In the evidence folder, as QEMU said it.
REGISTERS: Final = "registers.txt"


def ask_stalled(
    machine: Machine, link: OracleLink, vcpus: int, symbolise: Callable[[int], str]
) -> tuple[Stall, dict[str, bytes]]:
    """Return where each vCPU is, and raw files to keep. The guest is stopped for good; takes ASK_S at most.

    Where QEMU does not answer, as when it is stopped itself, the oracle's shared memory says which blocks began last.
    """
    problem, raw = "", {}
    found: tuple[StalledVcpu, ...] = ()
    try:
        text = read_registers(machine.qmp, Deadline.after(ASK_S))
        raw[REGISTERS] = text.encode(errors="backslashreplace")
        found = tuple(
            StalledVcpu(
                vcpu=seen.vcpu,
                pc=seen.rip,
                symbol=symbolise(seen.rip),
                halted=seen.halted,
                interrupts=seen.interrupts,
            )
            for seen in parse_registers(text)
            if seen.vcpu < vcpus
        )
        if len(found) != vcpus:
            problem = f"QEMU gave the registers of {len(found)} of {vcpus} vCPUs"
    except GuestError as error:
        problem = str(error)
    if not found:
        resting = enumerate(link.look())
        found = tuple(StalledVcpu(vcpu=v, pc=pc, symbol=symbolise(pc), halted=halted) for v, (halted, pc) in resting)
    return Stall(vcpus=found, problem=problem), raw
