# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's whole user space: busybox, dropbear, the agent and images/initramfs, in one archive of a few MB.

Each run makes its own keys, so the archive contains none. The keys come in a second archive, and the kernel unpacks the
second archive over the first.
"""

import functools
import zlib
from pathlib import Path

from lab.build import cpio
from lab.build.agent import build_agent
from lab.build.cache import Progress, cached, make_key, read_tree
from lab.errors import HostError
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.paths import IMAGES
from lab.kernelimage import elf

BUSYBOX = Path("/bin/busybox")
DROPBEAR = Path("/usr/sbin/dropbear")
NAME = "initramfs.cpio.gz"

#: dropbear finds its host key at this path; images/initramfs/init names the path.
HOST_KEY = "etc/dropbear/host_key"

#: The agent's path in the guest; lab.guest.agent names the path.
AGENT = "bin/mclab-agent"

#: Debian's loader searches this folder for libraries if there is no configuration file.
LIBRARIES = "usr/lib"

_FOLDERS = (
    *("bin", "dev", "etc", "etc/dropbear", "lib", "lib/firmware", "lib/firmware/intel-ucode", "lib64", "proc"),
    *("run", "sbin", "sys", "usr", "usr/bin", "usr/lib", "usr/sbin", "var", "var/log"),
)

#: Major and minor numbers of Documentation/admin-guide/devices.txt. The kernel opens /dev/console for init before init
#: can mount devtmpfs. The other nodes serve until init mounts devtmpfs.
_NODES = (
    cpio.make_node("dev/console", 5, 1),
    cpio.make_node("dev/null", 1, 3, 0o666),
    cpio.make_node("dev/zero", 1, 5, 0o666),
    cpio.make_node("dev/random", 1, 8, 0o666),
    cpio.make_node("dev/urandom", 1, 9, 0o666),
    cpio.make_node("dev/tty", 5, 0, 0o666),
    cpio.make_node("dev/ptmx", 5, 2, 0o666),
    cpio.make_node("dev/ttyS0", 4, 64),
)

#: Increase this if the code below makes another archive from the same files.
_RECIPE = "2"


def build_initramfs(progress: Progress) -> Path:
    """Return the cache entry that contains the archive (NAME). The archive's length is a multiple of four.

    :raise HostError: a program of the archive is not installed
    :raise BuildError: the agent does not compile
    """
    programs = {"usr/sbin/dropbear": DROPBEAR, AGENT: build_agent(progress)}
    archive = cpio.write_archive((*_list_own(), *_list_busybox(), *_list_programs(programs)))
    key = make_key(_RECIPE, zlib.ZLIB_RUNTIME_VERSION, archive)
    return cached("initramfs", key, functools.partial(_write, archive, progress), progress)


def make_key_archive(authorized_key: str, host_key: bytes) -> bytes:
    """Return the archive of one run's keys, to be appended to the first archive.

    :param authorized_key: the client's public key, one line as in ``authorized_keys``
    :param host_key: the guest's private key in dropbear's own format
    """
    return cpio.write_archive(
        (
            cpio.make_folder("root/.ssh", 0o700),
            cpio.make_file("root/.ssh/authorized_keys", authorized_key.strip().encode() + b"\n", 0o600),
            cpio.make_file(HOST_KEY, host_key, 0o600),
        )
    )


def _write(archive: bytes, progress: Progress, target: Path) -> None:
    progress("initramfs: packing")
    packer = zlib.compressobj(level=9, wbits=16 + zlib.MAX_WBITS)  # a gzip header without name and time
    (target / NAME).write_bytes(cpio.pad(packer.compress(archive) + packer.flush()))


def _list_own() -> tuple[cpio.Entry, ...]:
    files = tuple(
        cpio.make_file(name, data, 0o755 if executable else 0o644)
        for name, executable, data in read_tree(IMAGES / "initramfs")
    )
    folders = (*(cpio.make_folder(name) for name in _FOLDERS), cpio.make_folder("root", 0o700))
    return (*folders, cpio.make_folder("tmp", 0o1777), *_NODES, *files)


def _list_busybox() -> tuple[cpio.Entry, ...]:
    """Return busybox and a link for each of its applets. To make the links at boot would cost each guest 0.1 s."""
    program = cpio.make_file("bin/busybox", _read(BUSYBOX, "busybox-static"), 0o755)
    if elf.read_needs(BUSYBOX).loader:
        raise HostError(f"'{BUSYBOX}' needs shared libraries; mend it with: apt-get install busybox-static")
    applets = proc.run([BUSYBOX, "--list-full"], deadline=Deadline.after(10)).split()
    taken = {"bin/busybox", "linuxrc"}
    links = (cpio.make_link(path, "/bin/busybox") for path in sorted(set(applets) - taken))
    return (program, *links)


def _list_programs(programs: dict[str, Path]) -> tuple[cpio.Entry, ...]:
    """Return programs by their names in the guest, and the loaders and libraries that they need."""
    files = {}
    for name, path in programs.items():
        files[name] = _read(path, "dropbear-bin")
        for library in elf.find_libraries(path):
            files[f"{LIBRARIES}/{library.name}"] = _read(library, "libc6")
        loader = elf.read_needs(path).loader
        if loader:
            files[loader.lstrip("/")] = _read(Path(loader), "libc6")
    return tuple(cpio.make_file(name, data, 0o755) for name, data in files.items())


def _read(path: Path, package: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HostError(f"'{path}': {error.strerror}; mend it with: apt-get install {package}") from error
