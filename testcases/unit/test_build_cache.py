# SPDX-License-Identifier: GPL-2.0-or-later
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lab.build.cache import SUMS, cached, hash_once, key_tree, locked, make_key, read_sums
from lab.errors import BuildError, HostError
from lab.host.files import hash_file

KEY = make_key("one")


def ignore(_: str) -> None:
    pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "microcode-nmi-lab"


def list_left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "thing").iterdir() if not path.name.endswith(".lock"))


def test_second_call_does_not_build_and_takes_milliseconds(cache: Path) -> None:
    built = []

    def build(target: Path) -> None:
        built.append(target)
        (target / "file").write_text("content")

    first = cached("thing", KEY, build, ignore)
    begin_s = time.monotonic()
    second = cached("thing", KEY, build, ignore)
    assert time.monotonic() - begin_s < 0.05
    assert first == second == cache / "thing" / KEY
    assert len(built) == 1
    assert (second / "file").read_text() == "content"
    assert read_sums(second) == {"file": hash_file(second / "file")}


def test_failed_build_leaves_nothing_and_keeps_its_own_error(cache: Path) -> None:
    def build(target: Path) -> None:
        (target / "half").write_text("made")
        raise BuildError("the recipe failed")

    with pytest.raises(BuildError, match="the recipe failed"):
        cached("thing", KEY, build, ignore)
    assert list_left(cache) == []


def test_full_disk_is_a_host_error_that_says_so(cache: Path) -> None:
    def build(target: Path) -> None:
        (target / "half").write_text("made")
        with open("/dev/full", "wb", buffering=0) as sink:
            sink.write(b"x")

    with pytest.raises(HostError, match="No space left on device"):
        cached("thing", KEY, build, ignore)
    assert list_left(cache) == []


def test_cache_that_is_no_folder_is_a_host_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(HostError, match="XDG_CACHE_HOME"):
        cached("thing", KEY, lambda _: None, ignore)


def test_builders_of_one_key_build_once(cache: Path) -> None:
    built: list[int] = []
    said: list[str] = []
    found: list[Path] = []

    def build(target: Path) -> None:
        built.append(1)
        time.sleep(0.3)  # long enough for the others to arrive while it builds
        (target / "file").write_text("content")

    threads = [
        threading.Thread(target=lambda: found.append(cached("thing", KEY, build, said.append))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert built == [1]
    assert found == [cache / "thing" / KEY] * 4
    assert said == ["thing: waiting for another build of the same"] * 3


def test_killed_build_is_never_taken_for_whole_and_is_swept(cache: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom lab.build.cache import cached\n"
        "def build(target):\n    (target / 'half').write_text('made')\n    print('here', flush=True)\n"
        f"    time.sleep(60)\ncached('thing', {KEY!r}, build, print)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=dict(os.environ)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        other = cached("thing", make_key("other"), lambda _: None, ignore)
        assert any(name.startswith(f".{KEY}.") for name in list_left(cache)), (
            "a build that is going on must not be swept"
        )
        process.send_signal(signal.SIGKILL)
    assert not (cache / "thing" / KEY).exists()
    third = cached("thing", make_key("third"), lambda _: None, ignore)
    assert list_left(cache) == sorted([other.name, third.name]), "another builder sweeps what the killed one left"
    entry = cached("thing", KEY, lambda _: None, ignore)
    assert sorted(path.name for path in entry.iterdir()) == [SUMS]


def test_lock_outlives_the_lab_in_whoever_inherits_it(tmp_path: Path) -> None:
    said: list[str] = []
    with locked(tmp_path / "lock", "thing", said.append) as descriptor:
        orphan = subprocess.Popen(["sleep", "0.5"], pass_fds=[descriptor])
    begin_s = time.monotonic()
    with locked(tmp_path / "lock", "thing", said.append):
        assert time.monotonic() - begin_s > 0.2
    assert said == ["thing: waiting for another build of the same"]
    assert orphan.wait(5) == 0


@pytest.mark.usefixtures("cache")
def test_damaged_sums_are_told() -> None:
    entry = cached("thing", KEY, lambda _: None, ignore)
    (entry / SUMS).write_text("garbage\n")
    with pytest.raises(HostError, match="damaged"):
        read_sums(entry)


def test_key_tells_parts_apart() -> None:
    assert make_key("ab", "c") != make_key("a", "bc")
    assert make_key("ab") == make_key(b"ab")


def test_tree_key_sees_names_contents_and_modes_but_no_editor_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    keys = [key_tree(tmp_path)]
    (tmp_path / ".a.swp").write_text("x")
    (tmp_path / "a~").write_text("x")
    assert key_tree(tmp_path) == keys[0]
    (tmp_path / "a").write_text("2")
    keys.append(key_tree(tmp_path))
    (tmp_path / "a").chmod(0o755)
    keys.append(key_tree(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    keys.append(key_tree(tmp_path))
    assert len(set(keys)) == len(keys)


def test_hash_is_remembered_until_the_file_changes(cache: Path, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_text("1")
    assert hash_once(big) == hash_once(big) == hash_file(big)
    assert len(list((cache / "hashes").iterdir())) == 1
    big.write_text("22")
    assert hash_once(big) == hash_file(big)
