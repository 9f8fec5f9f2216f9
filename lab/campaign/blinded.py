# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants of the lab's own side, which are no patches: NMIs that are not sent, landmarks of another kernel."""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from lab.build.cache import Progress
from lab.build.mutants import build_mutant
from lab.errors import UsageError
from lab.expected.mutant import Mutant, Subject
from lab.guest.machine import Machine
from lab.guest.nmi import INJECT_S
from lab.host.deadline import Deadline
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.mechanisms.table import find_mechanism
from lab.model.qemu import Qemu
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome

_SCENARIO: Final = Scenario(mechanism="nmi-self")
_BASE: Final = find_mechanism(_SCENARIO.mechanism).base

NEVER_SENT: Final = Mutant(
    name="nmis-never-sent",
    subject=Subject.LAB,
    base=_BASE,
    breaks="QEMU is asked for its status in place of each NMI, and the log says that it was sent",
    caught_by=("nmis-delivered",),
    scenario=_SCENARIO,
    ends_in=Outcome.INVALID,
)
ONLY_LAST: Final = Mutant(
    name="only-last-nmi-sent",
    subject=Subject.LAB,
    base=_BASE,
    breaks="of each plan only the last NMI is sent, and the log says that all were",
    caught_by=("nmis-delivered",),
    scenario=_SCENARIO,
    ends_in=Outcome.INVALID,
)
STALE_VMLINUX: Final = Mutant(
    name="stale-vmlinux",
    subject=Subject.LAB,
    base=_BASE,
    breaks="the landmarks are those of a kernel with one function more",
    caught_by=("quiet", "all-waiting-before-update"),
    scenario=_SCENARIO,
    ends_in=Outcome.INVALID,
)
LAB_MUTANTS: Final = (NEVER_SENT, ONLY_LAST, STALE_VMLINUX)


class _MuteInjector:
    """Acknowledges NMIs that nobody gets; see :class:`lab.guest.nmi.Injector`."""

    def __init__(self, machine: Machine) -> None:
        self._qmp = machine.qmp

    def inject(self, vcpu: int, deadline: Deadline | None = None) -> tuple[int, int]:  # noqa: ARG002
        send_ns = time.monotonic_ns()
        self._qmp.execute("query-status", deadline=deadline or Deadline.after(INJECT_S))
        return send_ns, time.monotonic_ns()


class _LastInjector:
    """Sends the last NMI of each plan of so many, and acknowledges the others."""

    def __init__(self, machine: Machine, nmis: int) -> None:
        self._real, self._mute = machine.broadcast, _MuteInjector(machine)
        self._nmis = nmis
        self._asked = 0

    def inject(self, vcpu: int, deadline: Deadline | None = None) -> tuple[int, int]:
        self._asked += 1
        chosen = self._mute if self._asked % self._nmis else self._real
        return chosen.inject(vcpu, deadline)


def _mute(machine: Machine) -> None:
    machine.broadcast = _MuteInjector(machine)


def _mute_all_but_last(machine: Machine) -> None:
    machine.broadcast = _LastInjector(machine, _SCENARIO.nmis)


def find_preparation(mutant: Mutant) -> Callable[[Machine], None] | None:
    """Return what is to be done to each booted guest of a mutant, None where its guests are left as they are."""
    return {NEVER_SENT.name: _mute, ONLY_LAST.name: _mute_all_but_last}.get(mutant.name)


def read_stale(mutants: tuple[Mutant, ...], progress: Progress, qemu: Qemu) -> Kernel:
    """Return a kernel that has all functions of the sound one, at other addresses: that of one of its mutants.

    :raise UsageError: there is none
    """
    for mutant in mutants:
        if mutant.subject is Subject.KERNEL and mutant.base == _BASE:
            return read_kernel(build_mutant(mutant, progress, qemu).vmlinux)
    raise UsageError(f"mutant '{STALE_VMLINUX.name}' needs a mutant of {_BASE}, and there is none")


def on_control(mutant: Mutant) -> Scenario:
    """Return the scenario of a kernel that is known to be broken, for a mutant that must not make it look good."""
    changes = {"mechanism": "stop-machine", "parking": mutant.scenario.parking}
    return msgspec.structs.replace(mutant.scenario, **changes)
