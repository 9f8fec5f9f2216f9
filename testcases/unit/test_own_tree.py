# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's source in the forms that people have it in, and a distribution's configuration with it."""

import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from small_linux import CODE, git, make_git_tree

from lab.build import own_kernel
from lab.build.kconfig import MAX_CONFIG_BYTES, drop_modules, format_config, parse_config, read_whole_config
from lab.build.own_kernel import OwnKernel, build_own_kernel
from lab.build.own_tree import PACKERS, PlainTree, SourceArchive, read_own_tree, unpack_source
from lab.errors import BuildError, HostError, UsageError
from lab.host.paths import find_cache

DEBIAN = """\
CONFIG_X86_64=y
CONFIG_SMP=y
CONFIG_MODULES=y
CONFIG_VIRTIO_NET=m
CONFIG_NR_CPUS=8192
# CONFIG_MICROCODE_LATE_LOADING is not set
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_git_tree(tmp_path, monkeypatch)


def build(tree: Path, base: Path | None = None) -> OwnKernel:
    return build_own_kernel(tree, None, None, lambda _: None, base)


def test_a_folder_without_git_is_built_as_it_is(tree: Path) -> None:
    of_git = build(tree)
    shutil.rmtree(tree / ".git")
    (tree / "code.o").write_text("a product of a build in the tree")
    (tree / ".config").write_text("CONFIG_OF_THE_USER=y\n")
    built = build(tree)
    assert (built.origin.commit, built.origin.dirty) == ("", False)
    assert built.kernel.vmlinux.read_bytes() == of_git.kernel.vmlinux.read_bytes()
    assert build(tree) == built
    (copy,) = (find_cache() / "kernel-trees").glob("tree-*/source")
    assert not any((copy / name).exists() for name in ("code.o", ".config"))


def test_a_folder_whose_git_has_no_commit_is_built_though_git_ignores_all_of_it(tree: Path) -> None:
    """Debian's own packaging of Linux is such a one."""
    shutil.rmtree(tree / ".git")
    (tree / ".gitignore").write_text("*\n")
    git(tree.parent, "init", "--quiet", str(tree))
    looked = read_own_tree(tree)
    assert isinstance(looked, PlainTree)
    assert {"Makefile", "code.c", ".gitignore"} <= set(looked.names)
    assert not any(name.startswith(".git/") for name in looked.names)
    assert build(tree).kernel.release == "6.1.0"


def test_a_folder_inside_of_another_git_tree_is_built(tree: Path) -> None:
    shutil.rmtree(tree / ".git")
    git(tree.parent.parent, "init", "--quiet", str(tree.parent))
    assert isinstance(read_own_tree(tree), PlainTree)


def pack(tree: Path, kind: str) -> Path:
    path = tree.parent / f"linux-6.1.tar.{kind}"
    subprocess.run(
        ["tar", "--create", "--auto-compress", f"--file={path}", "--exclude=.git", tree.name],
        cwd=tree.parent,
        check=True,
        timeout=60,
    )
    return path


@pytest.mark.parametrize("kind", ["xz", "gz", "bz2"])
def test_a_tarball_is_built(tree: Path, kind: str) -> None:
    if shutil.which(PACKERS[f".tar.{kind}"]) is None:
        pytest.skip(f"{PACKERS[f'.tar.{kind}']} is not installed")
    of_git = build(tree)
    archive = pack(tree, kind)
    before = archive.read_bytes()
    built = build(archive)
    assert (built.origin.commit, built.origin.dirty) == ("", False)
    assert built.kernel.vmlinux.read_bytes() == of_git.kernel.vmlinux.read_bytes()
    assert build(archive) == built
    assert archive.read_bytes() == before


def test_another_tarball_of_the_same_name_is_another_kernel(tree: Path) -> None:
    first = build(pack(tree, "gz"))
    (tree / "code.c").write_text(CODE.replace("1", "9"))
    second = build(pack(tree, "gz"))
    assert second.origin.source_sha256 != first.origin.source_sha256
    assert second.kernel.vmlinux.read_bytes() != first.kernel.vmlinux.read_bytes()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be unpacked: "),
        (lambda path: path.write_text("no tarball"), "cannot be unpacked: "),
        (lambda path: tarfile.open(path, "w:gz").close(), "is not one of Linux"),
    ],
)
def test_what_is_no_tarball_of_linux_is_refused_and_leaves_nothing(tree: Path, spoil: object, told: str) -> None:
    archive = pack(tree, "gz")
    assert callable(spoil)
    spoil(archive)
    with pytest.raises(UsageError, match=told):
        build(archive)
    assert list((find_cache() / "kernel-trees").glob("*/unpacked.*")) == []
    assert isinstance(read_own_tree(archive), SourceArchive)


@pytest.mark.skipif(shutil.which("dpkg-source") is None, reason="dpkg-source is not installed")
def test_a_source_package_of_debian_is_built(tree: Path) -> None:
    of_git = build(tree)
    debian = tree / "debian"
    (debian / "source").mkdir(parents=True)
    (debian / "source" / "format").write_text("3.0 (native)\n")
    who = "Tester <tester@example.invalid>"
    (debian / "control").write_text(
        f"Source: linux\nMaintainer: {who}\nStandards-Version: 4.6.2\n\nPackage: linux-source\nArchitecture: all\n"
        "Description: none\n"
    )
    (debian / "changelog").write_text(
        f"linux (6.1) unstable; urgency=low\n\n  * It.\n\n -- {who}  Tue, 01 Dec 2026 00:00:00 +0000\n"
    )
    subprocess.run(["dpkg-source", "--build", tree.name], cwd=tree.parent, check=True, capture_output=True, timeout=60)
    package = tree.parent / "linux_6.1.dsc"
    built = build(package)
    assert built.kernel.vmlinux.read_bytes() == of_git.kernel.vmlinux.read_bytes()
    (tree.parent / "linux_6.1.tar.xz").write_bytes(b"another")
    package.touch()
    shutil.rmtree(find_cache())
    with pytest.raises(UsageError, match=r"linux_6\.1\.dsc' cannot be unpacked: "):
        build(package)


@pytest.mark.parametrize(
    ("name", "package"),
    [("linux_6.1.dsc", "dpkg-dev"), ("linux.tar.xz", "xz-utils"), ("linux.tar.bz2", "bzip2"), ("linux.tgz", "gzip")],
)
def test_what_is_unpacked_by_a_missing_program_says_what_to_install(
    tree: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.parent / name
    path.write_text("Format: 3.0 (native)\n")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(HostError, match=f"which is not there: apt-get install {package}"):
        unpack_source(SourceArchive(path=path, sha256=""), tree)


@pytest.mark.parametrize("packed", [False, True])
def test_a_distributions_configuration_is_built_without_its_modules(tree: Path, packed: bool, tmp_path: Path) -> None:
    own = build(tree)
    base = tmp_path / "config"
    base.write_bytes(lzma.compress(DEBIAN.encode()) if packed else DEBIAN.encode())
    built = build(tree, base)
    got = parse_config((built.kernel.folder / "config").read_text().splitlines())
    assert (got["CONFIG_NR_CPUS"], got["CONFIG_VIRTIO_NET"], got["CONFIG_MODULES"]) == ("8192", "n", "n")
    assert built.kernel.folder != own.kernel.folder
    assert len(list((find_cache() / "kernel-trees").glob("tree-*/source"))) == 2
    assert build(tree) == own


def test_a_configuration_that_is_written_again_meanwhile_is_built_as_it_was_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "config"
    base.write_text(DEBIAN)

    def look(path: Path) -> object:
        base.write_text(DEBIAN.replace("8192", "64"))
        return read_own_tree(path)

    monkeypatch.setattr(own_kernel, "read_own_tree", look)
    built = build(tree, base)
    assert "CONFIG_NR_CPUS=8192" in (built.kernel.folder / "config").read_text()


def test_what_the_lab_needs_of_a_distributions_kernel_must_survive(tree: Path, tmp_path: Path) -> None:
    base = tmp_path / "config"
    base.write_text(DEBIAN)
    any_config = tmp_path / "any-config"
    any_config.write_text('CONFIG_DROPPED_KEYS=""\n')
    build(tree, base)
    any_config.write_text("CONFIG_DROPPED=y\n")
    with pytest.raises(BuildError, match=r"Kconfig dropped what .* asks for: CONFIG_DROPPED=y"):
        build(tree, base)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is no whole one of a kernel for x86-64: CONFIG_X86_64=y is not in it"),
        (b"CONFIG_ARM64=y\n", "is no whole one of a kernel for x86-64"),
        (b"CONFIG_X86_64=y\n\xff", "is no text of at most 4 MiB"),
        (b"#" * (MAX_CONFIG_BYTES + 1), "is no text of at most 4 MiB"),
        (lzma.compress(b"#" * (MAX_CONFIG_BYTES + 1)), "is no text of at most 4 MiB"),
        (lzma.compress(DEBIAN.encode())[:20] + b"damaged", "cannot be read: "),
        (b"\x1f\x8bdamaged", "cannot be read: "),
    ],
)
def test_what_is_no_whole_configuration_is_refused(tree: Path, data: bytes, told: str, tmp_path: Path) -> None:
    base = tmp_path / "config"
    base.write_bytes(data)
    with pytest.raises(UsageError, match=told):
        build(tree, base)
    with pytest.raises(UsageError, match="none' is not there"):
        read_whole_config(tmp_path / "none")


def test_settings_survive_being_written(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(DEBIAN)
    settings = read_whole_config(tmp_path / "config")
    assert parse_config(format_config(settings).splitlines()) == settings
    assert drop_modules(settings)["CONFIG_VIRTIO_NET"] == "n"
