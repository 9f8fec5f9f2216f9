# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine has and lacks for the lab, and the command that mends each lack.

Whether KVM is usable is not told here: its device can be there and still never boot a guest, so only the room that
boots guests can say.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from lab.build.compiler import ENVIRONMENT
from lab.build.initramfs import BUSYBOX, DROPBEAR
from lab.build.kernel import GIB, SOURCES
from lab.errors import DeadlineError, HostError, ProcessError
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.paths import find_cache
from lab.host.user import describe_user

QEMU = "qemu-system-x86_64"
MIN_QEMU = (7, 2)
MIN_DISK_GIB = 8
MIN_CORES = 2
#: One guest and the lab beside it; the kernel's link step takes about as much.
MIN_MEMORY_GIB = 2

_PROBE_S = 20.0
_VERSION = re.compile(r"version (\d+)\.(\d+)[.\d]*")

#: What must be there and the package that brings it.
_PROGRAMS = (
    *(("gcc", "gcc"), ("ld", "binutils"), ("make", "make"), ("patch", "patch"), ("flex", "flex"), ("bison", "bison")),
    *(("bc", "bc"), ("perl", "perl"), ("xz", "xz-utils"), ("setpriv", "util-linux")),
)
_FILES = (
    ("busybox", BUSYBOX, "busybox-static"),
    ("dropbear", DROPBEAR, "dropbear-bin"),
    ("libelf headers", Path("/usr/include/gelf.h"), "libelf-dev"),
    ("openssl headers", Path("/usr/include/openssl/ssl.h"), "libssl-dev"),
    ("linux-source-6.1", SOURCES / "linux-source-6.1.tar.xz", "linux-source-6.1"),
    ("linux-source-6.12", SOURCES / "linux-source-6.12.tar.xz", "linux-source-6.12"),
)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the lab needs.

    :param found: what there is, in a few words
    :param mend: the command or step that mends it, empty when nothing is amiss
    """

    name: str
    ok: bool
    found: str
    mend: str = ""


def examine_host() -> tuple[Check, ...]:
    """Look at everything; a lack is a result, never an error."""
    return (
        *_examine_qemu(),
        *(_examine_program(name, package) for name, package in _PROGRAMS),
        *(_examine_file(name, path, package) for name, path, package in _FILES),
        *_examine_cache(),
        _examine_cores(),
        _examine_memory(),
    )


def read_qemu_version() -> str:
    """Return QEMU's version with its package's, such as ``7.2.22 (Debian 1:7.2+dfsg-7)``.

    :raise HostError: there is none
    """
    try:
        first = proc.run([QEMU, "--version"], deadline=Deadline.after(_PROBE_S)).splitlines()[0]
    except (ProcessError, DeadlineError, IndexError) as error:
        raise HostError(f"'{QEMU}' does not run; mend it with: {_install('qemu-system-x86')}") from error
    return first.removeprefix("QEMU emulator version ")


def require_qemu() -> str:
    """Return QEMU's version as :func:`read_qemu_version`, once it is known to be new enough and to take plugins.

    :raise HostError: it is not; the text says what mends it
    """
    lacks = [check for check in _examine_qemu() if not check.ok]
    if lacks:
        raise HostError(f"{lacks[0].name}: {lacks[0].found}; mend it with: {lacks[0].mend}")
    return read_qemu_version()


def _install(package: str) -> str:
    return f"apt-get install {package}"


def _examine_qemu() -> tuple[Check, ...]:
    mend = _install("qemu-system-x86")
    try:
        version = read_qemu_version()
    except HostError:
        return (Check(name="qemu", ok=False, found="does not run", mend=mend),)
    match = _VERSION.match(f"version {version}")
    new_enough = match is not None and (int(match[1]), int(match[2])) >= MIN_QEMU
    wanted = f"{mend} (version {MIN_QEMU[0]}.{MIN_QEMU[1]} or newer)"
    return (
        Check(name="qemu", ok=new_enough, found=version, mend="" if new_enough else wanted),
        Check(name="qemu's user", ok=True, found=describe_user()),
        _examine_plugins(),
    )


def _examine_plugins() -> Check:
    """Load a plugin that is not there: QEMU built with plugins fails at the file, one built without at the option."""
    output = ""
    try:
        nowhere = "file=/nonexistent/plugin.so"
        probe = [QEMU, "-machine", "none", "-nodefaults", "-display", "none", "-plugin", nowhere]
        output = proc.run(probe, deadline=Deadline.after(_PROBE_S))
    except ProcessError as error:
        output = error.output
    except (HostError, DeadlineError) as error:
        output = str(error)
    ok = "Could not load plugin" in output
    found = "supported" if ok else (output.strip().splitlines() or ["no answer"])[-1]
    return Check(name="qemu plugins", ok=ok, found=found, mend="" if ok else "use a QEMU built with --enable-plugins")


def _examine_program(name: str, package: str) -> Check:
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    return Check(name=name, ok=path is not None, found=path or "not installed", mend="" if path else _install(package))


def _examine_file(name: str, path: Path, package: str) -> Check:
    ok = path.is_file()
    return Check(
        name=name, ok=ok, found=str(path) if ok else f"{path} is missing", mend="" if ok else _install(package)
    )


def _examine_cache() -> tuple[Check, ...]:
    try:
        cache = find_cache()
    except HostError as error:
        return (Check(name="cache", ok=False, found=str(error), mend="set XDG_CACHE_HOME to a writable folder"),)
    mend = f"free space in {cache}, or set XDG_CACHE_HOME to a folder with more"
    return (
        Check(name="cache", ok=True, found=f"{cache} is writable"),
        _examine_amount("disk space", lambda: shutil.disk_usage(cache).free / GIB, MIN_DISK_GIB, "GiB free", mend),
    )


def _examine_cores() -> Check:
    # Not all cores of the machine may be ours (cpusets, containers).
    mend = "give this machine more cores: with one, no two vCPUs ever overlap"
    return _examine_amount("cores", lambda: len(os.sched_getaffinity(0)), MIN_CORES, "cores", mend)


def _examine_memory() -> Check:
    mend = "give this machine more memory, or end programs that hold it"
    return _examine_amount("memory", lambda: psutil.virtual_memory().available / GIB, MIN_MEMORY_GIB, "GiB free", mend)


def _examine_amount(name: str, read: Callable[[], float], wanted: int, unit: str, mend: str) -> Check:
    there = read()
    text = f"{there:.0f}" if there == int(there) else f"{there:.1f}"
    ok = there >= wanted
    return Check(name=name, ok=ok, found=f"{text} {unit}, {wanted} wanted", mend="" if ok else mend)
