# SPDX-License-Identifier: GPL-2.0-or-later
"""The landmarks: the addresses in a kernel that the observer watches, from vmlinux, in the plugin's format."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from lab.errors import UsageError
from lab.kernelimage.closure import WaitRegion, close_region
from lab.kernelimage.code_ranges import find_copies, find_places
from lab.kernelimage.update_sites import find_update_sites
from lab.kernelimage.vmlinux import Function, Kernel
from lab.mechanisms.code_places import Copied, Place
from lab.mechanisms.mechanism import Landmarks, Mechanism

#: Entry of every NMI in a 64-bit kernel (arch/x86/entry/entry_64.S).
NMI_ENTRY: Final = "asm_exc_nmi"
#: The kernel sends NMIs here to CPUs that must print a backtrace, because of sysrq-l or a stall
#: (arch/x86/kernel/apic/hw_nmi.c). A kernel without this function has no such landmark.
BACKTRACE: Final = "nmi_raise_cpu_backtrace"
#: This function calls a chain of ordinary NMI handlers (arch/x86/kernel/nmi.c). If its compiler inlined the function, a
#: kernel has no such landmark.
NMI_HANDLER: Final = "nmi_handle"
#: A point of this kind opens a window.
UPDATE: Final = "wrmsr79"
#: Points of this mask apply to every mechanism.
ALL_MECHANISMS: Final = 0xFFFF


class Point(msgspec.Struct, frozen=True):
    """One address to report, with its kind as in images/observer/landmarks.c."""

    kind: str
    mechanisms: int
    address: int


class Region(msgspec.Struct, frozen=True):
    """Code that a waiting thread may execute. ``end`` is the first address behind the code."""

    mechanisms: int
    start: int
    end: int


class Wait(msgspec.Struct, frozen=True):
    """The wait region of one mechanism, closed over all its wait calls."""

    mechanism: str
    bit: int
    region: WaitRegion


class LandmarkSet(msgspec.Struct, frozen=True):
    """All landmarks of one kernel."""

    points: tuple[Point, ...]
    regions: tuple[Region, ...]
    waits: tuple[Wait, ...] = ()

    def to_text(self) -> str:
        """Return the plugin's landmark file."""
        lines = [f"point {point.kind} {point.mechanisms:x} {point.address:x}" for point in self.points]
        lines += [f"region {region.mechanisms:x} {region.start:x} {region.end:x}" for region in self.regions]
        return "".join(f"{line}\n" for line in lines)

    def list_functions(self, mechanism: str) -> tuple[str, ...]:
        """Return the names of the functions in a mechanism's wait region."""
        return tuple(name for wait in self.waits if wait.mechanism == mechanism for name in wait.region.functions)


class Sought(msgspec.Struct, frozen=True, kw_only=True):
    """One landmark of one mechanism, and its addresses.

    :param mechanism: empty for landmarks that every kernel must have
    :param problem: why the landmark was not found; empty if it was found
    """

    kind: str
    mechanism: str
    mask: int
    addresses: tuple[int, ...] = ()
    problem: str = ""


class Search(msgspec.Struct, frozen=True):
    """All landmarks that mechanisms name, including those that a kernel does not have.

    :param unclosed: the wait regions that could not be closed, with the reason
    """

    sought: tuple[Sought, ...]
    waits: tuple[Wait, ...]
    unclosed: tuple[tuple[str, str], ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """The missing landmarks, one sentence each."""
        places = [
            (f"mechanism '{each.mechanism}', landmark {each.kind}: " if each.mechanism else "") + each.problem
            for each in self.sought
            if each.problem
        ]
        return (*places, *(f"mechanism '{name}', wait region: {why}" for name, why in self.unclosed))


def find_landmarks(kernel: Kernel, mechanisms: Iterable[Mechanism]) -> LandmarkSet:
    """Find the landmarks of all mechanisms of one kernel.

    :raise UsageError: a landmark is not found; the text names it
    """
    search = search_landmarks(kernel, mechanisms)
    for problem in search.problems:
        raise UsageError(problem)
    masks: Counter[tuple[str, int]] = Counter()
    regions: Counter[tuple[int, int]] = Counter()
    for each in search.sought:
        for address in each.addresses:
            masks[each.kind, address] |= each.mask
    for wait in search.waits:
        for held in wait.region.held:
            regions[held.start, held.end] |= 1 << wait.bit
    return LandmarkSet(
        points=tuple(Point(kind, mask, address) for (kind, address), mask in sorted(masks.items())),
        regions=tuple(Region(mask, start, end) for (start, end), mask in sorted(regions.items())),
        waits=search.waits,
    )


def search_landmarks(kernel: Kernel, mechanisms: Iterable[Mechanism]) -> Search:
    """Look for all landmarks, and give the reason for each missing landmark."""
    sought, waits, unclosed = list[Sought](), list[Wait](), list[tuple[str, str]]()
    for mechanism in mechanisms:
        marks = mechanism.landmarks
        sought += [_seek_place(kernel, mechanism, kind, place) for kind, place in _list_places(marks)]
        try:
            region = close_region(kernel, marks.wait_region, marks.wait_calls)
            waits.append(Wait(mechanism.name, mechanism.bit, region))
        except UsageError as error:
            unclosed.append((mechanism.name, str(error)))
    return Search((*sought, *_seek_common(kernel)), tuple(waits), tuple(unclosed))


def _seek_place(kernel: Kernel, mechanism: Mechanism, kind: str, place: Place) -> Sought:
    # An update in another mechanism's copy is also an update, so every mechanism watches it.
    mask = ALL_MECHANISMS if kind == UPDATE else 1 << mechanism.bit
    return _seek(kind, mechanism.name, mask, lambda: find_places(kernel, place))


def _seek_common(kernel: Kernel) -> tuple[Sought, ...]:
    """Look for the landmarks that do not depend on the mechanism."""
    backtrace = kernel.find_if(BACKTRACE)
    sites = _seek(UPDATE, "", ALL_MECHANISMS, lambda: find_update_sites(kernel))
    if not sites.addresses and not sites.problem:
        missing = "landmark 'WRMSR 0x79' is not in this kernel: it has no Intel microcode loader"
        sites = msgspec.structs.replace(sites, problem=missing)
    return (
        _seek("nmi-entry", "", ALL_MECHANISMS, lambda: (kernel.find(NMI_ENTRY).start,)),
        *(
            (Sought(kind="backtrace", mechanism="", mask=ALL_MECHANISMS, addresses=(backtrace.start,)),)
            if backtrace
            else ()
        ),
        *(
            Sought(kind="nmi-handler", mechanism="", mask=ALL_MECHANISMS, addresses=(handler.start,))
            for handler in find_nmi_handlers(kernel)
        ),
        sites,
    )


def find_nmi_handlers(kernel: Kernel) -> tuple[Function, ...]:
    """Return where the kernel calls the ordinary handlers of an NMI, in all that the compiler made of it."""
    return (*kernel.find_all(NMI_HANDLER), *kernel.find_parts(NMI_HANDLER))


def _seek(kind: str, mechanism: str, mask: int, find: Callable[[], tuple[int, ...]]) -> Sought:
    try:
        return Sought(kind=kind, mechanism=mechanism, mask=mask, addresses=find())
    except UsageError as error:
        return Sought(kind=kind, mechanism=mechanism, mask=mask, problem=str(error))


def make_symboliser(kernel: Kernel, mechanisms: Iterable[Mechanism]) -> Callable[[int], str]:
    """Return a function that converts an address to ``symbol+0x..``, even in the kernel's copies of its code.

    :raise UsageError: a mechanism has copies that this kernel does not have
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
    """Return the places that exist, each with its kind as the plugin knows it."""
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
