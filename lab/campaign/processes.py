# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a campaign's trials on worker processes of this host.

A worker that dies costs its trial one attempt, and is replaced. Which workers run beside each other is left to the
host's own budget of vCPUs (lab.host.admission), which all labs on it share. Workers die with the campaign, however it
ends: lab.host.proc has the kernel see to it.
"""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import lab
from lab.campaign.executor import Ended
from lab.campaign.image_transfer import ImageSource, receive_images
from lab.campaign.job import Broken, Job, Missing, TrialDone, Unstarted
from lab.campaign.messages import Answer, Failed, Ready, Withdraw, encode, read_answer
from lab.campaign.worker import END_S
from lab.errors import HostError
from lab.host import proc
from lab.host.run_dir import make_run_dir

#: A trial with which so many workers died, one after the other, is itself the reason.
MAX_DEATHS: Final = 3
#: A cache that is cleared again and again while a campaign runs is not filled for ever.
MAX_FILLS: Final = 3
#: How much of what a worker said last an error quotes.
_TAIL_BYTES: Final = 2_000
#: -P: a folder that happens to be the current one is no place for modules.
WORKER: Final = (sys.executable, "-P", "-m", "lab.campaign.worker")


class _Worker:
    """One process, and the thread that listens to it."""

    def __init__(self, program: Sequence[str], log: Path, answers: "queue.SimpleQueue[tuple[_Worker, Answer | None]]"):
        self.job: Job | None = None
        self.ready = False
        self._log = log
        self._answers = answers
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs, open(log, "wb") as sink:
            self._socket = undo.enter_context(ours)
            self._pipe = undo.enter_context(Connection(os.dup(ours.fileno())))
            words = (*program, str(theirs.fileno()))
            self._process = undo.enter_context(
                proc.start_process(words, env=_make_environment(), pass_fds=(theirs.fileno(),), stderr=sink)
            )
            self._stack = undo.pop_all()
        self._thread = threading.Thread(target=self._listen, name="worker", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._answers.put((self, read_answer(self._pipe.recv_bytes())))
        self._answers.put((self, None))

    def send(self, message: Job | Withdraw) -> None:
        """Say something; that it has died is heard by who listens."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(encode(message))

    def say_goodbye(self) -> None:
        """Have it end its guests and itself."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Wait until it has ended, or end it."""
        self.say_goodbye()
        self._thread.join()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S + 1)
        self._stack.close()

    @property
    def last_words(self) -> str:
        """The last line of what it said."""
        lines = self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="backslashreplace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class ProcessExecutor:
    """Runs trials on so many processes of this host. A context manager: leaving it leaves no process and no guest.

    :param source: of the campaign's images, for a cache that is cleared meanwhile
    :param program: what a worker is, told the descriptor of its pipe as its last word
    """

    def __init__(self, count: int, source: ImageSource, program: Sequence[str] = WORKER) -> None:
        self._count = count
        self._source = source
        self._program = program
        self._answers: queue.SimpleQueue[tuple[_Worker, Answer | None]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._deaths: Counter[int] = Counter()
        self._fills: Counter[int] = Counter()
        self._error: HostError | None = None
        self._started = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "ProcessExecutor":
        """Start the workers.

        :raise HostError: one cannot be started
        """
        with contextlib.ExitStack() as undo:
            self._folder = undo.enter_context(make_run_dir())
            undo.callback(self._end_workers)
            for _ in range(self._count):
                self._start_worker()
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def capacity(self) -> int:
        """As many trials as there are workers; none where :meth:`wait` has an error to raise."""
        return self._count if self._error is None else 0

    def submit(self, job: Job) -> None:
        """Give a trial to a worker that has none; no more are submitted than there are workers.

        :raise HostError: as :meth:`wait`
        """
        if self._error is not None:
            raise self._error
        worker = next(each for each in self._workers if each.job is None)
        worker.job = job
        worker.send(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Return what has ended; an error is raised once there is nothing to return.

        :raise HostError: this host cannot run trials
        """
        found: list[Ended] = []
        with contextlib.suppress(queue.Empty):
            worker, answer = self._answers.get(timeout=0.0 if self._error is not None else seconds)
            while True:
                try:
                    found += self._take(worker, answer)
                except HostError as error:
                    # It takes no trial with it that has ended.
                    self._error = self._error or error
                worker, answer = self._answers.get_nowait()
        if not found and self._error is not None:
            raise self._error
        return found

    def withdraw(self) -> None:
        """Have those trials end that still wait for the host's vCPUs."""
        for worker in self._workers:
            if worker.job is not None:
                worker.send(Withdraw(worker.job.campaign))

    def abort(self) -> None:
        """End what runs, and all workers."""
        for worker in self._workers:
            worker.say_goodbye()

    def _take(self, worker: _Worker, answer: Answer | None) -> list[Ended]:
        if worker not in self._workers:
            return []
        if isinstance(answer, Ready):
            worker.ready = True
            return []
        job = worker.job
        if answer is None:
            return self._replace(worker, job)
        assert job is not None, "a worker answers a job"
        if isinstance(answer, Missing):
            self._fill_cache(answer)
            worker.send(job)
            return []
        worker.job = None
        if isinstance(answer, Failed):
            raise HostError(answer.reason)
        assert isinstance(answer, TrialDone | Broken | Unstarted), "no other is left"
        for counter in (self._deaths, self._fills):
            counter.pop(answer.number, None)
        return [answer]

    def _replace(self, dead: _Worker, job: Job | None) -> list[Ended]:
        """Start a worker in place of one that died, and give it the other's trial unless that is the reason.

        :raise HostError: it has not come as far as to run anything
        """
        self._workers.remove(dead)
        dead.close()
        if not dead.ready:
            raise HostError(f"a worker process ended before it could run a trial: {dead.last_words}")
        self._start_worker()
        if job is None:
            return []
        self._deaths[job.number] += 1
        if self._deaths[job.number] >= MAX_DEATHS:
            reason = f"the worker that ran it died, and so did {MAX_DEATHS - 1} others after it"
            return [Broken(number=job.number, reason=reason)]
        self.submit(job)
        return []

    def _fill_cache(self, missing: Missing) -> None:
        """Put files back that were removed from this host's cache.

        :raise HostError: no space, not writable, or they go again and again
        """
        self._fills[missing.number] += 1
        if self._fills[missing.number] > MAX_FILLS:
            raise HostError(f"images of this host were removed {MAX_FILLS} times in a row")
        receive_images({digest: self._source.read(digest) for digest in missing.digests})

    def _start_worker(self) -> None:
        self._started += 1
        self._workers.append(_Worker(self._program, self._folder / f"worker-{self._started}.log", self._answers))

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.say_goodbye()
        while self._workers:
            self._workers.pop().close()


def _make_environment() -> dict[str, str]:
    """Return the environment of a worker, which finds the same lab as this process, installed or not."""
    here = str(Path(lab.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
