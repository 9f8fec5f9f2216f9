# SPDX-License-Identifier: GPL-2.0-or-later
"""Defects made in real guests get their titles: the logs that the unit tests read do not lie."""

import pytest
from oopses import DEFECTS, Defect, provoke

from lab.build.images import ImageSet
from lab.judge.titles import find_title
from lab.kernelimage.vmlinux import Kernel

pytestmark = pytest.mark.e2e

#: What a busy host changes: which CPU's handler was slow, and whether the kernel or the lab's own limit was first.
TITLES = {
    "null-dereference": "BUG: kernel NULL pointer dereference in version_proc_show",
    "panic-on-oops": "BUG: kernel NULL pointer dereference in version_proc_show",
    "soft-lockup": "soft lockup in version_proc_show",
    "hung-task": "INFO: task hung in seq_read_iter",
    "update-timeout": "Timeout while waiting for CPUs rendezvous",
}


@pytest.mark.parametrize("name", TITLES)
def test_a_defect_gets_its_title(images: ImageSet, kernel: Kernel, name: str) -> None:
    defect: Defect = next(defect for defect in DEFECTS if defect.name == name)
    assert find_title(provoke(images, kernel, defect)) == TITLES[name]
