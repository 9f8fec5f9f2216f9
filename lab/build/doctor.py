# SPDX-License-Identifier: GPL-2.0-or-later
"""Check what the lab needs on this machine. For each missing item, name the command that installs it.

This module does not check KVM. KVM's device can exist and still never boot a guest; only the room that boots guests can
check KVM.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from lab.build.compiler import ENVIRONMENT
from lab.build.initramfs import BUSYBOX, DROPBEAR
from lab.build.kernel import GIB
from lab.build.kernel_source import Origin, list_sources, locate_source
from lab.build.qemu import INSTALL as QEMU_INSTALL
from lab.build.qemu import OPTION, VARIABLE, examine_qemu, find_qemu, list_paths
from lab.errors import HostError, UsageError
from lab.host.paths import find_cache
from lab.host.user import describe_user
from lab.model.qemu import Qemu

MIN_DISK_GIB = 8
MIN_CORES = 2
#: One guest and the lab; linking the kernel takes about as much.
MIN_MEMORY_GIB = 2

#: Required files, each with the package that installs it.
_PROGRAMS = (
    *(("gcc", "gcc"), ("ld", "binutils"), ("make", "make"), ("patch", "patch"), ("flex", "flex"), ("bison", "bison")),
    *(("bc", "bc"), ("perl", "perl"), ("xz", "xz-utils"), ("setpriv", "util-linux")),
)
_FILES = (
    ("busybox", BUSYBOX, "busybox-static"),
    ("dropbear", DROPBEAR, "dropbear-bin"),
    ("libelf headers", Path("/usr/include/gelf.h"), "libelf-dev"),
    ("openssl headers", Path("/usr/include/openssl/ssl.h"), "libssl-dev"),
)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One item that the lab needs.

    :param found: what the machine has, in a few words
    :param mend: command or step that repairs the item; empty if the item is in order
    """

    name: str
    ok: bool
    found: str
    mend: str = ""


class QemuFound(msgspec.Struct, frozen=True, kw_only=True):
    """A QEMU of this host.

    :param problem: why guests cannot run on this QEMU; empty if they can, and then all other fields are set
    :param sees: what the observer sees on this QEMU, in a few words each
    :param runs_as: the user QEMU runs as, in a few words
    :param caution: a known defect of this QEMU
    """

    path: str
    usable: bool
    problem: str = ""
    version: str = ""
    sha256: str = ""
    interface_min: int | None = None
    interface_max: int | None = None
    level: int | None = None
    sees: tuple[str, ...] = ()
    runs_as: str = ""
    caution: str = ""


def examine_host(qemu: Path | None = None) -> tuple[Check, ...]:
    """Check all items. A missing item is a result, never an error.

    :param qemu: the QEMU to run guests on; None for the default QEMU
    """
    return (
        *_examine_qemu(qemu),
        *(_examine_program(name, package) for name, package in _PROGRAMS),
        *(_examine_file(name, path, package) for name, path, package in _FILES),
        *(_examine_source(base) for base in list_sources()),
        *_examine_cache(),
        _examine_cores(),
        _examine_memory(),
    )


def _install(package: str) -> str:
    return f"apt-get install {package}"


def _examine_qemu(given: Path | None) -> tuple[Check, ...]:
    try:
        found = find_qemu(given)
    except (HostError, UsageError) as error:
        missing = given is None and not list_paths()
        mend = QEMU_INSTALL if missing else f"name a QEMU that is fit with {OPTION} or {VARIABLE}"
        return (Check(name="qemu", ok=False, found=str(error), mend=mend),)
    caution = f"; caution: {found.caution}" if found.caution else ""
    interface = f"plugin interface {found.level}"
    return (
        Check(name="qemu", ok=True, found=f"{found.path}: {found.version}, {interface}{caution}"),
        Check(name="qemu's user", ok=True, found=describe_user()),
    )


def examine_qemus(given: Path | None = None) -> tuple[QemuFound, ...]:
    """Examine each QEMU of this host. The QEMU that guests run on by default comes first.

    :param given: another QEMU, which then comes first
    """
    found = []
    for path in list_paths(given):
        try:
            found.append(QemuFound(path=str(path), usable=True, **_describe_qemu(examine_qemu(path))))
        except HostError as error:
            found.append(QemuFound(path=str(path), usable=False, problem=str(error)))
    return tuple(found)


def _describe_qemu(qemu: Qemu) -> dict[str, Any]:
    return {
        "version": qemu.version,
        "sha256": qemu.sha256,
        "interface_min": qemu.interface_min,
        "interface_max": qemu.interface_max,
        "level": qemu.level,
        "sees": qemu.sees,
        "runs_as": describe_user(),
        "caution": qemu.caution,
    }


def _examine_program(name: str, package: str) -> Check:
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    return Check(name=name, ok=path is not None, found=path or "not installed", mend="" if path else _install(package))


def _examine_file(name: str, path: Path, package: str) -> Check:
    ok = path.is_file()
    return Check(
        name=name, ok=ok, found=str(path) if ok else f"{path} is missing", mend="" if ok else _install(package)
    )


def _examine_source(base: str) -> Check:
    try:
        place = locate_source(base)
    except HostError as error:
        return Check(name=f"source of {base}", ok=False, found=str(error), mend="make the cache usable")
    return Check(name=f"source of {base}", ok=place.origin is not Origin.NOWHERE, found=place.found, mend=place.mend)


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
    # cpusets and containers may allow the lab only some of the machine's cores.
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
