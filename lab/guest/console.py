# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's serial console: write it to a file, and watch it live."""

import re
import socket
import threading
from pathlib import Path
from typing import BinaryIO

import msgspec

from lab.errors import HostError
from lab.guest.ending import EndLatch
from lab.guest.text import clean_line, clean_lines
from lab.host.deadline import Deadline
from lab.model.evidence import Ending

#: A hostile or looping guest must not fill the disk.
MAX_LOG_BYTES = 16 << 20
#: This much stays in memory for tail() and part(). A trial prints about 10 KiB.
RECENT_BYTES = 1 << 20
#: A line of this length is checked even if the guest never ends the line.
MAX_PENDING_BYTES = 8 << 10
#: A thread gets this time to end after the lab told it to end.
JOIN_S = 5.0

#: ``[    1.234567][    C1] Kernel panic - not syncing: Timeout during microcode update!`` The pattern requires printk's
#: prefix, since user space may print the same words.
PANIC = re.compile(rb"(?:^|\] )Kernel panic - not syncing")
#: ``[    0.000000][    T0] Linux version 6.1.0 (...)``: expected once; a second such line shows a reset.
BOOT = re.compile(rb"(?:^|\] )Linux version [0-9]")


class ConsolePart(msgspec.Struct, frozen=True):
    """The part of the console's output since a mark.

    :param lines: cleaned lines, without empty lines
    :param lost_bytes: size of the beginning that the lab no longer keeps
    """

    lines: tuple[str, ...]
    lost_bytes: int


class Console:
    """Read one end of a socket pair until it closes. The other end is the guest's serial port."""

    def __init__(self, end: socket.socket, log: Path, ending: EndLatch) -> None:
        self._end = end
        self._path = log
        self._ending = ending
        self._changed = threading.Condition()
        self._recent = bytearray()
        self._received = 0
        self._logged = 0
        self._dropped = 0
        self._pending = b""
        self._boots = 0
        self._closed = False
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)

    def __enter__(self) -> "Console":
        try:
            self._log: BinaryIO | None = open(self._path, "xb", buffering=0)
        except OSError as error:
            raise HostError(f"console log '{self._path}' could not be made: {error.strerror}") from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # QEMU has ended by now. So the thread reads the rest, meets the end of the stream, and ends by itself.
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            self._end.shutdown(socket.SHUT_RDWR)
            self._thread.join(JOIN_S)
        if self._log is not None:
            self._log.close()

    @property
    def dropped_bytes(self) -> int:
        """Return how many bytes are not in the log, since the log reached its limit or the disk was full."""
        with self._changed:
            return self._dropped

    def mark(self) -> int:
        """Return the present position in the stream, for part() and wait_for()."""
        with self._changed:
            return self._received

    def part(self, since: int) -> ConsolePart:
        """Return the output since a mark."""
        raw, lost = self._take(since)
        return ConsolePart(lines=clean_lines(raw), lost_bytes=lost)

    def tail(self, count: int) -> tuple[str, ...]:
        """Return the last lines, cleaned."""
        raw, _ = self._take(0)
        return clean_lines(raw)[-count:]

    def wait_for(self, pattern: str, deadline: Deadline, since: int = 0) -> str:
        """Wait until a line matches, and return the cleaned line. An unfinished line may match, too.

        :param pattern: regular expression; the search is in cleaned lines
        :param since: a mark; earlier output is ignored
        :raise GuestGone: the guest ended before a match
        :raise DeadlineError: the deadline passed before a match
        """
        wanted = re.compile(pattern)
        what = f"'{pattern}' on the console"
        with self._ending.calling(self._notify):
            while True:
                received = self.mark()
                raw, lost = self._take(since)
                for line in map(clean_line, raw.split(b"\n")):
                    if wanted.search(line):
                        return line
                # The last line may continue, so the next round checks this line again.
                since += lost + raw.rfind(b"\n") + 1
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._received != received or self._ending.seen is not None,  # noqa: B023
                        deadline.remaining_s,
                    )
                    if self._received != received:
                        continue
                self._ending.check(what)
                deadline.check(what)

    def wait_closed(self, deadline: Deadline) -> bool:
        """Wait until QEMU has closed its end and the lab has read all output.

        Return False if the deadline passed first.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, deadline.remaining_s)

    def _take(self, since: int) -> tuple[bytes, int]:
        """Return the kept output from a position on, and how many bytes before it are lost."""
        with self._changed:
            first = self._received - len(self._recent)
            lost = max(0, first - since)
            return bytes(self._recent[max(0, since - first) :]), lost

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            while True:
                try:
                    data = self._end.recv(65536)
                except OSError:
                    break
                if not data:
                    break
                self._keep(data)
                self._watch(data)
            self._look(self._pending)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _keep(self, data: bytes) -> None:
        room = data[: MAX_LOG_BYTES - self._logged]
        if self._log is not None:
            try:
                self._log.write(room)
            except OSError:
                # The disk is full: from now on, only the output in memory is evidence. Reading continues, since a guest
                # stops if nobody reads its console.
                room = b""
        with self._changed:
            self._logged += len(room)
            self._dropped += len(data) - len(room)
            self._received += len(data)
            self._recent += data
            del self._recent[:-RECENT_BYTES]
            self._changed.notify_all()

    def _watch(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._look(line)
        if len(self._pending) > MAX_PENDING_BYTES:
            self._look(self._pending)
            self._pending = b""

    def _look(self, line: bytes) -> None:
        if PANIC.search(line):
            self._ending.report(Ending.PANIC, f"the console showed '{clean_line(line)}'")
        elif BOOT.search(line):
            self._boots += 1
            if self._boots > 1:
                self._ending.report(Ending.GONE, "the console showed a second boot")
