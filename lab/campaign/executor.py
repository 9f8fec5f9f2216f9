# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs a campaign's trials: an interface, and the plainest thing behind it."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from lab.campaign.job import Broken, Job, Missing, TrialDone, Unstarted
from lab.campaign.station import Station, Tell
from lab.errors import HostError

Ended = TrialDone | Broken | Unstarted


class Executor(Protocol):
    """Runs trials somewhere. A context manager of its maker's: leaving it leaves no guest."""

    @property
    def capacity(self) -> int:
        """How many trials may be under way at a time."""

    def submit(self, job: Job) -> None:
        """Have a trial run."""

    def wait(self, seconds: float) -> list[Ended]:
        """Return what has ended, after so many seconds at the latest.

        :raise HostError: nothing can run any more
        """

    def withdraw(self) -> None:
        """Have those trials end that still wait for a host's vCPUs; to be asked again as long as some are left."""

    def abort(self) -> None:
        """Have the trials under way end now, with nothing to show."""


class InlineExecutor:
    """Runs one trial after another in this process.

    :param unwanted: asked while a trial waits for the host's vCPUs, when nobody can call :meth:`withdraw`
    """

    def __init__(self, tell: Tell, unwanted: Callable[[], bool] = lambda: False) -> None:
        self._station = Station(tell, unwanted)
        self._jobs: deque[Job] = deque()

    def __enter__(self) -> "InlineExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self._station.close()

    @property
    def capacity(self) -> int:
        """One: this process is the only worker."""
        return 1

    def submit(self, job: Job) -> None:
        """Take a trial; it runs when somebody waits for it."""
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Run the next trial to its end, however long that takes."""
        if not self._jobs:
            time.sleep(seconds)
            return []
        done = self._station.run(self._jobs.popleft())
        if isinstance(done, Missing):
            raise HostError("the campaign's images are gone from the cache: 'lab campaign resume' builds them again")
        return [done]

    def withdraw(self) -> None:
        """Do nothing: a trial is only taken to be run at once."""

    def abort(self) -> None:
        """End what runs, from another thread."""
        self._station.abort()
