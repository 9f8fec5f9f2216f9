# SPDX-License-Identifier: GPL-2.0-or-later
"""Dask without the wall clock. In processes of their own, since all of Dask in one is changed."""

import subprocess
import sys

#: Whether what measures intervals, in the campaign's process and in a worker's, asks the steady clock.
PROGRAM = """
import time
import distributed.batched, distributed.nanny, distributed.scheduler, distributed.worker
from tornado.ioloop import IOLoop
from lab.cluster import steady

{change}
steady._begun_s += 86_400
modules = (distributed.batched, distributed.nanny, distributed.scheduler, distributed.worker)
print(*(round((ask() - time.time()) / 86_400) for ask in (*(each.time for each in modules), lambda: IOLoop.time(None))))
"""


def ask(change: str) -> str:
    words = (sys.executable, "-c", PROGRAM.format(change=change))
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_all_of_dask_measures_by_the_steady_clock() -> None:
    assert ask("steady.steady_dask(); steady.steady_dask()") == "1 1 1 1 1"
    assert ask("") == "0 0 0 0 0"
