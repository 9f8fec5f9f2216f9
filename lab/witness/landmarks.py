# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in a kernel the oracle has to look: made from vmlinux, written as the plugin reads it."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.spec.mechanism import Landmarks, Mechanism
from lab.spec.places import Copied, Place
from lab.witness.kernel import Kernel
from lab.witness.places import find_copies, find_places, find_stretch

#: Where every NMI enters a 64-bit kernel (arch/x86/entry/entry_64.S).
NMI_ENTRY: Final = "asm_exc_nmi"
#: Where NMIs are sent to CPUs that shall print a backtrace, by sysrq-l or since something stalls
#: (arch/x86/kernel/apic/hw_nmi.c). A kernel without it has no such landmark.
BACKTRACE: Final = "nmi_raise_cpu_backtrace"
#: The kind of point that opens a window.
UPDATE: Final = "wrmsr79"
#: Points that hold whatever mechanism is chosen.
ALL_MECHANISMS: Final = 0xFFFF


class Point(msgspec.Struct, frozen=True):
    """One address to report, under the kind that images/oracle/landmarks.c knows it by."""

    kind: str
    mechanisms: int
    address: int


class Region(msgspec.Struct, frozen=True):
    """Code that a waiting thread may execute; ``end`` is the first address behind it."""

    mechanisms: int
    start: int
    end: int


class LandmarkSet(msgspec.Struct, frozen=True):
    """All landmarks of one kernel."""

    points: tuple[Point, ...]
    regions: tuple[Region, ...]

    def to_text(self) -> str:
        """Return the plugin's landmark file."""
        lines = [f"point {point.kind} {point.mechanisms:x} {point.address:x}" for point in self.points]
        lines += [f"region {region.mechanisms:x} {region.start:x} {region.end:x}" for region in self.regions]
        return "".join(f"{line}\n" for line in lines)


def find_landmarks(kernel: Kernel, mechanisms: Iterable[Mechanism]) -> LandmarkSet:
    """Find the landmarks of all mechanisms that one kernel holds.

    :raise UsageError: one cannot be found; the text names it
    """
    masks: Counter[tuple[str, int]] = Counter()
    regions: Counter[tuple[int, int]] = Counter()
    for mechanism in mechanisms:
        bit = 1 << mechanism.bit
        for kind, place in _list_places(mechanism.landmarks):
            try:
                for address in find_places(kernel, place):
                    # An update in a copy of another mechanism's is one all the same.
                    masks[kind, address] |= ALL_MECHANISMS if kind == UPDATE else bit
            except UsageError as error:
                raise UsageError(f"mechanism '{mechanism.name}', landmark {kind}: {error}") from error
        for stretch in mechanism.landmarks.wait_region:
            try:
                for start, end in find_stretch(kernel, stretch):
                    regions[start, end] |= bit
            except UsageError as error:
                raise UsageError(f"mechanism '{mechanism.name}', wait region: {error}") from error
    masks["nmi-entry", kernel.find(NMI_ENTRY).start] |= ALL_MECHANISMS
    backtrace = kernel.find_if(BACKTRACE)
    if backtrace is not None:
        masks["backtrace", backtrace.start] |= ALL_MECHANISMS
    sites = kernel.find_update_sites()
    if not sites:
        raise UsageError("landmark 'WRMSR 0x79' is not in this kernel: it has no Intel microcode loader")
    for site in sites:
        masks[UPDATE, site] |= ALL_MECHANISMS
    return LandmarkSet(
        points=tuple(Point(kind, mask, address) for (kind, address), mask in sorted(masks.items())),
        regions=tuple(Region(mask, start, end) for (start, end), mask in sorted(regions.items())),
    )


def make_symboliser(kernel: Kernel, mechanisms: Iterable[Mechanism]) -> Callable[[int], str]:
    """Return what turns an address into ``symbol+0x..``, also in copies that the kernel made of its code.

    :raise UsageError: a mechanism has copies that this kernel has not
    """
    layouts = dict.fromkeys(
        place.copies
        for mechanism in mechanisms
        for _, place in _list_places(mechanism.landmarks)
        if isinstance(place, Copied)
    )
    copies = [copy for layout in layouts for copy in find_copies(kernel, layout)]

    def symbolise(address: int) -> str:
        found = next((copy for copy in copies if copy.start <= address < copy.end), None)
        return f"{found.name}+{address - found.start:#x}" if found is not None else kernel.symbolise(address)

    return symbolise


def _list_places(marks: Landmarks) -> tuple[tuple[str, Place], ...]:
    """Return the places that there are, each under the kind that the plugin knows it by."""
    places = (
        ("load-begin", marks.load_begin),
        ("load-end", marks.load_end),
        ("call-in", marks.call_in),
        ("call-in", marks.primary_call_in),
        ("call-in", marks.offline_call_in),
        ("release", marks.release),
        ("release", marks.primary_release),
        ("self-nmi", marks.self_nmi),
        ("ipi-nmi", marks.ipi_nmi),
        ("wait-loop", marks.wait_loop),
        (UPDATE, marks.update),
    )
    return tuple((kind, place) for kind, place in places if place)
