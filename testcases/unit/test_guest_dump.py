# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a guest by a monitor that answers as it is told to: what is taken, what is not, and what is said."""

import array
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from night_samples import KEPT, VERDICT, make_done, make_spec, open_store

from lab.campaign.job import pack_evidence
from lab.campaign.retention import Retention
from lab.errors import DeadlineError, GuestError
from lab.evidence.folder import MAX_RAW_BYTES, read_evidence, write_evidence
from lab.guest import dump as dump_module
from lab.guest.dump import MAX_DUMP_MIB, Dump, dump_memory
from lab.guest.ending import EndLatch
from lab.guest.qmp import QmpChannel
from lab.host.deadline import Deadline
from lab.model.evidence import Ending, Stall
from lab.model.verdict import Outcome
from lab.trial.session import Kept

MIB = 1 << 20


class Monitor:
    """QEMU's end of a monitor, which takes descriptors and writes into them."""

    def __init__(self, end: socket.socket, *, formats: tuple[str, ...], statuses: tuple[str, ...], size: int) -> None:
        self.end = end
        self.formats = formats
        self.statuses = list(statuses)
        self.size = size
        self.asked: list[str] = []
        self.descriptor = -1
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def serve(self) -> None:
        text, decoder = "", json.JSONDecoder()
        with contextlib.suppress(OSError):
            self.send({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}})
            while True:
                data, ancillary, _, _ = self.end.recvmsg(4_096, socket.CMSG_SPACE(4))
                if not data:
                    return
                for _, _, raw in ancillary:
                    self.descriptor = array.array("i", raw)[0]
                text = (text + data.decode()).lstrip()
                while text:
                    try:
                        message, end = decoder.raw_decode(text)
                    except ValueError:
                        break
                    text = text[end:].lstrip()
                    self.send({"return": self.answer(message["execute"], message), "id": message.get("id")})

    def send(self, message: Mapping[str, object]) -> None:
        self.end.sendall(json.dumps(message).encode() + b"\r\n")

    def answer(self, command: str, message: Mapping[str, Any]) -> object:
        self.asked.append(command)
        if command == "query-dump-guest-memory-capability":
            return {"formats": list(self.formats)}
        if command == "query-memory-size-summary":
            return {"base-memory": 256 * MIB}
        if command == "dump-guest-memory":
            assert message["arguments"]["protocol"] == "fd:memory-dump"
            os.pwrite(self.descriptor, b"K" * min(self.size, 16), 0)
            os.ftruncate(self.descriptor, self.size)
            return {}
        if command == "query-dump":
            return {"status": self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]}
        return {}


@contextlib.contextmanager
def opened(
    formats: tuple[str, ...] = ("elf", "kdump-zlib"),
    statuses: tuple[str, ...] = ("active", "completed"),
    size: int = MIB,
) -> Iterator[tuple[QmpChannel, Monitor]]:
    ours, theirs = socket.socketpair()
    monitor = Monitor(theirs, formats=formats, statuses=statuses, size=size)
    with EndLatch() as latch, QmpChannel(ours, latch) as qmp:
        monitor.thread.start()
        qmp.connect(Deadline.after(10))
        yield qmp, monitor
    theirs.close()
    if monitor.descriptor >= 0:
        os.close(monitor.descriptor)


def test_a_memory_is_written_into_the_descriptor_that_was_handed(tmp_path: Path) -> None:
    with opened() as (qmp, monitor):
        assert dump_memory(qmp, tmp_path, 2, Deadline.after(10)) == Dump(
            name="memory.kdump", data=b"K" * 16 + bytes(MIB - 16)
        )
    assert monitor.asked[-4:] == ["getfd", "dump-guest-memory", "query-dump", "query-dump"]
    assert list(tmp_path.iterdir()) == []


def test_without_compression_it_is_an_elf_file(tmp_path: Path) -> None:
    with opened(formats=("elf",)) as (qmp, _):
        assert dump_memory(qmp, tmp_path, MAX_DUMP_MIB, Deadline.after(10)).name == "memory.elf"


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ({"formats": ("win-dmp",)}, "writes no dump of a kind that the lab keeps"),
        ({"formats": ("elf",)}, "more than the 2 MiB that are allowed"),
        ({"size": 2 * MIB + 1}, "more than the 2 MiB that are allowed"),
        ({"size": 2 * MIB + 1, "statuses": ("active",)}, "more than the 2 MiB that are allowed"),
        ({"statuses": ("failed",)}, "the dump has failed"),
        ({"statuses": ("none\x1b[31m",)}, "the dump has none"),
    ],
)
def test_what_is_no_dump_is_told(tmp_path: Path, monitor: dict[str, Any], said: str) -> None:
    with opened(**monitor) as (qmp, _), pytest.raises(GuestError, match=said) as error:
        dump_memory(qmp, tmp_path, 2, Deadline.after(10))
    assert "\x1b" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_one_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_module, "STEP_S", 0.001)
    with (
        opened(statuses=("active",)) as (qmp, _),
        pytest.raises(DeadlineError, match=r"memory to be written|query-dump"),
    ):
        dump_memory(qmp, tmp_path, 2, Deadline.after(0.2))


def test_a_folder_without_room_is_told(tmp_path: Path) -> None:
    with opened() as (qmp, _), pytest.raises(GuestError, match="the file for the guest's memory"):
        dump_memory(qmp, tmp_path / "gone", 2, Deadline.after(10))


def stalled(size: int) -> Kept:
    evidence = msgspec.structs.replace(
        KEPT.evidence, ending=Ending.DEADLINE, stall=Stall(vcpus=(), memory="memory.kdump, so large")
    )
    return Kept(evidence, {"memory.kdump": b"K" + bytes(size - 1), "registers.txt": b"r"})


def test_a_dump_is_kept_whole_where_other_files_are_cut(tmp_path: Path) -> None:
    kept = stalled(MAX_RAW_BYTES + 7)
    write_evidence(tmp_path / "trial", kept.evidence, kept.raw)
    assert (tmp_path / "trial" / "memory.kdump").stat().st_size == MAX_RAW_BYTES + 7
    assert read_evidence(tmp_path / "trial") == kept.evidence


def test_a_dump_counts_as_evidence_and_goes_first_where_there_is_no_room(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec()) as store:
        retention = Retention(store, 4)
        for number in (1, 2):
            archive = pack_evidence(stalled(3 * MIB), VERDICT)
            assert retention.keep(make_done(number, Outcome.FAIL, archive=archive), 1.0)
        assert 3 * MIB < retention.size < 4 * MIB
        states = [(number, name) for number, name, _, _ in store.list_evidence()]
    assert states == [(1, "trials/00001-sound"), (2, "trials/00002-sound")]
    first, second = (tmp_path / name / "attempt-1" for _, name in states)
    assert (first / "memory.kdump").stat().st_size == 3 * MIB
    assert not (second / "memory.kdump").exists()
    assert (second / "registers.txt").read_bytes() == b"r"
    told = read_evidence(second).stall
    assert told is not None
    assert told.memory == "no dump: there was no room for it"
