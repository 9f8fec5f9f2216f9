# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's exit: noticed when it happens, and what QEMU had to say about it."""

import os
import select
import signal
import threading
from pathlib import Path

from lab.guest.ending import EndLatch
from lab.guest.text import clean_lines
from lab.host import proc
from lab.model.evidence import Ending

#: How much of QEMU's messages is read, from their end.
MAX_MESSAGE_BYTES = 64 << 10
#: One line per missing CPU feature and vCPU, of every guest under TCG: expected, and tells nothing.
NOISE = "TCG doesn't support requested feature"


def read_messages(log: Path) -> tuple[str, ...]:
    """Return QEMU's messages, cleaned, without those that every guest causes; empty when there are none."""
    try:
        with open(log, "rb") as source:
            source.seek(max(0, log.stat().st_size - MAX_MESSAGE_BYTES))
            return tuple(line for line in clean_lines(source.read(MAX_MESSAGE_BYTES)) if NOISE not in line)
    except OSError:
        return ()


def describe_exit(status: int) -> str:
    """Name an exit status or signal."""
    if status >= 0:
        return f"QEMU ended with status {status}"
    try:
        return f"QEMU was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"QEMU was ended by signal {-status}"


class ExitWatch:
    """A thread that reports QEMU's exit to the latch."""

    def __init__(self, process: proc.Process, log: Path, ending: EndLatch) -> None:
        self._process = process
        self._log = log
        self._ending = ending
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pidfd = os.pidfd_open(process.pid)
        self._thread = threading.Thread(target=self._watch, name="exit-watch", daemon=True)

    def __enter__(self) -> "ExitWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        os.close(self._pidfd)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        # Without a timeout: the stop above always comes.
        if self._pidfd in dict(poll.poll()):
            said = "".join(f": {line}" for line in read_messages(self._log)[-1:])
            status = self._process.wait()
            # A signal is of the host, or of a defect in QEMU: no guest can send one.
            self._ending.report(Ending.LAB if status < 0 else Ending.GONE, describe_exit(status) + said)
