# SPDX-License-Identifier: GPL-2.0-or-later
import shutil
import tarfile
from pathlib import Path

import pytest
from small_linux import PATCH, write_tree

from lab.build.kconfig import find_lost, parse_config
from lab.build.kernel import DEFAULT_BASE, Recipe, build_recipe, find_recipe, read_series
from lab.errors import BuildError, UsageError
from lab.host.paths import IMAGES, find_cache


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree = tmp_path / "linux-source"
    write_tree(tree)
    with tarfile.open(tmp_path / "source.tar.xz", "w:xz") as archive:
        archive.add(tree, tree.name)
    folder = tmp_path / "recipe"
    (folder / "patches").mkdir(parents=True)
    (folder / "config").write_text("CONFIG_SMP=y\n# CONFIG_MODULES is not set\n")
    return Recipe(folder, tmp_path / "source.tar.xz")


def build(recipe: Recipe, said: list[str] | None = None) -> Path:
    return build_recipe(recipe, (said if said is not None else []).append).folder


def test_all_results_are_there_and_nothing_else(recipe: Recipe) -> None:
    said: list[str] = []
    folder = build(recipe, said)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["SHA256SUMS", "System.map", "build.log", "bzImage", "config", "release", "vmlinux"]
    assert build_recipe(recipe, said.append).release == "6.1.0"
    assert "CONFIG_SMP=y" in (folder / "config").read_text()
    assert (folder / "System.map").read_text() == "1970-01-01 00:00:00 UTC\n", "a fixed time makes a fixed image"
    assert all(line.startswith("kernel: ") for line in said)


def test_users_environment_does_not_get_in(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(recipe)
    shutil.rmtree(first.parent)
    monkeypatch.setenv("KBUILD_BUILD_TIMESTAMP", "now")
    monkeypatch.setenv("CFLAGS", "-g")
    again = build(recipe)
    assert again == first
    assert "1970" in (again / "System.map").read_text()


def test_patch_is_applied_and_makes_another_entry(recipe: Recipe) -> None:
    plain = build(recipe)
    (recipe.folder / "patches/two.patch").write_text(PATCH)
    (recipe.folder / "series").write_text("# what we change\ntwo.patch  # returns 2\n\n")
    patched = build(recipe)
    assert patched != plain
    assert (patched / "vmlinux").read_bytes() != (plain / "vmlinux").read_bytes()


def count_compiled() -> int:
    return len((find_cache() / "kernel-trees/recipe/objects/compiled").read_text().splitlines())


def put_series(recipe: Recipe, **patches: str) -> None:
    for name, text in patches.items():
        (recipe.folder / f"patches/{name}.patch").write_text(text)
    (recipe.folder / "series").write_text("".join(f"{name}.patch\n" for name in patches))


def test_kept_tree_builds_the_same_as_a_new_one(recipe: Recipe) -> None:
    plain = build(recipe)
    put_series(recipe, two=PATCH)
    patched = build(recipe)
    images = {folder.name: (folder / "vmlinux").read_bytes() for folder in (plain, patched)}
    shutil.rmtree(find_cache())
    assert (build(recipe) / "vmlinux").read_bytes() == images[patched.name]
    (recipe.folder / "patches/two.patch").unlink()
    (recipe.folder / "series").unlink()
    assert build(recipe) == plain
    assert (plain / "vmlinux").read_bytes() == images[plain.name], "an original that comes back is compiled again"


def test_only_what_changed_is_compiled(recipe: Recipe) -> None:
    put_series(recipe, two=PATCH)
    build(recipe)
    new_file = "--- /dev/null\n+++ b/sub.c\n@@ -0,0 +1 @@\n+int sub;\n"
    put_series(recipe, two=PATCH, sub=new_file)
    build(recipe)
    assert count_compiled() == 1, "code.c is as it was"
    assert (find_cache() / "kernel-trees/recipe/source/sub.c").is_file()
    put_series(recipe, two=PATCH.replace("return 2", "return 3"))
    build(recipe)
    assert count_compiled() == 2
    assert not (find_cache() / "kernel-trees/recipe/source/sub.c").exists(), "its patch is gone"


def test_mistakes_do_not_cost_the_kept_tree(recipe: Recipe) -> None:
    good = build(recipe)
    put_series(recipe, two=PATCH, bad=PATCH.replace("int one", "int three"))
    with pytest.raises(BuildError):
        build(recipe)
    put_series(recipe, two=PATCH.replace("return 2", "return two"))
    with pytest.raises(BuildError):
        build(recipe)
    (recipe.folder / "series").write_text("")
    for path in recipe.folder.glob("patches/*"):
        path.unlink()
    vmlinux = (good / "vmlinux").read_bytes()
    shutil.rmtree(good)
    said: list[str] = []
    assert (build(recipe, said) / "vmlinux").read_bytes() == vmlinux
    assert "kernel: unpacking the source" not in said


def test_tree_of_a_killed_build_is_not_trusted(recipe: Recipe) -> None:
    build(recipe)
    (find_cache() / "kernel-trees/recipe/state").unlink()
    put_series(recipe, two=PATCH)
    said: list[str] = []
    build(recipe, said)
    assert "kernel: unpacking the source" in said


def test_patch_cannot_leave_the_source(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for place in ("../../code.c", str(tmp_path / "mine")):
        put_series(recipe, out=PATCH.replace("code.c", place))
        with pytest.raises(BuildError, match="outside the source"):
            build(recipe)
    assert (tmp_path / "mine").read_text() == "precious"


def test_patch_that_does_not_apply_is_named(recipe: Recipe) -> None:
    (recipe.folder / "patches/good.patch").write_text(PATCH)
    (recipe.folder / "patches/bad.patch").write_text(PATCH.replace("int one", "int three"))
    (recipe.folder / "series").write_text("good.patch\nbad.patch\n")
    with pytest.raises(BuildError, match=r"patch 'bad\.patch' failed: .*FAILED.*log: "):
        build(recipe)


def test_patch_that_is_not_there_is_named(recipe: Recipe) -> None:
    (recipe.folder / "series").write_text("gone.patch\n")
    with pytest.raises(BuildError, match=r"'gone\.patch'"):
        build(recipe)


def test_all_dropped_options_are_named(recipe: Recipe) -> None:
    (recipe.folder / "config").write_text("CONFIG_SMP=y\nCONFIG_DROPPED_A=y\nCONFIG_DROPPED_B=16\n")
    with pytest.raises(BuildError, match="CONFIG_DROPPED_A=y, CONFIG_DROPPED_B=16"):
        build(recipe)


def test_compiler_error_is_quoted_and_its_log_is_kept(recipe: Recipe) -> None:
    (recipe.folder / "patches/broken.patch").write_text(PATCH.replace("return 2", "return two"))
    (recipe.folder / "series").write_text("broken.patch\n")
    with pytest.raises(BuildError, match=r"compiling failed: .*error: .*two") as caught:
        build(recipe)
    log = Path(str(caught.value).rsplit("log: ", 1)[1].rstrip(")"))
    assert "undeclared" in log.read_text()


def test_unknown_base_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=rf"'linux-1\.0' is unknown: .*{DEFAULT_BASE}"):
        find_recipe("linux-1.0", print)


def test_series_of_each_kernel_names_every_patch_once() -> None:
    for config in sorted(IMAGES.glob("kernels/*/series")):
        names = read_series(config.parent)
        assert sorted(names) == sorted(path.name for path in config.parent.glob("patches/*.patch"))


def test_config_is_read_in_both_forms() -> None:
    lines = ["# a comment", "CONFIG_A=y", 'CONFIG_B="x y"', "# CONFIG_C is not set", "", "# CONFIG_D=y"]
    assert parse_config(lines) == {"CONFIG_A": "y", "CONFIG_B": '"x y"', "CONFIG_C": "n"}


def test_absent_counts_as_not_set() -> None:
    wanted = {"CONFIG_A": "y", "CONFIG_B": "n", "CONFIG_C": "n", "CONFIG_D": "16"}
    got = {"CONFIG_A": "y", "CONFIG_C": "y", "CONFIG_D": "8"}
    assert find_lost(wanted, got) == ("# CONFIG_C is not set", "CONFIG_D=16")
