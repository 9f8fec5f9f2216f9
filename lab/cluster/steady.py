# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps Dask from depending on the wall clock, which may be set while a campaign runs.

Dask and tornado measure intervals by it. Put forward by more than the time to live of a worker, all workers are taken
for dead and their trials are lost; put back, heartbeats and messages wait until it has caught up.
"""

import sys
import time
from typing import Final

from tornado.ioloop import IOLoop

_begun_s: Final = time.time() - time.monotonic()


def steady_time() -> float:
    """Return the wall clock's time as it was when the lab began, s since the epoch, plus what has gone by since."""
    return _begun_s + time.monotonic()


def steady_dask() -> None:
    """Have all of Dask and tornado in this process measure by :func:`steady_time`."""
    for name, module in tuple(sys.modules.items()):
        # Each of its modules has taken the function by its name.
        if name.split(".")[0] == "distributed" and getattr(module, "time", None) is time.time:
            module.time = steady_time  # type: ignore[attr-defined]
    IOLoop.time = lambda self: steady_time()  # type: ignore[method-assign]  # noqa: ARG005
