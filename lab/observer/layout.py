# SPDX-License-Identifier: GPL-2.0-or-later
"""The shared file's layout: the mirror of images/observer/observer_shm.h, where each field is explained.

A test compiles that header and holds the two together.
"""

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from typing import Final

import msgspec

from lab.model.engine import Engine
from lab.model.evidence import EventKind, Hazard, Sees, Taken
from lab.model.phase import Phase

MAGIC: Final = 0x6C63616C62616C6D
VERSION: Final = 7
HEADER_SIZE: Final = 4096
#: A record's stamp while it is being written, as images/observer/ring.c has it.
STAMP_BUSY: Final = 2**64 - 1
MAX_VCPUS: Final = 64
MAX_CORES: Final = 16
MAX_MECHANISMS: Final = 16
HOLDS: Final = 16
UPDATES: Final = 256
HAZARDS_KEPT: Final = 16
MODE_RUN: Final = 0
MODE_STALL: Final = 1

#: The numbers that stand for kinds and hazards in records: C has them in the order of the enums.
KIND_NUMBERS: Final = {kind: number for number, kind in enumerate(EventKind, start=1)}
KINDS: Final = {number: kind for kind, number in KIND_NUMBERS.items()}
HAZARDS: Final = dict(enumerate(Hazard))
#: C has a bit for each, in their order.
SEES_BITS: Final = {sees: 1 << bit for bit, sees in enumerate(Sees)}
TAKEN: Final = dict(enumerate(Taken, start=1))
ENGINE_NUMBERS: Final = {engine: number for number, engine in enumerate(Engine)}
#: C has 0 for any phase.
PHASE_NUMBERS: Final = {phase: number for number, phase in enumerate(Phase, start=1)}
PHASE_OF: Final = {number: phase for phase, number in PHASE_NUMBERS.items()}

_PC_BITS: Final = 48


class Record(ctypes.Structure):
    """One event of the ring."""

    _fields_ = (
        ("stamp", c_uint64),
        ("mono_ns", c_uint64),
        ("tsc", c_uint64),
        ("pc", c_uint64),
        ("kind", c_uint16),
        ("vcpu", c_uint16),
        ("core", c_uint16),
        ("hazard", c_uint16),
        ("load", c_uint32),
        ("trial", c_uint32),
        ("detail", c_uint64),
        ("reserved", c_uint64),
    )


class Shape(ctypes.Structure):
    """Sizes and places of all parts."""

    _fields_ = (
        ("magic", c_uint64),
        ("version", c_uint32),
        ("record_size", c_uint32),
        ("vcpu_size", c_uint32),
        ("window_size", c_uint32),
        ("sibling_size", c_uint32),
        ("block_size", c_uint32),
        ("vcpus", c_uint32),
        ("threads", c_uint32),
        ("ring_records", c_uint32),
        ("table_blocks", c_uint32),
        ("cover_blocks", c_uint32),
        ("cover_size", c_uint32),
        ("update_size", c_uint32),
        ("reserved", c_uint32),
        ("total_size", c_uint64),
        ("vcpu_offset", c_uint64),
        ("window_offset", c_uint64),
        ("sibling_offset", c_uint64),
        ("table_offset", c_uint64),
        ("cover_offset", c_uint64),
        ("update_offset", c_uint64),
        ("ring_offset", c_uint64),
    )


class Control(ctypes.Structure):
    """What the lab asks of the observer."""

    _fields_ = (
        ("armed_trial", c_uint32),
        ("mechanism", c_uint32),
        ("mode", c_uint32),
        ("live_blocks", c_uint32),
        ("extend_bound_ns", c_uint64),
        ("stretch_ns", c_uint64 * MAX_CORES),
        ("nmis_sent", c_uint32),
        ("nmis_acked", c_uint32),
        ("stall_bound_ns", c_uint64),
        ("holds", c_uint32),
        ("cover", c_uint32),
        ("engine", c_uint32),
        ("reserved", c_uint32 * 9),
    )


class Hold(ctypes.Structure):
    """One place where a vCPU is to be held."""

    _fields_ = (
        ("address", c_uint64),
        ("bound_ns", c_uint64),
        ("kind", c_uint32),
        ("vcpu", c_uint32),
        ("phase", c_uint32),
        ("arrival", c_uint32),
        ("let_go", c_uint32),
        ("arrivals", c_uint32),
        ("early", c_uint32),
        ("reserved", c_uint32 * 5),
    )


class Status(ctypes.Structure):
    """What the observer counts."""

    _fields_ = (
        ("install_mono_ns", c_uint64),
        ("install_tsc", c_uint64),
        ("nmi_entries", c_uint64),
        ("load_begin_tsc", c_uint64),
        ("load_end_tsc", c_uint64),
        ("load", c_uint32),
        ("load_active", c_uint32),
        ("link_failures", c_uint32),
        ("windows_lost", c_uint32),
        ("installed", c_uint32),
        ("watched_load", c_uint32),
        ("watched_trial", c_uint32),
        ("covers_lost", c_uint32),
        ("points_wrong", c_uint32),
        ("interface", c_uint32),
        ("sees", c_uint32),
        ("cpuid_missed", c_uint32),
    )


class Header(ctypes.Structure):
    """The first page."""

    _fields_ = (
        ("shape", Shape),
        ("pad_shape", c_uint8 * (256 - ctypes.sizeof(Shape))),
        ("control", Control),
        ("pad_control", c_uint8 * (512 - ctypes.sizeof(Control))),
        ("status", Status),
        ("pad_status", c_uint8 * (256 - ctypes.sizeof(Status))),
        ("next_seq", c_uint64),
        ("pad_next", c_uint8 * (1024 - 8)),
        ("holds", Hold * HOLDS),
        ("pad_end", c_uint8 * (HEADER_SIZE - 2048 - HOLDS * ctypes.sizeof(Hold))),
    )


class Vcpu(ctypes.Structure):
    """One vCPU's present."""

    _fields_ = (
        ("block", c_uint64),
        ("last_tsc", c_uint64),
        ("gap_tsc", c_uint64),
        ("end_tsc", c_uint64),
        ("gap_load", c_uint32),
        ("gap_trial", c_uint32),
        ("halts", c_uint32),
        ("held", c_uint32),
        ("reserved", c_uint32 * 20),
    )


class Window(ctypes.Structure):
    """One core's last window."""

    _fields_ = (
        ("trial", c_uint32),
        ("load", c_uint32),
        ("primary", c_uint32),
        ("mechanism", c_uint32),
        ("pc", c_uint64),
        ("open_seq", c_uint64),
        ("open_ns", c_uint64),
        ("open_tsc", c_uint64),
        ("close_seq", c_uint64),
        ("close_ns", c_uint64),
        ("close_tsc", c_uint64),
        ("asked_ns", c_uint64),
        ("extended_ns", c_uint64),
        ("mode", c_uint32),
        ("reserved", c_uint32 * 9),
    )


class SeenHazard(ctypes.Structure):
    """One hazardous instruction of a sibling in a window."""

    _fields_ = (("pc", c_uint64), ("count", c_uint32), ("hazard", c_uint32))


class Sibling(ctypes.Structure):
    """One sibling's part in its core's last window."""

    _fields_ = (
        ("trial", c_uint32),
        ("load", c_uint32),
        ("in_flight", c_uint64),
        ("region_blocks", c_uint64),
        ("outside_blocks", c_uint64),
        ("first_tsc", c_uint64),
        ("last_region_tsc", c_uint64),
        ("stalled_tsc", c_uint64),
        ("halted", c_uint32),
        ("blocks_lost", c_uint32),
        ("hazards_lost", c_uint32),
        ("stall_overrun", c_uint32),
        ("hazards", SeenHazard * HAZARDS_KEPT),
    )


class Block(ctypes.Structure):
    """One place of a block table."""

    _fields_ = (
        ("pc", c_uint64),
        ("first_seq", c_uint64),
        ("last_seq", c_uint64),
        ("count", c_uint32),
        ("in_region", c_uint32),
    )


#: Beside the phase of a place of a cover table: the block was begun in an NMI handler.
COVER_MASKED: Final = 0x100


class Covered(ctypes.Structure):
    """One place of a cover table."""

    _fields_ = (("pc", c_uint64), ("phase", c_uint32), ("count", c_uint32))


class Update(ctypes.Structure):
    """What one WRMSR 0x79 named."""

    _fields_ = (
        ("number", c_uint64),
        ("operand", c_uint64),
        ("digest", c_uint64),
        ("revision", c_uint32),
        ("signature", c_uint32),
        ("platforms", c_uint32),
        ("total_size", c_uint32),
        ("taken", c_uint32),
        ("before", c_uint32),
        ("after", c_uint32),
        ("reserved", c_uint32 * 3),
    )


class Message(ctypes.Structure):
    """One datagram of the link."""

    _fields_ = (
        ("kind", c_uint32),
        ("vcpu", c_uint32),
        ("seq", c_uint64),
        ("mono_ns", c_uint64),
        ("load", c_uint32),
        ("detail", c_uint32),
    )


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where the parts of one file are, as the lab laid them out: never read back from the file."""

    vcpus: int
    threads: int
    ring_records: int
    table_blocks: int
    cover_blocks: int
    vcpu_offset: int
    window_offset: int
    sibling_offset: int
    table_offset: int
    cover_offset: int
    update_offset: int
    ring_offset: int
    total_size: int


def lay_out(*, vcpus: int, threads: int, ring_records: int, table_blocks: int, cover_blocks: int = 1) -> Places:
    """Place all parts one behind the other; the ring begins on a page."""
    window = HEADER_SIZE + vcpus * ctypes.sizeof(Vcpu)
    sibling = window + vcpus // threads * ctypes.sizeof(Window)
    table = sibling + vcpus * ctypes.sizeof(Sibling)
    table = -(-table // 64) * 64
    cover = table + vcpus * table_blocks * ctypes.sizeof(Block)
    cover = -(-cover // 64) * 64
    update = cover + vcpus * cover_blocks * ctypes.sizeof(Covered)
    update = -(-update // 64) * 64
    end = update + UPDATES * ctypes.sizeof(Update)
    ring = -(-end // HEADER_SIZE) * HEADER_SIZE
    return Places(
        vcpus=vcpus,
        threads=threads,
        ring_records=ring_records,
        table_blocks=table_blocks,
        cover_blocks=cover_blocks,
        vcpu_offset=HEADER_SIZE,
        window_offset=window,
        sibling_offset=sibling,
        table_offset=table,
        cover_offset=cover,
        update_offset=update,
        ring_offset=ring,
        total_size=ring + ring_records * ctypes.sizeof(Record),
    )


def make_header(places: Places) -> Header:
    """Return the header of a file that nobody has used yet."""
    header = Header()
    header.shape = Shape(
        magic=MAGIC,
        version=VERSION,
        record_size=ctypes.sizeof(Record),
        vcpu_size=ctypes.sizeof(Vcpu),
        window_size=ctypes.sizeof(Window),
        sibling_size=ctypes.sizeof(Sibling),
        block_size=ctypes.sizeof(Block),
        cover_size=ctypes.sizeof(Covered),
        update_size=ctypes.sizeof(Update),
        **{name: getattr(places, name) for name in places.__struct_fields__},
    )
    header.next_seq = 1  # 0 is no record's number
    return header


def pc_of(packed: int) -> int:
    """Return a packed block's address, the bits above the 48th filled as canonical addresses have them."""
    pc = packed & ((1 << _PC_BITS) - 1)
    return pc | 0xFFFF << _PC_BITS if pc >> (_PC_BITS - 1) else pc


def in_region(packed: int, mechanism: int) -> bool:
    """Tell whether a packed block belongs to that mechanism's wait region."""
    return bool(packed >> (_PC_BITS + mechanism) & 1)
