# SPDX-License-Identifier: GPL-2.0-or-later
"""The images of a kept trial are found by content, whatever they were built from, or refused by name."""

from pathlib import Path

import msgspec
import pytest

from lab.build import observer
from lab.build.cache import cached
from lab.build.content import find_entry
from lab.build.images import ImageSet
from lab.errors import UsageError
from lab.host.files import hash_file
from lab.model.evidence import Images
from lab.model.qemu import Qemu
from lab.trial import same_images
from lab.trial.same_images import find_same

QEMU = Qemu(path=Path("/qemu"), version="7.2", interface_min=0, interface_max=1, sha256="e" * 64)
BASE = "linux-6.1"


def put(kind: str, key: str, **files: str) -> Path:
    def build(folder: Path) -> None:
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)

    return cached(kind, key, build, lambda _: None)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    """What a trial on the lab's own images says of them, beside a mutant's in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "sound").mkdir()
    put("kernel", "sound", bzImage="sound", vmlinux="sound's symbols", release="6.1.0")
    put("kernel", "mutant", bzImage="mutant", vmlinux="mutant's symbols", release="6.1.0-mutant")
    keys = {None: "sound", "drops-records.patch": "mutant"}
    monkeypatch.setattr(observer, "_make_key", lambda _level, patch: keys.get(patch and patch.name, "none"))
    put("observer", "sound", observer_so="sound observer")
    put("observer", "mutant", observer_so="mutant observer")
    put("observer", "old", observer_so="an older observer")
    archive = tmp_path / "sound" / "initramfs.cpio.gz"
    archive.write_text("archive")
    cache = tmp_path / "microcode-nmi-lab"
    built = ImageSet(
        kernel=cache / "kernel/sound/bzImage",
        kernel_release="6.1.0",
        vmlinux=cache / "kernel/sound/vmlinux",
        initramfs=archive,
        observer=cache / "observer/sound/observer.so",
        kernel_sha256=hash_file(cache / "kernel/sound/bzImage"),
        vmlinux_sha256=hash_file(cache / "kernel/sound/vmlinux"),
        initramfs_sha256=hash_file(archive),
        observer_sha256=hash_file(cache / "observer/sound/observer.so"),
        qemu=QEMU,
    )
    monkeypatch.setattr(same_images, "build_images", lambda *_: built)
    monkeypatch.setattr(same_images, "read_kernel", lambda path: path)
    return built.describe()


def find(wanted: Images | None) -> ImageSet:
    return find_same(wanted, BASE, None, QEMU, "", lambda _: None)[0]


def test_the_labs_own_are_found(images: Images) -> None:
    assert find(images).describe() == images


def test_a_mutants_are_found_by_their_content(images: Images, tmp_path: Path) -> None:
    cache = tmp_path / "microcode-nmi-lab"
    wanted = msgspec.structs.replace(
        images,
        kernel_sha256=hash_file(cache / "kernel/mutant/bzImage"),
        vmlinux_sha256=hash_file(cache / "kernel/mutant/vmlinux"),
        observer_sha256=hash_file(cache / "observer/mutant/observer.so"),
        kernel_release="6.1.0-mutant",
    )
    found = find(wanted)
    assert found.describe() == wanted
    assert found.kernel.read_text() == "mutant"
    assert found.observer.read_text() == "mutant observer"


def test_an_observer_of_other_sources_speaks_another_language(images: Images, tmp_path: Path) -> None:
    old = hash_file(tmp_path / "microcode-nmi-lab/observer/old/observer.so")
    with pytest.raises(UsageError, match=r"the observer differs: .*; the lab that made it can"):
        find(msgspec.structs.replace(images, observer_sha256=old))


def test_a_kernel_and_the_vmlinux_of_another_are_not_put_together(images: Images, tmp_path: Path) -> None:
    mixed = hash_file(tmp_path / "microcode-nmi-lab/kernel/mutant/vmlinux")
    with pytest.raises(UsageError, match="vmlinux differs: the trial's is "):
        find(msgspec.structs.replace(images, vmlinux_sha256=mixed))


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("kernel_sha256", "the kernel differs: the trial's is ffffffffffff, the one there is [0-9a-f]{12} .*--kernel"),
        ("vmlinux_sha256", "vmlinux differs: the trial's is ffffffffffff, the one there is [0-9a-f]{12} .*--kernel"),
        ("initramfs_sha256", "the initramfs differs: the trial's is ffffffffffff, the one there is [0-9a-f]{12}$"),
        (
            "observer_sha256",
            "the observer differs: the trial's is ffffffffffff, the one there is [0-9a-f]{12}; the lab",
        ),
        (
            "qemu_version",
            f"QEMU differs: the trial's is f{{64}}, the one there is {QEMU.version}; name the trial's own with --qemu$",
        ),
        (
            "qemu_sha256",
            "QEMU's program differs: the trial's is ffffffffffff, the one there is eeeeeeeeeeee in '/qemu'",
        ),
    ],
)
def test_what_differs_is_named(images: Images, field: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        find(msgspec.structs.replace(images, **{field: "f" * 64}))


@pytest.mark.usefixtures("images")
def test_a_damaged_entry_is_passed_over(tmp_path: Path) -> None:
    kernels = tmp_path / "microcode-nmi-lab/kernel"
    (kernels / "a-damaged-one").mkdir()
    (kernels / "a-damaged-one" / "SHA256SUMS").write_text("nonsense\n")
    digest = hash_file(kernels / "mutant/bzImage")
    assert find_entry("kernel", {"bzImage": digest}) == kernels / "mutant"
    (kernels / "mutant/bzImage").unlink()
    assert find_entry("kernel", {"bzImage": digest}) is None
