# SPDX-License-Identifier: GPL-2.0-or-later
"""What a lab that a test started leaves behind: nothing may be, however it was ended.

Every program that it starts, and those that they start, carry a mark in their environment, so that other labs on the
same host are told apart.
"""

import os
import re
import threading
import time
import uuid
from pathlib import Path

import psutil

from lab.campaign.database import is_running
from lab.host.run_dir import PARENT, PREFIX

MARK = "MCLAB_TEST_MARK"
#: Long enough for a guest whose lab was killed to be reaped by the system.
GONE_S = 20.0
_LOOK_S = 0.05
_RUN_DIR = re.compile(re.escape(PREFIX) + r"([0-9]+)-")


class Leftovers:
    """Looks at the processes of one test until its end. A context manager."""

    def __init__(self) -> None:
        self._value = uuid.uuid4().hex
        self._ended = threading.Event()
        self._seen: set[int] = set()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Leftovers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for process in self.find_processes():
            process.kill()

    @property
    def environment(self) -> dict[str, str]:
        """What to start a lab with."""
        return {**os.environ, MARK: self._value}

    @property
    def seen(self) -> frozenset[int]:
        """The ids of all processes that were marked."""
        return frozenset(self._seen)

    def find_processes(self, name: str = "") -> list[psutil.Process]:
        """Return the marked processes that run now, of those whose command line has a name in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                marked = f"{MARK}={self._value}".encode() in (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if marked and name in words:
                    found.append(psutil.Process(int(entry.name)))
            except (OSError, psutil.NoSuchProcess):
                continue
        return found

    def find_folders(self) -> list[Path]:
        """Return the run folders of processes that were seen."""
        found = []
        for path in PARENT.glob(f"{PREFIX}*"):
            made_by = _RUN_DIR.match(path.name)
            if made_by is not None and int(made_by[1]) in self._seen:
                found.append(path)
        return found

    def check_no_process(self) -> None:
        """Assert that no process, and so no socket and no lock of one, remains."""
        deadline = time.monotonic() + GONE_S
        while (left := self.find_processes()) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        assert not left, [process.cmdline()[:6] for process in left]

    def check(self, folder: Path) -> None:
        """Assert that nothing remains of what was marked: no process, socket, lock or temporary file.

        :param folder: of the campaign, which holds a store, its page and evidence alone
        """
        self.check_no_process()
        assert self._seen, "nothing was ever started"
        assert self.find_folders() == []
        assert not is_running(folder)
        assert {path.name for path in folder.iterdir()} <= {"campaign.sqlite", "index.html", "trials"}
        trials = folder / "trials"
        assert not [path for path in (trials.rglob("*") if trials.is_dir() else ()) if path.name.startswith(".")]

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self._seen |= {process.pid for process in self.find_processes()}
