# SPDX-License-Identifier: GPL-2.0-or-later
"""What the observer's tests share: its plugin compiled, and a guest of a few instructions that needs no kernel."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from lab.build.qemu import find_qemu
from lab.host.deadline import Deadline
from lab.host.paths import IMAGES
from lab.host.proc import Process, run, start_process
from lab.model.topology import Topology
from lab.observer import ObserverLink, Processor

SOURCES = IMAGES / "observer"
CFLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
GUEST = Path(__file__).parent / "data" / "observer-guest.S"
TOPOLOGY = Topology(sockets=1, cores=1, threads=2)

#: Where the guest's 64 KiB show up in real mode.
_BASE = 0xF0000
_COMPILE_S = 60.0


def compile_plugin(folder: Path, *flags: str) -> Path:
    """Compile all of images/observer as the lab does, for the QEMU of this run."""
    plugin = folder / "observer.so"
    sources = sorted(SOURCES.glob("*.c"))
    level = f"-DPLUGIN_API_VERSION={find_qemu().level}"
    run(
        ["gcc", *CFLAGS, level, *flags, "-shared", "-fPIC", "-o", plugin, *sources], deadline=Deadline.after(_COMPILE_S)
    )
    return plugin


class BenchGuest:
    """The guest's image and where its labels are.

    :param update: what is put at its label of that name
    """

    def __init__(self, folder: Path, *defines: str, update: bytes = b"") -> None:
        elf = folder / "guest.elf"
        self.image = folder / "guest.bin"
        flags = [f"-D{define}" for define in defines]
        link = ["-nostdlib", "-static", "-m32", "-Wl,-Ttext=0,-N,--build-id=none,-e,0"]
        run(["gcc", *flags, *link, "-o", elf, GUEST], deadline=Deadline.after(_COMPILE_S))
        run(["objcopy", "-O", "binary", "-j", ".text", elf, self.image], deadline=Deadline.after(_COMPILE_S))
        with open(elf, "rb") as source:
            table = ELFFile(source).get_section_by_name(".symtab")
            assert isinstance(table, SymbolTableSection)
            self.labels: dict[str, int] = {
                symbol.name: _BASE + symbol["st_value"] for symbol in table.iter_symbols() if symbol.name
            }
        with open(self.image, "r+b") as image:
            image.seek(self.labels["update"] - _BASE)
            image.write(update)
        self._names: dict[int, str] = {address: name for name, address in self.labels.items()}

    def symbolise(self, pc: int) -> str:
        return self._names.get(pc, "")

    def write_landmarks(self, path: Path, **more: str) -> Path:
        """Write the landmark file.

        :param more: labels of further points by their kind, with ``_`` for each ``-``
        """
        points = {
            "load-begin": ["load_begin"],
            "load-end": ["load_end"],
            "call-in": ["call_in"],
            "release": ["release"],
            "nmi-entry": ["nmi_entry"],
            "wrmsr79": ["window_site", "retry_site", "early_site"],
        }
        lines = ["# of the bench guest", f"region 0008 {self.labels['region']:x} {self.labels['region_end']:x}"]
        for kind, labels in points.items():
            lines += [f"point {kind} ffff {self.labels[label]:x}" for label in labels]
        lines += [f"point {kind.replace('_', '-')} ffff {self.labels[label]:x}" for kind, label in more.items()]
        # Of another mechanism than the tests arm: never to be seen.
        lines.append(f"point self-nmi 0001 {self.labels['load_begin']:x}")
        path.write_text("\n".join(lines) + "\n")
        return path


class Bench:
    """A running guest with its observer."""

    def __init__(self, guest: BenchGuest, link: ObserverLink, process: Process, qtest: socket.socket) -> None:
        self.guest = guest
        self.link = link
        self.process = process
        self._qtest = qtest

    def __enter__(self) -> "Bench":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._qtest.close()

    def send_nmi(self, vcpu: int) -> None:
        """Send one NMI by an MSI write, and wait for its acknowledgement."""
        self._qtest.sendall(f"writel {0xFEE00000 + (vcpu << 12):#x} 0x400\n".encode())
        assert self._qtest.recv(64) == b"OK\n"

    def read_word(self, address: int) -> int:
        """Return what the guest has in memory."""
        self._qtest.sendall(f"readl {address:#x}\n".encode())
        word, _, value = self._qtest.recv(64).decode().partition(" ")
        assert word == "OK"
        return int(value, 16)


@contextlib.contextmanager
def start_bench(
    folder: Path,
    plugin: Path,
    *defines: str,
    ring_records: int = 4096,
    table_blocks: int = 64,
    cover_blocks: int = 64,
    update: bytes = b"",
    engine: Processor | None = None,
    **points: str,
) -> Iterator[Bench]:
    """Start the guest; it goes round by itself. The points are further ones, as the landmarks take them."""
    guest = BenchGuest(folder, *defines, update=update)
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with (
        ObserverLink.create(
            folder, TOPOLOGY, ring_records=ring_records, table_blocks=table_blocks, cover_blocks=cover_blocks
        ) as link,
        open(folder / "qemu.log", "wb") as log,
        start_process(
            [
                find_qemu().path,
                "-nodefaults", "-no-user-config", "-display", "none",
                "-machine", "pc", "-accel", "tcg,thread=multi",
                "-smp", "2,cores=1,threads=2", "-m", "16", "-bios", guest.image,
                "-chardev", f"socket,id=qtest,fd={theirs.fileno()}",
                "-qtest", "chardev:qtest", "-qtest-log", "none",
                "-plugin",
                link.plugin_arguments(plugin, guest.write_landmarks(folder / "landmarks", **points), engine=engine),
            ],
            pass_fds=[link.pass_fd, theirs.fileno()],
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        theirs.close()
        link.close_child_end()
        with Bench(guest, link, process, ours) as bench:
            yield bench
