# SPDX-License-Identifier: GPL-2.0-or-later
"""The executor of a campaign on many hosts: Dask workers of whatever scheduler its user runs.

A worker is one process with one thread, and declares a resource ``vcpus``: how many vCPUs its host has for guests. A
trial asks for as many as its guest has, so that no host is given one that it cannot run; which of a host's workers run
beside each other is left to the host's own budget (lab.host.admission), which all labs on it share.
"""

import contextlib
import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import dask
import msgspec
from distributed import Client, Future

from lab import __version__
from lab.campaign.definition import choose_trial
from lab.campaign.executor import Ended
from lab.campaign.image_transfer import ImageSource, receive_images
from lab.campaign.job import Broken, Job, Missing, TrialDone, Unstarted
from lab.cluster import dask_worker
from lab.cluster.dask_worker import StationPlugin
from lab.cluster.steady import steady_dask
from lab.errors import HostError, LabError, UsageError
from lab.host.deadline import Deadline

RESOURCE: Final = "vcpus"
CONNECT_S: Final = 30.0
#: A trial that was aborted has lost its guest, and collects what there is.
ABORT_S: Final = 20.0
#: How often a trial whose worker died is tried elsewhere before that counts as the trial's own doing.
MAX_DEATHS: Final = 3
#: How long what the scheduler says of its workers is believed.
FRESH_S: Final = 1.0
#: Some 100 MiB to a host at the other end of a slow line.
SEND_S: Final = 900.0
#: A host that did not get its images so often in a row, as when workers die of them, never will.
MAX_SENDS: Final = 3

#: Dask warns its user of tasks that carry files; those of one kernel have some 24 MiB.
_LARGE: Final = {"distributed.admin.large-graph-warning-threshold": "1 GiB"}

_KIND: Final = "trial"

Workers = Mapping[str, Mapping[str, Any]]


class _Sending(msgspec.Struct):
    """Images on their way to one host's cache.

    :param jobs: that wait for them, of whichever of the host's workers
    """

    future: Future
    worker: str
    digests: frozenset[str]
    deadline: Deadline
    jobs: list[Job]


class DaskExecutor:
    """Runs trials on the workers of a scheduler. Made by :func:`join_scheduler`."""

    def __init__(self, client: Client, source: ImageSource) -> None:
        self._client = client
        self._source = source
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._jobs: dict[object, tuple[Job, Future]] = {}
        self._sending: dict[str, _Sending] = {}
        self._sent: dict[str, frozenset[str]] = {}
        self._failed_sends: Counter[str] = Counter()
        self._withdrawn: list[Ended] = []
        # Two campaigns may share a scheduler.
        self._tries = secrets.randbits(48)
        # As long as one task of a kind is known, Dask goes on with its account of that kind; else it begins another
        # with each trial, and keeps them all.
        self._anchor = client.submit(dask_worker.tell_version, key=(_KIND, 0, self._tries), pure=False)
        self._workers: Workers = {}
        self._asked_at = 0.0
        self._withdrawing: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def capacity(self) -> int:
        """As many trials as there are workers, which may come and go; none where :meth:`wait` has an error to raise.

        :raise HostError: the scheduler is gone
        """
        return len(self.find_workers()) if self._error is None else 0

    def find_workers(self) -> Workers:
        """Return what the scheduler says of each worker, by address.

        :raise HostError: the scheduler is gone
        """
        if time.monotonic() - self._asked_at >= FRESH_S:
            try:
                self._workers = cast(Workers, self._client.scheduler_info()["workers"])
            except (OSError, TimeoutError, KeyError) as error:
                raise self._lost() from error
            self._asked_at = time.monotonic()
        return self._workers

    def submit(self, job: Job) -> None:
        """Have a trial run on any worker whose host is large enough for its guest.

        :raise HostError: the scheduler is gone, or as :meth:`wait`
        """
        if self._error is not None:
            raise self._error
        vcpus = choose_trial(job.spec, job.number).part.scenario.topology.vcpus
        workers = self.find_workers()
        if workers:
            # One that is larger than every host runs all the same, alone: lab.host.admission says how.
            vcpus = min(vcpus, max(int(each["resources"].get(RESOURCE, 0)) for each in workers.values()))
        self._tries += 1
        future = self._client.submit(
            dask_worker.run_job,
            job,
            # A tuple's first word is its kind: Dask keeps a few kB of each kind for ever.
            key=(_KIND, job.number, self._tries),
            resources={RESOURCE: vcpus},
            pure=False,
        )
        self._jobs[future.key] = (job, future)
        future.add_done_callback(self._ended.put)

    def wait(self, seconds: float) -> list[Ended]:
        """Return what has ended; an error is raised once there is nothing to return.

        :raise HostError: the scheduler is gone, or a worker's host cannot run trials
        """
        found, self._withdrawn = self._withdrawn, []
        with self._keep_error():
            self._check_sending()
        with contextlib.suppress(queue.Empty):
            future = self._ended.get(timeout=0.0 if found or self._error is not None else seconds)
            while True:
                with self._keep_error():
                    found += self._collect(future)
                future = self._ended.get_nowait()
        if found:
            return found
        if self._error is not None:
            raise self._error
        if self._client.status != "running":
            raise self._lost()
        return []

    @contextlib.contextmanager
    def _keep_error(self) -> Iterator[None]:
        """Have the first error wait, so that it takes no trial with it that has ended."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error

    def withdraw(self) -> None:
        """Have trials end that wait for vCPUs or images, without waiting for workers to answer: one may be stuck."""
        for sending in self._sending.values():
            self._withdrawn += [Unstarted(number=job.number) for job in sending.jobs]
        # What becomes of images that nobody waits for must not end a campaign whose running trials are waited for.
        self._sending.clear()
        if self._withdrawing is None or not self._withdrawing.is_alive():
            campaigns = {job.campaign for job, _ in self._jobs.values()}
            self._withdrawing = threading.Thread(target=self._withdraw, args=(campaigns,), name="withdraw", daemon=True)
            self._withdrawing.start()

    def _withdraw(self, campaigns: set[str]) -> None:
        with contextlib.suppress(Exception):
            for campaign in campaigns:
                self._client.run(dask_worker.withdraw_trial, campaign, on_error="ignore")

    def abort(self) -> None:
        """End what runs, on all workers."""
        with contextlib.suppress(Exception):
            self._client.cancel([future for _, future in self._jobs.values()])
            self._client.run(dask_worker.abort_trial, on_error="ignore")

    def end_guests(self) -> None:
        """End the guests of all workers, which go on without the campaign."""
        with contextlib.suppress(Exception):
            self._client.run(dask_worker.end_guests, on_error="ignore")

    def _collect(self, future: Future) -> list[Ended]:
        if future.key not in self._jobs:
            self._end_sending(future)
            return []
        job, _ = self._jobs.pop(future.key)
        if future.status in ("cancelled", "lost"):
            raise self._lost()
        if future.status == "error":
            return [self._explain(job, future.exception())]
        result = future.result()
        if isinstance(result, Missing):
            self._send_images(result, job)
            return []
        assert isinstance(result, TrialDone | Broken | Unstarted), "a worker returns one of four"
        return [result]

    def _explain(self, job: Job, error: BaseException | None) -> Ended:
        if isinstance(error, LabError):
            raise error
        if type(error).__name__ == "KilledWorker":
            reason = f"the worker that ran it died, and so did {MAX_DEATHS - 1} others after it"
            return Broken(number=job.number, reason=reason)
        raise HostError(f"trial {job.number} could not be run: {type(error).__name__}: {error}")

    def _send_images(self, missing: Missing, job: Job) -> None:
        """Give a worker's host what it lacks, once: its other workers wait, and find it there."""
        if missing.cache in self._sending:
            self._sending[missing.cache].jobs.append(job)
            return
        if set(missing.digests) <= self._sent.pop(missing.cache, frozenset()):
            # It may have looked before they came.
            self.submit(job)
            return
        files = {digest: self._source.read(digest) for digest in missing.digests}
        with dask.config.set(_LARGE):
            future = self._client.submit(receive_images, files, workers=[missing.worker], pure=False)
        self._sending[missing.cache] = _Sending(
            future=future,
            worker=missing.worker,
            digests=frozenset(files),
            deadline=Deadline.after(SEND_S),
            jobs=[job],
        )
        future.add_done_callback(self._ended.put)

    def _end_sending(self, future: Future) -> None:
        """Run what waited for images, which were sent, or were not since the worker died.

        :raise HostError: the host cannot take them
        """
        for cache, sending in tuple(self._sending.items()):
            if sending.future.key != future.key:
                continue
            del self._sending[cache]
            if future.status in ("cancelled", "lost"):
                raise self._lost()
            error = future.exception() if future.status == "error" else None
            if isinstance(error, LabError):
                raise error
            if future.status == "finished":
                self._sent[cache] = sending.digests
                del self._failed_sends[cache]
            else:
                self._count_failure(cache, sending.worker, error)
            for job in sending.jobs:
                self.submit(job)

    def _count_failure(self, cache: str, worker: str, error: BaseException | None) -> None:
        """Note that a host did not get its images.

        :param error: None where the worker was gone
        :raise HostError: so often in a row that it never will
        """
        self._failed_sends[cache] += 1
        if self._failed_sends[cache] >= MAX_SENDS:
            why = "it was gone" if error is None else type(error).__name__
            raise HostError(
                f"images could not be sent to {cache} {MAX_SENDS} times in a row, the last time by worker {worker}:"
                f" {why}"
            )

    def _check_sending(self) -> None:
        """Give up on workers that are gone: what only they may do is never done.

        :raise HostError: one that is there does not take them
        """
        for cache, sending in tuple(self._sending.items()):
            if sending.worker not in self.find_workers():
                self._end_sending(sending.future)
                self._client.cancel([sending.future])
            elif sending.deadline.expired:
                raise HostError(f"images could not be sent to {cache} by worker {sending.worker} in {SEND_S:.0f} s")

    def _lost(self) -> HostError:
        return HostError("the Dask scheduler is gone; 'lab campaign resume' runs what is left")


@contextlib.contextmanager
def join_scheduler(address: str, source: ImageSource) -> Iterator[DaskExecutor]:
    """Use the workers of a scheduler that runs already, and leave them without guests.

    Certificates for ``tls://`` are those of Dask's own configuration.

    :raise UsageError: there is none, or its workers are not fit
    """
    steady_dask()
    with contextlib.ExitStack() as stack:
        try:
            client = Client(address, set_as_default=False, timeout=CONNECT_S)
            stack.callback(_close, client)
            client.wait_for_workers(1, timeout=CONNECT_S)
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise UsageError(f"scheduler '{address}' cannot be used: {error or 'it has no worker'}") from error
        executor = DaskExecutor(client, source)
        _check_workers(address, client, executor.find_workers())
        client.register_plugin(StationPlugin())
        stack.callback(executor.end_guests)
        yield executor


def _check_workers(address: str, client: Client, workers: Workers) -> None:
    for name, facts in workers.items():
        if facts["nthreads"] != 1 or int(facts["resources"].get(RESOURCE, 0)) < 1:
            raise UsageError(
                f"worker {name} of scheduler '{address}' has {facts['nthreads']} threads and resources"
                f" {dict(facts['resources'])}: needed is one thread and {RESOURCE}, as by"
                f" 'dask worker --nthreads 1 --resources {RESOURCE}=N'"
            )
    try:
        versions = client.run(dask_worker.tell_version)
    except Exception as error:
        raise UsageError(f"the workers of scheduler '{address}' cannot run this lab: {error}") from error
    for name, version in versions.items():
        if version != __version__:
            raise UsageError(f"worker {name} of scheduler '{address}' has lab {version}: this one is {__version__}")


def _close(closing: Client) -> None:
    # What does not close in time is killed by its nanny; nothing that goes wrong here may hide why we are leaving.
    with contextlib.suppress(Exception):
        closing.close(timeout=ABORT_S)
