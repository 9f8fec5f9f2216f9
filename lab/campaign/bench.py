# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab costs on this host. Figures that are to be compared are taken in turns, in one run."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import psutil

from lab.build.images import ImageSet
from lab.build.kernel import DEFAULT_BASE
from lab.errors import GuestError
from lab.evidence.folder import write_evidence
from lab.guest.config import GuestSpec
from lab.guest.machine import Machine, start_guest
from lab.host.admission import admit
from lab.host.deadline import Deadline
from lab.host.run_dir import make_run_dir
from lab.kernelimage.vmlinux import read_kernel
from lab.mechanisms.base import find_base
from lab.mechanisms.table import find_mechanism
from lab.microcode.update import firmware_name, make_update
from lab.model.boot import Boot
from lab.model.evidence import Ending
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.trial import guest_files, guest_side
from lab.trial.keys import make_guest_keys
from lab.trial.opening import BOOT_S, ENGINE_ARG, open_session
from lab.trial.pool import ADMISSION_S
from lab.trial.session import Session

Progress = Callable[[str], None]

TOPOLOGY: Final = Topology(1, 2, 2)
BOOT: Final = Boot(base=DEFAULT_BASE, topology=TOPOLOGY)
MECHANISM: Final = "nmi-self"
#: Loads in one loop of the guest's shell: enough that its round trip does not count.
LOOP_LOADS: Final = 20
LOOP_S: Final = 120.0
_MS_PER_S: Final = 1_000
_KIB: Final = 1_024
_MIB: Final = 1_024 * 1_024


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured thing; ``values`` has one entry per run."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)


def measure(images: ImageSet, runs: int, progress: Progress) -> tuple[Figure, ...]:
    """Measure everything, so many times each.

    :raise GuestError: a guest did not boot or load
    :raise HostError: the host could not start one
    """
    with admit(TOPOLOGY.vcpus, Deadline.after(ADMISSION_S)):
        return (
            *_measure_boot(images, runs, progress),
            *_measure_observer(images, runs, progress),
            *_measure_trials(images, runs, progress),
        )


def _ratio(name: str, above: tuple[float, ...], below: tuple[float, ...]) -> Figure:
    return Figure(name=name, unit="x", values=tuple(a / b for a, b in zip(above, below, strict=True)))


@contextlib.contextmanager
def _start_plain(images: ImageSet, *kernel_args: str) -> Iterator[Machine]:
    spec = GuestSpec(
        qemu=images.qemu,
        topology=TOPOLOGY,
        kernel=images.kernel,
        initrd=images.initramfs,
        kernel_args=kernel_args,
    )
    with (
        make_run_dir() as run_dir,
        start_guest(spec, make_guest_keys(), run_dir, Deadline.after(BOOT_S)) as machine,
    ):
        yield machine


def _measure_boot(images: ImageSet, runs: int, progress: Progress) -> tuple[Figure, ...]:
    boots_s, memory_mib = [], []
    for index in range(runs):
        progress(f"boot {index + 1} of {runs}")
        begin = time.monotonic()
        with _start_plain(images, ENGINE_ARG) as machine:
            boots_s.append(time.monotonic() - begin)
            memory_mib.append(psutil.Process(machine.pid).memory_info().rss / _MIB)
    return (
        Figure(name="boot to SSH, without observer", unit="s", values=tuple(boots_s)),
        Figure(name="QEMU's memory after boot", unit="MiB", values=tuple(memory_mib)),
    )


class _Loop:
    """Late loads one after another by the guest's shell alone."""

    def __init__(self, machine: Machine, release: str) -> None:
        self._shell, agent = machine.shell, machine.agent
        deadline = Deadline.after(LOOP_S)
        base = find_base(DEFAULT_BASE)
        guest_side.prepare_guest(self._shell, agent, BOOT, release, deadline)
        guest_files.choose_mechanism(agent, find_mechanism(MECHANISM), base, deadline)
        self._signature, self._platform = guest_side.read_signature(agent, deadline)
        self._file = f"{guest_files.FIRMWARE}/{firmware_name(self._signature)}"

    def run(self) -> float:
        """Return how long one load took, in ms: of a loop with new revisions, less the same loop without loads."""
        deadline = Deadline.after(LOOP_S)
        revision = int(self._ask("cat /sys/devices/system/cpu/cpu0/microcode/version", deadline), 16)
        for index in range(LOOP_LOADS):
            update = make_update(self._signature, self._platform, revision + 1 + index)
            self._shell.put(f"/run/update-{index}", update, deadline)
        copy = f"cp /run/update-$i {self._file}"
        count = f"i=0; while [ $i -lt {LOOP_LOADS} ]; do"
        without_ms = self._time(f"{count} {copy}; i=$((i+1)); done", deadline)
        with_ms = self._time(f"{count} {copy}; echo 1 >{guest_files.RELOAD} || exit 1; i=$((i+1)); done", deadline)
        return (with_ms - without_ms) / LOOP_LOADS

    def _time(self, script: str, deadline: Deadline) -> float:
        begin = time.monotonic()
        self._ask(script, deadline)
        return (time.monotonic() - begin) * _MS_PER_S

    def _ask(self, script: str, deadline: Deadline) -> str:
        result = self._shell.run(script, deadline)
        text = result.stdout.decode(errors="backslashreplace").strip()
        if result.status != 0:
            raise GuestError(f"the guest's loop of loads failed: {text[-200:]}")
        return text


def _measure_observer(images: ImageSet, runs: int, progress: Progress) -> tuple[Figure, ...]:
    plain_ms, watched_ms = [], []
    with contextlib.ExitStack() as stack:
        plain = _Loop(stack.enter_context(_start_plain(images, ENGINE_ARG)), images.kernel_release)
        session = _open(stack, images)
        watched = _Loop(session.machine, images.kernel_release)
        for index in range(runs):
            progress(f"loads with and without the observer, {index + 1} of {runs}")
            plain_ms.append(plain.run())
            watched_ms.append(watched.run())
    return (
        Figure(name="bare load, without observer", unit="ms", values=tuple(plain_ms)),
        Figure(name="bare load, with observer", unit="ms", values=tuple(watched_ms)),
        _ratio("with observer / without", tuple(watched_ms), tuple(plain_ms)),
    )


def _open(stack: contextlib.ExitStack, images: ImageSet) -> Session:
    kernel = read_kernel(images.vmlinux)
    return stack.enter_context(open_session(images, kernel, BOOT))


def _measure_trials(images: ImageSet, runs: int, progress: Progress) -> tuple[Figure, ...]:
    bare_ms, beyond_ms, sizes_kib = [], [], []
    scenario = Scenario(mechanism=MECHANISM, topology=TOPOLOGY)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(make_run_dir())
        session = _open(stack, images)
        loop = _Loop(session.machine, images.kernel_release)
        for index in range(runs):
            progress(f"trials and bare loads in one guest, {index + 1} of {runs}")
            bare_ms.append(loop.run())
            plan = draw_plan(scenario, index)
            begin = time.monotonic()
            kept = session.run_trial(scenario, plan)
            if kept.evidence.ending is not Ending.COMPLETE:
                raise GuestError(
                    f"a trial to be measured ended in {kept.evidence.ending.value}: {kept.evidence.reason}"
                )
            write_evidence(folder / "evidence", kept.evidence, kept.raw)
            took_ms = (time.monotonic() - begin) * _MS_PER_S
            beyond_ms.append(took_ms - max(plan.stretch_us) / _MS_PER_S)
            sizes_kib.append(_size(folder / "evidence") / _KIB)
    return (
        Figure(name="bare load, same guest", unit="ms", values=tuple(bare_ms)),
        Figure(name="whole trial less its longest stretch", unit="ms", values=tuple(beyond_ms)),
        _ratio("trial less stretch / bare load", tuple(beyond_ms), tuple(bare_ms)),
        Figure(name="evidence of one trial", unit="KiB", values=tuple(sizes_kib)),
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
