# SPDX-License-Identifier: GPL-2.0-or-later
import ctypes

import pytest
from observer_bench import CFLAGS, SOURCES

from lab.host.deadline import Deadline
from lab.host.proc import run
from lab.model.evidence import EventKind, Hazard
from lab.model.hold import MAX_HELD_US
from lab.observer import layout
from lab.observer.link import MAX_STRETCH_US

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "observer_record": layout.Record,
    "observer_shape": layout.Shape,
    "observer_control": layout.Control,
    "observer_status": layout.Status,
    "observer_header": layout.Header,
    "observer_vcpu": layout.Vcpu,
    "observer_window": layout.Window,
    "observer_seen_hazard": layout.SeenHazard,
    "observer_sibling": layout.Sibling,
    "observer_block": layout.Block,
    "observer_message": layout.Message,
    "observer_hold": layout.Hold,
    "observer_cover": layout.Covered,
    "observer_update": layout.Update,
}
CONSTANTS = {
    "OBSERVER_MAGIC": layout.MAGIC,
    "OBSERVER_SHM_VERSION": layout.VERSION,
    "OBSERVER_HEADER_SIZE": layout.HEADER_SIZE,
    "OBSERVER_MAX_VCPUS": layout.MAX_VCPUS,
    "OBSERVER_MAX_CORES": layout.MAX_CORES,
    "OBSERVER_MECHANISMS": layout.MAX_MECHANISMS,
    "OBSERVER_HAZARDS": layout.HAZARDS_KEPT,
    "OBSERVER_HOLDS": layout.HOLDS,
    "OBSERVER_UPDATES": layout.UPDATES,
    "HOLD_CAP_NS": MAX_HELD_US * 1000,
    "OBSERVER_MODE_RUN": layout.MODE_RUN,
    "OBSERVER_MODE_STALL": layout.MODE_STALL,
    "STRETCH_CAP_NS": MAX_STRETCH_US * 1000,
    **{f"OBSERVER_{kind.name}": number for kind, number in layout.KIND_NUMBERS.items()},
    **{f"PHASE_{phase.name}": number for phase, number in layout.PHASE_NUMBERS.items()},
    **{f"HAZARD_{hazard.name}": number for number, hazard in layout.HAZARDS.items()},
    **{f"TAKEN_{taken.name}": number for number, taken in layout.TAKEN.items()},
    **{f"ENGINE_{engine.name}": number for engine, number in layout.ENGINE_NUMBERS.items()},
    **{f"SEES_{sees.name}": bit for sees, bit in layout.SEES_BITS.items()},
}


@pytest.fixture(scope="module")
def c_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every size, offset and constant as the C compiler sees it."""
    wanted = {name: name for name in CONSTANTS}
    for name, mirror in STRUCTS.items():
        wanted[name] = f"sizeof(struct {name})"
        for field in (entry[0] for entry in mirror._fields_):
            wanted[f"{name}.{field}"] = f"offsetof(struct {name}, {field})"
            wanted[f"{name}.{field}.size"] = f"sizeof(((struct {name} *)0)->{field})"
    lines = [f'printf("{name} %llu\\n", (unsigned long long)({value}));' for name, value in wanted.items()]
    folder = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    headers = ["<stddef.h>", "<stdio.h>", '"observer_shm.h"', '"window.h"', '"stall.h"', '"places.h"']
    source.write_text("\n".join([*(f"#include {each}" for each in headers), "int main(void) {", *lines, "return 0; }"]))
    program = folder / "layout"
    run(["gcc", *CFLAGS, f"-I{SOURCES}", "-o", program, source], deadline=Deadline.after(60))
    printed = run([program], deadline=Deadline.after(10))
    return {name: int(value) for name, value in (line.split() for line in printed.splitlines())}


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_agrees_with_c(name: str, c_values: dict[str, int]) -> None:
    mirror = STRUCTS[name]
    offsets: dict[str, int] = {name: ctypes.sizeof(mirror)}
    for field in (entry[0] for entry in mirror._fields_):
        offsets[f"{name}.{field}"] = getattr(mirror, field).offset
        offsets[f"{name}.{field}.size"] = getattr(mirror, field).size
    assert offsets == {key: c_values[key] for key in offsets}


def test_no_field_of_c_is_missing_here(c_values: dict[str, int]) -> None:
    # Fields are read off the header text: one per line that ends in a semicolon, inside a struct.
    name = ""
    found: set[str] = set()
    for line in (SOURCES / "observer_shm.h").read_text().splitlines():
        if line.startswith("struct "):
            name = line.split()[1]
        elif line.startswith("}"):
            name = ""
        elif name and ";" in line:
            found.add(f"{name}.{line.split(';')[0].split('[')[0].split()[-1]}")
    assert len(found) > 60
    assert found <= set(c_values)


def test_constants_agree_with_c(c_values: dict[str, int]) -> None:
    assert {name: c_values[name] for name in CONSTANTS} == CONSTANTS


def test_every_kind_and_hazard_has_a_number() -> None:
    assert set(layout.KINDS.values()) == set(EventKind)
    assert set(layout.HAZARDS.values()) == set(Hazard)


@pytest.mark.parametrize(("vcpus", "ring", "blocks"), [(2, 1, 1), (4, 65536, 1024), (16, 8, 2)])
def test_parts_are_apart(vcpus: int, ring: int, blocks: int) -> None:
    places = layout.lay_out(vcpus=vcpus, threads=2, ring_records=ring, table_blocks=blocks, cover_blocks=32)
    parts = [
        (0, layout.HEADER_SIZE),
        (places.vcpu_offset, vcpus * ctypes.sizeof(layout.Vcpu)),
        (places.window_offset, vcpus // 2 * ctypes.sizeof(layout.Window)),
        (places.sibling_offset, vcpus * ctypes.sizeof(layout.Sibling)),
        (places.table_offset, vcpus * blocks * ctypes.sizeof(layout.Block)),
        (places.cover_offset, vcpus * 32 * ctypes.sizeof(layout.Covered)),
        (places.ring_offset, ring * ctypes.sizeof(layout.Record)),
    ]
    for (offset, size), (following, _) in zip(parts, [*parts[1:], (places.total_size, 0)], strict=True):
        assert offset + size <= following


@pytest.mark.parametrize("pc", [0, 0xF0000, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_8100_0000])
@pytest.mark.parametrize("mechanisms", [0, 1, 0x8000, 0xFFFF])
def test_packed_block_comes_back(pc: int, mechanisms: int) -> None:
    packed = pc & 0xFFFF_FFFF_FFFF | mechanisms << 48
    assert layout.pc_of(packed) == pc
    assert [layout.in_region(packed, bit) for bit in range(16)] == [bool(mechanisms >> bit & 1) for bit in range(16)]


def test_header_carries_the_shape_and_the_first_number() -> None:
    places = layout.lay_out(vcpus=2, threads=2, ring_records=4, table_blocks=2)
    header = layout.make_header(places)
    assert header.shape.total_size == places.total_size
    assert header.next_seq == 1
