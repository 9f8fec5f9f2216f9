# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trial asks of the guest's shell, and how its answers are read."""

import os
import re
from typing import Final

import msgspec

from lab.errors import EvidenceError, GuestError
from lab.evidence.debugfs import parse_cpu_list, parse_ledger, parse_nmi_row, parse_revisions, parse_state
from lab.guest.shell import GuestShell
from lab.guest.text import clean_lines
from lab.host.deadline import Deadline
from lab.kernelimage.elf import parse_build_id
from lab.mechanisms.base import LOAD_MARK, Base, Witness, find_base
from lab.mechanisms.mechanism import Mechanism
from lab.model.boot import Boot
from lab.model.evidence import CpuLedger, RendezvousState, Returned
from lab.model.topology import Topology
from lab.trial.guest_clock import check_rate, read_clock, read_clock_later

DEBUGFS: Final = "/sys/kernel/debug/microcode_lab"
CPUS: Final = "/sys/devices/system/cpu"
RELOAD: Final = f"{CPUS}/microcode/reload"
FIRMWARE: Final = "/lib/firmware/intel-ucode"
SMT_CONTROL: Final = f"{CPUS}/smt/control"
TAINTED: Final = "/proc/sys/kernel/tainted"
FORCE_MINREV: Final = "/sys/module/microcode/parameters/force_minrev"

#: The kernel complains of NMI handlers that take longer than 1 ms. Under an emulator that is the host's scheduling, and
#: a mechanism may spin in one for as long as a window lasts; what really hangs still takes longer than this.
NMI_LONGEST_NS: Final = 2_000_000_000

#: Of 32 bits (MSR 0x8B).
MAX_REVISION: Final = 0xFFFF_FFFF

#: A kernel's notes are some 500 bytes.
MAX_NOTES_BYTES: Final = 16 * 1024

#: No trial needs more of dmesg; a guest may have more.
MAX_DMESG_LINES: Final = 2_000

_ERRNO_OF: Final = {os.strerror(number): number for number in range(1, 134)}
_WRITE_ERROR: Final = re.compile(r"write error: (?P<text>[A-Za-z /]{1,60})$")
_SECTION: Final = "==mclab=="
_NUMBER: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_STATUS: Final = re.compile(r"status=(?P<status>[0-9]{1,3})")


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


def prepare_guest(shell: GuestShell, boot: Boot, release: str, deadline: Deadline) -> None:
    """Make a booted guest ready for trials, and check that it is the machine that was asked for.

    :param release: what ``uname -r`` must print
    :raise GuestUnfit: its clock is not the host's
    :raise GuestError: it is not
    :raise EvidenceError: it shows no clock
    """
    clock = read_clock(shell, deadline)
    topology, base = boot.topology, find_base(boot.base)
    siblings = "; ".join(f"cat {CPUS}/cpu{cpu}/topology/thread_siblings_list" for cpu in range(topology.vcpus))
    wanted = []
    for cpu in range(topology.vcpus):
        threads = topology.threads_of(topology.core_of(cpu))
        wanted.append(f"{threads[0]}-{threads[-1]}")
    seen = _ask(shell, siblings, deadline).decode(errors="replace").split()
    if seen != wanted:
        raise GuestError(f"the guest's siblings are {' '.join(seen)[:200]}: {' '.join(wanted)} were asked for")
    flags = _ask(shell, "grep -m 1 ^flags /proc/cpuinfo", deadline).decode(errors="replace").split()
    for name, there in (("fsgsbase", boot.fsgsbase), ("monitor", boot.monitor)):
        if (name in flags) is not there:
            raise GuestError(f"the guest's CPU {'lacks' if there else 'has'} {name}, which was not asked for")
    _ask(shell, f"test -w {RELOAD}", deadline, "the kernel has no late loading: its Intel driver did not attach")
    if Witness.LEDGER in base.witnesses:
        _ask(shell, f"echo 1 >{DEBUGFS}/armed", deadline, "the kernel has no microcode_lab in debugfs")
    running = _ask(shell, "cat /proc/sys/kernel/osrelease", deadline).decode(errors="replace").strip()
    if running != release:
        raise GuestError(f"the guest runs Linux {running[:80]!r}: {release!r} was asked for")
    _ask(shell, f"echo {NMI_LONGEST_NS} >/sys/kernel/debug/x86/nmi_longest_ns", deadline)
    _ask(shell, "dmesg -c >/dev/null", deadline)
    check_rate(clock, read_clock_later(shell, clock, deadline))


def read_guest_build_id(shell: GuestShell, deadline: Deadline) -> str:
    """Return the running kernel's build id in hex, empty where it does not show one."""
    return parse_build_id(shell.run("cat /sys/kernel/notes", deadline).stdout[:MAX_NOTES_BYTES])


def read_signature(shell: GuestShell, deadline: Deadline) -> tuple[int, int]:
    """Return CPUID signature and platform flags, the two things an update must match.

    :raise GuestError: the guest does not show them
    """
    script = "head -n 10 /proc/cpuinfo; echo flags: $(cat /sys/devices/system/cpu/cpu0/microcode/processor_flags)"
    text = _ask(shell, script, deadline).decode(errors="replace")
    found = {key.strip(): value for key, _, value in (line.partition(":") for line in text.splitlines())}
    try:
        family, model, stepping = (int(found[key]) for key in ("cpu family", "model", "stepping"))
        flags = int(found["flags"], 16)
    except (KeyError, ValueError) as error:
        raise GuestError(f"the guest does not tell its CPU's signature: {text[:200]!r}") from error
    base_family = min(family, 15)
    return (
        ((family - base_family) << 20)
        | ((model >> 4) << 16)
        | (base_family << 8)
        | ((model & 0xF) << 4)
        | (stepping & 0xF),
        flags,
    )


def set_siblings(shell: GuestShell, topology: Topology, online: bool, deadline: Deadline) -> None:
    """Take all siblings offline, or bring them back, and see that they are.

    :raise GuestError: the guest does not do it
    """
    wanted = tuple(range(topology.vcpus)) if online else topology.primaries
    what = "bring its siblings back" if online else "take its siblings offline"
    script = f"echo {'on' if online else 'off'} >{SMT_CONTROL} && cat {CPUS}/online"
    text = _ask(shell, script, deadline, f"the guest does not {what}").decode(errors="replace")
    if parse_cpu_list(text, topology.vcpus) != wanted:
        raise GuestError(f"the guest did not {what}: CPUs {text.strip()[:80]} are online")


def return_siblings(shell: GuestShell, topology: Topology, deadline: Deadline) -> Returned:
    """Bring the offline siblings back, and say what came of it.

    :raise EvidenceError: the guest shows something else than a list of CPUs and revisions
    """
    result = shell.run(f"echo on >{SMT_CONTROL}", deadline)
    online, revisions = _read_sections(shell, (f"cat {CPUS}/online", _versions(topology)), deadline)
    return Returned(
        failed=result.status != 0,
        online=parse_cpu_list(_text(online), topology.vcpus),
        revisions=parse_revisions(_text(revisions), topology.vcpus),
    )


def set_min_revision(shell: GuestShell, forced: bool, deadline: Deadline) -> None:
    """Have the kernel refuse updates that do not name a revision they may be loaded over, or not.

    :raise GuestError: the kernel cannot be told
    """
    problem = "the guest's kernel cannot be told to look at least revisions"
    _ask(shell, f"echo {'Y' if forced else 'N'} >{FORCE_MINREV}", deadline, problem)


def put_update(shell: GuestShell, name: str, update: bytes | None, deadline: Deadline) -> None:
    """Give the guest a microcode file, or take away the one that it has.

    :param name: below intel-ucode/
    :raise GuestError: the guest could not write or remove it
    """
    path = f"{FIRMWARE}/{name}"
    if update is None:
        _ask(shell, f"rm -f {path}", deadline)
    else:
        shell.put(path, update, deadline)


def read_tainted(shell: GuestShell, deadline: Deadline) -> int:
    """Return the kernel's taint flags.

    :raise EvidenceError: the guest shows something else
    """
    text = _text(_ask(shell, f"cat {TAINTED}", deadline)).strip()
    if not _NUMBER.fullmatch(text):
        raise EvidenceError(f"the guest's taint flags are no number: {text[:80]!r}")
    return int(text)


def choose_mechanism(shell: GuestShell, mechanism: Mechanism, base: Base, deadline: Deadline) -> tuple[str, ...]:
    """Have the next load use a mechanism, and begin it with an empty dmesg, but for a mark; returns what was in it.

    :raise GuestError: the kernel does not have the mechanism
    """
    problem = f"the guest's kernel has no mechanism '{mechanism.name}'"
    if mechanism.base != base.name:
        raise GuestError(f"{problem}: that is one of {mechanism.base}")
    choose = f"echo {mechanism.name} >{DEBUGFS}/mechanism && " if base.several else ""
    mark = f" && echo '{LOAD_MARK}' >/dev/kmsg" if base.needs_mark else ""
    said = _ask(shell, f"{choose}dmesg -c{mark}", deadline, problem)
    return clean_lines(said)[-MAX_DMESG_LINES:]


def take_readings(shell: GuestShell, topology: Topology, base: Base, deadline: Deadline) -> Readings:
    """Read revisions, NMI counts, and the ledger where there is one.

    :raise EvidenceError: the guest shows something else
    """
    scripts = {
        "online.txt": _show(f"{CPUS}/online"),
        "revisions.txt": _versions(topology),
        "interrupts.txt": "grep -E 'CPU|NMI:' /proc/interrupts",
    }
    if Witness.LEDGER in base.witnesses:
        scripts["ledger.txt"] = f"cat {DEBUGFS}/ledger"
    raw = dict(zip(scripts, _read_sections(shell, tuple(scripts.values()), deadline), strict=True))
    return Readings(
        ledger=parse_ledger(_text(raw["ledger.txt"]), topology.vcpus) if "ledger.txt" in raw else (),
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


def read_state(shell: GuestShell, topology: Topology, deadline: Deadline) -> tuple[RendezvousState, bytes]:
    """Read the rendezvous state.

    :raise EvidenceError: the guest shows something else
    """
    raw = _ask(shell, f"cat {DEBUGFS}/state", deadline)
    return parse_state(_text(raw), topology.vcpus), raw


def load_late(shell: GuestShell, deadline: Deadline) -> int:
    """Do one late load: what the write to ``reload`` returned, 0 or an errno; -1 when it told neither."""
    result = shell.run(f"echo 1 >{RELOAD}; echo status=$?", deadline)
    return _read_errno(clean_lines(result.stdout))


def read_dmesg(shell: GuestShell, deadline: Deadline) -> tuple[tuple[str, ...], bytes]:
    """Return the kernel log since the mechanism was chosen, its last lines cleaned, and as it was."""
    raw = shell.run("dmesg", deadline).stdout
    return clean_lines(raw)[-MAX_DMESG_LINES:], raw


def _read_errno(lines: tuple[str, ...]) -> int:
    statuses = [match for line in lines if (match := _STATUS.fullmatch(line))]
    if not statuses:
        return -1
    if statuses[-1]["status"] == "0":
        return 0
    for line in lines:
        match = _WRITE_ERROR.search(line)
        if match is not None and match["text"] in _ERRNO_OF:
            return _ERRNO_OF[match["text"]]
    return -1


def _versions(topology: Topology) -> str:
    # The file is there for online CPUs only.
    files = (f"{CPUS}/cpu{cpu}/microcode/version" for cpu in range(topology.vcpus))
    return "; ".join(f"if [ -e {path} ]; then {_show(path)}; else echo -1; fi" for path in files)


def _show(path: str) -> str:
    """Print a file of one short line without a program of its own: under an emulator one takes 12 ms to start."""
    return f'read -r line <{path} && echo "$line"'


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _ask(shell: GuestShell, script: str, deadline: Deadline, problem: str = "") -> bytes:
    result = shell.run(script, deadline)
    if result.status != 0:
        said = " ".join(clean_lines(result.stdout)[-2:])[:200]
        problem = problem or f"the guest failed to run {script[:80]!r}"
        raise GuestError(f"{problem}: status {result.status} {said}")
    return result.stdout


def _read_sections(shell: GuestShell, scripts: tuple[str, ...], deadline: Deadline) -> tuple[bytes, ...]:
    """Run several scripts in one round trip, for one costs about a millisecond."""
    output = _ask(shell, f"; echo {_SECTION}; ".join(scripts), deadline)
    sections = tuple(part.strip(b"\n") + b"\n" for part in output.split(_SECTION.encode()))
    if len(sections) != len(scripts):
        raise EvidenceError(f"the guest answered {len(scripts)} questions with {len(sections)} answers")
    return sections
