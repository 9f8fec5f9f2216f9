# SPDX-License-Identifier: GPL-2.0-or-later
"""The SSH connection to a guest: to one port, with one key. The lab accepts only the host key of this run."""

import contextlib
import logging
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import paramiko

from lab.errors import GuestError, LabError
from lab.guest.agent import GuestAgent
from lab.guest.channel import NEVER_S, cut, cutting, make_ssh_error
from lab.guest.command import GUEST_SSH_PORT
from lab.guest.config import GuestKeys
from lab.guest.ending import EndLatch
from lab.guest.qmp import QmpChannel
from lab.guest.shell import GuestShell
from lab.host.deadline import Deadline

USER = "root"
#: QEMU accepts connections long before the guest does. If a banner takes longer than this, the lab connects again.
BANNER_S = 5.0
#: Limit of key exchange and authentication under TCG with an empty translation cache. Measured: 1.2 s.
HANDSHAKE_S = 60.0
#: Pause between two attempts. The pause ends at once when the guest ends.
RETRY_S = 0.05

#: ``  TCP[HOST_FORWARD]   3       127.0.0.1 36305       10.0.2.15    22     0     0``
_FORWARD = re.compile(rf"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{GUEST_SSH_PORT}\s")

_log = logging.getLogger(__name__)
#: paramiko logs what its exceptions already say. Only a person who debugs needs the log.
_PARAMIKO_LOG = f"{__name__}.paramiko"


@dataclass(frozen=True, slots=True)
class Login:
    """What a login gives. Each of both has a channel of its own, and starts when it is first used.

    :param shell: runs any command
    :param agent: reads and writes files, many times as fast
    """

    shell: GuestShell
    agent: GuestAgent


def find_port(qmp: QmpChannel, deadline: Deadline) -> int:
    """Return the host's port that leads to the guest's SSH server.

    :raise GuestError: QEMU does not report the port
    """
    text = str(qmp.execute("human-monitor-command", {"command-line": "info usernet"}, deadline=deadline))
    match = _FORWARD.search(text)
    if match is None:
        raise GuestError(f"QEMU names no port for SSH: {text[:400]!r}")
    return int(match[1])


@contextlib.contextmanager
def open_login(port: int, keys: GuestKeys, ending: EndLatch, deadline: Deadline) -> Iterator[Login]:
    """Log in, with as many attempts as needed, and yield what the login gives. Its shell runs.

    :raise GuestError: the host key is not the guest's key, or the guest refused the lab's key
    :raise GuestGone: the guest ended
    :raise DeadlineError: no login succeeded before the deadline
    """
    what = "an SSH login"
    while True:
        ending.check(what)
        deadline.check(what)
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=deadline.within(BANNER_S).remaining_s)
        except OSError as error:
            _log.debug("connecting to port %d: %s", port, error)
            ending.wait(deadline.within(RETRY_S))
            continue
        with contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            try:
                login = _log_in(stack, sock, keys, ending, deadline)
            except LabError:
                raise
            except (paramiko.SSHException, EOFError, OSError) as error:
                _log.debug("logging in on port %d: %s", port, error)
                if deadline.expired:
                    raise make_ssh_error(ending, error, deadline, what) from error
                ending.wait(deadline.within(RETRY_S))
                continue
            yield login
            return


def _log_in(
    stack: contextlib.ExitStack, sock: socket.socket, keys: GuestKeys, ending: EndLatch, deadline: Deadline
) -> Login:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    logging.getLogger(_PARAMIKO_LOG).setLevel(logging.CRITICAL)
    transport = paramiko.Transport(sock)
    transport.set_log_channel(_PARAMIKO_LOG)
    transport.daemon = True
    transport.banner_timeout = BANNER_S
    transport.handshake_timeout = HANDSHAKE_S
    transport.auth_timeout = NEVER_S
    stack.callback(transport.close)
    stack.callback(cut, transport)  # Registered first, so that close() does not wait.
    stack.enter_context(ending.calling(lambda: cut(transport)))
    login = Login(GuestShell(transport, ending), GuestAgent(transport, ending))
    with cutting(transport, deadline):
        transport.start_client()
        if transport.get_remote_server_key() != keys.host_public:
            raise GuestError("the SSH host key is not this run's: something else than the guest answers")
        try:
            transport.auth_publickey(USER, keys.client_key)
        except paramiko.AuthenticationException as error:
            if transport.is_active():
                raise GuestError(f"the guest refused the run's SSH key: {error}") from error
            raise
        login.shell.open(deadline)
    return login
