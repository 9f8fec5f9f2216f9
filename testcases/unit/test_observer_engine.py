# SPDX-License-Identifier: GPL-2.0-or-later
"""The observer as the engine, on a real QEMU whose guest writes an update and reads its revision back."""

import struct
from pathlib import Path

import pytest
from observer_bench import Bench, compile_plugin, start_bench

from lab.build.qemu import find_qemu
from lab.host.deadline import Deadline
from lab.microcode.update import HEADER_SIZE, digest_words, make_update, pack_header, read_header, seal
from lab.model.engine import Engine
from lab.model.evidence import EventKind, ObserverEvidence, Sees, Taken, UpdateSeen
from lab.observer import Processor

CPU = Processor(signature=0x50654, platforms=0x2, revision=0x10)
NEWER = 0x11
#: Where the guest puts the high half of what it reads of MSR 0x8B.
READ_BACK = 0x510
MECHANISM = 3
STRETCH_US = 1_000
WAIT_S = 20.0


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_plugin(tmp_path_factory.mktemp("observer"))


@pytest.fixture
def engine() -> Processor:
    if not find_qemu().can_be_engine:
        pytest.skip("this QEMU lets no plugin write registers")
    return CPU


def make(**changes: int) -> bytes:
    """Return an update for the CPU; with changes of its header, sealed again."""
    plain = make_update(CPU.signature, CPU.platforms, NEWER)
    fields = {**{name: getattr(read_header(plain), name) for name in read_header(plain).__struct_fields__}, **changes}
    return seal(pack_header(type(read_header(plain))(**fields)) + plain[HEADER_SIZE:])


def add_table(update: bytes, *entries: tuple[int, int]) -> bytes:
    """Add a table of further signatures and platforms, whose own words add up to 0."""
    rows = [(signature, platforms, 0) for signature, platforms in entries]
    table = struct.pack("<5I", len(rows), 0, 0, 0, 0) + b"".join(struct.pack("<3I", *row) for row in rows)
    table += b"\0" * (-len(table) % 1024)
    total = sum(struct.unpack(f"<{len(table) // 4}I", table))
    table = table[:4] + struct.pack("<I", -total % 2**32) + table[8:]
    header = read_header(update)
    grown = type(header)(
        **{
            **{name: getattr(header, name) for name in header.__struct_fields__},
            "total_size": len(update) + len(table),
        }
    )
    return seal(pack_header(grown) + update[HEADER_SIZE:]) + table


def see(bench: Bench, *, trial: int = 1, engine: Engine = Engine.TAKES) -> tuple[UpdateSeen, int, ObserverEvidence]:
    """Return what came of the update in a window, and what the guest read back behind it."""
    deadline = Deadline.after(WAIT_S)
    bench.link.arm(trial, MECHANISM, (STRETCH_US,), engine=engine)
    opened = bench.link.wait_for(EventKind.WINDOW_OPEN, deadline)
    while bench.link.wait_for(EventKind.LOAD_END, deadline).seq < opened.seq:
        pass
    read_back = bench.read_word(READ_BACK)
    bench.link.disarm()
    evidence = bench.link.collect(bench.guest.symbolise)
    window = evidence.windows[0]
    update = next(each for each in evidence.updates if window.open_seq < each.seq < window.close_seq)
    return update, read_back, evidence


def test_an_update_is_read_where_the_operand_names_it(plugin: Path, tmp_path: Path) -> None:
    image = make()
    with start_bench(tmp_path, plugin, "UPDATING", update=image) as bench:
        if find_qemu().level < 4:
            bench.link.arm(1, MECHANISM, (STRETCH_US,))
            bench.link.wait_for(EventKind.WINDOW_OPEN, Deadline.after(WAIT_S))
            bench.link.disarm()
            evidence = bench.link.collect(bench.guest.symbolise)
            assert (evidence.updates, Sees.UPDATES in evidence.sees) == ((), False)
            return
        update, _, evidence = see(bench)
    assert Sees.UPDATES in evidence.sees
    assert Sees.ENGINE not in evidence.sees
    assert update.operand == bench.guest.labels["update"] + HEADER_SIZE
    assert update.digest == digest_words(image)
    assert (update.revision, update.signature, update.platforms) == (NEWER, CPU.signature, CPU.platforms)
    assert (update.total_size, update.taken, update.before, update.after) == (len(image), Taken.UNASKED, 0, 0)


def test_a_sound_update_is_what_the_guest_reads_back(engine: Processor, plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "UPDATING", update=make(), engine=engine) as bench:
        update, read_back, evidence = see(bench)
    assert Sees.ENGINE in evidence.sees
    # The guest goes round by itself: it may have taken it before the trial, and hardware takes the same again.
    assert (update.taken, update.after, read_back) == (Taken.DONE, NEWER, NEWER)


WRONG = {
    "checksum": (make()[:-4] + b"\1\2\3\4", Taken.CHECKSUM),
    "signature": (make(signature=0x50655), Taken.SIGNATURE),
    "platform": (make(platform_mask=0x1), Taken.PLATFORM),
    "older": (make(revision=0xF), Taken.OLDER),
    "version": (make(header_version=2), Taken.MALFORMED),
    "data-beyond-its-total": (make(data_size=2004), Taken.MALFORMED),
    "table-of-others": (add_table(make(signature=0x50655), (0x50656, 0x2)), Taken.SIGNATURE),
    "table-of-other-platforms": (add_table(make(signature=0x50655), (CPU.signature, 0x1)), Taken.PLATFORM),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_hardware_refuses_is_refused(name: str, engine: Processor, plugin: Path, tmp_path: Path) -> None:
    image, right = WRONG[name]
    with start_bench(tmp_path, plugin, "UPDATING", update=image, engine=engine) as bench:
        update, read_back, _ = see(bench)
    assert (update.taken, update.after, read_back) == (right, CPU.revision, CPU.revision)


@pytest.mark.parametrize(
    "image",
    [make(platform_mask=0), add_table(make(signature=0x50655), (0x50656, 0x1), (CPU.signature, 0x6))],
    ids=["all-platforms", "in-the-table"],
)
def test_a_match_by_other_means_is_taken(image: bytes, engine: Processor, plugin: Path, tmp_path: Path) -> None:
    with start_bench(tmp_path, plugin, "UPDATING", update=image, engine=engine) as bench:
        update, read_back, _ = see(bench)
    assert (update.taken, read_back) == (Taken.DONE, NEWER)


def test_a_trial_says_how_the_engine_treats_an_update(engine: Processor, plugin: Path, tmp_path: Path) -> None:
    # The CPU's own, so that nothing is changed before the trials begin.
    image = make(revision=CPU.revision)
    with start_bench(tmp_path, plugin, "UPDATING", update=image, engine=engine) as bench:
        refused = see(bench, trial=1, engine=Engine.REFUSES)[:2]
        one_core = see(bench, trial=2, engine=Engine.ONE_CORE)[:2]
        other = see(bench, trial=3, engine=Engine.OTHER_REVISION)[:2]
    assert (refused[0].taken, refused[1]) == (Taken.REFUSED, CPU.revision)
    assert (one_core[0].taken, one_core[1]) == (Taken.DONE, CPU.revision)
    # Its second WRMSR of the load finds a core that is newer already.
    assert (other[0].taken, other[0].after, other[1]) == (Taken.OTHER, CPU.revision + 1, CPU.revision + 1)
