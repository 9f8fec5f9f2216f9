# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest, and a QEMU that it has taken over, can reach."""

import os
import pwd
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.guest.machine import Machine
from lab.host.deadline import Deadline
from lab.host.user import find_unprivileged
from lab.model.boot import Boot
from lab.model.topology import Topology
from lab.trial.pool import WarmGuest

pytestmark = pytest.mark.e2e

BOOT = Boot(base="linux-6.1", topology=Topology(1, 1, 2))
#: SECCOMP_MODE_FILTER of linux/seccomp.h.
FILTERED = "2"


@pytest.fixture(scope="module")
def machine(guests: Callable[[Boot], WarmGuest]) -> Iterator[Machine]:
    with guests(BOOT).serve() as session:
        yield session.machine


def read_status(pid: int) -> dict[str, str]:
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_qemu_is_filtered(machine: Machine) -> None:
    assert read_status(machine.pid)["Seccomp"] == FILTERED


@pytest.mark.skipif(os.geteuid() != 0, reason="only a lab that is root has a right to give up")
def test_qemu_of_a_root_is_nobody_for_good(machine: Machine) -> None:
    if find_unprivileged() is None:
        pytest.skip("this host lets root become nobody else")
    status = read_status(machine.pid)
    nobody = pwd.getpwnam("nobody")
    assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
    assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
    assert status["Groups"] == ""
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}


def test_qemu_cannot_put_anything_where_the_lab_reads(machine: Machine) -> None:
    assert stat.S_IMODE(machine.run_dir.stat().st_mode) == 0o700
    assert machine.run_dir.stat().st_uid == os.geteuid()
    assert not [path for path in machine.run_dir.iterdir() if path.is_socket() or path.is_symlink()]


@pytest.mark.parametrize("host", ["10.0.2.2", "10.0.2.3", "127.0.0.1", "1.1.1.1"])
def test_the_guest_reaches_no_server_of_the_hosts(machine: Machine, host: str) -> None:
    served: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        thread = threading.Thread(target=lambda: served.append(server.accept()), daemon=True)
        thread.start()
        port = server.getsockname()[1]
        said = machine.shell.run(f"echo mail | timeout 3 nc {host} {port}; echo status=$?", Deadline.after(60)).stdout
        assert b"status=0" not in said
        assert served == []
        # And it would have been served: the test's own connection is.
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        thread.join(10)
        assert len(served) == 1
        served[0][0].close()  # type: ignore[index]


def test_the_guest_has_no_names_and_no_other_way_out(machine: Machine) -> None:
    said = machine.shell.run("timeout 3 nslookup example.org 10.0.2.3; echo status=$?", Deadline.after(60)).stdout
    assert b"status=0" not in said
    said = machine.shell.run("ls /sys/class/net", Deadline.after(60)).stdout
    assert sorted(said.split()) == [b"eth0", b"lo"]


def test_the_hosts_port_to_the_guest_is_the_loopbacks(machine: Machine) -> None:
    """What QEMU listens on, by its own descriptors."""
    inodes = set()
    for entry in Path("/proc", str(machine.pid), "fd").iterdir():
        target = str(entry.readlink())
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for line in Path("/proc", str(machine.pid), "net/tcp").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
    assert listening
    assert all(address.startswith("0100007F:") for address in listening)
