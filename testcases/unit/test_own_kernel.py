# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel of the user's own git tree: built beside it, and the tree is not touched."""

import os
import time
from pathlib import Path

import pytest
from small_linux import CODE, PATCH, git, make_git_tree

from lab.build import kernel, own_kernel, snapshot
from lab.build.own_kernel import OwnKernel, build_own_kernel
from lab.build.snapshot import Snapshot
from lab.errors import BuildError, UsageError
from lab.host.paths import find_cache


def look(tree: Path) -> list[tuple[object, ...]]:
    """Return all there is to see of a folder, .git included; reading alone may set access times."""
    seen: list[tuple[object, ...]] = [(git(tree, "status", "--porcelain", "-z"),)]
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        seen.append((path, status.st_mode, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, content))
    return seen


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_git_tree(tmp_path, monkeypatch)


def build(tree: Path, patches: Path | None = None, fragment: Path | None = None) -> OwnKernel:
    return build_own_kernel(tree, patches, fragment, [].append)  # type: ignore[arg-type]


def find_copy() -> Path:
    (copy,) = (find_cache() / "kernel-trees").glob("tree-*/source")
    return copy


def count_compiled() -> int:
    return len((find_copy().parent / "objects/compiled").read_text().splitlines())


def make_patches(folder: Path, **patches: str) -> Path:
    folder.mkdir()
    for name, text in patches.items():
        (folder / f"{name}.patch").write_text(text)
    return folder


def make_dirty(tree: Path) -> None:
    (tree / "code.c").write_text(CODE.replace("1", "7"))
    (tree / "gone.c").unlink()
    (tree / "a new\nfile.c").write_text("int added;\n")
    (tree / os.fsdecode(b"not \xff text.c")).write_text("int odd;\n")
    (tree / "code.o").write_text("a product of a build in the tree")
    (tree / ".config").write_text("CONFIG_OF_THE_USER=y\n")


def test_a_clean_tree_is_built_and_named_by_its_commit(tree: Path) -> None:
    before = look(tree)
    built = build(tree)

    assert built.origin.commit == git(tree, "rev-parse", "HEAD").strip()
    assert not built.origin.dirty
    assert built.kernel.release == "6.1.0"
    assert (built.kernel.folder / own_kernel.ORIGIN).read_text().count(built.origin.commit) == 1
    assert "CONFIG_SMP=y" in (built.kernel.folder / "config").read_text()
    assert look(tree) == before


def test_a_dirty_tree_is_left_as_it_is_and_built_as_it_is(tree: Path) -> None:
    clean = build(tree)
    make_dirty(tree)
    # Git would now like to write down that this file is as it was, which is what must not happen.
    (tree / "Kconfig").touch()
    before = look(tree)
    built = build(tree)

    assert look(tree) == before
    assert built.origin.dirty
    assert built.origin.commit == clean.origin.commit
    assert built.kernel.folder != clean.kernel.folder
    assert built.kernel.vmlinux.read_bytes() != clean.kernel.vmlinux.read_bytes()
    copy = find_copy()
    assert (copy / "a new\nfile.c").read_text() == "int added;\n"
    assert (copy / os.fsdecode(b"not \xff text.c")).is_file()
    assert not any((copy / name).exists() for name in ("gone.c", "code.o", ".config", ".git"))


def test_the_next_build_copies_and_compiles_what_has_changed(tree: Path) -> None:
    first = build(tree)
    assert build(tree) == first
    assert count_compiled() == 1
    (tree / "code.c").touch()
    (tree / "unused.h").write_text("/* new */\n")
    second = build(tree)
    assert second.kernel.folder != first.kernel.folder
    assert count_compiled() == 1, "its content is as it was"
    (tree / "code.c").write_text(CODE.replace("1", "3"))
    build(tree)
    assert count_compiled() == 2
    (tree / "code.c").write_text(CODE)
    (tree / "unused.h").unlink()
    assert build(tree) == first
    assert not (find_copy() / "unused.h").exists()


def test_a_change_that_keeps_size_and_time_is_seen(tree: Path) -> None:
    first = build(tree)
    status = (tree / "code.c").stat()
    (tree / "code.c").write_text(CODE.replace("1", "3"))
    os.utime(tree / "code.c", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (tree / "code.c").stat().st_size == status.st_size
    assert build(tree).origin.source_sha256 != first.origin.source_sha256


def test_patches_go_on_top_and_are_taken_back(tree: Path, tmp_path: Path) -> None:
    plain = build(tree)
    before = look(tree)
    again = PATCH.replace("return 2", "return 3").replace("return 1", "return 2")
    by_name = make_patches(tmp_path / "by name", one=PATCH, two=again)
    patched = build(tree, by_name)
    assert patched.origin.patches == ("one.patch", "two.patch")
    assert not patched.origin.dirty
    assert "return 3" in (find_copy() / "code.c").read_text()
    (by_name / "series").write_text("one.patch # alone\n")
    assert build(tree, by_name).origin.patches == ("one.patch",)
    assert "return 2" in (find_copy() / "code.c").read_text()
    assert build(tree) == plain
    assert look(tree) == before


def test_paths_may_be_relative(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_patches(tmp_path / "mine", one=PATCH)
    (tmp_path / "mine/config").write_text("CONFIG_MINE=y\n")
    monkeypatch.chdir(tmp_path)
    built = build(tree.relative_to(tmp_path), Path("mine"), Path("mine/config"))
    assert "CONFIG_MINE=y" in (built.kernel.folder / "config").read_text()
    assert "return 2" in (find_copy() / "code.c").read_text()


def test_own_settings_win(tree: Path, tmp_path: Path) -> None:
    fragment = tmp_path / "mine.config"
    fragment.write_text("# CONFIG_SMP is not set\nCONFIG_MINE=y\n")
    config = (build(tree, fragment=fragment).kernel.folder / "config").read_text()
    assert config.rindex("# CONFIG_SMP is not set") > config.rindex("CONFIG_SMP=y")
    assert "CONFIG_MINE=y" in config


def test_links_do_not_lead_out(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not of the tree")
    (tree / "inside").symlink_to("scripts/kconfig")
    (tree / "absolute").symlink_to(outside)
    (tree / "relative").symlink_to("../outside/secret")
    # Git lists what was a folder, and is now a link to one.
    (tree / "folder").mkdir()
    (tree / "folder/secret").write_text("mine")
    git(tree, "add", "folder/secret")
    (tree / "folder/secret").unlink()
    (tree / "folder").rmdir()
    (tree / "folder").symlink_to(outside)
    os.mkfifo(tree / "pipe")
    build(tree)
    copy = find_copy()
    assert (copy / "inside").readlink() == Path("scripts/kconfig")
    assert [name for name in ("absolute", "relative", "folder", "pipe") if os.path.lexists(copy / name)] == []


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", ".git/config", "a/.git/hooks/x"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "copy").mkdir()
    with pytest.raises(UsageError, match="leads out of it"):
        Snapshot(tmp_path / "copy", tmp_path / "account").follow(tmp_path / "root", [name])
    assert [path.name for path in tmp_path.rglob("*out*")] == []


def test_a_folder_in_place_of_a_file_and_back(tmp_path: Path) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    root.mkdir()
    copy.mkdir()
    (root / "a").symlink_to("b")
    Snapshot(copy, tmp_path / "account").follow(root, ["a"])
    (root / "a").unlink()
    (root / "a").mkdir()
    (root / "a/b").write_text("deep")
    Snapshot(copy, tmp_path / "account").follow(root, ["a/b"])
    assert (copy / "a/b").read_text() == "deep"
    (root / "a/b").unlink()
    (root / "a").rmdir()
    (root / "a").write_text("flat")
    Snapshot(copy, tmp_path / "account").follow(root, ["a"])
    assert (copy / "a").read_text() == "flat"


def test_nothing_of_the_users_settings_is_run(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    git(tree, "config", "core.fsmonitor", str(trap))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.gitconfig").write_text(f"[core]\n\tfsmonitor = {trap}\n\texcludesFile = {trap}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    build(tree)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda tree: (tree / "Kconfig").unlink(), "not one of Linux"),
        (lambda tree: (tree / "Makefile").write_text("all:\n"), "not one of Linux"),
        (lambda tree: (tree / "Makefile").unlink(), "not one of Linux"),
    ],
)
def test_what_is_no_tree_of_linux_is_refused(tree: Path, spoil: object, told: str) -> None:
    assert callable(spoil)
    spoil(tree)
    with pytest.raises(UsageError, match=told):
        build(tree)


def test_a_part_of_a_tree_and_no_folder_are_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match="only a part of the git tree"):
        build(tree / "scripts")
    with pytest.raises(UsageError, match="is not a folder, nor a tarball"):
        build(tree / "none")
    with pytest.raises(UsageError, match="is not a folder, nor a tarball"):
        build(tree / "code.c")


def test_a_patch_that_does_not_apply_is_named_and_costs_no_copy(tree: Path, tmp_path: Path) -> None:
    build(tree)
    with pytest.raises(BuildError, match=r"patch 'bad\.patch' failed"):
        build(tree, make_patches(tmp_path / "bad", bad=PATCH.replace("int one", "int three")))
    build(tree)
    assert count_compiled() == 1


def test_patches_that_are_not_there_are_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        build(tree, tmp_path / "none")
    empty = make_patches(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"holds no \*\.patch"):
        build(tree, empty)
    (empty / "series").write_text("gone.patch\n")
    with pytest.raises(UsageError, match=r"'gone\.patch' is in the series"):
        build(tree, empty)


def test_settings_that_are_not_there_or_lost_are_named(tree: Path, tmp_path: Path) -> None:
    fragment = tmp_path / "mine.config"
    with pytest.raises(UsageError, match="is not there"):
        build(tree, fragment=fragment)
    fragment.write_text("MINE=y\n")
    with pytest.raises(UsageError, match="sets nothing"):
        build(tree, fragment=fragment)
    fragment.write_text("CONFIG_DROPPED_BY_KCONFIG=y\n")
    with pytest.raises(BuildError, match=r"mine\.config' asks for: CONFIG_DROPPED_BY_KCONFIG=y"):
        build(tree, fragment=fragment)


def test_a_setting_that_an_older_tree_does_not_know_is_left_out_and_said(tree: Path) -> None:
    kernel.ANY_CONFIG.write_text("CONFIG_SMP=y\nCONFIG_DROPPED_LATER=y\n")
    kernel.ANY_CONFIG.with_name("optional").write_text("# what came later\nCONFIG_DROPPED_LATER\n")
    assert build(tree).left_out == ("CONFIG_DROPPED_LATER",)
    assert build(tree).left_out == ("CONFIG_DROPPED_LATER",), "from the cache too"
    (tree / "Kconfig").write_text("menuconfig DROPPED_LATER\n\tbool\n")
    with pytest.raises(BuildError, match=r"any-config' asks for: CONFIG_DROPPED_LATER=y$"):
        build(tree)


def test_a_setting_of_the_users_own_that_a_tree_does_not_know_is_named(tree: Path, tmp_path: Path) -> None:
    kernel.ANY_CONFIG.with_name("optional").write_text("CONFIG_DROPPED_LATER\n")
    fragment = tmp_path / "mine.config"
    fragment.write_text("CONFIG_DROPPED_LATER=y\n")
    with pytest.raises(
        BuildError, match=r"mine\.config' asks for: .*; this tree's Kconfig does not know CONFIG_DROPPED_LATER"
    ):
        build(tree, fragment=fragment)


def test_a_commit_in_the_meantime_is_noticed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow = Snapshot.follow

    def commit_too(self: Snapshot, *words: object) -> str:
        git(tree, "commit", "--quiet", "--allow-empty", "--message", "meanwhile")
        return follow(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(Snapshot, "follow", commit_too)
    with pytest.raises(UsageError, match="got another commit"):
        build(tree)


def test_an_untouched_tree_costs_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    root.mkdir()
    copy.mkdir()
    (root / "old").write_text("old")
    an_hour_ago_ns = time.time_ns() - 3_600_000_000_000
    os.utime(root / "old", ns=(an_hour_ago_ns, an_hour_ago_ns))
    first = Snapshot(copy, tmp_path / "account").follow(root, ["old"])
    reads: list[Path] = []
    monkeypatch.setattr(snapshot, "_read", reads.append)
    assert Snapshot(copy, tmp_path / "account").follow(root, ["old"]) == first
    assert reads == []
