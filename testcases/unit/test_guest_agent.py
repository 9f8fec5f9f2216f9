# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's agent, compiled and run on this host, at the end of a real SSH connection."""

import contextlib
import errno
import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import KEYS, serving

from lab.build.agent import SOURCES, build_agent
from lab.build.initramfs import AGENT
from lab.errors import DeadlineError, GuestError, GuestGone, UsageError
from lab.guest.agent import (
    AGENT_PATH,
    LOG,
    MAX_ANSWER_BYTES,
    MAX_STEP_BYTES,
    MAX_STEPS,
    GuestAgent,
    Step,
    StepKind,
    put,
    read,
    remove,
    write,
)
from lab.guest.ending import EndLatch
from lab.guest.ssh import open_login
from lab.host.deadline import Deadline
from lab.model.evidence import Ending


def soon() -> Deadline:
    return Deadline.after(30)


@contextlib.contextmanager
def opened(program: str = "") -> Iterator[tuple[GuestAgent, EndLatch]]:
    """Log in, and yield the agent, or another program in its place."""
    command = program or str(build_agent(lambda _: None))
    with (
        serving(agent=command) as server,
        EndLatch() as latch,
        open_login(server.port, KEYS, latch, soon()) as login,
    ):
        yield login.agent, latch


def test_each_step_tells_its_own_end_and_later_steps_go_on(tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.write_bytes(b"old and longer")
    with opened() as (agent, _):
        answers = agent.ask(
            [
                read(str(there)),
                write(str(there), b"new\n"),
                read(str(there)),
                read(str(missing)),
                write(str(missing), b"x"),
                put(str(missing), b"made\0here"),
                read(str(missing)),
                remove(str(there)),
                remove(str(there)),
                read(str(tmp_path)),
            ],
            soon(),
        )
    read_back = [b"old and longer", b"", b"new\n", b"", b"", b"", b"made\0here", b"", b"", b""]
    assert [answer.data for answer in answers] == read_back
    wanted = [0, 0, 0, errno.ENOENT, errno.ENOENT, 0, 0, 0, 0, errno.EISDIR]
    assert [answer.errno for answer in answers] == wanted
    assert answers[3].problem == "No such file or directory"
    assert not there.exists()


def test_what_does_not_fit_into_a_packet_comes_whole(tmp_path: Path) -> None:
    big = os.urandom(3_000_000)
    with opened() as (agent, _):
        answers = agent.ask([put(str(tmp_path / "big"), big), read(str(tmp_path / "big"))], soon())
        assert (tmp_path / "big").read_bytes() == big
        assert answers[1].data == big
        assert agent.ask_all([read("/dev/null")], soon()) == (b"",)


def test_a_file_without_end_is_cut() -> None:
    with opened() as (agent, _):
        (data,) = agent.ask_all([read("/dev/zero")], soon())
        assert data == bytes(MAX_STEP_BYTES)


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel shows its log to root alone")
def test_the_log_comes_with_levels() -> None:
    with opened() as (agent, _):
        (answer,) = agent.ask([LOG], soon())
    assert answer.errno == errno.EPERM or answer.data.startswith(b"<") or not answer.data


def test_what_may_not_fail_names_the_file_or_what_it_means(tmp_path: Path) -> None:
    with opened() as (agent, _):
        with pytest.raises(GuestError, match=r"could not read '.*/none': No such file"):
            agent.ask_all([read("/dev/null"), read(str(tmp_path / "none"))], soon())
        with pytest.raises(GuestError, match="there is no such thing: No such file"):
            agent.ask_all([write(str(tmp_path / "none"), b"", "there is no such thing")], soon())


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [read("/dev/null")] * (MAX_STEPS + 1),
        [read("a\0b")],
        [read("x" * 5_000)],
        [put("/dev/null", bytes(MAX_STEP_BYTES + 1))],
    ],
    ids=["none", "many", "nul", "long", "large"],
)
def test_a_request_that_cannot_be_is_refused_and_the_agent_goes_on(steps: list[Step]) -> None:
    with opened() as (agent, _):
        with pytest.raises(UsageError, match="allowed are"):
            agent.ask(steps, soon())
        assert agent.ask([read("/dev/null")], soon())[0].errno == 0


def test_one_that_hangs_ends_at_its_deadline_and_the_next_has_a_new_agent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with opened() as (agent, latch):
        begin = time.monotonic()
        with pytest.raises(DeadlineError, match=r"read '.*/pipe'"):
            agent.ask([read(str(tmp_path / "pipe"))], Deadline.after(0.3))
        assert time.monotonic() - begin < 10
        assert agent.ask([read("/dev/null")], soon())[0].errno == 0
        latch.report(Ending.GONE, "QEMU was ended by SIGKILL")
        with pytest.raises(GuestGone, match="SIGKILL"):
            agent.ask([read(str(tmp_path / "pipe"))], Deadline.after(0.3))


def frame(*heads: int, data: bytes = b"", length: int | None = None) -> bytes:
    body = struct.pack(f"<{len(heads)}I", *heads) + data
    return struct.pack("<I", len(body) if length is None else length) + body


@pytest.mark.parametrize(
    "answer",
    [
        frame(0, 5, data=b"four"),
        frame(0, 3, data=b"four"),
        frame(0),
        frame(4096, 0),
        frame(2**31, 0),
        frame(0, 2**32 - 1),
        frame(0, 0, length=MAX_ANSWER_BYTES + 1),
        frame(0, 0, length=2**32 - 1),
    ],
    ids=["short", "long", "no-length", "errno", "negative", "huge", "too-large", "largest"],
)
def test_nonsense_for_an_answer_is_an_error_and_the_channel_is_not_used_again(answer: bytes, tmp_path: Path) -> None:
    told = tmp_path / "answer"
    told.write_bytes(answer)
    with opened(f"cat {told} - #") as (agent, _):
        for _ in range(2):
            with pytest.raises(GuestError, match="nonsense"):
                agent.ask([read("/dev/null")], soon())


def test_an_agent_that_ends_is_a_guest_that_is_gone() -> None:
    with opened("true #") as (agent, _), pytest.raises(GuestGone, match="broke"):
        agent.ask([read("/dev/null")], soon())


def test_the_program_ends_itself_at_a_request_that_breaks_the_rules(tmp_path: Path) -> None:
    program = build_agent(lambda _: None)
    told = tmp_path / "request"
    for request in (
        struct.pack("<I", MAX_STEPS + 1),
        struct.pack("<IIII", 1, max(StepKind) + 1, 0, 0),
        struct.pack("<IIII", 1, StepKind.READ, 4096, 0) + bytes(4096),
        struct.pack("<IIII", 1, StepKind.PUT, 0, MAX_STEP_BYTES + 1),
    ):
        told.write_bytes(request)
        assert os.waitstatus_to_exitcode(os.system(f"{program} <{told} >/dev/null")) == 1
    told.write_bytes(struct.pack("<IIII", 1, StepKind.READ, 5, 0))
    assert os.system(f"{program} <{told} >/dev/null") == 0


def test_both_sides_have_the_same_numbers() -> None:
    source = re.sub(r"[ \t]+", " ", (SOURCES / "agent.c").read_text())
    listed = source[source.index("enum step_kind {") :].split("};")[0]
    names = re.findall(r"^ STEP_(\w+),", listed, re.MULTILINE)
    assert names == [kind.name for kind in StepKind]
    assert f"MAX_STEPS {MAX_STEPS}u" in source
    assert f"MAX_STEP_BYTES ({MAX_STEP_BYTES >> 20}u << 20)" in source
    assert f"/{AGENT}" == AGENT_PATH
