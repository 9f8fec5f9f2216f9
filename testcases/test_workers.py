# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers of one run of pytest: what they share is built once, and one that dies costs its own case alone."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from leftovers import Leftovers

from lab.host.admission import find_folder
from lab.host.deadline import Deadline
from lab.host.paths import ROOT, find_cache
from lab.host.run_dir import sweep

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

T = TypeVar("T")

#: Other workers may hold the host's vCPUs.
PATIENCE_S = 400
#: Of a guest's, as far as the host has them.
VCPUS = min(2, os.cpu_count() or 1)
#: What JUnit says of a case that has not passed: an error where the case had no chance to fail by itself.
TOLD = {"error", "failure", "skipped"}

#: The victim begins trials until its worker is killed, and says of which process and how many.
CASES = """
import os
from pathlib import Path

import pytest
from lab.model.topology import Topology

SHAPE = {"topology": Topology(1, 1, 2), "stretch_us": (300_000, 400_000), "nmis": 4}
HERE = Path(__file__).parent

def test_victim(trial):
    seed = 0
    while not (HERE / "over").exists():
        trial("nmi-self", seed=seed, **SHAPE)
        seed += 1
        (HERE / f"victim-{os.getpid()}-{seed}").touch()

@pytest.mark.parametrize("seed", range(3))
def test_other(trial, seed):
    assert trial("nmi-self", seed=seed, **SHAPE).record.mechanism == "nmi-self"
"""

#: All workers ask for the images at the same time.
TOGETHER = """
import os
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WORKERS = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])

@pytest.fixture(scope="session")
def together():
    (HERE / f"here-{os.getpid()}").touch()
    while len(list(HERE.glob("here-*"))) < WORKERS:
        time.sleep(0.005)

def test_it(together, images):
    (HERE / f"found-{os.getpid()}").write_text(f"{images.observer} {images.initramfs} {images.kernel}")
"""


@pytest.fixture
def left() -> Iterator[Leftovers]:
    with Leftovers() as left:
        yield left


@contextlib.contextmanager
def start_suite(
    left: Leftovers, folder: Path, cases: str, *words: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start pytest on cases of a folder's own, with the project's fixtures."""
    (folder / "test_made.py").write_text(cases)
    base = ("-p", "conftest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"))
    kept = ("--basetemp", str(folder / "base"), "--junitxml", str(folder / "junit.xml"))
    suite = subprocess.Popen(
        (sys.executable, "-m", "pytest", *base, *kept, *words, str(folder / "test_made.py")),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**left.environment, **environment},
    )
    try:
        yield suite
    finally:
        suite.kill()
        suite.communicate()


def wait_until(done: Callable[[], T], what: str) -> T:
    deadline = Deadline.after(PATIENCE_S)
    while not (found := done()):
        deadline.check(what)
        time.sleep(0.005)
    return found


def count_vcpus() -> Counter[int]:
    """Return how many vCPUs of the host's budget processes hold; /proc/locks names locks by inode."""
    inodes = {path.stat().st_ino for path in find_folder().glob("vcpu-*")}
    rows = (line.split() for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line)
    return Counter(int(row[4]) for row in rows if int(row[5].rsplit(":", 1)[1]) in inodes)


def test_a_dead_worker_costs_its_own_case_and_leaves_nothing(tmp_path: Path, left: Leftovers) -> None:
    with start_suite(left, tmp_path, CASES, "-n", "2") as suite:
        said_by = wait_until(lambda: [*tmp_path.glob("victim-*-1")], "a trial of the victim to end")
        worker = psutil.Process(int(said_by[0].name.split("-")[1]))
        assert worker.pid in {process.pid for process in left.find_processes()}

        def find_guests() -> list[psutil.Process]:
            """Find it in a trial: it has its vCPUs only from the begin of one to the end."""
            guests = [each for each in worker.children() if each.name().startswith("qemu")]
            return guests if count_vcpus()[worker.pid] == VCPUS else []

        (guest,) = wait_until(find_guests, "a trial of the victim to run")
        assert guest.pid in {process.pid for process in left.find_processes()}
        assert any(f"-{worker.pid}-" in path.name for path in left.find_folders())
        worker.kill()
        said, _ = suite.communicate(timeout=PATIENCE_S)
    assert suite.returncode == 1, said
    left.check_no_process()
    sweep()  # as the next lab does before it makes a folder of its own
    assert left.find_folders() == []
    assert not count_vcpus().keys() & left.seen
    assert not [path for path in (tmp_path / "base").rglob("*") if path.name.startswith(".") or path.is_socket()]
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    told = {case.attrib["name"]: [each.tag for each in case if each.tag in TOLD] for case in root.iter("testcase")}
    assert told == {"test_victim": ["error"], "test_other[0]": [], "test_other[1]": [], "test_other[2]": []}
    assert "1 failed, 3 passed" in said
    assert "crashed while running" in said


def test_workers_build_what_all_of_them_need_once(tmp_path: Path, left: Leftovers) -> None:
    """The kernel is there already; observer and initramfs are not, so all workers come to build them."""
    cache = tmp_path / "cache" / find_cache().name
    cache.mkdir(parents=True)
    shutil.copytree(find_cache() / "kernel", cache / "kernel", copy_function=os.link)
    words = ("-n", "3", "--dist", "each", "-rP")
    with start_suite(left, tmp_path, TOGETHER, *words, XDG_CACHE_HOME=str(cache.parent)) as suite:
        said, _ = suite.communicate(timeout=PATIENCE_S)
    assert suite.returncode == 0, said
    found = [path.read_text().split() for path in tmp_path.glob("found-*")]
    assert len(found) == 3
    assert found == found[:1] * 3
    assert all(path.startswith(str(cache)) for path in found[0])
    assert said.count("observer: compiling for plugin interface ") == 1
    assert said.count("initramfs: packing\n") == 1
    # Those that did not build have waited.
    assert said.count("observer: waiting for another build of the same\n") == 2
    left.check_no_process()
