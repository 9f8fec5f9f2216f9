# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps a warm guest of each machine at hand, and replaces one when it can serve no more.

Between trials its vCPUs are halted: it holds a share of the host's vCPU budget only while it boots or serves a trial.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final

from lab import __version__
from lab.build.images import ImageSet
from lab.errors import GuestError, LabError
from lab.guest.machine import Machine
from lab.host.admission import Turns, admit
from lab.host.deadline import Deadline
from lab.kernelimage.vmlinux import Kernel
from lab.model.boot import Boot
from lab.model.evidence import SCHEMA_VERSION, Ending, Evidence
from lab.model.plan import Plan
from lab.model.scenario import Scenario
from lab.trial.opening import open_session
from lab.trial.session import Kept, Session

#: What is done to a guest that has booted, before its first trial.
Prepare = Callable[[Machine], None]

#: A guest that did not boot so often in a row, wherever it was tried, never will.
MAX_FAILED_BOOTS: Final = 3
#: How long to wait for other labs on this host to free enough vCPUs. They may be in the middle of a campaign.
ADMISSION_S: Final = 3600.0


class WarmGuest:
    """Serves trials on one machine, booting a guest when there is none. A context manager.

    :param images: of the machine's base
    :param progress: told, in a few words, what is being waited for
    :param prepare: changes each guest once it has booted
    :param unwanted: whether a trial that still waits for the host's vCPUs is to be given up
    :ivar failed_boots: how many trials in a row, the last one included, got no guest
    :ivar dump_mib: how many MiB of memory are kept of a guest that stops answering; 0 for none
    """

    def __init__(
        self,
        images: ImageSet,
        kernel: Kernel,
        boot: Boot,
        progress: Callable[[str], None],
        prepare: Prepare | None = None,
        unwanted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._images = images
        self._kernel = kernel
        self._boot = boot
        self._progress = progress
        self._prepare = prepare
        self._unwanted = unwanted
        self._stack = contextlib.ExitStack()
        self._session: Session | None = None
        self._turns: Turns | None = None
        self.failed_boots = 0
        self.dump_mib = 0

    def __enter__(self) -> "WarmGuest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.retire()

    def retire(self) -> None:
        """End the guest, if there is one; the next trial boots another."""
        self._session = None
        self._stack.close()

    def _find_session(self) -> Session:
        if self._session is None:
            try:
                self._progress(f"booting a guest: {self._boot}")
                session = self._stack.enter_context(open_session(self._images, self._kernel, self._boot))
                if self._prepare is not None:
                    self._prepare(session.machine)
                self._session = session
            except BaseException:
                self.retire()
                raise
        return self._session

    @contextlib.contextmanager
    def serve(self) -> Iterator[Session]:
        """Give the guest and its share of the host's vCPUs to the block; one that failed or ended is replaced.

        :raise GuestError: none boots, or the host's vCPUs are never free
        :raise HostError: the host could not start one
        """
        with admit(self._boot.topology.vcpus, Deadline.after(ADMISSION_S), tell=self._progress):
            session = self._find_session()
            try:
                yield session
            except LabError:
                self.retire()
                raise
            if not session.usable:
                self.retire()

    @contextlib.contextmanager
    def in_turns(self, turn_s: float) -> Iterator[None]:
        """Keep the share of the host's vCPUs from one trial of the block to the next, until a turn is over."""
        with Turns(self._boot.topology.vcpus, turn_s, tell=self._progress) as turns:
            self._turns = turns
            try:
                yield
            finally:
                self._turns = None

    def run_trial(self, scenario: Scenario, plan: Plan, keep_files: bool = False, *, cover: bool = False) -> Kept:
        """Run one trial. One that gets no guest, since none boots or the host's vCPUs are never free, ends so.

        A guest that ended is replaced for the next trial.

        :param keep_files: and ``cover`` as :meth:`lab.trial.session.Session.run_trial`
        :raise UsageError: as it does
        :raise HostError: the host could not start a guest
        :raise Withdrawn: it is no longer wanted, and has not begun
        """
        with contextlib.ExitStack() as share:
            try:
                deadline = Deadline.after(ADMISSION_S)
                if self._turns is not None:
                    share.enter_context(self._turns.use(deadline))
                else:
                    vcpus = self._boot.topology.vcpus
                    share.enter_context(admit(vcpus, deadline, tell=self._progress, unwanted=self._unwanted))
                session = self._find_session()
            except GuestError as error:
                self.failed_boots += 1
                return Kept(_explain_no_guest(scenario, plan, str(error)), {})
            self.failed_boots = 0
            session.dump_mib = self.dump_mib
            kept = session.run_trial(scenario, plan, keep_files, cover=cover)
        if kept.evidence.ending is not Ending.COMPLETE or not session.usable:
            self.retire()
        return kept


class WarmGuests:
    """Serves trials of any scenario, with one warm guest per machine that was asked for. A context manager.

    :param images: by base
    :param kernels: by base
    :param dump_mib: as :class:`WarmGuest` has it
    """

    def __init__(
        self,
        images: Mapping[str, ImageSet],
        kernels: Mapping[str, Kernel],
        progress: Callable[[str], None],
        dump_mib: int = 0,
    ) -> None:
        self._images = images
        self._kernels = kernels
        self._progress = progress
        self._dump_mib = dump_mib
        self._guests: dict[Boot, WarmGuest] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "WarmGuests":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def failed_boots(self) -> int:
        """How many trials in a row got no guest, of the machine with which that happened most often."""
        return max((guest.failed_boots for guest in self._guests.values()), default=0)

    def find(self, boot: Boot) -> WarmGuest:
        """Return the guest that serves a machine's trials."""
        if boot not in self._guests:
            made = WarmGuest(self._images[boot.base], self._kernels[boot.base], boot, self._progress)
            made.dump_mib = self._dump_mib
            self._guests[boot] = self._stack.enter_context(made)
        return self._guests[boot]

    def run_trial(self, scenario: Scenario, plan: Plan, keep_files: bool = False, *, cover: bool = False) -> Kept:
        """Run one trial on the machine it needs; raises as :meth:`WarmGuest.run_trial` does."""
        return self.find(scenario.boot).run_trial(scenario, plan, keep_files, cover=cover)


def _explain_no_guest(scenario: Scenario, plan: Plan, reason: str) -> Evidence:
    lines = tuple(reason.splitlines())
    # What console and QEMU said last tells more than that there is no guest.
    last = f"; the last words were '{lines[-1].strip()}'" if len(lines) > 1 else ""
    return Evidence(
        schema_version=SCHEMA_VERSION,
        lab_version=__version__,
        scenario=scenario,
        plan=plan,
        images=None,
        ending=Ending.LAB,
        reason=lines[0] + last if lines else "no guest",
        observer=None,
        injections=None,
        guest=None,
        timings=None,
        console_tail=lines[1:],
    )
