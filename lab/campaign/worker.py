# SPDX-License-Identifier: GPL-2.0-or-later
"""One worker process of a campaign on its own host: a station at the end of a pipe.

The campaign starts it as ``python -m lab.campaign.worker DESCRIPTOR``. The worker ends its guests and itself as soon as
the other end of the pipe is closed, also when the campaign was killed.
"""

import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Final, Protocol

from lab.campaign.job import Broken, Job, Missing, TrialDone, Unstarted
from lab.campaign.messages import Answer, Failed, Ready, encode, read_order
from lab.campaign.station import Station
from lab.errors import LabError

#: A trial whose guest is gone collects what there is; one that takes longer has got stuck.
END_S: Final = 20.0


class Runner(Protocol):
    """What a worker needs of a station."""

    def run(self, job: Job) -> TrialDone | Missing | Broken | Unstarted:
        """Run a trial.

        :raise LabError: this host cannot run trials
        """

    def withdraw(self, campaign: str) -> None:
        """Have the trial that runs end if it still waits."""

    def abort(self) -> None:
        """Have the trial that runs end now."""

    def close(self) -> None:
        """End all guests, after the trial that runs."""


def serve(pipe: Connection, runner: Runner) -> None:
    """Run what comes through a pipe, one trial at a time, until the campaign has gone."""
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_receive, args=(pipe, runner, jobs), name="orders", daemon=True)
    reader.start()
    try:
        pipe.send_bytes(encode(Ready()))
        while (job := jobs.get()) is not None:
            pipe.send_bytes(encode(_run(job, runner)))
    except (BrokenPipeError, ConnectionResetError):
        # Nobody is there any more to whom a trial could be told.
        runner.abort()
    finally:
        runner.close()


def _run(job: Job, runner: Runner) -> Answer:
    try:
        return runner.run(job)
    except LabError as error:
        return Failed(str(error))
    except Exception as error:
        # A defect of the lab: the campaign ends with it, rather than try it on one worker after the other.
        return Failed(f"trial {job.number} could not be run: {type(error).__name__}: {error}")


def _receive(pipe: Connection, runner: Runner, jobs: queue.SimpleQueue[Job | None]) -> None:
    while True:
        try:
            order = read_order(pipe.recv_bytes())
        except (EOFError, OSError):
            break
        if isinstance(order, Job):
            jobs.put(order)
        else:
            runner.withdraw(order.campaign)
    jobs.put(None)
    runner.abort()
    stuck = threading.Timer(END_S, os.kill, (os.getpid(), signal.SIGKILL))
    stuck.daemon = True
    stuck.start()


def main() -> None:
    """Be a worker of whoever started this process."""
    descriptor = int(sys.argv[1])
    # QEMU must not keep the pipe open when this process is gone.
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as pipe:
        serve(pipe, Station())


if __name__ == "__main__":
    main()
