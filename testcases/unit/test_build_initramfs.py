# SPDX-License-Identifier: GPL-2.0-or-later
import gzip
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.build import cpio
from lab.build.initramfs import DROPBEAR, NAME, build_initramfs, make_key_archive
from lab.build.keys import make_run_keys
from lab.errors import BuildError
from lab.kernelimage.elf import find_libraries, read_needs

NAMES = st.text("abc", min_size=1, max_size=6)


def list_archive(archive: bytes) -> list[str]:
    """Ask cpio(1), which knows the format better than its writer."""
    return subprocess.run(
        ["busybox", "cpio", "-tv"], input=archive, capture_output=True, check=True
    ).stdout.decode().splitlines()  # fmt: skip


@given(st.dictionaries(NAMES, st.binary(max_size=9), max_size=5))
def test_archive_is_aligned_and_order_does_not_matter(files: dict[str, bytes]) -> None:
    entries = [cpio.make_file(name, data) for name, data in files.items()]
    archive = cpio.write_archive(entries)
    assert len(archive) % cpio.ALIGNMENT == 0
    assert archive == cpio.write_archive(reversed(entries))


def test_archive_reads_back_with_cpio(tmp_path: Path) -> None:
    archive = cpio.write_archive(
        (
            cpio.make_file("a/x", b"hello", 0o600),
            cpio.make_folder("a", 0o700),
            cpio.make_link("l", "a/x"),
            cpio.make_node("n", 5, 1),
        )
    )
    listed = list_archive(archive)
    assert [line.split()[0] for line in listed] == ["drwx------", "-rw-------", "lrwxrwxrwx", "crw-------"]
    assert "1970" in listed[1]
    assert listed[2].endswith("l -> a/x")
    plain = cpio.write_archive((cpio.make_folder("a"), cpio.make_file("a/x", b"hello")))
    subprocess.run(["busybox", "cpio", "-i"], input=plain, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "a/x").read_bytes() == b"hello"


def test_twice_the_same_name_is_an_error() -> None:
    with pytest.raises(BuildError, match="'a'"):
        cpio.write_archive((cpio.make_folder("a"), cpio.make_file("a", b"")))


def test_libraries_are_found_through_others() -> None:
    names = {path.name for path in find_libraries(DROPBEAR)}
    assert "libc.so.6" in names
    assert Path(read_needs(DROPBEAR).loader).name not in names
    assert find_libraries(Path("/bin/busybox")) == ()


def test_text_is_no_elf_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BuildError, match="ELF"):
        read_needs(tmp_path / "text")


def test_built_twice_is_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    for name in ("first", "second"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        built.append(build_initramfs(lambda _: None) / NAME)
    assert built[0].read_bytes() == built[1].read_bytes()
    assert built[0].parent.name == built[1].parent.name
    assert built[0].stat().st_size % cpio.ALIGNMENT == 0
    names = [line.split()[5] for line in list_archive(gzip.decompress(built[0].read_bytes()))]
    assert {"init", "bin/sh", "sbin/ifconfig", "usr/sbin/dropbear", "lib/firmware/intel-ucode"} <= set(names)
    assert not {"etc/dropbear/host_key", "root/.ssh/authorized_keys"} & set(names), "keys are made per run"


def test_key_archive_holds_the_keys_for_root_alone() -> None:
    listed = list_archive(make_key_archive("ssh-ed25519 AAAA", b"secret"))
    assert [(line.split()[0], line.split()[-1]) for line in listed] == [
        ("-rw-------", "etc/dropbear/host_key"),
        ("drwx------", "root/.ssh"),
        ("-rw-------", "root/.ssh/authorized_keys"),
    ]


@pytest.mark.skipif(shutil.which("dropbearkey") is None, reason="dropbearkey comes with dropbear-bin")
def test_dropbear_reads_the_host_key_as_the_client_pins_it(tmp_path: Path) -> None:
    keys = make_run_keys()
    (tmp_path / "host_key").write_bytes(keys.host_key)
    printed = subprocess.run(
        ["dropbearkey", "-y", "-f", tmp_path / "host_key"], capture_output=True, text=True, check=True
    ).stdout
    assert f"ssh-ed25519 {keys.host_public.get_base64()}" in printed


def test_keys_are_new_each_time_and_belong_together() -> None:
    first, second = make_run_keys(), make_run_keys()
    assert first.authorized_key != second.authorized_key
    assert first.host_key != second.host_key
    assert first.authorized_key == f"ssh-ed25519 {first.client_key.get_base64()}"
