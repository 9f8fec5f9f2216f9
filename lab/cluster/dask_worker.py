# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs inside a Dask worker: one station for each worker process, which ends its guests when nobody needs them."""

import threading
from typing import Any, Final, cast

import msgspec
from distributed import WorkerPlugin, get_worker

from lab import __version__
from lab.campaign.job import Broken, Job, Missing, TrialDone, Unstarted
from lab.campaign.station import Station
from lab.cluster.steady import steady_dask

PLUGIN: Final = "microcode-nmi-lab"
#: A campaign that is alive gives its workers trials without a pause; one that was killed never ends its guests.
IDLE_S: Final = 30.0


class StationPlugin(WorkerPlugin):  # type: ignore[misc]  # of a library without types
    """Keeps a worker's station, which is made in the worker itself."""

    name = PLUGIN

    def __init__(self) -> None:
        self._station: Station | None = None
        self._ended: threading.Event | None = None

    @property
    def station(self) -> Station:
        """The worker's station."""
        assert self._station is not None, "setup() makes it, in the worker"
        return self._station

    def setup(self, worker: Any) -> None:  # noqa: ARG002
        """Make the station; Dask calls it in each worker, also in those that come later."""
        steady_dask()
        self._station = Station()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, args=(self._station, self._ended), name="idle", daemon=True).start()

    def teardown(self, worker: Any) -> None:  # noqa: ARG002
        """End the station's guests, at once; Dask calls it as a worker closes."""
        if self._ended is not None and self._station is not None:
            self._ended.set()
            self._station.abort()
            self._station.close()

    @staticmethod
    def _watch(station: Station, ended: threading.Event) -> None:
        while not ended.wait(IDLE_S / 4):
            station.close_idle(IDLE_S)


def run_job(job: Job) -> TrialDone | Missing | Broken | Unstarted:
    """Run a trial on the worker's station."""
    worker = get_worker()
    done = _find_station(worker).run(job)
    return msgspec.structs.replace(done, worker=worker.address) if isinstance(done, Missing) else done


def withdraw_trial(campaign: str, dask_worker: Any) -> None:
    """End the worker's trial if it is a campaign's and waits for vCPUs; Dask calls it as it does the next one."""
    _find_station(dask_worker).withdraw(campaign)


def abort_trial(dask_worker: Any) -> None:
    """End the worker's trial and guests; Dask calls it in the event loop, beside the thread that runs the trial."""
    _find_station(dask_worker).abort()


def end_guests(dask_worker: Any) -> None:
    """End the worker's guests once its trial has ended."""
    _find_station(dask_worker).close()


def tell_version() -> str:
    """Return the version of the lab that the worker runs."""
    return __version__


def _find_station(worker: Any) -> Station:
    return cast(StationPlugin, worker.plugins[PLUGIN]).station
