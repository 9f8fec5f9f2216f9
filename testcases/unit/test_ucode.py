# SPDX-License-Identifier: GPL-2.0-or-later
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.errors import UsageError
from lab.microcode.update import firmware_name, make_update, parse_header, sum_words

WORDS = st.integers(0, 2**32 - 1)


@given(signature=WORDS, mask=WORDS, revision=WORDS, blocks=st.integers(1, 16))
def test_any_update_passes_the_kernels_checks(signature: int, mask: int, revision: int, blocks: int) -> None:
    data_size = 1024 * blocks - 48
    update = make_update(signature, mask, revision, data_size)
    header = parse_header(update)
    assert len(update) == header.total_size == 1024 * blocks
    assert (header.signature, header.platform_mask, header.revision) == (signature, mask, revision)
    assert header.data_size == data_size
    assert sum_words(update) == 0


def test_fields_are_where_the_kernel_reads_them() -> None:
    update = make_update(0x50654, 0x1, 0x2)
    assert len(update) == 2048
    words = struct.unpack("<12I", update[:48])
    assert words[:4] == (1, 2, 0x08152022, 0x50654)
    assert words[5:] == (1, 1, 2000, 2048, 0, 0, 0)


def test_revisions_differ_in_their_data() -> None:
    assert make_update(0x50654, 1, 2)[48:] != make_update(0x50654, 1, 3)[48:]


@given(at=st.integers(0, 2047), flip=st.integers(1, 255))
def test_any_damaged_byte_is_found(at: int, flip: int) -> None:
    update = bytearray(make_update(0x50654, 1, 2))
    update[at] ^= flip
    with pytest.raises(UsageError):
        parse_header(bytes(update))


@given(st.binary(max_size=128))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        parse_header(data)


@pytest.mark.parametrize("data_size", [-48, 0, 1, 2001, 2**32])
def test_odd_sizes_are_refused(data_size: int) -> None:
    with pytest.raises(UsageError, match="data_size"):
        make_update(0x50654, 1, 2, data_size)


def test_revision_out_of_range_is_named() -> None:
    with pytest.raises(UsageError, match="revision"):
        make_update(0x50654, 1, 2**32)


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        (0x50654, "06-55-04"),
        (0x506E3, "06-5e-03"),
        (0x306C3, "06-3c-03"),
        (0x306A9, "06-3a-09"),
        (0x106A3, "06-1a-03"),
        (0x00F43, "0f-04-03"),
        (0x00543, "05-04-03"),
    ],
)
def test_firmware_name_is_the_kernels(signature: int, name: str) -> None:
    assert firmware_name(signature) == name
