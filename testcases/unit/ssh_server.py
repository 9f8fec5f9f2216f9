# SPDX-License-Identifier: GPL-2.0-or-later
"""A real SSH server in this process, which runs the host's programs in place of the guest's."""

import contextlib
import io
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko import common

from lab.guest.agent import AGENT_PATH
from lab.guest.config import GuestKeys


def make_key() -> paramiko.Ed25519Key:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return paramiko.Ed25519Key(file_obj=io.StringIO(pem.decode()))


HOST_KEY, CLIENT_KEY = make_key(), make_key()
KEYS = GuestKeys(client_key=CLIENT_KEY, host_public=HOST_KEY, archive=b"")


class Door(paramiko.ServerInterface):
    """Lets one key in and runs what it asks for, another program in place of the guest's agent."""

    def __init__(self, agent: str) -> None:
        self.agent = agent

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        allowed = username == "root" and key == CLIENT_KEY
        return common.AUTH_SUCCESSFUL if allowed else common.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        process = subprocess.Popen(
            ["sh", "-c", command.decode().replace(AGENT_PATH, self.agent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
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

    def __init__(self, *, slam: int = 0, agent: str = AGENT_PATH) -> None:
        self.slam = slam
        self.agent = agent
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
                transport.start_server(event=threading.Event(), server=Door(self.agent))

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # or accept() would go on waiting
        self.listener.close()
        for transport in self.transports:
            transport.close()


@contextlib.contextmanager
def serving(*, slam: int = 0, agent: str = AGENT_PATH) -> Iterator[Server]:
    server = Server(slam=slam, agent=agent)
    try:
        yield server
    finally:
        server.close()
