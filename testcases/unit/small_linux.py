# SPDX-License-Identifier: GPL-2.0-or-later
"""A source tree that answers to what the recipes ask of Linux's, in milliseconds."""

import os
import subprocess
from pathlib import Path

import pytest

from lab.build import kernel, own_kernel

VERSION = "# SPDX-License-Identifier: GPL-2.0\nVERSION = 6\nPATCHLEVEL = 1\n"
MAKEFILE = """\
tinyconfig:
\techo '# CONFIG_SMP is not set' > $(O)/.config
olddefconfig:
\tgrep -v CONFIG_DROPPED $(O)/.config > $(O)/new || true
\tmv $(O)/new $(O)/.config
kernelrelease:
\t@echo 6.1.0
vmlinux: bzImage
bzImage: $(O)/vmlinux
$(O)/vmlinux: code.c
\t$(CC) -c code.c -o $(O)/vmlinux
\techo compiled >> $(O)/compiled
\tmkdir -p $(O)/arch/x86/boot
\tcp $(O)/vmlinux $(O)/arch/x86/boot/bzImage
\techo "$(KBUILD_BUILD_TIMESTAMP)" > $(O)/System.map
"""
MERGE = """\
#!/bin/sh
into=$4
shift 4
cat "$@" >> "$into"
"""
CODE = "int one(void)\n{\n\treturn 1;\n}\n"
PATCH = """\
--- a/code.c
+++ b/code.c
@@ -1,4 +1,4 @@
 int one(void)
 {
-\treturn 1;
+\treturn 2;
 }
"""


def write_tree(tree: Path) -> None:
    """Write the tree."""
    (tree / "scripts/kconfig").mkdir(parents=True)
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "code.c").write_text(CODE)
    (tree / "gone.c").write_text("int gone;\n")
    merge = tree / "scripts/kconfig/merge_config.sh"
    merge.write_text(MERGE)
    merge.chmod(0o755)


def git(tree: Path, *words: str) -> str:
    """Run git in a tree, as nobody in particular, and return what it says."""
    who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.invalid"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_GLOBAL": os.devnull}
    command: list[str | Path] = ["git", "-C", tree, *who, *words]
    return os.fsdecode(subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60).stdout)


def make_git_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git tree with one commit, and have the lab's cache and settings below a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fragment = tmp_path / "any-config"
    fragment.write_text("CONFIG_SMP=y\n# CONFIG_MODULES is not set\n")
    monkeypatch.setattr(own_kernel, "ANY_CONFIG", fragment)
    monkeypatch.setattr(kernel, "ANY_CONFIG", fragment)
    monkeypatch.setattr(own_kernel, "DISTRIBUTION_CONFIG", fragment)
    monkeypatch.setattr(kernel, "OPTIONAL", tmp_path / "optional")
    (tmp_path / "optional").write_text("")
    tree = tmp_path / "linux"
    write_tree(tree)
    (tree / "Makefile").write_text(VERSION + (tree / "Makefile").read_text())
    (tree / "Kconfig").write_text('mainmenu "Small"\n')
    (tree / ".gitignore").write_text("*.o\n.config\n/objects/\n")
    git(tree.parent, "init", "--quiet", str(tree))
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "base")
    return tree
