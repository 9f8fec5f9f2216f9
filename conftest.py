# SPDX-License-Identifier: GPL-2.0-or-later
"""What this project's own cases need beyond the fixtures and options that the lab gives to all (lab.pytest_plugin).

Their guests also run kernels without our patches, which are built as a user would bring them.
"""

import functools
import os
from collections.abc import Callable

import hypothesis
import pytest

from lab.build.images import ImageSet, build_images
from lab.build.kernel import DEFAULT_BASE, UNPATCHED, build_kernel
from lab.build.qemu import find_qemu
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.pytest_plugin.tried import Seeds, Storm, Trial, Tried
from lab.trial.given import GivenKernel, build_around, take_kernel

__all__ = ["Seeds", "Storm", "Trial", "Tried"]

#: The same name as the installed lab's entry point has: pytest loads a plugin of a name once.
pytest_plugins = ["lab.pytest_plugin.plugin"]

#: A crowded host is slower, not wrong: no case of ours asserts how long an example takes.
hypothesis.settings.register_profile("lab", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("lab")


def pytest_xdist_auto_num_workers() -> int:
    """One worker per host CPU; what guests they may run beside each other is decided by vCPUs, at run time."""
    return os.cpu_count() or 1


@functools.cache
def find_images(base: str) -> ImageSet:
    """Build a kernel's images for the QEMU of this run, or find them in the cache."""
    qemu = find_qemu()
    return build_around(find_unpatched(base), print, qemu) if base in UNPATCHED else build_images(print, qemu, base)


@functools.cache
def find_unpatched(base: str) -> GivenKernel:
    """Build a kernel without our patches in the kept tree of one with them, and take it as if a user had brought it."""
    built = build_kernel(print, base)
    return take_kernel(built.image, built.vmlinux)


@functools.cache
def find_kernel(base: str) -> Kernel:
    """Read a kernel's functions and code."""
    return read_kernel(find_images(base).vmlinux)


@pytest.fixture(scope="session")
def images_of() -> Callable[[str], ImageSet]:
    """Give the images of a kernel by its base, also of those without our patches."""
    return find_images


@pytest.fixture(scope="session")
def kernel_of() -> Callable[[str], Kernel]:
    """Give the functions and code of a kernel by its base."""
    return find_kernel


@pytest.fixture(scope="session")
def images() -> ImageSet:
    """All that a guest is booted from, built or found in the cache."""
    return find_images(DEFAULT_BASE)


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The default kernel's functions and code."""
    return find_kernel(DEFAULT_BASE)
