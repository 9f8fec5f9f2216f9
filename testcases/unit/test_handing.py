# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that another user finds open, whatever lies on the way to them."""

import os
import subprocess
from pathlib import Path

import pytest

from lab.errors import HostError
from lab.guest import user as guest_user
from lab.guest.config import Accelerator
from lab.guest.user import choose_user
from lab.host import proc
from lab.host.handing import HandedFiles
from lab.host.user import User, describe_user, find_unprivileged

NOBODY = find_unprivileged()
needs_root = pytest.mark.skipif(NOBODY is None, reason="only root can be another user")


def make_closed(tmp_path: Path, mode: int) -> Path:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    path = folder / "file"
    path.write_bytes(b"content")
    path.chmod(mode)
    return path


def run_as(user: User, files: HandedFiles, script: str) -> bytes:
    words = ["sh", "-c", script]
    fds = files.descriptors
    with proc.start_process(words, pass_fds=fds, stdout=subprocess.PIPE, privileges=user.words) as process:
        return process.communicate(timeout=10)[0]


def test_the_labs_own_user_finds_files_by_their_paths(tmp_path: Path) -> None:
    with HandedFiles(None) as files:
        assert files.hand(tmp_path / "missing") == tmp_path / "missing"
        assert files.descriptors == ()


@needs_root
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_another_user_reads_what_it_could_not_reach(tmp_path: Path, mode: int) -> None:
    assert NOBODY is not None
    path = make_closed(tmp_path, mode)
    with HandedFiles(NOBODY) as files:
        named = files.hand(path)
        assert run_as(NOBODY, files, f"cat {named}") == b"content"
        assert b"content" not in run_as(NOBODY, files, f"cat {path} 2>&1")
        assert run_as(NOBODY, files, f"echo more >{named} && echo written") == b""
    assert path.read_bytes() == b"content"


@needs_root
def test_another_user_writes_only_what_is_its_to_write(tmp_path: Path) -> None:
    assert NOBODY is not None
    path = make_closed(tmp_path, 0o600)
    with HandedFiles(NOBODY) as files:
        named = files.hand(path, writable=True)
        assert run_as(NOBODY, files, f"echo more >{named} && echo written") == b"written\n"
    assert path.read_bytes() == b"more\n"


@needs_root
def test_another_user_has_no_way_back() -> None:
    assert NOBODY is not None
    with HandedFiles(NOBODY) as files:
        status = run_as(NOBODY, files, "grep -E '^(Uid|CapPrm|NoNewPrivs)' /proc/self/status").split()
    assert status == [b"Uid:", *[str(NOBODY.uid).encode()] * 4, b"CapPrm:", b"0" * 16, b"NoNewPrivs:", b"1"]


def test_descriptors_end_with_the_block(tmp_path: Path) -> None:
    path = make_closed(tmp_path, 0o600)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with HandedFiles(User(os.getuid(), os.getgid())) as files:
        files.hand(path)
        files.hand(path, writable=True)
        assert len(files.descriptors) == 3  # the first has a copy, since nobody else may read it
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with (
        HandedFiles(User(os.getuid(), os.getgid())) as files,
        pytest.raises(HostError, match=r"nowhere' could not be read: No such file"),
    ):
        files.hand(tmp_path / "nowhere")


@pytest.mark.parametrize(("mode", "drops"), [(0o666, True), (0o660, False)])
def test_under_kvm_the_device_must_be_open_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, drops: bool
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    monkeypatch.setattr(guest_user, "_KVM", device)
    assert choose_user(Accelerator.KVM) == (NOBODY if drops else None)
    assert choose_user(Accelerator.TCG) == NOBODY


def test_the_doctor_says_whom_it_will_be() -> None:
    assert describe_user().startswith("nobody" if NOBODY else ("root" if os.geteuid() == 0 else "you"))
