# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the addresses in a kernel where the holds of a plan stop threads."""

import msgspec

from lab.errors import UsageError
from lab.kernelimage.vmlinux import Kernel
from lab.mechanisms.mechanism import Mechanism
from lab.model.evidence import EventKind
from lab.model.hold import ANY_BLOCK, LANDMARKS, Hold


class FoundHold(msgspec.Struct, frozen=True):
    """A hold in the form that the observer reads.

    :param kind: of the landmark, None for a block
    :param address: of the block's first instruction; 0 for any place of the landmark's kind, or for any block
    """

    hold: Hold
    kind: EventKind | None
    address: int


def find_holds(kernel: Kernel, mechanism: Mechanism, holds: tuple[Hold, ...]) -> tuple[FoundHold, ...]:
    """Find the places of all holds.

    :raise UsageError: a place is not in this kernel; the text names it, and similar names of this kernel
    """
    return tuple(_find(kernel, mechanism, hold) for hold in holds)


def _find(kernel: Kernel, mechanism: Mechanism, hold: Hold) -> FoundHold:
    landmark = LANDMARKS.get(hold.at)
    if landmark is not None:
        kind = EventKind(landmark.value)
        if not _has(mechanism, kind):
            raise UsageError(f"place '{hold.at}': mechanism '{mechanism.name}' has no such landmark")
        return FoundHold(hold, kind, 0)
    if hold.at == ANY_BLOCK:
        return FoundHold(hold, None, 0)
    if hold.at.startswith("0x"):
        address = int(hold.at, 16)
    else:
        name, _, offset = hold.at.partition("+")
        try:
            function = kernel.find(name)
        except UsageError as error:
            raise UsageError(f"place '{hold.at}': {error}") from None
        address = function.start + int(offset or "0", 16)
        if address >= function.end:
            raise UsageError(
                f"place '{hold.at}' is behind the end of {name}: it is {function.end - function.start:#x} long"
            )
    function_at = kernel.find_at(address)
    if function_at is None:
        raise UsageError(f"place '{hold.at}' is not in the text of this kernel")
    if address not in {insn.address for insn in kernel.disassemble(function_at)}:
        raise UsageError(f"place '{hold.at}' is in the middle of an instruction of {function_at.name}")
    return FoundHold(hold, None, address)


def _has(mechanism: Mechanism, kind: EventKind) -> bool:
    marks = mechanism.landmarks
    needed = {
        EventKind.CALL_IN: marks.call_in or marks.primary_call_in or marks.offline_call_in,
        EventKind.RELEASE: marks.release or marks.primary_release,
        EventKind.SELF_NMI: marks.self_nmi,
        EventKind.IPI_NMI: marks.ipi_nmi,
        EventKind.WAIT_LOOP: marks.wait_loop,
    }
    return bool(needed.get(kind, True))
