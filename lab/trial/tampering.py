# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests to which the lab's own side does something wrong on purpose, for mutants that have no patch."""

import time
from typing import Final

from lab.expected.mutant import Tampering
from lab.guest.machine import Machine
from lab.guest.nmi import INJECT_S
from lab.host.deadline import Deadline
from lab.model.scenario import DEFAULT_NMIS
from lab.trial.pool import Prepare


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
    machine.broadcast = _LastInjector(machine, DEFAULT_NMIS)


_PREPARATIONS: Final[dict[Tampering | None, Prepare]] = {
    Tampering.NEVER_SENT: _mute,
    Tampering.ONLY_LAST_SENT: _mute_all_but_last,
}


def find_preparation(tampering: Tampering | None) -> Prepare | None:
    """Return what is to be done to each booted guest, None where guests are left as they are."""
    return _PREPARATIONS.get(tampering)
