# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a guest that no longer answers, for crash(8) or gdb(1): QEMU writes it into a file of the lab's.

QEMU may be another user, and may open nothing itself: it is handed the descriptor over its monitor, and writes there.
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

#: 256 MiB of memory take a second or two on a free CPU; a crowded host is slower.
DUMP_S: Final = 60.0
#: So much of a guest's memory may be kept: all of it, uncompressed, and headers.
MAX_DUMP_MIB: Final = 320
#: How often the size of what is being written is looked at: QEMU writes a few MiB meanwhile.
STEP_S: Final = 0.02
#: By QEMU's names, the first that it has; an ELF file has the whole memory in it, uncompressed.
_FORMATS: Final = {"kdump-zlib": "memory.kdump", "elf": "memory.elf"}
#: What the evidence folder calls dumps.
DUMPS: Final = frozenset(_FORMATS.values())
#: Headers, and the registers of each vCPU, of an ELF file.
_ELF_SLACK_BYTES: Final = 4 << 20
_BYTES_PER_MIB: Final = 1 << 20
_FD_NAME: Final = "memory-dump"


class Dump(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's memory.

    :param name: says its format: ``memory.kdump``, compressed, in makedumpfile's flattened form, or ``memory.elf``
    """

    name: str
    data: bytes


def dump_memory(qmp: "QmpChannel", folder: Path, limit_mib: int, deadline: Deadline) -> Dump:
    """Return a guest's memory; it is stopped meanwhile.

    One that is given up, since it grows too large or takes too long, is still being written: QEMU is to be ended.

    :param folder: where the file is for as long as this takes, without a name
    :param limit_mib: how large it may be
    :raise GuestGone: QEMU ended
    :raise DeadlineError: it did not answer
    :raise GuestError: QEMU cannot do it, or it would be, or became, too large, or the folder has no room
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
