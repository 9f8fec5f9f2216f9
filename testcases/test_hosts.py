# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign over several hosts, which are network namespaces of this machine: one is cut off, another is not fit."""

import contextlib
import datetime
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from leftovers import Leftovers
from net_hosts import LEAD, Host, list_spaces, make_hosts
from test_campaign import LAB, PATIENCE_S, check_store, count, left, wait_until, write_campaign

from lab.build.images import ImageSet
from lab.campaign.database import open_reader
from lab.evidence.folder import read_evidence
from lab.host.paths import ROOT, find_cache

__all__ = ["left"]

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

PORT = 8786
#: The least that Dask takes: so long after a link is cut, without a word, the scheduler gives its worker up.
DEAD_S = 21
DASK = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{DEAD_S}s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
TRIALS = 40
ONE_IN = 4
#: Long enough for a link to be cut in the middle.
SLOW = '{ mechanism = "nmi-self", topology = "1x1x2", stretch_us = [100000, 200000] }'


@contextlib.contextmanager
def start_parts(
    left: Leftovers, hosts: Mapping[str, Host], workers: Mapping[str, int], shell: str = ""
) -> Iterator[str]:
    """Start a scheduler on the host that leads, and so many workers on each other one; yields its address.

    :param shell: run on each of the others first; this machine's cache is hidden from them in any case
    """
    hide = f"mount -t tmpfs tmpfs '{find_cache()}'; {shell}"
    address = f"tcp://{hosts[LEAD].address}:{PORT}"
    started = []

    def start(host: Host, first: str, *words: str) -> None:
        started.append(
            subprocess.Popen(
                host.command(sys.executable, "-m", "dask", *words, "--no-dashboard", shell=first),
                cwd=ROOT,
                env=host.environment({**left.environment, **DASK}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    try:
        start(hosts[LEAD], "", "scheduler", "--host", hosts[LEAD].address, "--port", str(PORT))
        for name, number in workers.items():
            host = hosts[name]
            options = ("--nthreads", "1", "--resources", "vcpus=2", "--memory-limit", "0", "--host", host.address)
            for _ in range(number):
                start(host, hide, "worker", address, *options, "--local-directory", str(host.cache))
        yield address
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                # It is cut off, and waits for an answer.
                process.kill()
                process.wait(10)


@contextlib.contextmanager
def start_lab(left: Leftovers, lead: Host, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start a campaign on the host that leads; the images are in this machine's cache."""
    lab = subprocess.Popen(
        lead.command(*LAB, *map(str, words)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**lead.environment({**left.environment, **DASK}), "XDG_CACHE_HOME": str(find_cache().parent)},
    )
    try:
        yield lab
    finally:
        lab.kill()
        lab.communicate()


def count_by_host(folder: Path) -> dict[str, int]:
    if not count(folder):
        return {}
    with open_reader(folder) as connection:
        return dict(connection.execute("SELECT host, count(*) FROM trials GROUP BY host"))


def test_a_host_that_is_cut_off_costs_its_running_trials_which_run_elsewhere(
    tmp_path: Path, left: Leftovers, images: ImageSet
) -> None:
    """Host 'one' has two workers, and is sent images once; 'two' is cut off without a word in the middle of a trial."""
    folder, shared = tmp_path / "out", tmp_path / "shared"
    shared.mkdir()
    file = write_campaign(tmp_path, SLOW, trials=TRIALS, retries=0, keep_passes_one_in=ONE_IN)
    sizes = {
        images.kernel_sha256: images.kernel.stat().st_size,
        images.vmlinux_sha256: images.vmlinux.stat().st_size,
        images.initramfs_sha256: images.initramfs.stat().st_size,
        images.observer_sha256: images.observer.stat().st_size,
    }
    with make_hosts(tmp_path, "one", "two") as hosts:
        lead, one, two = hosts.values()
        with start_parts(left, hosts, {"one": 2, "two": 1}) as address:
            words = ("start", file, "--out", folder, "--scheduler", address, "--evidence-dir", shared)
            with start_lab(left, lead, *words) as lab:
                wait_until(lambda: lab.poll() is not None or len(count_by_host(folder)) == 2, "trials on both hosts")
                wait_until(lambda: lab.poll() is not None or two.is_in_trial(), "a trial on host two")
                two.cut(lead)
                before = count_by_host(folder)
                _, said = lab.communicate(timeout=PATIENCE_S)
            assert lab.returncode in (0, 1), said
            assert "Warning" not in said
            assert one.received() == two.received() == sorted(sizes)
            for host in (one, two):
                assert sum(sizes.values()) < host.count_bytes() < 1.5 * sum(sizes.values())
    assert list_spaces() == []
    after = count_by_host(folder)
    assert set(after) == {"one", "two"}, said
    assert after["one"] > before["one"]
    # What it had sent before may have been stored a moment later.
    assert before["two"] <= after["two"] <= before["two"] + 1
    check_store(folder, list(range(1, TRIALS + 1)), find_shared(shared))
    assert find_latest_s(folder) > DEAD_S / 2
    left.check(folder)


def find_shared(shared: Path) -> Path:
    """Return where the campaign's evidence is, which all can be read and is all that is there."""
    (root,) = shared.iterdir()
    assert sorted(path.name for path in root.iterdir()) == ["incoming", "owner.json", "trials"]
    assert list((root / "incoming").iterdir()) == []
    kept = sorted((root / "trials").iterdir())
    assert len(kept) >= TRIALS / ONE_IN
    for path in kept:
        assert read_evidence(path / "attempt-1").scenario.mechanism == "nmi-self"
    return root


def find_latest_s(folder: Path) -> float:
    """Return how much later than some trial that was handed out after it a trial began, at most."""
    with open_reader(folder) as connection:
        began = [
            datetime.datetime.fromisoformat(text)
            for (text,) in connection.execute("SELECT began FROM trials ORDER BY number")
        ]
    return max((began[at] - min(began[at:])).total_seconds() for at in range(len(began)))


def test_a_host_that_does_not_see_the_shared_path_ends_the_campaign_with_its_name(
    tmp_path: Path, left: Leftovers
) -> None:
    folder, shared = tmp_path / "out", tmp_path / "shared"
    shared.mkdir()
    file = write_campaign(tmp_path, trials=5)
    with make_hosts(tmp_path, "one") as hosts:
        hide = f"mount -t tmpfs tmpfs '{shared}';"
        with start_parts(left, hosts, {"one": 1}, hide) as address:
            words = ("start", file, "--out", folder, "--scheduler", address, "--evidence-dir", shared)
            with start_lab(left, hosts[LEAD], *words) as lab:
                _, said = lab.communicate(timeout=PATIENCE_S)
        assert (lab.returncode, count(folder)) == (2, 0)
        with start_lab(left, hosts[LEAD], "resume", folder, "--trials", "1", "--workers", "0") as again:
            again.communicate(timeout=PATIENCE_S)
        assert again.returncode in (0, 1)
    assert list_spaces() == []
    (root,) = shared.iterdir()
    assert said.splitlines()[-1] == (
        f"lab: host one cannot write evidence in '{root}': No such file or directory; --evidence-dir has to be a path"
        " that all hosts share"
    )
    check_store(folder, [1], root)
    left.check(folder)
