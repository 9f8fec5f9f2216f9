# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel patches by the kernel's own measure, and by git's and quilt's."""

import subprocess
from pathlib import Path

import pytest

from lab.build.kernel import DEFAULT_BASE, find_recipe, read_series

pytestmark = pytest.mark.e2e

RECIPE = find_recipe(DEFAULT_BASE)
PATCHES = read_series(RECIPE.folder)
#: What checkpatch reads its lists from; the loader is what the patches change.
NEEDED = ("scripts/checkpatch.pl", "scripts/spelling.txt", "scripts/const_structs.checkpatch", "arch/x86")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linux")
    names = [f"*/{name}" for name in NEEDED]
    unpack = ["tar", "-xJf", str(RECIPE.source), "-C", str(folder), "--strip-components=1", "--wildcards", *names]
    subprocess.run(unpack, check=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_passes_checkpatch(tree: Path, name: str) -> None:
    # FILE_PATH_CHANGES asks for MAINTAINERS, which nobody maintains for a patch that stays here.
    command = ["perl", "scripts/checkpatch.pl", "--no-tree", "--ignore", "FILE_PATH_CHANGES", "-"]
    with open(RECIPE.folder / "patches" / name) as patch:
        done = subprocess.run(command, cwd=tree, stdin=patch, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "total: 0 errors, 0 warnings" in done.stdout


def test_the_series_applies_by_git_and_names_every_patch(tree: Path) -> None:
    assert sorted(PATCHES) == sorted(path.name for path in (RECIPE.folder / "patches").glob("*.patch"))
    for name in PATCHES:
        command = ["git", "apply", "--whitespace=error-all", str(RECIPE.folder / "patches" / name)]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_says_why(name: str) -> None:
    text = (RECIPE.folder / "patches" / name).read_text()
    message = text.split("\n---\n")[0]
    assert "Subject: [PATCH] x86/microcode" in message
    assert "Signed-off-by: " in message
    assert len(message.split("\n\n")) >= 4
