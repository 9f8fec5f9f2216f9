# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a guest that no longer answers, for crash(8) or gdb(1). QEMU writes the memory to a file of the lab.

QEMU may run as another user, and may not open files itself. The lab passes the descriptor over QEMU's monitor, and QEMU
writes to this descriptor.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from lab.errors import GuestError
from lab.guest.text import clean_line
from lab.host.deadline import Deadline

if TYPE_CHECKING:
    from lab.guest.qmp import QmpChannel

#: QEMU writes 256 MiB of memory in one or two seconds on a free CPU. A busy host is slower.
DUMP_S: Final = 60.0
#: Limit of a dump that is kept: the whole memory of a guest, uncompressed, and headers.
MAX_DUMP_MIB: Final = 320
#: Interval between two checks of the file's size. QEMU writes a few MiB in this time.
STEP_S: Final = 0.02
#: Formats by QEMU's names; the lab takes the first format that QEMU supports. An ELF file contains the whole memory,
#: uncompressed.
_FORMATS: Final = {"kdump-zlib": "memory.kdump", "elf": "memory.elf"}
#: The names of dumps in the evidence folder.
DUMPS: Final = frozenset(_FORMATS.values())
#: Room for the headers of an ELF file, and the registers of each vCPU.
_ELF_SLACK_BYTES: Final = 4 << 20
_BYTES_PER_MIB: Final = 1 << 20
_FD_NAME: Final = "memory-dump"


class Dump(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's memory.

    :param name: names the format: ``memory.kdump`` is compressed, in makedumpfile's flattened form; or ``memory.elf``
    """

    name: str
    data: bytes


def dump_memory(qmp: "QmpChannel", folder: Path, limit_mib: int, deadline: Deadline) -> Dump:
    """Stop a guest, and return its memory.

    If the dump grows too large or takes too long, the lab gives up, but QEMU still writes. The caller must end QEMU.

    :param folder: folder of the file during the dump; the file has no name
    :param limit_mib: maximum size
    :raise GuestGone: QEMU ended
    :raise DeadlineError: QEMU did not answer
    :raise GuestError: QEMU cannot dump, the dump would be or became too large, or the folder has no room
    """
    told = cast(dict[str, Any], qmp.execute("query-dump-guest-memory-capability", deadline=deadline))
    kind = next((kind for kind in _FORMATS if kind in told.get("formats", ())), "")
    if not kind:
        raise GuestError("this QEMU writes no dump of a kind that the lab keeps")
    limit = limit_mib * _BYTES_PER_MIB
    if kind == "elf":
        memory = cast(dict[str, int], qmp.execute("query-memory-size-summary", deadline=deadline))
        _check_size(memory["base-memory"] + _ELF_SLACK_BYTES, limit_mib)
    try:
        with tempfile.TemporaryFile(dir=folder) as sink:
            qmp.hand(_FD_NAME, sink.fileno(), deadline=deadline)
            arguments = {"paging": False, "protocol": f"fd:{_FD_NAME}", "format": kind, "detach": True}
            qmp.execute("dump-guest-memory", arguments, deadline=deadline)
            while _is_active(qmp, deadline):
                _check_size(os.fstat(sink.fileno()).st_size, limit_mib)
                deadline.check("the guest's memory to be written")
                time.sleep(STEP_S)
            _check_size(os.fstat(sink.fileno()).st_size, limit_mib)
            sink.seek(0)
            return Dump(name=_FORMATS[kind], data=sink.read(limit))
    except OSError as error:
        raise GuestError(f"the file for the guest's memory: {error.strerror or error}") from error


def _is_active(qmp: "QmpChannel", deadline: Deadline) -> bool:
    told = cast(dict[str, Any], qmp.execute("query-dump", deadline=deadline))
    status = str(told.get("status"))
    if status == "active":
        return True
    if status != "completed":
        raise GuestError(f"QEMU says that the dump has {clean_line(status.encode())}")
    return False


def _check_size(size: int, limit_mib: int) -> None:
    if size > limit_mib * _BYTES_PER_MIB:
        raise GuestError(f"it has more than the {limit_mib} MiB that are allowed")
