# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trial asks of the guest's agent before, for and after a load, and how its answers are read."""

import re
from typing import Final

import msgspec

from lab.errors import EvidenceError, GuestError
from lab.evidence.debugfs import parse_cpu_list, parse_ledger, parse_nmi_row, parse_revisions, parse_state
from lab.guest import agent as guest_agent
from lab.guest.agent import LOG, TAKE_LOG, GuestAgent, Step
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
TAINTED: Final = "/proc/sys/kernel/tainted"

#: Of 32 bits (MSR 0x8B).
MAX_REVISION: Final = 0xFFFF_FFFF

#: No trial needs more of dmesg; a guest may have more.
MAX_DMESG_LINES: Final = 2_000

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
    paths = [f"{CPUS}/online", _INTERRUPTS]
    if Witness.LEDGER in base.witnesses:
        paths.append(f"{DEBUGFS}/ledger")
    versions = [f"{CPUS}/cpu{cpu}/microcode/version" for cpu in range(topology.vcpus)]
    # The ledger is read last: what the agent itself does is in it.
    answers = agent.ask([guest_agent.read(path) for path in (*versions, *paths)], deadline)
    for path, answer in zip(paths, answers[topology.vcpus :], strict=True):
        if answer.errno:
            raise GuestError(f"the guest does not show '{path}': {answer.problem}")
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


def find_next_revision(revisions: tuple[int, ...]) -> int:
    """Return the revision of an update that all CPUs take for newer, -1 standing for one that the guest does not show.

    :raise GuestError: there is none
    """
    newest = max(revisions)
    if not 0 <= newest < MAX_REVISION:
        raise GuestError(f"no update is newer than what the guest shows: {newest:#x}")
    return newest + 1


def set_min_revision(agent: GuestAgent, forced: bool, deadline: Deadline) -> None:
    """Have the kernel refuse updates that do not name a revision they may be loaded over, or not.

    :raise GuestError: the kernel cannot be told
    """
    problem = "the guest's kernel cannot be told to look at least revisions"
    agent.ask_all([guest_agent.write(FORCE_MINREV, b"Y\n" if forced else b"N\n")], deadline, problem)


def put_update(agent: GuestAgent, name: str, update: bytes | None, deadline: Deadline) -> None:
    """Give the guest a microcode file, or take away the one that it has.

    :param name: below intel-ucode/
    :raise GuestError: the guest could not write or remove it
    """
    path = f"{FIRMWARE}/{name}"
    agent.ask_all([guest_agent.remove(path) if update is None else guest_agent.put(path, update)], deadline)


def choose_mechanism(agent: GuestAgent, mechanism: Mechanism, base: Base, deadline: Deadline) -> tuple[str, ...]:
    """Have the next load use a mechanism, and begin it with an empty dmesg, but for a mark; returns what was in it.

    :raise GuestError: the kernel does not have the mechanism
    """
    problem = f"the guest's kernel has no mechanism '{mechanism.name}'"
    if mechanism.base != base.name:
        raise GuestError(f"{problem}: that is one of {mechanism.base}")
    steps: list[Step] = []
    if base.several:
        steps.append(guest_agent.write(f"{DEBUGFS}/mechanism", mechanism.name.encode() + b"\n"))
    steps.append(TAKE_LOG)
    if base.needs_mark:
        steps.append(guest_agent.write("/dev/kmsg", LOAD_MARK.encode() + b"\n"))
    said = agent.ask_all(steps, deadline, problem)[steps.index(TAKE_LOG)]
    return _clean_log(said)


def load_late(agent: GuestAgent, deadline: Deadline) -> int:
    """Do one late load: what the write to ``reload`` returned, 0 or an errno."""
    (answer,) = agent.ask([guest_agent.write(RELOAD, b"1\n")], deadline)
    return answer.errno


def read_state(agent: GuestAgent, topology: Topology, deadline: Deadline) -> tuple[RendezvousState, bytes]:
    """Read the rendezvous state.

    :raise EvidenceError: the guest shows something else
    """
    (raw,) = agent.ask_all([guest_agent.read(f"{DEBUGFS}/state")], deadline)
    return parse_state(_text(raw), topology.vcpus), raw


def read_dmesg(agent: GuestAgent, deadline: Deadline) -> tuple[tuple[str, ...], bytes]:
    """Return the kernel log since the mechanism was chosen, its last lines cleaned, and as ``dmesg`` shows it."""
    (said,) = agent.ask_all([LOG], deadline)
    raw = _LEVEL.sub(b"", said)
    return clean_lines(raw)[-MAX_DMESG_LINES:], raw


def read_tainted(agent: GuestAgent, deadline: Deadline) -> int:
    """Return the kernel's taint flags.

    :raise EvidenceError: the guest shows something else
    """
    (raw,) = agent.ask_all([guest_agent.read(TAINTED)], deadline)
    text = _text(raw).strip()
    if not _NUMBER.fullmatch(text):
        raise EvidenceError(f"the guest's taint flags are no number: {text[:80]!r}")
    return int(text)


def _clean_log(said: bytes) -> tuple[str, ...]:
    return clean_lines(_LEVEL.sub(b"", said))[-MAX_DMESG_LINES:]


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
