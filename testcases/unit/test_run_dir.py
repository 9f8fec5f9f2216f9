# SPDX-License-Identifier: GPL-2.0-or-later
"""Run folders: gone with their guest, or with the next lab."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.host import run_dir
from lab.host.paths import ROOT
from lab.host.run_dir import make_run_dir

HOLD = "import sys, time\nfrom lab.host.run_dir import make_run_dir\nwith make_run_dir() as path:\n"
HOLD += "    print(path, flush=True)\n    time.sleep(600)\n"


def age(path: Path) -> None:
    old = time.time() - 2 * 60
    os.utime(path, (old, old))


def start_holder() -> tuple[subprocess.Popen[str], Path]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    return holder, Path(holder.stdout.readline().strip())


def test_a_folder_is_private_short_and_removed() -> None:
    with make_run_dir() as path:
        assert path.stat().st_mode & 0o777 == 0o700
        assert len(str(path)) < 40
    assert not path.exists()


def test_the_folder_of_a_killed_lab_is_removed_by_the_next_one() -> None:
    holder, path = start_holder()
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert path.is_dir()
    age(path)
    with make_run_dir():
        assert not path.exists()


def test_a_folder_in_use_is_left_alone() -> None:
    holder, path = start_holder()
    try:
        age(path)
        with make_run_dir():
            assert path.is_dir()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    age(path)
    with make_run_dir():
        assert not path.exists()


def test_what_is_not_ours_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "PARENT", tmp_path)
    precious = tmp_path / "elsewhere"
    precious.mkdir()
    (precious / "in-use").touch()
    (tmp_path / "mclab-link").symlink_to(precious)
    (tmp_path / "mclab-other").mkdir()
    age(tmp_path / "mclab-other")
    with make_run_dir():
        assert (precious / "in-use").exists()
        assert (tmp_path / "mclab-other").is_dir()
