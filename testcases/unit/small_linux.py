# SPDX-License-Identifier: GPL-2.0-or-later
"""A source tree that answers to what the recipes ask of Linux's, in milliseconds."""

from pathlib import Path

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
