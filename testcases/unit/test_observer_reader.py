# SPDX-License-Identifier: GPL-2.0-or-later
"""The reader and the link without any QEMU: the test plays the observer, and plays it badly."""

import ctypes
import os
import random
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.errors import DeadlineError, GuestGone, HostError, UsageError
from lab.host.deadline import Deadline
from lab.model.evidence import EventKind
from lab.model.topology import Topology
from lab.observer import ObserverLink
from lab.observer.clock import TscClock
from lab.observer.layout import KIND_NUMBERS, Header, Message, Record, Sibling, Status, Window, lay_out

TOPOLOGY = Topology(sockets=1, cores=2, threads=2)
RING = 8
PLACES = lay_out(vcpus=4, threads=2, ring_records=RING, table_blocks=4)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[ObserverLink]:
    with ObserverLink.create(tmp_path, TOPOLOGY, ring_records=RING, table_blocks=4, cover_blocks=1) as link:
        link.arm(7, 2, (10, 20))
        yield link


def put(tmp_path: Path, offset: int, part: ctypes.Structure | bytes) -> None:
    with open(tmp_path / "observer.shm", "r+b") as file:
        file.seek(offset)
        file.write(bytes(part))


def put_record(tmp_path: Path, seq: int, *, place: int | None = None, **fields: int) -> None:
    record = Record(stamp=seq, mono_ns=1000 + seq, tsc=50 + seq, kind=KIND_NUMBERS[EventKind.NMI_ENTRY], trial=7)
    for name, value in fields.items():
        setattr(record, name, value)
    where = seq % RING if place is None else place
    put(tmp_path, PLACES.ring_offset + where * ctypes.sizeof(Record), record)


def put_next_seq(tmp_path: Path, seq: int) -> None:
    put(tmp_path, Header.next_seq.offset, seq.to_bytes(8, "little"))


def name(pc: int) -> str:
    return f"at+{pc:#x}"


def test_file_is_the_owners_alone_and_as_long_as_laid_out(tmp_path: Path, link: ObserverLink) -> None:
    assert link.pass_fd >= 0
    status = (tmp_path / "observer.shm").stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == PLACES.total_size


def test_whole_records_come_in_order(tmp_path: Path, link: ObserverLink) -> None:
    for seq in (1, 2, 3):
        put_record(tmp_path, seq, pc=seq, vcpu=seq)
    put_next_seq(tmp_path, 4)
    evidence = link.collect(name)
    assert [(event.seq, event.vcpu, event.symbol) for event in evidence.events] == [
        (1, 1, "at+0x1"),
        (2, 2, "at+0x2"),
        (3, 3, "at+0x3"),
    ]
    assert evidence.records_lost == 0


def test_other_trials_records_are_neither_shown_nor_lost(tmp_path: Path, link: ObserverLink) -> None:
    put_record(tmp_path, 1, trial=6)
    put_record(tmp_path, 2)
    put_next_seq(tmp_path, 3)
    evidence = link.collect(name)
    assert [event.seq for event in evidence.events] == [2]
    assert evidence.records_lost == 0


def test_overwritten_records_are_counted(tmp_path: Path, link: ObserverLink) -> None:
    for seq in range(1, 21):
        put_record(tmp_path, seq)
    put_next_seq(tmp_path, 21)
    evidence = link.collect(name)
    assert [event.seq for event in evidence.events] == list(range(13, 21))
    assert evidence.records_lost == 12


@pytest.mark.parametrize(
    "broken",
    [
        {"stamp": 0},
        {"stamp": 2**64 - 1},
        {"stamp": 2 + RING},
        {"kind": 0},
        {"kind": 99},
        {"hazard": 9},
        {"vcpu": 4},
    ],
)
def test_unfit_record_is_lost(broken: dict[str, int], tmp_path: Path, link: ObserverLink) -> None:
    for seq in (1, 2, 3):
        put_record(tmp_path, seq)
    put_record(tmp_path, 2, **broken)
    put_next_seq(tmp_path, 4)
    evidence = link.collect(name)
    assert [event.seq for event in evidence.events] == [1, 3]
    assert evidence.records_lost == 1


@pytest.mark.parametrize("unwritten", [0, 2**64 - 1])
def test_a_record_that_is_still_being_written_is_waited_for(unwritten: int, tmp_path: Path, link: ObserverLink) -> None:
    put_record(tmp_path, 1)
    put_record(tmp_path, 2, stamp=unwritten)
    put_next_seq(tmp_path, 3)
    late = threading.Timer(0.1, put_record, (tmp_path, 2))
    late.start()
    evidence = link.collect(name)
    late.join()
    assert [event.seq for event in evidence.events] == [1, 2]
    assert evidence.records_lost == 0


def test_file_cut_short_loses_its_end(tmp_path: Path, link: ObserverLink) -> None:
    for seq in range(1, 8):
        put_record(tmp_path, seq)
    put_next_seq(tmp_path, 8)
    os.truncate(tmp_path / "observer.shm", PLACES.ring_offset + 4 * ctypes.sizeof(Record))
    evidence = link.collect(name)
    assert [event.seq for event in evidence.events] == [1, 2, 3]
    assert evidence.records_lost == 4
    os.truncate(tmp_path / "observer.shm", 0)
    assert link.collect(name).records_lost > 0


def test_no_content_makes_the_reader_raise(tmp_path: Path, link: ObserverLink) -> None:
    source = random.Random(1)
    for _ in range(20):
        put(tmp_path, 0, source.randbytes(PLACES.total_size))
        assert link.collect(name).records_lost > 0


def test_window_without_its_sibling_is_lost(tmp_path: Path, link: ObserverLink) -> None:
    for core in (0, 1):
        put(tmp_path, PLACES.window_offset + core * ctypes.sizeof(Window), Window(trial=7, primary=2 * core))
    put(tmp_path, PLACES.sibling_offset + 1 * ctypes.sizeof(Sibling), Sibling(trial=7, region_blocks=5))
    evidence = link.collect(name)
    assert [window.core for window in evidence.windows] == [0]
    assert evidence.windows_lost == 1


def test_primary_of_another_core_is_no_window(tmp_path: Path, link: ObserverLink) -> None:
    put(tmp_path, PLACES.window_offset, Window(trial=7, primary=3))
    evidence = link.collect(name)
    assert (evidence.windows, evidence.windows_lost) == ((), 1)


def test_entries_count_from_arming(tmp_path: Path, link: ObserverLink) -> None:
    offset = Header.status.offset + Status.nmi_entries.offset
    put(tmp_path, offset, (5).to_bytes(8, "little"))
    assert link.entries() == 5
    link.arm(8, 2, (10, 20))
    assert link.entries() == 0


def test_arming_writes_what_was_asked(link: ObserverLink, tmp_path: Path) -> None:
    header = Header.from_buffer_copy((tmp_path / "observer.shm").read_bytes())
    assert (header.control.armed_trial, header.control.mechanism, header.control.live_blocks) == (7, 2, 4)
    assert list(header.control.stretch_ns[:3]) == [10_000, 20_000, 0]
    assert header.control.extend_bound_ns == 150_000_000
    link.disarm()
    assert Header.from_buffer_copy((tmp_path / "observer.shm").read_bytes()).control.armed_trial == 0


@pytest.mark.parametrize(
    ("trial", "bit", "stretch_us", "message"),
    [
        (0, 0, (1, 1), "trial is 0"),
        (7, 0, (1, 1), "trial is 7"),
        (2**32, 0, (1, 1), "allowed is 1 to 4294967295"),
        (8, 16, (1, 1), "mechanism bit is 16: allowed is 0 to 15"),
        (8, -1, (1, 1), "mechanism bit is -1"),
        (8, 0, (1,), "stretch has 1 values: the guest has 2 cores"),
        (8, 0, (1, 800_001), "stretch is 800001 us: allowed is 0 to 800000"),
        (8, 0, (-1, 1), "stretch is -1 us"),
    ],
)
def test_impossible_arming_is_refused(
    trial: int, bit: int, stretch_us: tuple[int, ...], message: str, link: ObserverLink
) -> None:
    with pytest.raises(UsageError, match=message):
        link.arm(trial, bit, stretch_us)


@pytest.mark.usefixtures("link")
def test_second_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"observer\.shm' could not be made: File exists"):
        ObserverLink.create(tmp_path, TOPOLOGY)


def test_too_large_a_topology_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes up to 64 on 16"):
        ObserverLink.create(tmp_path, Topology(sockets=1, cores=17, threads=2))


@pytest.fixture
def child(link: ObserverLink) -> Iterator[socket.socket]:
    """QEMU's end of the link, held as QEMU would."""
    with socket.socket(fileno=os.dup(link.pass_fd)) as child:
        link.close_child_end()
        yield child


def say(child: socket.socket, kind: EventKind, seq: int) -> None:
    child.send(bytes(Message(kind=KIND_NUMBERS[kind], vcpu=2, seq=seq, mono_ns=5, load=3)))


def test_messages_of_other_kinds_are_kept(link: ObserverLink, child: socket.socket) -> None:
    for seq, kind in enumerate((EventKind.LOAD_BEGIN, EventKind.WINDOW_OPEN, EventKind.LOAD_END), start=1):
        say(child, kind, seq)
    deadline = Deadline.after(1)
    order = (EventKind.LOAD_END, EventKind.LOAD_BEGIN, EventKind.WINDOW_OPEN)
    heard = [link.wait_for(kind, deadline) for kind in order]
    assert [(message.kind, message.seq) for message in heard] == list(zip(order, (3, 1, 2), strict=True))
    assert (heard[0].vcpu, heard[0].core, heard[0].load, heard[0].mono_ns) == (2, 1, 3, 5)


def test_messages_of_an_earlier_trial_are_not_heard(tmp_path: Path, link: ObserverLink, child: socket.socket) -> None:
    say(child, EventKind.LOAD_END, 1)
    put_next_seq(tmp_path, 10)
    link.arm(8, 2, (10, 20))
    say(child, EventKind.LOAD_END, 9)  # was under way
    say(child, EventKind.LOAD_END, 10)
    assert link.wait_for(EventKind.LOAD_END, Deadline.after(1)).seq == 10


def test_garbage_on_the_link_is_passed_over(link: ObserverLink, child: socket.socket) -> None:
    child.send(b"x")
    child.send(bytes(Message(kind=77, seq=5)))
    say(child, EventKind.LOAD_BEGIN, 1)
    assert link.wait_for(EventKind.LOAD_BEGIN, Deadline.after(1)).seq == 1


def test_silence_ends_at_the_deadline(link: ObserverLink, child: socket.socket) -> None:
    assert child.fileno() >= 0
    with pytest.raises(DeadlineError, match="the observer's window-open"):
        link.wait_for(EventKind.WINDOW_OPEN, Deadline.after(0.05))


def test_last_words_are_heard_before_the_end(link: ObserverLink, child: socket.socket) -> None:
    say(child, EventKind.LOAD_BEGIN, 1)
    child.close()
    assert link.wait_for(EventKind.LOAD_BEGIN, Deadline.after(1)).seq == 1
    with pytest.raises(GuestGone, match="load-end"):
        link.wait_for(EventKind.LOAD_END, Deadline.after(1))


def test_places_are_never_taken_from_the_file(tmp_path: Path, link: ObserverLink) -> None:
    put_record(tmp_path, 1)
    put_next_seq(tmp_path, 2)
    put(tmp_path, 64, b"\xff" * 32)  # the shape's offsets
    assert [event.seq for event in link.collect(name).events] == [1]


def test_clock_follows_its_pairs() -> None:
    clock = TscClock([(2000, 1_500), (1000, 1_000), (4000, 3_500)])
    assert [clock.time_ns(tsc) for tsc in (1000, 1500, 2000, 3000, 4000)] == [1_000, 1_250, 1_500, 2_500, 3_500]
    assert clock.time_ns(7000) == 3_500 + 2_500  # the mean rate of all goes on
    assert clock.time_ns(400) == 1_000 - 500
    assert clock.duration_ns(600) == 500
    assert clock.time_ns(0) == 0


@pytest.mark.parametrize("pairs", [[], [(5, 5)], [(0, 0), (7, 7)], [(5, 9), (6, 8)]])
def test_clock_without_two_pairs_knows_nothing(pairs: list[tuple[int, int]]) -> None:
    clock = TscClock(pairs)
    assert (clock.time_ns(6), clock.duration_ns(6)) == (0, 0)
