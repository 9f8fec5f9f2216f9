# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest has to be booted with: trials that agree in it can be served by one guest."""

import enum

import msgspec

from lab.model.topology import Topology


class Granularity(enum.Enum):
    """At which instructions an NMI can enter."""

    #: At the first of each block that QEMU translates.
    BLOCK = "block"
    #: At each, since QEMU translates them one at a time; all that the guest does takes longer.
    INSTRUCTION = "instruction"


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """One machine.

    :param base: name of the :class:`lab.mechanisms.base.Base` whose kernel it runs
    :param fsgsbase: the kernel uses RDGSBASE and WRGSBASE on NMI entry; without them it uses RDMSR and SWAPGS
    :param monitor: the CPU has MONITOR and MWAIT, in which the kernel then parks offline threads
    :param granularity: at which instructions NMIs can enter
    :param outside: the observer answers for the engine also where the kernel has one of ours, which then stays off;
        for a kernel that has none it does so wherever QEMU lets it
    :param refusing: updates are to be refused: an emulator without any engine, which ignores them, will do
    """

    base: str
    topology: Topology
    fsgsbase: bool = True
    monitor: bool = False
    granularity: Granularity = Granularity.BLOCK
    outside: bool = False
    refusing: bool = False

    @property
    def kernel_args(self) -> tuple[str, ...]:
        """What the kernel is told at boot."""
        # MWAIT does not sleep under an emulator of several CPUs: an idle guest would take all of the host.
        return (*(() if self.fsgsbase else ("nofsgsbase",)), *(("idle=halt",) if self.monitor else ()))

    def __str__(self) -> str:
        parts = (
            self.base,
            str(self.topology),
            "" if self.fsgsbase else "nofsgsbase",
            "monitor" if self.monitor else "",
            "one instruction per block" if self.granularity is Granularity.INSTRUCTION else "",
            "refusing engine" if self.refusing else "engine in the observer" if self.outside else "",
        )
        return " ".join(part for part in parts if part)
