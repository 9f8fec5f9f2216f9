# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's version, from the banner in its vmlinux."""

import re
from typing import Final

from lab.errors import UsageError
from lab.kernelimage.vmlinux import Kernel

#: The final link of a kernel defines it (init/version-timestamp.c). Since 6.1 a vmlinux also has a weak banner of the
#: same form without number and date (init/version.c), so the bytes alone do not tell which of both is the kernel's.
BANNER: Final = "linux_banner"

#: ``Linux version 6.1.2 (who@where) (compiler) #1 SMP ...``. A setup header leaves out the compiler.
_FORM: Final = re.compile(rb"Linux version ([!-~]+ \([!-~]*\)) \([ -~]*\) (#[ -~]*)\n")


def read_version(kernel: Kernel) -> str:
    """Return the version in the form of a bzImage's setup header; empty without a banner of the known form."""
    try:
        found = kernel.find_object(BANNER)
    except UsageError:
        return ""
    for section in kernel.sections.values():
        at = found.start - section.start
        if 0 <= at < len(section.data):
            match = _FORM.match(section.data[at : at + found.size])
            return f"{match[1].decode()} {match[2].decode()}" if match else ""
    return ""
