# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel patches by the kernel's own measure, and by git's and quilt's."""

import subprocess
from pathlib import Path

import pytest

from lab.build.kernel import UNPATCHED, Recipe, find_recipe, read_series
from lab.build.mutant_list import find_patch, read_mutants
from lab.expected.mutant import Mutant, Subject
from lab.mechanisms.base import BASES

pytestmark = pytest.mark.e2e

RECIPES = {base.name: find_recipe(base.name, print) for base in BASES}
PATCHES = [(base, name) for base, recipe in RECIPES.items() for name in read_series(recipe.folder)]
FIXES = [(base, name) for base, recipe in RECIPES.items() for name in read_series(recipe.folder / "fixes")]
MUTANTS = [mutant for mutant in read_mutants() if mutant.subject is Subject.KERNEL]
#: What checkpatch reads its lists from; the loader is what the patches change.
NEEDED = ("scripts/checkpatch.pl", "scripts/spelling.txt", "scripts/const_structs.checkpatch", "arch/x86")


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {base: unpack(recipe, tmp_path_factory.mktemp(base)) for base, recipe in RECIPES.items()}


def unpack(recipe: Recipe, folder: Path) -> Path:
    command: list[str | Path] = ["tar", "-xJf", recipe.source, "-C", folder, "--strip-components=1", "--wildcards"]
    subprocess.run([*command, *(f"*/{name}" for name in NEEDED)], check=True, timeout=300)
    return folder


@pytest.mark.parametrize(("base", "name"), PATCHES)
def test_a_patch_passes_checkpatch(trees: dict[str, Path], base: str, name: str) -> None:
    check_patch(RECIPES[base].folder / "patches" / name, trees[base])


@pytest.mark.parametrize(("base", "name"), FIXES)
def test_a_fix_passes_checkpatch(trees: dict[str, Path], base: str, name: str) -> None:
    # The commit that a fix names is in no source package.
    check_patch(RECIPES[base].folder / "fixes" / name, trees[base], "UNKNOWN_COMMIT_ID")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_passes_checkpatch(trees: dict[str, Path], mutant: Mutant) -> None:
    # Its trailers are the lab's own.
    check_patch(find_patch(mutant), trees[UNPATCHED.get(mutant.base, mutant.base)], "BAD_SIGN_OFF")


def check_patch(path: Path, tree: Path, *ignored: str) -> None:
    # FILE_PATH_CHANGES asks for MAINTAINERS, which nobody maintains for a patch that stays here.
    types = ",".join(("FILE_PATH_CHANGES", *ignored))
    command = ["perl", "scripts/checkpatch.pl", "--no-tree", "--ignore", types, "-"]
    with open(path) as patch:
        done = subprocess.run(command, cwd=tree, stdin=patch, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "total: 0 errors, 0 warnings" in done.stdout


@pytest.mark.parametrize("base", RECIPES)
def test_the_series_applies_by_git_and_names_every_patch(trees: dict[str, Path], base: str) -> None:
    folder = RECIPES[base].folder
    series = read_series(folder)
    assert sorted(series) == sorted(path.name for path in (folder / "patches").glob("*.patch"))
    for name in series:
        command: list[str | Path] = ["git", "apply", "--whitespace=error-all", folder / "patches" / name]
        done = subprocess.run(command, cwd=trees[base], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize(("base", "name"), PATCHES)
def test_a_patch_says_why(base: str, name: str) -> None:
    text = (RECIPES[base].folder / "patches" / name).read_text()
    message = text.split("\n---\n")[0]
    assert "Subject: [PATCH] x86/microcode" in message
    assert "Signed-off-by: " in message
    assert len(message.split("\n\n")) >= 4
