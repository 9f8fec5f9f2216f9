# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask a QEMU about itself: its version, its plugin interfaces, and whether it starts at all.

The probe runs as the user that guests run as. So a file that this user may not read or execute shows up here, before
the first boot.
"""

import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from lab.build.cache import Progress, cached, make_key, read_tree
from lab.build.compiler import COMPILER, ENVIRONMENT, read_versions
from lab.errors import DeadlineError
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.handing import HandedFiles
from lab.host.paths import IMAGES
from lab.host.user import User
from lab.model.qemu import name_monitor

SOURCES: Final = IMAGES / "probe"
#: Below and above every interface, present or future.
BELOW_ALL: Final = -1
ABOVE_ALL: Final = 2**31 - 1

_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
_COMPILE_S: Final = 60.0
#: QEMU answers in a tenth of a second. A program that does not answer in this time is not a QEMU.
_ANSWER_S: Final = 20.0
#: Limit of an answer, since the program may be any program.
_MAX_CHARS: Final = 4_000
_SHOWN_CHARS: Final = 200
#: No guest, no disk, no window: only QEMU itself.
_BARE: Final = ("-nodefaults", "-no-user-config", "-display", "none")
#: The guests' machine, halted before its first instruction. A QMP command then ends QEMU.
_MACHINE: Final = (
    *("-sandbox", "on", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Skylake-Server,-hypervisor"),
    *("-smp", "2,sockets=1,cores=1,threads=2", "-m", "64", "-S"),
)
_QUIT: Final = b'{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'

_VERSION: Final = re.compile(r"QEMU emulator version (\S.*)")
#: plugins/loader.c has contained both texts since 5.0.
_LOWEST: Final = re.compile(r"supports only a minimum version of (\d+)")
_HIGHEST: Final = re.compile(r"supports only up to version (\d+)")
_LINE: Final = re.compile(r"mclab-probe: (\S+) (system|user) (\d+) (/.+)")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A program's output, both streams together, and its exit status."""

    status: int
    text: str
    pid: int

    @property
    def first(self) -> str:
        """The first line of the output, for a person."""
        return self._lines[0]

    @property
    def last(self) -> str:
        """The last line of the output, for a person. In an error, the last line is the sentence."""
        return self._lines[-1]

    @property
    def _lines(self) -> list[str]:
        lines = [line.strip()[:_SHOWN_CHARS] for line in self.text.splitlines() if line.strip()]
        return lines or [f"nothing, and ends with status {self.status}"]


class QemuReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a QEMU reported to a plugin that it loaded.

    :param target: architecture of the machines that it emulates, such as ``x86_64``
    :param system: it emulates whole machines, not only programs
    :param same_process: QEMU runs in the process that the lab started, since a script executed it with exec
    :param program: the file that contains QEMU's code
    """

    target: str
    system: bool
    same_process: bool
    program: Path


def key_probe() -> str:
    """Return the hash of everything that an answer depends on, except the QEMU itself."""
    sources = [data for _, _, data in read_tree(SOURCES)]
    return make_key(*sources, *_BARE, *_MACHINE)


def ask_version(path: Path, user: User | None) -> tuple[str | None, Answer]:
    """Return a system emulator's version, such as ``7.2.22 (Debian 1:7.2+dfsg-7)``; None if the program is none.

    :raise DeadlineError: the program does not answer
    """
    answer = _ask(path, ("--version",), user)
    first = answer.text.splitlines()[:1]
    match = _VERSION.fullmatch(first[0].strip()) if first and answer.status == 0 else None
    return (match[1] if match else None), answer


def ask_interfaces(path: Path, user: User | None, progress: Progress) -> tuple[tuple[int, int] | None, Answer]:
    """Return the lowest and the highest plugin interface that a QEMU accepts; None if it accepts no plugin at all.

    :raise DeadlineError: QEMU does not answer
    :raise HostError: the probe does not compile
    """
    low = _load(path, BELOW_ALL, user, progress)
    lowest = _LOWEST.search(low.text)
    if lowest is None:
        return None, low
    high = _load(path, ABOVE_ALL, user, progress)
    highest = _HIGHEST.search(high.text)
    return (None if highest is None else (int(lowest[1]), int(highest[1]))), high


def ask_itself(path: Path, interface: int, user: User | None, progress: Progress) -> tuple[QemuReport | None, Answer]:
    """Return what a QEMU reports to a plugin of an interface that it accepts; None if it reports nothing.

    Raises the same errors as :func:`ask_interfaces`.
    """
    answer = _load(path, interface, user, progress)
    match = _LINE.search(answer.text)
    if match is None:
        return None, answer
    told = QemuReport(
        target=match[1],
        system=match[2] == "system",
        same_process=int(match[3]) == answer.pid,
        program=Path(match[4]),
    )
    return told, answer


def try_start(path: Path, release: tuple[int, int], user: User | None) -> Answer:
    """Start the guests' machine, firmware included, and end it before its first instruction.

    :raise DeadlineError: QEMU does not answer
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(_QUIT)
        number = theirs.fileno()
        words = (*_BARE, *_MACHINE, "-chardev", f"socket,id=end,fd={number}", *name_monitor(release, "end"))
        return _ask(path, words, user, number)


def _load(path: Path, interface: int, user: User | None, progress: Progress) -> Answer:
    with _open_probe(interface, user, progress) as (name, descriptors):
        return _ask(path, (*_BARE, "-machine", "none", "-plugin", f"file={name}"), user, *descriptors)


@contextlib.contextmanager
def _open_probe(interface: int, user: User | None, progress: Progress) -> Iterator[tuple[Path, tuple[int, ...]]]:
    plugin = _build(interface, progress)
    with HandedFiles(user) as files:
        yield files.hand(plugin), files.descriptors


def _build(interface: int, progress: Progress) -> Path:
    flags = (*_FLAGS, f"-DPROBE_VERSION={interface}")
    key = make_key(key_probe(), *read_versions(), *flags)

    def build(target: Path) -> None:
        words: list[str | Path] = [COMPILER, *flags, "probe.c", "-o", target / "probe.so"]
        proc.run(words, cwd=SOURCES, env=ENVIRONMENT, deadline=Deadline.after(_COMPILE_S))

    return cached("probe", key, build, progress) / "probe.so"


def _ask(path: Path, words: tuple[str, ...], user: User | None, *descriptors: int) -> Answer:
    deadline = Deadline.after(_ANSWER_S)
    with proc.start_process(
        (path, *words),
        pass_fds=descriptors,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        privileges=user.words if user is not None else (),
    ) as process:
        try:
            printed, _ = process.communicate(timeout=deadline.remaining_s)
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"'{path} {words[0]} ..' gives no answer within {_ANSWER_S:.0f} s") from None
    text = printed[-_MAX_CHARS:].decode(errors="backslashreplace")
    return Answer(status=process.returncode, text=text, pid=process.pid)
