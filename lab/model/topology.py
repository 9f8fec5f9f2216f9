# SPDX-License-Identifier: GPL-2.0-or-later
"""The shape of a guest: sockets, cores and threads, and the siblings of each vCPU."""

import re

import msgspec

from lab.errors import UsageError

#: CONFIG_NR_CPUS of the kernels in images/kernels. The kernel would silently ignore further vCPUs.
MAX_VCPUS = 16

_TOPOLOGY = re.compile(r"([1-9][0-9]{0,2})x([1-9][0-9]{0,2})x([1-9][0-9]{0,2})", re.ASCII)


class Topology(msgspec.Struct, frozen=True):
    """Sockets x cores per socket x threads per core.

    vCPU numbers follow QEMU's ``-smp``: threads of a core have neighbouring numbers, so vCPU ``n`` is on core ``n //
    threads``. The *primary* of a core is its first thread, as in the kernel's loader (``cpumask_first()`` of its
    siblings).
    """

    sockets: int
    cores: int
    threads: int

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Read ``SxCxT``.

        :raise UsageError: the text has another form, more vCPUs than the kernel supports, or no siblings
        """
        match = _TOPOLOGY.fullmatch(text)
        if match is None:
            raise UsageError(f"topology '{text}' is not SOCKETSxCORESxTHREADS with whole numbers from 1, such as 1x2x2")
        topology = cls(*(int(part) for part in match.groups()))
        if topology.threads != 2:
            raise UsageError(
                f"topology '{text}' has {topology.threads} threads per core: allowed is 2, since a sibling is needed"
                " and Intel cores have two threads"
            )
        if topology.vcpus > MAX_VCPUS:
            raise UsageError(
                f"topology '{text}' has {topology.vcpus} vCPUs: allowed are up to {MAX_VCPUS} (the kernel's NR_CPUS)"
            )
        return topology

    def __str__(self) -> str:
        return f"{self.sockets}x{self.cores}x{self.threads}"

    @property
    def vcpus(self) -> int:
        """The number of vCPUs."""
        return self.sockets * self.cores * self.threads

    @property
    def total_cores(self) -> int:
        """The number of cores over all sockets."""
        return self.sockets * self.cores

    def core_of(self, vcpu: int) -> int:
        """Return the core of a vCPU."""
        return vcpu // self.threads

    def threads_of(self, core: int) -> tuple[int, ...]:
        """Return the vCPUs of a core, its primary first."""
        return tuple(range(core * self.threads, (core + 1) * self.threads))

    def primary_of(self, core: int) -> int:
        """Return the vCPU that executes WRMSR 0x79 for a core."""
        return core * self.threads

    def siblings_of(self, core: int) -> tuple[int, ...]:
        """Return the vCPUs of a core that must stay quiet while their primary executes the update."""
        return self.threads_of(core)[1:]

    @property
    def primaries(self) -> tuple[int, ...]:
        """The primaries of all cores."""
        return tuple(self.primary_of(core) for core in range(self.total_cores))

    @property
    def siblings(self) -> tuple[int, ...]:
        """The siblings of all cores."""
        return tuple(vcpu for core in range(self.total_cores) for vcpu in self.siblings_of(core))

    def apic_id(self, vcpu: int) -> int:
        """Return a vCPU's APIC id: thread, core and socket in bit fields as wide as each count needs (SDM 3A 9.9)."""
        thread_bits = (self.threads - 1).bit_length()
        core_bits = (self.cores - 1).bit_length()
        core, thread = divmod(vcpu, self.threads)
        socket, core = divmod(core, self.cores)
        return (socket << (core_bits + thread_bits)) | (core << thread_bits) | thread
