# SPDX-License-Identifier: GPL-2.0-or-later
"""What each kernel says of each microcode file, in its own words, and whether it loads anything.

The two kernels differ throughout. 6.1 answers success to any file and taints itself by the write alone; its firmware
loader names each file that was read. 6.12 answers EBADFD where any part of a file is malformed and ENOENT where nothing
in it is to be loaded, and only a load over no stated least revision taints it. Rows that differ in more say in what.
"""

import dataclasses
import errno
from collections.abc import Callable

import pytest

from conftest import find_kernel
from lab.host.deadline import Deadline
from lab.mechanisms.table import find_mechanism
from lab.microcode.files import FILES, GOOD, HIGH_REVISION, UcodeCpu, find_file
from lab.model.boot import Boot
from lab.model.topology import Topology
from lab.trial.file_check import FileTried, read_cpu, try_file
from lab.trial.pool import WarmGuest
from lab.trial.session import Session

pytestmark = pytest.mark.e2e

SHAPE = Topology(1, 2, 2)
OLD, NEW = "linux-6.1", "linux-6.12"
MECHANISMS = {OLD: "nmi-self", NEW: "upstream"}
#: What checks one update, and returns 0 where nothing is wrong with it.
CHECKS = {OLD: "microcode_sanity_check", NEW: "intel_microcode_sanity_check"}
#: xor %eax,%eax; ret; nop
RETURN_0 = int.from_bytes(bytes.fromhex("31c0c390"), "little")
#: TAINT_CPU_OUT_OF_SPEC, 'S'; what a WARN, an oops or anything else adds would show beside it.
OUT_OF_SPEC = 1 << 2

READ = "platform microcode: firmware: direct-loading firmware intel-ucode/06-55-04"
NO_FILE = f"platform microcode: firmware: failed to load intel-ucode/06-55-04 (-{errno.ENOENT})"
EMPTY = f"platform microcode: firmware: failed to load intel-ucode/06-55-04 (-{errno.EINVAL})"
UNSTATED = "microcode: Unsafe microcode update: Microcode header does not specify a required min version"
TOO_OLD = (
    "microcode: Unsafe microcode update: Current revision {before:#x} too old",
    "microcode: Current should be at {next:#x} or higher. Use early loading instead",
)
BAD_HEADER = "microcode: error! Truncated or inaccessible header in microcode data file"
BAD_TOTAL = "microcode: error! Bad data in microcode data file (totalsize too small)"
BAD_LENGTH = "microcode: error! Bad data in microcode data file (truncated file?)"
BAD_SIZE = "microcode: Error: bad microcode data file size."
BAD_FORMAT = "microcode: Error: invalid/unknown microcode update format."
BAD_TABLE = "microcode: Error: truncated extended signature table."
BAD_COUNT = "microcode: Error: extended signature table size mismatch."
BAD_TABLE_SUM = "microcode: Bad extended signature table checksum, aborting."
BAD_ENTRY_SUM = "microcode: Bad extended signature checksum, aborting."
BAD_SUM = "microcode: Bad microcode data checksum, aborting."


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What one kernel does with one file; ``step`` is how much newer all CPUs are afterwards, 0 when nothing loads."""

    load_errno: int
    said: tuple[str, ...]
    tainted: int
    step: int = 0

    def over(self, cpu: UcodeCpu, after: int | None = None) -> FileTried:
        """Return what is to be seen in a guest at some revision."""
        after = cpu.revision + self.step if after is None else after
        values = {"before": cpu.revision, "next": cpu.revision + 1, "after": after}
        return FileTried(
            load_errno=self.load_errno,
            said=tuple(line.format_map(values) for line in self.said),
            tainted=self.tainted,
            revisions_before=(cpu.revision,) * SHAPE.vcpus,
            revisions_after=(after,) * SHAPE.vcpus,
            windows=tuple(range(SHAPE.total_cores)) if self.step else (),
            strays=0,
        )


def old_leaves(*said: str, read: str = READ) -> Answer:
    return Answer(0, (read, *said), OUT_OF_SPEC)


def old_loads(*said: str, step: int = 1) -> Answer:
    told = (
        "microcode: Attempting late microcode loading - it is dangerous and taints the kernel.",
        "microcode: You should switch to early loading, if possible.",
        "microcode: updated to revision {after:#x}, date = 2022-08-15",
        "microcode: Reload succeeded, microcode revision: {before:#x} -> {after:#x}",
    )
    return Answer(0, (READ, *said, *told), OUT_OF_SPEC, step)


def new_refuses(*said: str) -> Answer:
    return Answer(errno.EBADFD, said, 0)


def new_finds_none(*said: str) -> Answer:
    return Answer(errno.ENOENT, said, 0)


def new_loads(*said: str, step: int = 1, safe: bool = False) -> Answer:
    warned = (
        "microcode: Late microcode loading without minimal revision check.",
        "microcode: You should switch to early loading, if possible.",
    )
    told = (
        f"microcode: load: updated on {SHAPE.total_cores} primary CPUs with {len(SHAPE.siblings)} siblings",
        "microcode: revision: {before:#x} -> {after:#x}",
    )
    return Answer(0, (*said, *(() if safe else warned), *told), 0 if safe else OUT_OF_SPEC, step)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What both kernels do with one file, and in what they differ beyond what is said on top."""

    old: Answer
    new: Answer
    differ: str = ""


def loaded(step: int = 1) -> Row:
    return Row(old_loads(step=step), new_loads(UNSTATED, step=step))


def unfit() -> Row:
    return Row(old_leaves(), new_finds_none())


def malformed(said: str) -> Row:
    return Row(old_leaves(said), new_refuses(said))


ROWS = {
    "good": loaded(),
    "good-default-sizes": loaded(),
    "good-any-platform": loaded(),
    "good-extended": loaded(),
    "good-among-others": loaded(),
    "two-good-newest-first": loaded(step=2),
    "two-good-newest-last": Row(old_loads(step=2), new_loads(UNSTATED, UNSTATED, step=2)),
    "good-then-older": loaded(),
    "high-revision": loaded(),
    "min-revision-stated": Row(
        old_loads(), new_loads(safe=True), "6.1 does not know the field; stated and met, it spares 6.12 the taint"
    ),
    "min-revision-too-new": Row(
        old_loads(), new_loads(*TOO_OLD), "6.1 does not know the field; 6.12 looks at it, but is not told to insist"
    ),
    "min-revision-stated-and-not": Row(old_loads(step=2), new_loads(UNSTATED, step=2)),
    "older-revision": unfit(),
    "equal-revision": unfit(),
    "wrong-signature": unfit(),
    "wrong-platform": unfit(),
    "no-platform": unfit(),
    "extended-no-match": unfit(),
    "empty": Row(old_leaves(read=EMPTY), new_finds_none(EMPTY)),
    "no-file": Row(old_leaves(read=NO_FILE), new_finds_none(NO_FILE)),
    "truncated-header": malformed(BAD_HEADER),
    "total-too-small": malformed(BAD_TOTAL),
    "truncated-file": malformed(BAD_LENGTH),
    "data-too-large": malformed(BAD_SIZE),
    "huge-data-size": Row(
        old_leaves(BAD_SIZE),
        new_refuses(BAD_TABLE),
        "6.12 takes the size as signed, and stumbles over the signature table that this leaves room for",
    ),
    "negative-data-size": Row(
        old_leaves(BAD_SIZE),
        new_loads(UNSTATED),
        "6.12 takes the size as signed, and its checks let it pass",
    ),
    "header-version": Row(
        old_leaves(BAD_FORMAT), new_refuses(f"{BAD_FORMAT} Header type 0"), "6.12 names the header's version"
    ),
    "ifs-header": Row(
        old_leaves(BAD_FORMAT), new_refuses(f"{BAD_FORMAT} Header type 2"), "6.12 names the header's version"
    ),
    "loader-version": Row(
        old_leaves(BAD_FORMAT),
        new_refuses(f"{BAD_FORMAT} Header type 1"),
        "6.12 names the header's version, though the loader's is what is wrong",
    ),
    "bad-checksum": malformed(BAD_SUM),
    "extended-too-small": malformed(BAD_TABLE),
    "extended-remainder": malformed(BAD_TABLE),
    "extended-count": malformed(BAD_COUNT),
    "extended-count-wraps": Row(
        old_leaves(BAD_COUNT),
        new_refuses(BAD_ENTRY_SUM),
        "6.12 keeps the table's size in 32 bits, so it goes on to signatures that lie behind the file",
    ),
    "extended-table-checksum": malformed(BAD_TABLE_SUM),
    "extended-entry-checksum": malformed(BAD_ENTRY_SUM),
    "good-then-bad-checksum": Row(
        old_loads(BAD_SUM),
        new_refuses(UNSTATED, BAD_SUM),
        "6.1 has read to the end of the file by then, and loads the good one",
    ),
    "bad-checksum-then-good": malformed(BAD_SUM),
    "good-bad-checksum-good": Row(old_leaves(BAD_SUM), new_refuses(UNSTATED, BAD_SUM)),
    "good-then-truncated-header": Row(old_leaves(BAD_HEADER), new_refuses(UNSTATED, BAD_HEADER)),
    "good-then-header": Row(
        old_loads(BAD_LENGTH),
        new_refuses(UNSTATED, BAD_LENGTH),
        "6.1 has read to the end of the file by then, and loads the good one",
    ),
    "good-then-truncated-file": Row(old_leaves(BAD_LENGTH), new_refuses(UNSTATED, BAD_LENGTH)),
}

#: What 6.12 does with good files when it is told to insist on least revisions.
INSISTING = dict.fromkeys((each.name for each in GOOD), new_finds_none(UNSTATED)) | {
    "two-good-newest-first": new_finds_none(UNSTATED, UNSTATED),
    "two-good-newest-last": new_finds_none(UNSTATED, UNSTATED),
    "min-revision-stated": new_loads(safe=True),
    "min-revision-too-new": new_finds_none(*TOO_OLD),
    "min-revision-stated-and-not": new_loads(UNSTATED, safe=True),
}

Guests = Callable[[Boot], WarmGuest]


def find_guest(guests: Guests, base: str) -> WarmGuest:
    return guests(Boot(base=base, topology=SHAPE))


def try_bytes(session: Session, base: str, data: bytes | None, *, min_revision: bool = False) -> FileTried:
    return try_file(session, find_kernel(base), find_mechanism(MECHANISMS[base]), data, min_revision=min_revision)


def test_each_file_has_a_row_and_each_difference_a_reason() -> None:
    assert list(ROWS) == [each.name for each in FILES]
    for name, row in ROWS.items():
        told = [{line for line in answer.said if "rror" in line or "Bad" in line} for answer in (row.old, row.new)]
        assert (row.old.step == row.new.step and told[0] == told[1]) or row.differ, name


@pytest.mark.parametrize("base", MECHANISMS)
@pytest.mark.parametrize("name", [name for name in ROWS if name != "high-revision"])
def test_a_file_is_answered_as_the_kernel_answers_it(guests: Guests, base: str, name: str) -> None:
    row = ROWS[name]
    with find_guest(guests, base).serve() as session:
        cpu = read_cpu(session)
        tried = try_bytes(session, base, find_file(name).make(cpu))
    assert tried == (row.old if base == OLD else row.new).over(cpu), row.differ


@pytest.mark.parametrize("name", INSISTING)
def test_least_revisions_are_insisted_on_when_told(guests: Guests, name: str) -> None:
    with find_guest(guests, NEW).serve() as session:
        cpu = read_cpu(session)
        tried = try_bytes(session, NEW, find_file(name).make(cpu), min_revision=True)
    assert tried == INSISTING[name].over(cpu)


@pytest.mark.parametrize("base", MECHANISMS)
def test_revisions_are_unsigned(guests: Guests, base: str) -> None:
    guest = find_guest(guests, base)
    # Only a CPU below the high revisions can show it, and none of this guest's is, ever after.
    guest.retire()
    row = ROWS["high-revision"]
    loads, low = (row.old, old_leaves()) if base == OLD else (row.new, new_finds_none())
    try:
        with guest.serve() as session:
            cpu = read_cpu(session)
            assert cpu.revision < HIGH_REVISION - 1
            before = find_file("two-good-newest-last").make(cpu)
            tried = try_bytes(session, base, find_file("high-revision").make(cpu))
            assert tried == loads.over(cpu, HIGH_REVISION)
            high = read_cpu(session)
            assert try_bytes(session, base, before) == low.over(high)
            assert try_bytes(session, base, find_file("good").make(high)) == loads.over(high)
    finally:
        guest.retire()


@pytest.mark.parametrize("base", MECHANISMS)
def test_a_kernel_that_checks_nothing_is_seen(guests: Guests, base: str) -> None:
    """A negative control: the same kernels, whose check of an update is overwritten from outside."""
    guest = find_guest(guests, base)
    guest.retire()
    check = find_kernel(base).find(CHECKS[base])
    loads = old_loads() if base == OLD else new_loads(UNSTATED)
    try:
        with guest.serve() as session:
            session.machine.memory.write_kernel(check.start, RETURN_0, 4, Deadline.after(5))
            for name in ("bad-checksum", "loader-version", "data-too-large"):
                cpu = read_cpu(session)
                assert try_bytes(session, base, find_file(name).make(cpu)) == loads.over(cpu)
    finally:
        guest.retire()
