# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sitting of a campaign ran on, for whoever reads its page on another machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from lab.errors import EvidenceError
from lab.model.evidence import Images

if TYPE_CHECKING:
    from lab.build.images import ImageSet

_BYTES_PER_GIB: Final = 2**30


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a sitting ran on.

    :param images: of each kernel that was booted
    :param host: facts about the host that led it, by name
    """

    images: tuple[Images, ...] = ()
    host: dict[str, str] = {}


def gather_facts(images: "Mapping[str, ImageSet]") -> Facts:
    """Return what a sitting runs on that begins now, on this host.

    :param images: by base
    """
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _BYTES_PER_GIB
    return Facts(
        images=tuple(each.describe() for each in images.values()),
        host={
            "cores": str(os.cpu_count() or 0),
            "memory": f"{memory_gib:.1f} GiB",
            "kernel": os.uname().release,
            "vCPU budget": str(os.cpu_count() or 0),
        },
    )


def read_facts(text: str, path: Path) -> Facts:
    """Return what a store says of a sitting, nothing where an older lab led it.

    :param path: of the store, for errors
    :raise EvidenceError: the text is none of this lab's
    """
    try:
        return msgspec.json.decode(text, type=Facts) if text else Facts()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EvidenceError(f"'{path}' says of a sitting what is no fact of this lab: {error}") from error
