# SPDX-License-Identifier: GPL-2.0-or-later
"""Recognise a known kernel by the functions in its vmlinux."""

from typing import Final

from lab.errors import UsageError
from lab.kernelimage.vmlinux import Kernel
from lab.mechanisms.base import BASES, STOCK_BASES, Base, Loader

#: Functions that stop_machine() runs on each CPU. Their address is taken, so no compiler inlines them.
_LOADERS: Final = {Loader.SINCE_6_7: "load_cpus_stopped", Loader.BEFORE_6_7: "__reload_late"}
#: Functions that only the patches of images/kernels add.
_OURS: Final = {
    "linux-6.1": ("microcode_engine_load", "mclab_load_end", "mclab_record_release"),
    "linux-6.12": ("microcode_engine_load",),
}


def recognise(kernel: Kernel, release: str) -> Base:
    """Return the kind of a kernel: a kernel with the lab's patches, or any other kernel with late loading.

    If the lab does not build this version, the lab leaves the patched engine switched off and treats the kernel as any
    other kernel.

    :param release: output of ``uname -r`` on this kernel
    :raise UsageError: the kernel has no late loading
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
