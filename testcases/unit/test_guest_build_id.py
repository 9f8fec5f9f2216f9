# SPDX-License-Identifier: GPL-2.0-or-later
"""The build id that a running kernel shows in /sys/kernel/notes."""

import struct

import pytest

from lab.kernelimage.elf import parse_build_id

BUILD_ID = bytes(range(20))


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    def fill(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % 4)

    return struct.pack("<III", len(name), len(desc), kind) + fill(name) + fill(desc)


GNU = note(b"GNU\0", 3, BUILD_ID)


@pytest.mark.parametrize(
    "before", [b"", note(b"Xen\0", 6, b"linux\0"), note(b"Linux\0", 3, b"salt") + note(b"", 1, b"")]
)
def test_the_gnu_note_is_found_among_others(before: bytes) -> None:
    assert parse_build_id(before + GNU + note(b"Linux\0", 0x101, b"\0\0\0\0")) == BUILD_ID.hex()


@pytest.mark.parametrize(
    "notes",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"cat: /sys/kernel/notes: No such file or directory\n", id="no-such-file"),
        pytest.param(note(b"Xen\0", 3, BUILD_ID), id="of-another-name"),
        pytest.param(note(b"GNU\0", 1, BUILD_ID), id="of-another-type"),
        pytest.param(struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 3), id="sizes-beyond-the-end"),
    ],
)
def test_what_holds_none_gives_none(notes: bytes) -> None:
    assert parse_build_id(notes) == ""
