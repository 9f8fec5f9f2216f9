# SPDX-License-Identifier: GPL-2.0-or-later
"""A host-wide budget of vCPUs. All labs and test workers of this user share the budget.

More spinning vCPUs than CPUs take most of a trial's time, and make the trial miss its deadlines. So guests wait for
their turn. Each vCPU of the budget is a file. A guest takes a vCPU by a lock (flock) on the file; the kernel releases
the lock when the process ends, for whatever reason. A guest takes all vCPUs that it needs, or none. Only the owner of
the gate lock may collect vCPUs. So two guests with half of their vCPUs each cannot wait for each other, and small
guests cannot overtake a large guest for ever.
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from lab.errors import HostError, UsageError, Withdrawn
from lab.host.deadline import Deadline
from lab.host.lock import try_lock
from lab.host.paths import NAME

#: flock() can block, or fail at once, but flock() has no deadline. So the lab polls. On average, half of this interval
#: is lost each time one guest's vCPUs go to the next guest; a trial takes a few tenths of a second.
POLL_S = 0.005
#: The lab reports a wait that is longer than this.
TELL_AFTER_S = 1.0

_GATE = "gate"


@contextlib.contextmanager
def admit(
    vcpus: int,
    deadline: Deadline,
    budget: int | None = None,
    tell: Callable[[str], None] | None = None,
    unwanted: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Take a share of the host's vCPU budget for the block; yield the size of the share.

    :param vcpus: number of vCPUs of the guest; a guest larger than the budget takes the whole budget and runs alone
    :param budget: budget of this host, by default its number of CPUs; all users of a host should give the same number
    :param tell: called once, if the wait takes longer than a moment
    :param unwanted: called repeatedly during the wait; True ends the wait
    :raise UsageError: ``vcpus`` or ``budget`` is less than one
    :raise HostError: the folder of locks does not belong to this user
    :raise DeadlineError: the deadline passed before the share was free
    :raise Withdrawn: the caller no longer wants the share
    """
    whole = max(os.cpu_count() or 1, 1) if budget is None else budget
    if vcpus < 1 or whole < 1:
        raise UsageError(f"vcpus is {vcpus} and the vCPU budget {whole}: allowed are numbers from 1")
    share = min(vcpus, whole)
    wait = _Wait(deadline, share, whole, tell, unwanted)
    with contextlib.ExitStack() as held:
        folder = held.enter_context(_open_folder(find_folder()))
        with contextlib.ExitStack() as gate:
            gate_fd = gate.enter_context(_open_lock(folder, _GATE))
            while not try_lock(gate_fd):
                wait.pause()
            tokens = [held.enter_context(_open_lock(folder, f"vcpu-{index}")) for index in range(whole)]
            taken: set[int] = set()
            while True:
                for token in tokens:
                    if len(taken) < share and token not in taken and try_lock(token):
                        taken.add(token)
                if len(taken) == share:
                    break
                wait.pause()
        yield share


class Turns:
    """A share of the budget that stays taken between uses, until its turn ends. A context manager.

    For many short uses in a row: a wait before each use would cost more time than the use itself, and a share that
    stays taken during all uses would make others wait.

    :param vcpus: as in :func:`admit`; so is ``tell``
    :param turn_s: a use that begins after this time waits for a new share
    """

    def __init__(self, vcpus: int, turn_s: float, tell: Callable[[str], None] | None = None) -> None:
        self._vcpus = vcpus
        self._turn_s = turn_s
        self._tell = tell
        self._turn = Deadline.after(0)
        self._held = contextlib.ExitStack()
        self._holds = False

    def __enter__(self) -> "Turns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    @contextlib.contextmanager
    def use(self, deadline: Deadline) -> Iterator[None]:
        """Take the share for the block. The share stays taken until the next use, or until the turn ends.

        :raise DeadlineError: as :func:`admit`, which also raises other errors
        """
        if self._turn.expired:
            self._give_back()
        if not self._holds:
            self._held.enter_context(admit(self._vcpus, deadline, tell=self._tell))
            self._holds = True
            self._turn = Deadline.after(self._turn_s)
        try:
            yield
        finally:
            if self._turn.expired:
                self._give_back()

    def _give_back(self) -> None:
        self._holds = False
        self._held.close()


def find_folder() -> Path:
    """Return the folder of locks: in ``$XDG_RUNTIME_DIR``, or below /tmp under a name that contains the user's id."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(base).is_absolute() and Path(base).is_dir():
        return Path(base) / f"{NAME}-vcpus"
    return Path("/tmp") / f"{NAME}-vcpus-{os.geteuid()}"  # noqa: S108  its owner and mode are checked


@contextlib.contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """Open the folder, and make it if needed. Check first that no other user can put files or links in it."""
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"folder of locks '{path}' is no folder of this user's: {error.strerror}; mend it by removing that path"
        ) from error
    try:
        seen = os.fstat(folder)
        if seen.st_uid != os.geteuid() or stat.S_IMODE(seen.st_mode) & 0o077:
            raise HostError(
                f"folder of locks '{path}' belongs to user {seen.st_uid} with mode {stat.S_IMODE(seen.st_mode):o}:"
                f" needed are user {os.geteuid()} and mode 700; mend it by removing that path"
            )
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _open_lock(folder: int, name: str) -> Iterator[int]:
    """Open a lock file that no program started by the lab inherits. Closing the file releases the lock."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        raise HostError(f"lock file '{name}' could not be opened: {error.strerror}") from error
    try:
        yield lock
    finally:
        os.close(lock)


class _Wait:
    """One wait for a share, during both of its steps."""

    def __init__(
        self,
        deadline: Deadline,
        share: int,
        whole: int,
        tell: Callable[[str], None] | None,
        unwanted: Callable[[], bool],
    ) -> None:
        self._deadline = deadline
        self._share = share
        self._whole = whole
        self._tell = tell
        self._unwanted = unwanted
        self._tell_at = Deadline.after(TELL_AFTER_S)

    def pause(self) -> None:
        """Sleep for a moment.

        :raise DeadlineError: no time is left
        :raise Withdrawn: the caller no longer wants the share
        """
        if self._unwanted():
            raise Withdrawn(f"the wait for {self._share} vCPUs of this host was given up")
        self._deadline.check(f"{self._share} of the host's {self._whole} vCPUs to be free")
        if self._tell is not None and self._tell_at.expired:
            self._tell(f"waiting for {self._share} vCPUs of this host")
            self._tell = None
        time.sleep(min(POLL_S, self._deadline.remaining_s))
