# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache of images whose guests fail by themselves, so that a whole lab, started as ever, meets guests' faults.

Which fault it is follows from the mechanism of the load that has just begun; others are served well.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Final

from oopses import JUMP_TO_SELF
from patched_kernel import find_payload, patch_kernel

from lab.build.cpio import make_file, pad, write_archive
from lab.build.images import ImageSet
from lab.host.paths import IMAGES, find_cache

#: Reached by all CPUs in stop_machine(), with interrupts off, and by this mechanism alone.
HANGS: Final = "stop-machine"
HUNG: Final = "__reload_late"
PANICS: Final = "nmi-siblings"
REBOOTS: Final = "nmi-broadcast"
LOSES_SSH: Final = "park-hlt"
FLOODS: Final = "uniform"
SOUND: Final = "nmi-self"

_SCRIPT: Final = f"""#!/bin/sh
garbage() {{
	dd if=/dev/urandom bs=900 count=4 of=/dev/kmsg
	dd if=/dev/urandom bs=64k count=1 of=/dev/console
}}
# Of a log's record a reader takes all or nothing, which the shell's own read does not.
cat /dev/kmsg | while read -r line; do
	case "$line" in
	*"Attempting late microcode loading"*)
		read -r name </sys/kernel/debug/microcode_lab/mechanism
		case "$name" in
		{PANICS}) echo c >/proc/sysrq-trigger ;;
		{REBOOTS}) echo b >/proc/sysrq-trigger ;;
		{LOSES_SSH}) killall -9 dropbear ;;
		{FLOODS}) (for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do garbage; done) 2>/dev/null & ;;
		esac
		;;
	esac
done
"""
_ONCE_MOUNTED: Final = "# QEMU's user network"


def make_faulty_cache(images: ImageSet, cache: Path) -> None:
    """Make a cache, to be named by XDG_CACHE_HOME, of the default kernel and a guest that fails."""
    kernel = _copy(images.kernel, cache)
    _replace(kernel, patch_kernel(kernel.read_bytes(), images.vmlinux, {HUNG: JUMP_TO_SELF}))
    _copy(images.observer, cache)
    init = (IMAGES / "initramfs/init").read_text()
    assert _ONCE_MOUNTED in init
    files = [
        make_file("init", init.replace(_ONCE_MOUNTED, f"sh /faults &\n{_ONCE_MOUNTED}", 1).encode(), 0o755),
        make_file("faults", _SCRIPT.encode(), 0o755),
    ]
    initramfs = _copy(images.initramfs, cache)
    # Of two files of one name the later one stays.
    _replace(initramfs, pad(initramfs.read_bytes()) + write_archive(files))


def make_blind_cache(images: ImageSet, blind: Path, cache: Path) -> None:
    """Make a cache of the default images with another observer, one that loses what it sees.

    :param blind: the observer
    """
    for path in (images.kernel, images.initramfs):
        _copy(path, cache)
    _replace(_copy(images.observer, cache), blind.read_bytes())


def spoil_payload(image: bytes) -> bytes:
    """Return a bzImage that unpacks to nothing."""
    start, _ = find_payload(image)
    return image[:start] + bytes(byte ^ 0xA5 for byte in image[start : start + 4_096]) + image[start + 4_096 :]


def _copy(path: Path, cache: Path) -> Path:
    shared = find_cache()
    target = cache / shared.name / path.parent.relative_to(shared)
    shutil.copytree(path.parent, target)
    return target / path.name


def _replace(path: Path, data: bytes) -> None:
    """Give a file of the cache another content, and its entry the sum of it."""
    before, after = (hashlib.sha256(each).hexdigest() for each in (path.read_bytes(), data))
    sums = path.parent / "SHA256SUMS"
    text = sums.read_text()
    assert before in text
    for each, content in ((path, data), (sums, text.replace(before, after).encode())):
        each.chmod(0o644)
        each.write_bytes(content)
