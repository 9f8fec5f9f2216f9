# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell and the login against a real SSH server in this process, which runs the host's sh."""

import contextlib
import io
import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko import common

from lab.errors import DeadlineError, GuestError, GuestGone, UsageError
from lab.guest.config import GuestKeys
from lab.guest.ending import EndLatch
from lab.guest.shell import MAX_OUTPUT_BYTES, MAX_SCRIPT_BYTES, GuestShell
from lab.guest.ssh import open_shell
from lab.host.deadline import Deadline
from lab.model.evidence import Ending


def make_key() -> paramiko.Ed25519Key:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return paramiko.Ed25519Key(file_obj=io.StringIO(pem.decode()))


HOST_KEY, CLIENT_KEY = make_key(), make_key()
KEYS = GuestKeys(client_key=CLIENT_KEY, host_public=HOST_KEY, archive=b"")


class Door(paramiko.ServerInterface):
    """Lets one key in and runs what it asks for."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        allowed = username == "root" and key == CLIENT_KEY
        return common.AUTH_SUCCESSFUL if allowed else common.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        for pump in (self._pump_in, self._pump_out):
            threading.Thread(target=pump, args=(channel, process), daemon=True).start()
        return True

    @staticmethod
    def _pump_in(channel: paramiko.Channel, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            while data := channel.recv(65536):
                process.stdin.write(data)
                process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)

    @staticmethod
    def _pump_out(channel: paramiko.Channel, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with contextlib.suppress(OSError, EOFError):
            while data := os.read(process.stdout.fileno(), 65536):
                channel.sendall(data)
        process.wait()
        process.stdout.close()
        with contextlib.suppress(OSError, EOFError):
            channel.close()


class Server:
    """Listens on a free port; the first connections may be treated badly."""

    def __init__(self, *, slam: int = 0) -> None:
        self.slam = slam
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.transports: list[paramiko.Transport] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            while True:
                connection, _ = self.listener.accept()
                if self.slam:
                    self.slam -= 1
                    connection.close()
                    continue
                transport = paramiko.Transport(connection)
                transport.set_log_channel("lab.guest.ssh.paramiko")
                transport.add_server_key(HOST_KEY)
                self.transports.append(transport)
                transport.start_server(event=threading.Event(), server=Door())

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # or accept() would go on waiting
        self.listener.close()
        for transport in self.transports:
            transport.close()


@contextlib.contextmanager
def serving(*, slam: int = 0) -> Iterator[Server]:
    server = Server(slam=slam)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def opened() -> Iterator[tuple[GuestShell, Server, EndLatch]]:
    with (
        serving() as server,
        EndLatch() as latch,
        open_shell(server.port, KEYS, latch, Deadline.after(30)) as shell,
    ):
        yield shell, server, latch


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
        open_shell(server.port, KEYS, latch, soon()) as shell,
    ):
        assert shell.run("echo in", soon()).stdout == b"in\n"
        assert server.slam == 0


def test_another_host_key_or_a_refused_client_is_not_tried_again() -> None:
    stranger = make_key()
    wrong_host = GuestKeys(client_key=CLIENT_KEY, host_public=stranger, archive=b"")
    wrong_client = GuestKeys(client_key=stranger, host_public=HOST_KEY, archive=b"")
    for keys, text in ((wrong_host, "not this run's"), (wrong_client, "refused")):
        with serving() as server, EndLatch() as latch:
            with pytest.raises(GuestError, match=text), open_shell(server.port, keys, latch, soon()):
                pytest.fail("it was let in")
            assert len(server.transports) == 1


def test_a_server_that_says_nothing_ends_at_the_deadline_and_with_the_guest() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, EndLatch() as latch:
        port = mute.getsockname()[1]
        with pytest.raises(DeadlineError, match="login"), open_shell(port, KEYS, latch, Deadline.after(0.3)):
            pytest.fail("nobody answered")
        threading.Timer(0.1, latch.report, [Ending.GONE, "QEMU was ended by SIGKILL"]).start()
        begin = time.monotonic()
        with pytest.raises(GuestGone, match="SIGKILL"), open_shell(port, KEYS, latch, Deadline.after(60)):
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
