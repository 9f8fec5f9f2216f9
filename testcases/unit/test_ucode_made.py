# SPDX-License-Identifier: GPL-2.0-or-later
"""Each file by name is what its name says, and nothing else is wrong with it."""

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.errors import UsageError
from lab.microcode.files import FILES, GOOD, MALFORMED, MAX_REVISION, UNFIT, UcodeCpu, find_file
from lab.microcode.update import HEADER_SIZE, parse_header, read_header, sum_words

CPU = UcodeCpu(signature=0x50654, platform=0x1, revision=0x10)
CPUS = st.builds(
    UcodeCpu,
    signature=st.integers(0, 2**32 - 1),
    platform=st.sampled_from([1 << bit for bit in range(8)]),
    revision=st.integers(1, MAX_REVISION),
)
UPDATE_SIZE = 2048

#: Of files that have the data of ``good``: what differs in the header, beside the checksum that follows from it.
HEADERS = {
    "good": {},
    "good-default-sizes": {"data_size": 0, "total_size": 0},
    "good-any-platform": {"platform_mask": 0xFF},
    "min-revision-stated": {"min_req_ver": 0x10},
    "min-revision-too-new": {"min_req_ver": 0x11},
    "wrong-signature": {"signature": 0x50655},
    "wrong-platform": {"platform_mask": 0xFE},
    "no-platform": {"platform_mask": 0},
    "total-too-small": {"total_size": 47},
    "data-too-large": {"data_size": 2004},
    "huge-data-size": {"data_size": 0xFFFFFFF0},
    "header-version": {"header_version": 0},
    "ifs-header": {"header_version": 2},
    "loader-version": {"loader_version": 2},
}
#: Of files with an extended signature table: in what it differs from that of ``good-extended``.
TABLES: dict[str, dict[str, Any]] = {
    "good-extended": {},
    "extended-no-match": {"listed": (0x50656, 0x50657)},
    "extended-too-small": {"size": 16},
    "extended-remainder": {"size": 48},
    "extended-count": {"count": 3},
    "extended-count-wraps": {"count": 2**30 + 2},
    "extended-table-checksum": {"table_sum": 1},
    "extended-entry-checksum": {"entry_sums": (0, 1)},
}
#: Of files with several updates: their revisions, and how many bytes of each there are.
MIXTURES = {
    "good-among-others": ((0x11, 2048), (0x11, 2048), (0x11, 2048)),
    "two-good-newest-first": ((0x12, 2048), (0x11, 2048)),
    "two-good-newest-last": ((0x11, 2048), (0x12, 2048)),
    "good-then-older": ((0x11, 2048), (0x0F, 2048)),
    "min-revision-stated-and-not": ((0x11, 2048), (0x12, 2048)),
    "good-then-bad-checksum": ((0x11, 2048), (0x12, 2048)),
    "bad-checksum-then-good": ((0x11, 2048), (0x12, 2048)),
    "good-bad-checksum-good": ((0x11, 2048), (0x11, 2048), (0x12, 2048)),
    "good-then-truncated-header": ((0x11, 2048), (0x12, 47)),
    "good-then-header": ((0x11, 2048), (0x12, 48)),
    "good-then-truncated-file": ((0x11, 2048), (0x12, 1024)),
}
BAD_SUMS = {"good-then-bad-checksum": [1], "bad-checksum-then-good": [0], "good-bad-checksum-good": [1]}
OTHERS = {
    *("high-revision", "older-revision", "equal-revision", "empty", "no-file"),
    *("truncated-header", "truncated-file", "bad-checksum", "negative-data-size"),
}


def make(name: str, cpu: UcodeCpu = CPU) -> bytes:
    data = find_file(name).make(cpu)
    assert data is not None
    return data


def list_fields(data: bytes) -> dict[str, int]:
    return {key: value for key, value in msgspec.structs.asdict(read_header(data)).items() if key != "checksum"}


def read_table(data: bytes) -> dict[str, Any]:
    header = read_header(data)
    body, table = data[: HEADER_SIZE + header.data_size], data[HEADER_SIZE + header.data_size :]
    assert sum_words(body) == 0
    assert header.total_size == len(data)
    right = header.signature + header.platform_mask + header.checksum
    found: dict[str, Any] = {"size": len(table), "count": struct.unpack_from("<I", table)[0]}
    if len(table) >= 44:
        entries = list(struct.iter_unpack("<3I", table[20:44]))
        found |= {
            "table_sum": sum_words(table),
            "listed": tuple(entry[0] for entry in entries),
            "entry_sums": tuple((sum(entry) - right) % 2**32 for entry in entries),
        }
    return found


def test_every_file_is_looked_at() -> None:
    names = [each.name for each in FILES]
    assert len(set(names)) == len(names)
    assert set(names) == {*HEADERS, *TABLES, *MIXTURES, *OTHERS}


@pytest.mark.parametrize("name", HEADERS)
def test_one_field_of_the_header_differs(name: str) -> None:
    good, made = make("good"), make(name)
    assert list_fields(made) == list_fields(good) | HEADERS[name]
    assert made[HEADER_SIZE:] == good[HEADER_SIZE:]
    assert sum_words(made) == 0


@pytest.mark.parametrize("name", TABLES)
def test_one_thing_of_the_signature_table_differs(name: str) -> None:
    good = {"size": 44, "count": 2, "table_sum": 0, "listed": (0x50656, 0x50654), "entry_sums": (0, 0)}
    assert read_table(make("good-extended")) == good
    table = read_table(make(name))
    assert table == {key: value for key, value in (good | TABLES[name]).items() if key in table}
    assert read_header(make(name)).signature == 0x50655


@pytest.mark.parametrize("name", MIXTURES)
def test_several_updates_follow_each_other(name: str) -> None:
    data, parts = make(name), []
    for revision, size in MIXTURES[name]:
        part, data = data[:size], data[size:]
        parts.append(part)
        assert len(part) == size
        assert struct.unpack_from("<I", part, 4) == (revision,)
    assert data == b""
    whole = [sum_words(part) for part in parts if len(part) == UPDATE_SIZE]
    assert [at for at, total in enumerate(whole) if total] == BAD_SUMS.get(name, [])


def test_what_surrounds_the_good_one_is_for_others() -> None:
    parts = [make("good-among-others")[at : at + UPDATE_SIZE] for at in (0, 2048, 4096)]
    assert parts == [make("wrong-signature"), make("good"), make("wrong-platform")]


def test_least_revisions_of_two() -> None:
    data = make("min-revision-stated-and-not")
    assert [read_header(data[at:]).min_req_ver for at in (0, UPDATE_SIZE)] == [0x10, 0]


def test_parts_and_bits_of_a_good_one() -> None:
    good = make("good")
    assert make("truncated-header") == good[:47]
    assert make("truncated-file") == good[:1024]
    flipped = int.from_bytes(good, "little") ^ int.from_bytes(make("bad-checksum"), "little")
    assert flipped.bit_count() == 1
    assert flipped.bit_length() > 8 * HEADER_SIZE
    assert make("empty") == b""
    assert find_file("no-file").make(CPU) is None


@given(cpu=CPUS)
def test_a_negative_data_size_comes_out_right_where_it_is_signed(cpu: UcodeCpu) -> None:
    made = make("negative-data-size", cpu)
    header = read_header(made)
    assert (header.header_version, header.loader_version, header.revision) == (1, 1, cpu.revision + 1)
    assert header.signature == cpu.signature
    assert header.platform_mask == cpu.platform
    assert header.total_size == len(made)
    signed = header.data_size - 2**32
    assert signed == -28
    body, table = made[: HEADER_SIZE + signed], made[HEADER_SIZE + signed :]
    assert sum_words(body) == sum_words(table) == 0
    assert struct.unpack_from("<I", table) == ((len(table) - 20) // 12,)
    right = (header.signature + header.platform_mask + header.checksum) % 2**32
    assert {sum(entry) % 2**32 for entry in struct.iter_unpack("<3I", table[20:])} == {right}


@pytest.mark.parametrize(
    ("name", "running", "revision"),
    [
        ("older-revision", 1, 0),
        ("equal-revision", 1, 1),
        ("high-revision", 1, 0x80000001),
        ("high-revision", 0x80000000, 0x80000001),
        ("high-revision", 0x80000001, 0x80000002),
    ],
)
def test_revisions_follow_the_cpus(name: str, running: int, revision: int) -> None:
    made = make(name, msgspec.structs.replace(CPU, revision=running))
    assert parse_header(made).revision == revision


@given(cpu=CPUS)
def test_any_cpu_can_be_made_for(cpu: UcodeCpu) -> None:
    cpu.check()
    for file in FILES:
        file.make(cpu)
    for file in GOOD:
        data = file.make(cpu)
        assert data is not None
        assert any(read_header(data[at:]).revision > cpu.revision for at in range(0, len(data), UPDATE_SIZE))


@given(cpu=CPUS, file=st.sampled_from(MALFORMED))
def test_a_malformed_one_is_refused(cpu: UcodeCpu, file: Any) -> None:
    with pytest.raises(UsageError):
        parse_header(file.make(cpu))


@pytest.mark.parametrize(
    "name", [each.name for each in (*GOOD, *UNFIT) if each.name in {*HEADERS, *MIXTURES} - {"good-default-sizes"}]
)
def test_a_well_formed_one_is_not_refused(name: str) -> None:
    parse_header(make(name))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("signature", -1, "signature is -0x1: allowed is 0x0 to 0xffffffff"),
        ("signature", 2**32, "signature is 0x100000000: allowed"),
        ("platform", 0, "platform is 0x0: allowed is one bit, 0x1 to 0x80"),
        ("platform", 3, "platform is 0x3: allowed is one bit"),
        ("platform", 0x100, "platform is 0x100: allowed is one bit"),
        ("revision", 0, "revision is 0x0: allowed is 0x1 to 0xfffffffd"),
        ("revision", 0xFFFFFFFE, "revision is 0xfffffffe: allowed is 0x1 to 0xfffffffd"),
    ],
)
def test_a_cpu_out_of_range_is_refused(field: str, value: int, allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        msgspec.structs.replace(CPU, **{field: value}).check()
    assert str(caught.value).startswith(allowed)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'bad-chekcsum' is unknown: the nearest are bad-checksum, "):
        find_file("bad-chekcsum")
    with pytest.raises(UsageError, match="'zzz' is unknown: 'lab ucode' lists those that there are"):
        find_file("zzz")
