# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's exit: the lab notices the exit at once, and reads QEMU's last messages."""

import os
import select
import signal
import threading
from pathlib import Path

from lab.guest.ending import EndLatch
from lab.guest.text import clean_lines
from lab.host import proc
from lab.model.evidence import Ending

#: The lab reads this much of QEMU's messages, from their end.
MAX_MESSAGE_BYTES = 64 << 10
#: QEMU prints one such line per missing CPU feature and vCPU, for every guest under TCG. The line has no information.
NOISE = "TCG doesn't support requested feature"


def read_messages(log: Path) -> tuple[str, ...]:
    """Return QEMU's messages, cleaned, without those that every guest causes. The result may be empty."""
    try:
        with open(log, "rb") as source:
            source.seek(max(0, log.stat().st_size - MAX_MESSAGE_BYTES))
            return tuple(line for line in clean_lines(source.read(MAX_MESSAGE_BYTES)) if NOISE not in line)
    except OSError:
        return ()


def describe_exit(status: int) -> str:
    """Describe an exit status or signal."""
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
        # Needs no timeout: __exit__() always signals the stop descriptor.
        if self._pidfd in dict(poll.poll()):
            said = "".join(f": {line}" for line in read_messages(self._log)[-1:])
            status = self._process.wait()
            # A signal comes from the host, or from a defect in QEMU. No guest can send a signal to QEMU.
            self._ending.report(Ending.LAB if status < 0 else Ending.GONE, describe_exit(status) + said)
