# SPDX-License-Identifier: GPL-2.0-or-later
"""Small kernels from assembly: real ELF files with sections and symbols as the linker makes them."""

import subprocess
from pathlib import Path

from lab.kernelimage.vmlinux import Kernel, read_kernel

#: Where the code of a 64-bit kernel begins; below it, absolute addresses of its data are sign-extended as there.
TEXT = 0xFFFFFFFF81000000

_HEAD = """\
.macro FUNC name
.globl \\name
.type \\name, @function
\\name:
.endm
.macro END name
.size \\name, . - \\name
.endm
.text
"""


def assemble(folder: Path, source: str) -> Kernel:
    """Assemble and link a source, in which FUNC and END enclose a function, and read it as a kernel."""
    code, linked = folder / "kernel.S", folder / "vmlinux"
    code.write_text(_HEAD + source)
    options = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-e0"]
    addresses = [f"-Wl,-Ttext={TEXT:#x}", "-Wl,-z,max-page-size=4096"]
    subprocess.run(["gcc", *options, *addresses, "-o", linked, code], check=True, timeout=60)
    return read_kernel(linked)


def make_function(name: str, body: str) -> str:
    """Return one function's source; a line each, or with semicolons."""
    return f"FUNC {name}\n{body}\nEND {name}\n"
