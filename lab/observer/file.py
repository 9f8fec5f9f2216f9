# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading the shared file so that no content and no length of it can raise or kill.

It is read with pread(2), never through a mapping: reading a mapping of a file that was cut short is SIGBUS.
"""

import ctypes
import os
from typing import TypeVar

import numpy as np

from lab.observer.layout import (
    STAMP_BUSY,
    UPDATES,
    Block,
    Covered,
    Header,
    Places,
    Record,
    Sibling,
    Update,
    Vcpu,
    Window,
)

_Part = TypeVar("_Part", bound=ctypes.Structure)


class ObserverFile:
    """The parts of one shared file, as they are at the moment of each call; what is missing reads as zeros."""

    def __init__(self, descriptor: int, places: Places) -> None:
        self._descriptor = descriptor
        self.places = places

    def read_header(self) -> Header:
        """Return the header."""
        return self._read_parts(Header, 0, 1)[0]

    def read_vcpus(self) -> list[Vcpu]:
        """Return every vCPU's present."""
        return self._read_parts(Vcpu, self.places.vcpu_offset, self.places.vcpus)

    def read_windows(self) -> list[Window]:
        """Return each core's last window."""
        return self._read_parts(Window, self.places.window_offset, self.places.vcpus // self.places.threads)

    def read_siblings(self) -> list[Sibling]:
        """Return every vCPU's part in its core's last window."""
        return self._read_parts(Sibling, self.places.sibling_offset, self.places.vcpus)

    def read_table(self, vcpu: int) -> list[Block]:
        """Return the used places of one vCPU's block table."""
        blocks = self.places.table_blocks
        offset = self.places.table_offset + vcpu * blocks * ctypes.sizeof(Block)
        return self._read_used(Block, offset, blocks)

    def read_cover(self, vcpu: int) -> list[Covered]:
        """Return the used places of one vCPU's cover table."""
        offset = self.places.cover_offset + vcpu * self.places.cover_blocks * ctypes.sizeof(Covered)
        return self._read_used(Covered, offset, self.places.cover_blocks)

    def read_updates(self) -> dict[int, Update]:
        """Return the last updates that were written, by number."""
        places = self._read_parts(Update, self.places.update_offset, UPDATES)
        return {place.number: place for place in places if place.number}

    def read_records(self, first_seq: int, end_seq: int) -> tuple[list[Record], int]:
        """Return the records numbered from ``first_seq`` up to ``end_seq``, and how many of those are lost."""
        capacity = self.places.ring_records
        first_held = max(first_seq, end_seq - capacity)
        found = []
        for number, record in zip(range(first_held, end_seq), self._read_ring(first_held, end_seq), strict=True):
            if record.stamp == number:
                found.append(record)
        # What was overwritten while it was read may be half of one and half of another.
        whole_from = self.read_header().next_seq - capacity
        found = [record for record in found if record.stamp >= whole_from]
        return found, max(0, end_seq - first_seq) - len(found)

    def count_unwritten(self, first_seq: int, end_seq: int) -> int:
        """Return how many of these numbers were given to a record that is not whole in its place, nor overwritten."""
        first_held = max(first_seq, end_seq - self.places.ring_records)
        numbers = range(first_held, end_seq)
        written = zip(numbers, self._read_ring(first_held, end_seq), strict=True)
        # A stamp above its number is a later record's or, at its largest, says that one is being written.
        return sum(record.stamp < number or record.stamp == STAMP_BUSY for number, record in written)

    def _read_ring(self, first_seq: int, end_seq: int) -> list[Record]:
        """Return the places of consecutive numbers, at most one round of the ring."""
        capacity = self.places.ring_records
        places: list[Record] = []
        while first_seq < end_seq:
            place = first_seq % capacity
            count = min(end_seq - first_seq, capacity - place)
            places += self._read_parts(Record, self.places.ring_offset + place * ctypes.sizeof(Record), count)
            first_seq += count
        return places

    def _read_used(self, part: type[_Part], offset: int, count: int) -> list[_Part]:
        """Return those places of a table that have a count; looking at each by itself takes longer than a load."""
        data = self._read_bytes(offset, count * ctypes.sizeof(part))
        used = np.flatnonzero(np.frombuffer(data, dtype=np.dtype(part))["count"])
        return [part.from_buffer_copy(data, int(index) * ctypes.sizeof(part)) for index in used]

    def _read_parts(self, part: type[_Part], offset: int, count: int) -> list[_Part]:
        size = ctypes.sizeof(part)
        data = self._read_bytes(offset, count * size)
        return [part.from_buffer_copy(data, index * size) for index in range(count)]

    def _read_bytes(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError:
            data = b""
        return data.ljust(size, b"\0")
