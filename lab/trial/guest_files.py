# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trial asks of the guest's agent before, for and after a load, and how its answers are read."""

import re
from typing import Final

import msgspec

from lab.errors import EvidenceError, GuestError
from lab.evidence.debugfs import parse_cpu_list, parse_ledger, parse_nmi_row, parse_revisions, parse_state
from lab.guest import agent as guest_agent
from lab.guest.agent import LOG, TAKE_LOG, Answer, GuestAgent, Step
from lab.guest.text import clean_lines
from lab.host.deadline import Deadline
from lab.mechanisms.base import LOAD_MARK, Base, Witness
from lab.mechanisms.mechanism import Mechanism
from lab.model.evidence import CpuLedger, RendezvousState
from lab.model.topology import Topology

DEBUGFS: Final = "/sys/kernel/debug/microcode_lab"
CPUS: Final = "/sys/devices/system/cpu"
RELOAD: Final = f"{CPUS}/microcode/reload"
FIRMWARE: Final = "/lib/firmware/intel-ucode"
FORCE_MINREV: Final = "/sys/module/microcode/parameters/force_minrev"
#: The kernel's own description of it: there where the file is (module_param() of microcode/core.c).
MINREV_PARAMETER: Final = "__param_force_minrev"
TAINTED: Final = "/proc/sys/kernel/tainted"

#: Of 32 bits (MSR 0x8B).
MAX_REVISION: Final = 0xFFFF_FFFF

#: No trial needs more of dmesg; a guest may have more.
MAX_DMESG_LINES: Final = 2_000

LOAD: Final = guest_agent.write(RELOAD, b"1\n")

_INTERRUPTS: Final = "/proc/interrupts"
#: Of all rows, the CPUs' names and the NMIs.
_NMI_ROWS: Final = re.compile(rb"CPU|NMI:")
_LEVEL: Final = re.compile(rb"^<[0-9]{1,3}>", re.MULTILINE)
_NUMBER: Final = re.compile(r"[0-9]{1,10}", re.ASCII)


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What is read before and after a load alike.

    :param ledger: empty on a kernel without one
    :param online: the CPUs that are online
    :param raw: the files as the guest showed them, by name
    """

    ledger: tuple[CpuLedger, ...]
    online: tuple[int, ...]
    revisions: tuple[int, ...]
    nmis: tuple[int, ...]
    raw: dict[str, bytes]


def take_readings(agent: GuestAgent, topology: Topology, base: Base, deadline: Deadline) -> Readings:
    """Read revisions, NMI counts, and the ledger where there is one.

    :raise GuestError: the guest does not show one of them
    :raise EvidenceError: the guest shows something else
    """
    steps = _list_readings(topology, base)
    return _make_readings(topology, steps, agent.ask(steps, deadline))


def load_again(agent: GuestAgent, topology: Topology, base: Base, deadline: Deadline) -> tuple[int, Readings]:
    """Do one more late load, and take readings at once: return both; raises as :func:`take_readings` does."""
    steps = _list_readings(topology, base)
    load, *answers = agent.ask([LOAD, *steps], deadline)
    return load.errno, _make_readings(topology, steps, tuple(answers))


def find_next_revision(revisions: tuple[int, ...]) -> int:
    """Return the revision of an update that all CPUs take for newer, -1 standing for one that the guest does not show.

    :raise GuestError: there is none
    """
    newest = max(revisions)
    if not 0 <= newest < MAX_REVISION:
        raise GuestError(f"no update is newer than what the guest shows: {newest:#x}")
    return newest + 1


def set_min_revision(forced: bool) -> Step:
    """Have the kernel refuse updates that do not name a revision they may be loaded over, or not."""
    means = "the guest's kernel cannot be told to look at least revisions"
    return guest_agent.write(FORCE_MINREV, b"Y\n" if forced else b"N\n", means)


def put_update(name: str, update: bytes | None) -> Step:
    """Give the guest a microcode file, or take away the one that it has.

    :param name: below intel-ucode/
    """
    path = f"{FIRMWARE}/{name}"
    return guest_agent.remove(path) if update is None else guest_agent.put(path, update)


def choose_mechanism(
    agent: GuestAgent, mechanism: Mechanism, base: Base, deadline: Deadline, before: tuple[Step, ...] = ()
) -> tuple[str, ...]:
    """Have the next load use a mechanism, and begin it with an empty dmesg, but for a mark; returns what was in it.

    :param before: steps to be taken first, in the same round trip
    :raise GuestError: the kernel does not have the mechanism, or one of the steps failed
    """
    means = f"the guest's kernel has no mechanism '{mechanism.name}'"
    if mechanism.base != base.name:
        raise GuestError(f"{means}: that is one of {mechanism.base}")
    steps = [*before]
    if base.several:
        steps.append(guest_agent.write(f"{DEBUGFS}/mechanism", mechanism.name.encode() + b"\n", means))
    steps.append(TAKE_LOG)
    if base.needs_mark:
        steps.append(guest_agent.write("/dev/kmsg", LOAD_MARK.encode() + b"\n"))
    said = agent.ask_all(steps, deadline)[steps.index(TAKE_LOG)]
    return clean_lines(_strip_levels(said))[-MAX_DMESG_LINES:]


def load_late(agent: GuestAgent, deadline: Deadline) -> int:
    """Do one late load: what the write to ``reload`` returned, 0 or an errno."""
    (answer,) = agent.ask([LOAD], deadline)
    return answer.errno


def read_log_and_state(agent: GuestAgent, base: Base, deadline: Deadline) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Return the kernel's log since the mechanism was chosen, its last lines cleaned, and files for the evidence.

    The files are ``dmesg.txt``, as dmesg(1) shows it, and where the kernel has one the rendezvous ``state.txt``.
    """
    steps = [LOG]
    if Witness.STATE in base.witnesses:
        steps.append(guest_agent.read(f"{DEBUGFS}/state"))
    said, *state = agent.ask_all(steps, deadline)
    raw = {"dmesg.txt": _strip_levels(said)}
    if state:
        raw["state.txt"] = state[0]
    return clean_lines(raw["dmesg.txt"])[-MAX_DMESG_LINES:], raw


def read_dmesg(agent: GuestAgent, deadline: Deadline) -> tuple[str, ...]:
    """Return the kernel's log since the mechanism was chosen, its last lines cleaned."""
    (said,) = agent.ask_all([LOG], deadline)
    return clean_lines(_strip_levels(said))[-MAX_DMESG_LINES:]


def read_state(raw: bytes, topology: Topology) -> RendezvousState:
    """Return the rendezvous state.

    :raise EvidenceError: the guest shows something else
    """
    return parse_state(_text(raw), topology.vcpus)


def read_tainted(agent: GuestAgent, deadline: Deadline) -> int:
    """Return the kernel's taint flags.

    :raise EvidenceError: the guest shows something else
    """
    (raw,) = agent.ask_all([guest_agent.read(TAINTED)], deadline)
    text = _text(raw).strip()
    if not _NUMBER.fullmatch(text):
        raise EvidenceError(f"the guest's taint flags are no number: {text[:80]!r}")
    return int(text)


def _list_readings(topology: Topology, base: Base) -> list[Step]:
    paths = [f"{CPUS}/cpu{cpu}/microcode/version" for cpu in range(topology.vcpus)]
    paths += [f"{CPUS}/online", _INTERRUPTS]
    # Last: what the agent itself does is in it.
    if Witness.LEDGER in base.witnesses:
        paths.append(f"{DEBUGFS}/ledger")
    return [guest_agent.read(path) for path in paths]


def _make_readings(topology: Topology, steps: list[Step], answers: tuple[Answer, ...]) -> Readings:
    for step, answer in zip(steps[topology.vcpus :], answers[topology.vcpus :], strict=True):
        if answer.errno:
            raise GuestError(f"the guest could not {step.text}: {answer.problem}")
    online, interrupts, *ledger = (answer.data for answer in answers[topology.vcpus :])
    # The file is there for online CPUs only.
    shown = (b"-1" if one.errno else one.data.partition(b"\n")[0] for one in answers[: topology.vcpus])
    rows = (line for line in interrupts.splitlines(keepends=True) if _NMI_ROWS.search(line))
    raw = {
        "online.txt": online,
        "revisions.txt": b"".join(line + b"\n" for line in shown),
        "interrupts.txt": b"".join(rows),
    }
    if ledger:
        raw["ledger.txt"] = ledger[0]
    return Readings(
        ledger=parse_ledger(_text(raw["ledger.txt"]), topology.vcpus) if ledger else (),
        online=parse_cpu_list(_text(raw["online.txt"]), topology.vcpus),
        revisions=parse_revisions(_text(raw["revisions.txt"]), topology.vcpus),
        nmis=parse_nmi_row(_text(raw["interrupts.txt"]), topology.vcpus),
        raw=raw,
    )


def _strip_levels(said: bytes) -> bytes:
    """Return the kernel's log as dmesg(1) shows it: without ``<6>`` before each line."""
    return _LEVEL.sub(b"", said)


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
