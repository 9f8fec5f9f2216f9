# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest boots. One guest can serve all trials that have the same value."""

import enum

import msgspec

from lab.model.topology import Topology


class Granularity(enum.Enum):
    """Selects the instructions at which an NMI can enter."""

    #: NMIs enter at the first instruction of each block that QEMU translates.
    BLOCK = "block"
    #: NMIs enter at each instruction, because QEMU translates one instruction at a time. The guest runs more slowly.
    INSTRUCTION = "instruction"


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """One machine.

    :param base: name of the :class:`lab.mechanisms.base.Base` whose kernel the machine runs
    :param fsgsbase: the kernel uses RDGSBASE and WRGSBASE on NMI entry; otherwise the kernel uses RDMSR and SWAPGS
    :param monitor: the CPU has MONITOR and MWAIT; the kernel then parks offline threads in MWAIT
    :param granularity: the instructions at which NMIs can enter
    :param outside: the observer answers for the engine also if the kernel has the lab's engine, which then stays off;
        for a kernel without an engine the observer does so wherever QEMU allows it
    :param min_revision: the kernel refuses updates that name no revision that they may be loaded over
    :param refusing: the CPU refuses updates; an emulator that ignores updates is enough for that
    """

    base: str
    topology: Topology
    fsgsbase: bool = True
    monitor: bool = False
    granularity: Granularity = Granularity.BLOCK
    outside: bool = False
    refusing: bool = False
    min_revision: bool = False

    @property
    def kernel_args(self) -> tuple[str, ...]:
        """Arguments of the kernel's command line."""
        args = {
            "nofsgsbase": not self.fsgsbase,
            # An emulator of several CPUs does not sleep in MWAIT. An idle guest would use the whole host.
            "idle=halt": self.monitor,
            # The only way since Linux 6.18; older kernels do not know it, and have a switch for run time.
            "microcode=force_minrev": self.min_revision,
        }
        return tuple(arg for arg, wanted in args.items() if wanted)

    def __str__(self) -> str:
        parts = (
            self.base,
            str(self.topology),
            "" if self.fsgsbase else "nofsgsbase",
            "monitor" if self.monitor else "",
            "one instruction per block" if self.granularity is Granularity.INSTRUCTION else "",
            "least revisions" if self.min_revision else "",
            "refusing engine" if self.refusing else "engine in the observer" if self.outside else "",
        )
        return " ".join(part for part in parts if part)
