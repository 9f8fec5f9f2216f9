# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell and the login against a real SSH server in this process, which runs the host's sh."""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import CLIENT_KEY, HOST_KEY, KEYS, Server, make_key, serving

from lab.errors import DeadlineError, GuestError, GuestGone, UsageError
from lab.guest.config import GuestKeys
from lab.guest.ending import EndLatch
from lab.guest.shell import MAX_OUTPUT_BYTES, MAX_SCRIPT_BYTES, GuestShell
from lab.guest.ssh import open_login
from lab.host.deadline import Deadline
from lab.model.evidence import Ending


@contextlib.contextmanager
def opened() -> Iterator[tuple[GuestShell, Server, EndLatch]]:
    with (
        serving() as server,
        EndLatch() as latch,
        open_login(server.port, KEYS, latch, Deadline.after(30)) as login,
    ):
        yield login.shell, server, latch


def soon() -> Deadline:
    return Deadline.after(30)


def test_status_and_both_streams_in_order() -> None:
    with opened() as (shell, _, _):
        result = shell.run("echo out; echo err >&2; printf last; exit 7", soon())
        assert (result.status, result.stdout, result.dropped_bytes) == (7, b"out\nerr\nlast", 0)
        assert shell.run(":", soon()).stdout == b""


def test_a_clock_that_is_set_makes_no_command_late(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as (shell, _, _):
        asked = itertools.count()
        monkeypatch.setattr(time, "time", lambda: next(asked) * 86_400.0)
        assert shell.run("sleep 0.3; echo done", soon()).stdout == b"done\n"


@pytest.mark.parametrize(
    "script",
    [
        "echo (",
        "exit 3",
        "'",
        "cat",
        "cd /nowhere",
        "set -e; false",
        "exec true",
        ". /nowhere",
        ": >/nowhere/x",
        "break",
    ],
)
def test_no_script_harms_the_next(script: str) -> None:
    with opened() as (shell, _, _):
        shell.run(script, soon())
        assert shell.run('echo "it\'s" $((1 + 1))', soon()).stdout == b"it's 2\n"


def test_binary_output_comes_back_as_it_is(tmp_path: Path) -> None:
    data = os.urandom(300_000) + bytes(range(256)) + b"\n\n"
    (tmp_path / "data").write_bytes(data)
    with opened() as (shell, _, _):
        assert shell.run(f"cat {tmp_path}/data", soon()).stdout == data


def test_output_beyond_the_bound_is_counted_and_dropped() -> None:
    extra = 100_003
    with opened() as (shell, _, _):
        result = shell.run(f"head -c {MAX_OUTPUT_BYTES + extra} /dev/zero; exit 5", soon())
        assert (result.status, len(result.stdout), result.dropped_bytes) == (5, MAX_OUTPUT_BYTES, extra)
        assert shell.run("echo on", soon()).stdout == b"on\n"


def test_a_deadline_costs_the_command_and_not_the_connection() -> None:
    with opened() as (shell, _, latch):
        begin = time.monotonic()
        with pytest.raises(DeadlineError, match="sleep 60"):
            shell.run("sleep 60", Deadline.after(0.2))
        assert time.monotonic() - begin < 10
        assert shell.run("echo on", soon()).stdout == b"on\n"
        assert latch.seen is None


def test_endless_output_does_not_outlive_the_deadline() -> None:
    with opened() as (shell, _, _), pytest.raises(DeadlineError):
        shell.run("while :; do echo y; done", Deadline.after(0.3))


def test_a_dead_shell_is_a_guest_gone() -> None:
    with opened() as (shell, _, _), pytest.raises(GuestGone, match="SSH connection broke"):
        shell.run("kill -9 $$", soon())


def test_the_guests_end_ends_a_command_at_once_and_says_why() -> None:
    with opened() as (shell, _, latch):
        threading.Timer(0.1, latch.report, [Ending.PANIC, "the console showed a panic"]).start()
        begin = time.monotonic()
        with pytest.raises(GuestGone, match="the console showed a panic"):
            shell.run("sleep 60", Deadline.after(60))
        assert time.monotonic() - begin < 10
        with pytest.raises(GuestGone, match="the console showed a panic"):
            shell.run("echo on", soon())


def test_a_file_is_put_byte_for_byte(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    target = tmp_path / "it's a file"
    with opened() as (shell, _, _):
        shell.put(str(target), data, soon())
        assert target.read_bytes() == data
        shell.put(str(target), b"", soon())
        assert target.read_bytes() == b""
        with pytest.raises(GuestError, match="nowhere"):
            shell.put("/nowhere/file", data, soon())


def test_what_cannot_be_a_script_is_refused() -> None:
    with opened() as (shell, _, _):
        for script in ("a\0b", "x" * (MAX_SCRIPT_BYTES + 1)):
            with pytest.raises(UsageError, match="script"):
                shell.run(script, soon())


def test_a_login_is_tried_until_the_server_is_there() -> None:
    with (
        serving(slam=3) as server,
        EndLatch() as latch,
        open_login(server.port, KEYS, latch, soon()) as login,
    ):
        assert login.shell.run("echo in", soon()).stdout == b"in\n"
        assert server.slam == 0


def test_another_host_key_or_a_refused_client_is_not_tried_again() -> None:
    stranger = make_key()
    wrong_host = GuestKeys(client_key=CLIENT_KEY, host_public=stranger, archive=b"")
    wrong_client = GuestKeys(client_key=stranger, host_public=HOST_KEY, archive=b"")
    for keys, text in ((wrong_host, "not this run's"), (wrong_client, "refused")):
        with serving() as server, EndLatch() as latch:
            with pytest.raises(GuestError, match=text), open_login(server.port, keys, latch, soon()):
                pytest.fail("it was let in")
            assert len(server.transports) == 1


def test_a_server_that_says_nothing_ends_at_the_deadline_and_with_the_guest() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, EndLatch() as latch:
        port = mute.getsockname()[1]
        with pytest.raises(DeadlineError, match="login"), open_login(port, KEYS, latch, Deadline.after(0.3)):
            pytest.fail("nobody answered")
        threading.Timer(0.1, latch.report, [Ending.GONE, "QEMU was ended by SIGKILL"]).start()
        begin = time.monotonic()
        with pytest.raises(GuestGone, match="SIGKILL"), open_login(port, KEYS, latch, Deadline.after(60)):
            pytest.fail("nobody answered")
        assert time.monotonic() - begin < 10


def test_no_thread_outlives_the_connection() -> None:
    before = set(threading.enumerate())
    with opened():
        pass
    give_up = Deadline.after(10)
    while (left := set(threading.enumerate()) - before) and not give_up.expired:
        threading.Event().wait(0.01)
    assert not left
