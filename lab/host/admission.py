# SPDX-License-Identifier: GPL-2.0-or-later
"""A host-wide budget of vCPUs, shared by all labs and test workers of this user.

Spinning vCPUs beyond the host's CPUs cost most of a trial's time and starve it into missed deadlines, so guests wait
for their turn. Each vCPU of the budget is a file, and holding it means holding a lock (flock) on it, which the kernel
takes back however the holder ends. A guest takes all it needs or none: only who holds the gate may gather, so two that
have half each cannot wait for each other, and small guests cannot overtake a large one for ever.
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

#: flock() can wait for a lock or give up at once, but not wait until a deadline: hence the asking again. Half of this
#: is lost each time that one guest's vCPUs go to the next, beside a trial of a few tenths of a second.
POLL_S = 0.005
#: A wait that is longer than this is worth a word.
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
    """Hold a share of the host's vCPU budget; yields how large it is.

    :param vcpus: how many the guest has; one larger than the budget takes all of it and so runs alone
    :param budget: of this host, the number of its CPUs by default; all who share a host should give the same
    :param tell: told, once, when it takes longer than a moment
    :param unwanted: asked again and again while it waits
    :raise UsageError: vcpus or budget is less than one
    :raise HostError: the folder of locks is not this user's own
    :raise DeadlineError: the deadline came first
    :raise Withdrawn: the share is no longer wanted
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
    """A share of the budget that is kept from one use to the next, until its turn is over. A context manager.

    For many short uses in a row: waiting for each would cost more than they last, and a share that is kept over all of
    them would keep others waiting.

    :param vcpus: and ``tell`` as :func:`admit` has them
    :param turn_s: a use that begins later waits anew
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
        """Hold the share over the block, and behind it until the next use, or the end of the turn.

        :raise DeadlineError: and others, as :func:`admit` does
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
    """Return the folder of locks: in ``$XDG_RUNTIME_DIR``, or below /tmp under a name with the user's id."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(base).is_absolute() and Path(base).is_dir():
        return Path(base) / f"{NAME}-vcpus"
    return Path("/tmp") / f"{NAME}-vcpus-{os.geteuid()}"  # noqa: S108  its owner and mode are checked


@contextlib.contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """Open the folder, made if need be, after making sure that nobody else can put files or links in it."""
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
    """Open a lock file, which no program started by the lab inherits; closing it gives the lock back."""
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
    """One wait for a share, over both of its steps."""

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

        :raise DeadlineError: there is no time left
        :raise Withdrawn: it is no longer wanted
        """
        if self._unwanted():
            raise Withdrawn(f"the wait for {self._share} vCPUs of this host was given up")
        self._deadline.check(f"{self._share} of the host's {self._whole} vCPUs to be free")
        if self._tell is not None and self._tell_at.expired:
            self._tell(f"waiting for {self._share} vCPUs of this host")
            self._tell = None
        time.sleep(min(POLL_S, self._deadline.remaining_s))
