# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts of one network, each a network namespace of this machine with a name, a cache and a vCPU budget of its own.

The one that leads has a bridge, and a link to each other host; nothing is added to the machine's own namespace, and no
address leads out of it.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from lab.host.admission import find_folder
from lab.host.paths import NAME

LEAD: Final = "lead"
LEAD_ADDRESS: Final = "10.77.0.1"
_PREFIX: Final = "mclab"
_OURS: Final = re.compile(rf"{_PREFIX}-([0-9]+)-[a-z]+")
_S: Final = 20


class Host:
    """One host.

    :param name: what it calls itself
    :param folder: where its cache and its runtime folder are
    """

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name = name
        self.address = address
        self.space = f"{_PREFIX}-{os.getpid()}-{name}"
        self.cache = folder / name / "cache"
        self._runtime = folder / name / "run"

    def make(self) -> None:
        """Make its folders, and its namespace with a loopback: guests are reached by it."""
        self.cache.mkdir(parents=True)
        self._runtime.mkdir(mode=0o700)
        run_ip("netns", "add", self.space)
        run_ip("-n", self.space, "link", "set", "lo", "up")

    def command(self, *words: str, shell: str = "") -> tuple[str, ...]:
        """Return a command that runs in it, as a process of its caller's.

        :param shell: run there first
        """
        script = f'hostname "$0"; {shell} exec "$@"'
        kinds = ("unshare", "--uts", "--mount", "--propagation", "private")
        return ("ip", "netns", "exec", self.space, *kinds, "sh", "-ec", script, self.name, *words)

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return what its programs are started with."""
        return {**base, "XDG_CACHE_HOME": str(self.cache), "XDG_RUNTIME_DIR": str(self._runtime)}

    def received(self) -> list[str]:
        """Return the SHA-256 of each image that it was sent."""
        folder = self.cache / NAME / "received"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def is_in_trial(self) -> bool:
        """Say whether a guest holds its vCPUs now: it boots, or serves a trial."""
        vcpu = self._runtime / find_folder().name.removesuffix(f"-{os.geteuid()}") / "vcpu-0"
        with contextlib.suppress(OSError):
            return f":{vcpu.stat().st_ino} " in Path("/proc/locks").read_text()
        return False

    def count_bytes(self) -> int:
        """Return how many bytes have come to it over its link."""
        shown = run_ip("-n", self.space, "-s", "-o", "link", "show", "eth0")
        return int(shown.split("RX:")[1].split("\\")[1].split()[0])

    def cut(self, lead: "Host") -> None:
        """Take its link down at the other end: nobody is told."""
        run_ip("-n", lead.space, "link", "set", f"to-{self.name}", "down")


@contextlib.contextmanager
def make_hosts(folder: Path, *names: str) -> Iterator[dict[str, Host]]:
    """Make the host that leads, and others by name; all are removed on leaving, and those of tests that were killed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    try:
        _remove_orphans()
        hosts = {name: Host(name, f"10.77.0.{index}", folder) for index, name in enumerate((LEAD, *names), 1)}
    except FileNotFoundError:
        pytest.skip("needs ip(8), to make network namespaces")
    try:
        _connect(hosts)
        yield hosts
    finally:
        for host in hosts.values():
            subprocess.run(("ip", "netns", "del", host.space), check=False, stderr=subprocess.DEVNULL, timeout=_S)


def list_spaces() -> list[str]:
    """Return the namespaces of this process's hosts."""
    return [name for name in run_ip("netns", "list").split() if name.startswith(f"{_PREFIX}-{os.getpid()}-")]


def run_ip(*words: str) -> str:
    """Run ip(8), and return what it says."""
    return subprocess.run(("ip", *words), check=True, capture_output=True, text=True, timeout=_S).stdout


def _connect(hosts: Mapping[str, Host]) -> None:
    lead = hosts[LEAD]
    for host in hosts.values():
        try:
            host.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs network namespaces: {error.stderr.strip()}")
    run_ip("-n", lead.space, "link", "add", "br0", "type", "bridge")
    run_ip("-n", lead.space, "address", "add", f"{lead.address}/24", "dev", "br0")
    run_ip("-n", lead.space, "link", "set", "br0", "up")
    for host in hosts.values():
        if host is lead:
            continue
        port = f"to-{host.name}"
        peer = ("type", "veth", "peer", "name", "eth0", "netns", host.space)
        run_ip("link", "add", port, "netns", lead.space, *peer)
        run_ip("-n", lead.space, "link", "set", port, "master", "br0", "up")
        run_ip("-n", host.space, "address", "add", f"{host.address}/24", "dev", "eth0")
        run_ip("-n", host.space, "link", "set", "eth0", "up")


def _remove_orphans() -> None:
    for name in run_ip("netns", "list").split():
        ours = _OURS.fullmatch(name)
        if ours is not None and not Path("/proc", ours[1]).exists():
            run_ip("netns", "del", name)
