# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab asks of a guest once it has booted, and of its siblings before a trial."""

from typing import Final

from lab.errors import EvidenceError, GuestError
from lab.evidence.debugfs import parse_cpu_list, parse_revisions
from lab.guest import agent as guest_agent
from lab.guest.agent import TAKE_LOG, GuestAgent
from lab.guest.shell import GuestShell
from lab.guest.text import clean_lines
from lab.host.deadline import Deadline
from lab.kernelimage.elf import parse_build_id
from lab.mechanisms.base import Witness, find_base
from lab.model.boot import Boot
from lab.model.evidence import Returned
from lab.model.topology import Topology
from lab.trial.guest_clock import check_rate, read_clock, read_clock_later
from lab.trial.guest_files import CPUS, DEBUGFS, RELOAD

SMT_CONTROL: Final = f"{CPUS}/smt/control"

#: The kernel complains of NMI handlers that take longer than 1 ms. Under an emulator that is the host's scheduling, and
#: a mechanism may spin in one for as long as a window lasts; what really hangs still takes longer than this.
NMI_LONGEST_NS: Final = 2_000_000_000

#: A kernel's notes are some 500 bytes.
MAX_NOTES_BYTES: Final = 16 * 1024

_CPUINFO: Final = "/proc/cpuinfo"
_FLAGS: Final = f"{CPUS}/cpu0/microcode/processor_flags"
_NMI_LONGEST: Final = "/sys/kernel/debug/x86/nmi_longest_ns"
_SECTION: Final = "==mclab=="


def prepare_guest(shell: GuestShell, agent: GuestAgent, boot: Boot, release: str, deadline: Deadline) -> None:
    """Make a booted guest ready for trials, and check that it is the machine that was asked for.

    :param release: what ``uname -r`` must print
    :raise GuestUnfit: its clock is not the host's
    :raise GuestError: it is not
    :raise EvidenceError: it shows no clock
    """
    clock = read_clock(shell, deadline)
    topology, base = boot.topology, find_base(boot.base)
    lists = [f"{CPUS}/cpu{cpu}/topology/thread_siblings_list" for cpu in range(topology.vcpus)]
    paths = (*lists, _CPUINFO, "/proc/sys/kernel/osrelease")
    *siblings, cpuinfo, running = agent.ask_all([guest_agent.read(path) for path in paths], deadline)
    wanted = []
    for cpu in range(topology.vcpus):
        threads = topology.threads_of(topology.core_of(cpu))
        wanted.append(f"{threads[0]}-{threads[-1]}")
    seen = [_text(one).strip() for one in siblings]
    if seen != wanted:
        raise GuestError(f"the guest's siblings are {' '.join(seen)[:200]}: {' '.join(wanted)} were asked for")
    flags = _read_cpuinfo(cpuinfo).get("flags", "").split()
    for name, there in (("fsgsbase", boot.fsgsbase), ("monitor", boot.monitor)):
        if (name in flags) is not there:
            raise GuestError(f"the guest's CPU {'lacks' if there else 'has'} {name}, which was not asked for")
    if _text(running).strip() != release:
        raise GuestError(f"the guest runs Linux {_text(running).strip()[:80]!r}: {release!r} was asked for")
    means = "the kernel has no late loading: its Intel driver did not attach"
    steps = [guest_agent.write(RELOAD, b"", means)]
    if Witness.LEDGER in base.witnesses:
        steps.append(guest_agent.write(f"{DEBUGFS}/armed", b"1\n", "the kernel has no microcode_lab in debugfs"))
    agent.ask_all([*steps, guest_agent.write(_NMI_LONGEST, b"%d\n" % NMI_LONGEST_NS), TAKE_LOG], deadline)
    check_rate(clock, read_clock_later(shell, clock, deadline))


def read_guest_build_id(agent: GuestAgent, deadline: Deadline) -> str:
    """Return the running kernel's build id in hex, empty where it does not show one."""
    (notes,) = agent.ask([guest_agent.read("/sys/kernel/notes")], deadline)
    return parse_build_id(notes.data[:MAX_NOTES_BYTES])


def read_signature(agent: GuestAgent, deadline: Deadline) -> tuple[int, int]:
    """Return CPUID signature and platform flags, the two things an update must match.

    :raise GuestError: the guest does not show them
    """
    cpuinfo, flags = agent.ask_all([guest_agent.read(_CPUINFO), guest_agent.read(_FLAGS)], deadline)
    found = _read_cpuinfo(cpuinfo)
    try:
        family, model, stepping = (int(found[key]) for key in ("cpu family", "model", "stepping"))
        platforms = int(_text(flags), 16)
    except (KeyError, ValueError) as error:
        shown = f"{_text(cpuinfo)[:200]!r} and {_text(flags)[:40]!r}"
        raise GuestError(f"the guest does not tell its CPU's signature: {shown}") from error
    base_family = min(family, 15)
    return (
        ((family - base_family) << 20)
        | ((model >> 4) << 16)
        | (base_family << 8)
        | ((model & 0xF) << 4)
        | (stepping & 0xF),
        platforms,
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


def _read_cpuinfo(raw: bytes) -> dict[str, str]:
    """Return the rows of the first CPU in ``/proc/cpuinfo``."""
    first = _text(raw).partition("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


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
