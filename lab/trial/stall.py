# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that stopped answering is asked where its vCPUs are, before it is ended."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from lab.errors import GuestError
from lab.guest.dump import DUMP_S, DUMPS, dump_memory
from lab.guest.machine import Machine
from lab.guest.registers import ASK_S, parse_registers, read_registers
from lab.host.deadline import Deadline
from lab.model.evidence import Stall, StalledVcpu
from lab.observer.link import ObserverLink

_BYTES_PER_MIB: Final = 1 << 20
#: In the evidence folder, as QEMU said it.
REGISTERS: Final = "registers.txt"
#: How it begins what is said of a dump that was asked for, and is not there.
NO_DUMP: Final = "no dump: "


def ask_stalled(
    machine: Machine, link: ObserverLink, vcpus: int, symbolise: Callable[[int], str], dump_mib: int = 0
) -> tuple[Stall, dict[str, bytes]]:
    """Return where each vCPU is, and raw files to keep. The guest is stopped for good.

    Takes ASK_S at most, and with a dump DUMP_S more. Where QEMU does not answer, as when it is stopped itself, the
    observer's shared memory says which blocks began last.

    :param dump_mib: how large a dump of the guest's memory may be, 0 for none
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
    memory = ""
    if dump_mib:
        memory, dumped = _dump(machine, dump_mib) if REGISTERS in raw else (f"{NO_DUMP}QEMU does not answer", {})
        raw |= dumped
    return Stall(vcpus=found, problem=problem, memory=memory), raw


def _dump(machine: Machine, limit_mib: int) -> tuple[str, dict[str, bytes]]:
    """Return what became of a dump, in words, and the file; that there is none takes nothing from the trial."""
    try:
        dump = dump_memory(machine.qmp, machine.run_dir, limit_mib, Deadline.after(DUMP_S))
    except GuestError as error:
        return f"{NO_DUMP}{error}", {}
    return f"{dump.name}, {len(dump.data) / _BYTES_PER_MIB:.1f} MiB", {dump.name: dump.data}


def drop_dump(kept_stall: Stall | None, raw: Mapping[str, bytes], why: str) -> tuple[Stall | None, dict[str, bytes]]:
    """Return what a stalled guest left, without the dump of its memory, and with the reason in its place."""
    left = {name: data for name, data in raw.items() if name not in DUMPS}
    if kept_stall is None or len(left) == len(raw):
        return kept_stall, left
    return msgspec.structs.replace(kept_stall, memory=f"{NO_DUMP}{why}"), left
