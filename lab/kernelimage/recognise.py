# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of the known kernels a vmlinux is, by the functions in it."""

from typing import Final

from lab.errors import UsageError
from lab.kernelimage.vmlinux import Kernel
from lab.mechanisms.base import BASES, STOCK_BASES, Base, Loader

#: Functions whose address is taken, so that no compiler inlines them: what stop_machine() runs on each CPU.
_LOADERS: Final = {Loader.SINCE_6_7: "load_cpus_stopped", Loader.BEFORE_6_7: "__reload_late"}
#: What only the patches of images/kernels bring.
_OURS: Final = {
    "linux-6.1": ("microcode_engine_load", "mclab_load_end", "mclab_record_release"),
    "linux-6.12": ("microcode_engine_load",),
}


def recognise(kernel: Kernel, release: str) -> Base:
    """Return what kind of kernel it is: one with our patches, or any other with late loading.

    An engine on a version that the lab does not build is left switched off, and the kernel taken for any other.

    :param release: what ``uname -r`` prints on it
    :raise UsageError: it has no late loading
    """
    loader = next((each for each, function in _LOADERS.items() if kernel.find_if(function) is not None), None)
    if loader is None:
        raise UsageError(
            f"the kernel has no late loading: neither {' nor '.join(sorted(_LOADERS.values()))} is in its vmlinux;"
            " build it with CONFIG_MICROCODE_LATE_LOADING=y"
        )
    for base in BASES:
        right = base.loader is loader and release.split(".")[:2] == base.version.split(".")
        if right and all(kernel.find_if(function) is not None for function in _OURS[base.name]):
            return base
    return next(base for base in STOCK_BASES if base.loader is loader)
