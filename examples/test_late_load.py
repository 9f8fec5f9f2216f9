# SPDX-License-Identifier: GPL-2.0-or-later
"""Does a late load keep SMT siblings quiet? A suite for one machine, two mechanisms, and a kernel of your own."""

from collections.abc import Callable
from typing import Any

from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome

#: One core with two threads: the smallest guest that has a sibling.
ONE_CORE = Topology(1, 1, 2)

Trial = Callable[..., Any]
Storm = Callable[..., Any]


def test_one_load_with_nmis_passes(trial: Trial) -> None:
    """One trial, with its seed: it repeats."""
    tried = trial("nmi-self", seed=3, topology=ONE_CORE, nmis=4)
    assert tried.record.outcome is Outcome.PASS, tried.record.reason
    assert tried.finding("quiet") is Finding.HELD


def test_the_lab_catches_the_kernel_without_protection(storm: Storm) -> None:
    """A negative control: a lab that cannot catch this one shows nothing by a PASS."""
    storm("stop-machine", trials=3, topology=ONE_CORE)


def test_no_trial_accuses_the_handler_that_updates(storm: Storm) -> None:
    """As many trials as ``--lab-trials`` or ``--lab-for`` ask for, 3 without them."""
    storm("nmi-self", trials=3, topology=ONE_CORE)


def test_a_kernel_of_your_own_does_what_its_kind_must(storm: Storm, mechanism: str) -> None:
    """The kernel of ``--lab-kernel`` and ``--lab-vmlinux``; mainline's rendezvous without them."""
    storm(mechanism, trials=3, topology=ONE_CORE)
