# SPDX-License-Identifier: GPL-2.0-or-later
"""Microcode files by name, good and malformed, for the checks that the kernel makes before any CPU sees a file.

Each file is made for one CPU and its revision. A malformed file differs from a good file only in the way that its name
says; without this difference, the kernel would load the file. The checks are those of generic_load_microcode() in Linux
6.1 and parse_microcode_blobs() in 6.12 (arch/x86/kernel/cpu/microcode/intel.c). No file here triggers two of the
loader's refusals, since they need other CPU models: errata BDF90 (Broadwell-X) and GNR98 (Granite Rapids).
"""

import difflib
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.microcode.update import HEADER_SIZE, make_update, pack_header, read_header, seal, sum_words

#: Size of a table with two signatures: count, checksum and three reserved words; then signature, mask and checksum of
#: each.
TABLE_SIZE: Final = 20 + 2 * 12
#: Size of the data that then fit in the same 2048 bytes.
TABLED_DATA_SIZE: Final = 2048 - HEADER_SIZE - TABLE_SIZE
#: With this many more signatures, a table's size is the same in 32 bits.
COUNT_WRAP: Final = 2**30
#: As a signed number: -28. The signature table then begins at the header's loader version.
OVERLAPPED_DATA_SIZE: Final = 2**32 - 28
#: The header, and the last word of the table's only signature.
OVERLAPPED_SIZE: Final = HEADER_SIZE + 4
#: The smallest revision that would be negative as a signed number.
HIGH_REVISION: Final = 0x8000_0001
#: A file may contain revisions up to two newer than the CPU's revision.
MAX_REVISION: Final = 0xFFFF_FFFF - 2
_WORD_LIMIT: Final = 2**32
_ALL_PLATFORMS: Final = 0xFF
#: An error offers this many similar names if a name does not exist.
_NEAREST: Final = 3


class UcodeCpu(msgspec.Struct, frozen=True, kw_only=True):
    """The CPU that a file is made for.

    :param signature: CPUID.1 EAX
    :param platform: the CPU's bit in the platform mask (``microcode/processor_flags`` in sysfs)
    :param revision: the revision that the CPU runs now
    """

    signature: int
    platform: int
    revision: int

    def check(self) -> None:
        """Check that every file can be made for this CPU.

        :raise UsageError: a field is out of its range
        """
        if not 0 <= self.signature < _WORD_LIMIT:
            raise UsageError(f"signature is {self.signature:#x}: allowed is 0x0 to {_WORD_LIMIT - 1:#x}")
        if self.platform not in (1 << bit for bit in range(8)):
            raise UsageError(f"platform is {self.platform:#x}: allowed is one bit, 0x1 to 0x80")
        if not 1 <= self.revision <= MAX_REVISION:
            raise UsageError(f"revision is {self.revision:#x}: allowed is 0x1 to {MAX_REVISION:#x}")


class UcodeFile(msgspec.Struct, frozen=True):
    """One file: its name, its summary, and a function that makes its bytes, or returns None for no file."""

    name: str
    summary: str
    make: Callable[[UcodeCpu], bytes | None]


def make_good(cpu: UcodeCpu, step: int = 1, **fields: int) -> bytes:
    """Return one update with a correct checksum.

    :param step: distance between the update's revision and the CPU's revision
    :param fields: fields of :class:`lab.microcode.update.Header` that replace those of a good update
    """
    return change(make_update(cpu.signature, cpu.platform, cpu.revision + step), **fields)


def change(update: bytes, **fields: int) -> bytes:
    """Return an update with other fields in its header, and with a correct checksum."""
    header = msgspec.structs.replace(read_header(update), **fields)
    return seal(pack_header(header) + update[HEADER_SIZE:])


def spoil_checksum(update: bytes) -> bytes:
    """Return an update with one changed bit in its data."""
    return update[:-1] + bytes((update[-1] ^ 0x80,))


def make_extended(
    cpu: UcodeCpu,
    *,
    listed: tuple[int, int] | None = None,
    count: int = 2,
    table_size: int = TABLE_SIZE,
    table_sum: int = 0,
    entry_sum: int = 0,
) -> bytes:
    """Return an update for another CPU whose extended signature table lists this CPU second.

    :param listed: the two signatures of the table
    :param count: number of signatures that the table states
    :param table_size: number of bytes of the table that are present
    :param table_sum: sum of all words of the table; 0 is correct
    :param entry_sum: error in the checksum of the last signature
    """
    body = make_good(cpu)[: HEADER_SIZE + TABLED_DATA_SIZE]
    body = change(
        body,
        signature=cpu.signature ^ 0x1,
        data_size=TABLED_DATA_SIZE,
        total_size=HEADER_SIZE + TABLED_DATA_SIZE + table_size,
    )
    header = read_header(body)
    right = header.signature + header.platform_mask + header.checksum
    first, last = listed or (cpu.signature ^ 0x2, cpu.signature)
    entries = struct.pack(
        "<6I",
        *(first, cpu.platform, (right - first - cpu.platform) % _WORD_LIMIT),
        *(last, cpu.platform, (right - last - cpu.platform + entry_sum) % _WORD_LIMIT),
    )
    table = struct.pack("<5I", count, 0, 0, 0, 0) + entries
    table = struct.pack("<5I", count, (table_sum - sum_words(table)) % _WORD_LIMIT, 0, 0, 0) + entries
    return body + table.ljust(table_size, b"\0")[:table_size]


def make_overlapped(cpu: UcodeCpu) -> bytes:
    """Return an update with a data size of -28. All sums are correct if the size is read as a signed number.

    Then the range of the checksum ends 20 bytes into the header. The rest is an extended signature table: the header's
    loader version is the table's count, 1, and the platform mask is the table's checksum. The table's only signature
    begins in the header and ends behind the header.
    """
    header = read_header(make_good(cpu, data_size=OVERLAPPED_DATA_SIZE, total_size=OVERLAPPED_SIZE))
    before = header.header_version + header.revision + header.date_bcd + header.signature
    checksum = -before % _WORD_LIMIT
    listed = (header.signature + header.platform_mask + checksum) % _WORD_LIMIT
    table = header.loader_version + header.platform_mask + header.data_size + header.total_size + listed
    header = msgspec.structs.replace(header, checksum=checksum, meta_size=-table % _WORD_LIMIT)
    return pack_header(header) + struct.pack("<I", listed)


def _foreign(cpu: UcodeCpu) -> bytes:
    return make_good(cpu, signature=cpu.signature ^ 0x1)


def _other_platform(cpu: UcodeCpu) -> bytes:
    return make_good(cpu, platform_mask=_ALL_PLATFORMS ^ cpu.platform)


#: The kernel loads these files, or would load them if it did not have to check minimum revisions.
GOOD: Final = (
    UcodeFile("good", "one newer update, of 2048 bytes", make_good),
    UcodeFile(
        "good-default-sizes",
        "both sizes 0 in the header, which stands for 2000 and 2048",
        lambda cpu: make_good(cpu, data_size=0, total_size=0),
    ),
    UcodeFile(
        "good-any-platform",
        "a platform mask with all bits",
        lambda cpu: make_good(cpu, platform_mask=_ALL_PLATFORMS),
    ),
    UcodeFile("good-extended", "for another signature, but this one is in its extended signature table", make_extended),
    UcodeFile(
        "good-among-others",
        "between updates for another signature and for another platform",
        lambda cpu: _foreign(cpu) + make_good(cpu) + _other_platform(cpu),
    ),
    UcodeFile(
        "two-good-newest-first", "two newer ones, the newest first", lambda cpu: make_good(cpu, 2) + make_good(cpu)
    ),
    UcodeFile(
        "two-good-newest-last", "two newer ones, the newest last", lambda cpu: make_good(cpu) + make_good(cpu, 2)
    ),
    UcodeFile(
        "good-then-older",
        "a newer one, and then one that is older than what the CPU runs",
        lambda cpu: make_good(cpu) + make_good(cpu, -1),
    ),
    UcodeFile(
        "high-revision",
        "revision 0x80000001 or one more than the CPU's: newer, unless revisions are taken as signed",
        lambda cpu: make_update(cpu.signature, cpu.platform, max(HIGH_REVISION, cpu.revision + 1)),
    ),
    UcodeFile(
        "min-revision-stated",
        "to be loaded over the CPU's revision or newer",
        lambda cpu: make_good(cpu, min_req_ver=cpu.revision),
    ),
    UcodeFile(
        "min-revision-too-new",
        "to be loaded over a newer revision than the CPU's only",
        lambda cpu: make_good(cpu, min_req_ver=cpu.revision + 1),
    ),
    UcodeFile(
        "min-revision-stated-and-not",
        "one to be loaded over the CPU's revision, then a newer one that does not say over which",
        lambda cpu: make_good(cpu, min_req_ver=cpu.revision) + make_good(cpu, 2),
    ),
)

#: Nothing is wrong with these files, but they contain nothing to load.
UNFIT: Final = (
    UcodeFile("older-revision", "older than what the CPU runs", lambda cpu: make_good(cpu, -1)),
    UcodeFile("equal-revision", "what the CPU runs already", lambda cpu: make_good(cpu, 0)),
    UcodeFile("wrong-signature", "for another stepping", _foreign),
    UcodeFile("wrong-platform", "for all platforms but the CPU's", _other_platform),
    UcodeFile(
        "no-platform", "platform mask 0, which fits CPUs without any", lambda cpu: make_good(cpu, platform_mask=0)
    ),
    UcodeFile(
        "extended-no-match",
        "neither header nor extended signature table name the CPU",
        lambda cpu: make_extended(cpu, listed=(cpu.signature ^ 0x2, cpu.signature ^ 0x3)),
    ),
    UcodeFile("empty", "no bytes", lambda _: b""),
    UcodeFile("no-file", "no file at all", lambda _: None),
)

#: One update with one defect.
MALFORMED: Final = (
    UcodeFile("truncated-header", "one byte less than a header", lambda cpu: make_good(cpu)[: HEADER_SIZE - 1]),
    UcodeFile(
        "total-too-small",
        "a total size of one byte less than a header",
        lambda cpu: make_good(cpu, total_size=HEADER_SIZE - 1),
    ),
    UcodeFile("truncated-file", "half of an update", lambda cpu: make_good(cpu)[:1024]),
    UcodeFile(
        "data-too-large",
        "data and header are four bytes more than the total size",
        lambda cpu: make_good(cpu, data_size=2004),
    ),
    UcodeFile(
        "huge-data-size",
        "a data size of 0xfffffff0, which is -16 where it is taken as signed",
        lambda cpu: make_good(cpu, data_size=0xFFFF_FFF0),
    ),
    UcodeFile(
        "negative-data-size",
        "a data size of -28, and all sums right where it is taken as signed",
        make_overlapped,
    ),
    UcodeFile("header-version", "header version 0", lambda cpu: make_good(cpu, header_version=0)),
    UcodeFile(
        "ifs-header", "header version 2, that of an In-Field Scan image", lambda cpu: make_good(cpu, header_version=2)
    ),
    UcodeFile("loader-version", "loader version 2", lambda cpu: make_good(cpu, loader_version=2)),
    UcodeFile("bad-checksum", "one bit of the data has changed", lambda cpu: spoil_checksum(make_good(cpu))),
    UcodeFile(
        "extended-too-small",
        "an extended signature table of 16 bytes, less than its own header",
        lambda cpu: make_extended(cpu, table_size=16),
    ),
    UcodeFile(
        "extended-remainder",
        "an extended signature table with four bytes more than its signatures",
        lambda cpu: make_extended(cpu, table_size=TABLE_SIZE + 4),
    ),
    UcodeFile(
        "extended-count",
        "an extended signature table that says three signatures and has two",
        lambda cpu: make_extended(cpu, count=3),
    ),
    UcodeFile(
        "extended-count-wraps",
        "one that says 2**30 + 2, whose size is the same in 32 bits",
        lambda cpu: make_extended(cpu, count=COUNT_WRAP + 2),
    ),
    UcodeFile(
        "extended-table-checksum",
        "an extended signature table whose words do not add up to 0",
        lambda cpu: make_extended(cpu, table_sum=1),
    ),
    UcodeFile(
        "extended-entry-checksum",
        "an extended signature with a wrong checksum, in a table that adds up",
        lambda cpu: make_extended(cpu, entry_sum=1),
    ),
)

#: A good update next to a defect.
MIXED: Final = (
    UcodeFile(
        "good-then-bad-checksum",
        "a good update, and a newer one with a changed bit",
        lambda cpu: make_good(cpu) + spoil_checksum(make_good(cpu, 2)),
    ),
    UcodeFile(
        "bad-checksum-then-good",
        "an update with a changed bit, and a newer good one",
        lambda cpu: spoil_checksum(make_good(cpu)) + make_good(cpu, 2),
    ),
    UcodeFile(
        "good-bad-checksum-good",
        "an update with a changed bit between two good ones",
        lambda cpu: make_good(cpu) + spoil_checksum(make_good(cpu)) + make_good(cpu, 2),
    ),
    UcodeFile(
        "good-then-truncated-header",
        "a good update, and one byte less than a header",
        lambda cpu: make_good(cpu) + make_good(cpu, 2)[: HEADER_SIZE - 1],
    ),
    UcodeFile(
        "good-then-header",
        "a good update, and no more than the header of another",
        lambda cpu: make_good(cpu) + make_good(cpu, 2)[:HEADER_SIZE],
    ),
    UcodeFile(
        "good-then-truncated-file",
        "a good update, and half of another",
        lambda cpu: make_good(cpu) + make_good(cpu, 2)[:1024],
    ),
)

FILES: Final = (*GOOD, *UNFIT, *MALFORMED, *MIXED)


def find_file(name: str) -> UcodeFile:
    """Return the file of a name.

    :raise UsageError: no file has this name; the text offers similar names
    """
    names = {each.name: each for each in FILES}
    if name in names:
        return names[name]
    nearest = difflib.get_close_matches(name, names, n=_NEAREST)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "'lab ucode' lists those that there are"
    raise UsageError(f"microcode file '{name}' is unknown: {hint}")
