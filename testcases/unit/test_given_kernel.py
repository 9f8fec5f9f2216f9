# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that users bring: what is refused before anything is booted, and how the two files are held together."""

import bz2
import gzip
import lzma
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.errors import UsageError
from lab.kernelimage import payload
from lab.kernelimage.bzimage import read_bzimage
from lab.kernelimage.elf import read_build_id
from lab.kernelimage.recognise import recognise
from lab.kernelimage.vmlinux import Function, Kernel, read_kernel
from lab.model.evidence import Match
from lab.trial import given
from lab.trial.given import take_kernel

RELEASE = "6.9.1-mine"
BUILD = "#3 SMP Mon Nov 23 12:00:00 UTC 2026"
VERSION = f"{RELEASE} (me@here) {BUILD}"
PAYLOAD_AT = 100


def write_banner(version: str) -> str:
    release, builder, rest = version.split(" ", 2) if version else ("", "", "")
    return f'"Linux version {release} {builder} (gcc (Debian) 12, GNU ld) {rest}\\n"' if version else '""'


#: As in a kernel that runs on Xen, too: a note of Xen's with the type of the build id, and before it.
XEN_NOTE = """
__asm__(".pushsection .note.Xen, \\"a\\", @note; .long 4, 8, 3; .asciz \\"Xen\\"; .quad 0x80000000; .popsection");
"""
NOTES_FIRST = """
PHDRS { text PT_LOAD; notes PT_NOTE; }
SECTIONS {
  . = 0x400000;
  .text : { *(.text) } :text
  .rodata : { *(.rodata*) } :text
  .notes : { *(.note.Xen) *(.note.gnu.build-id) } :text :notes
}
"""


def make_vmlinux(
    path: Path,
    *,
    build_id: bool = True,
    banner: str = VERSION,
    salt: str = "",
    weak: str = "",
    xen: bool = False,
) -> Path:
    """Build a vmlinux.

    :param weak: of a banner in front of the kernel's own
    :param xen: it has a note of Xen's, too
    """
    path.with_suffix(".ld").write_text(NOTES_FIRST)
    path.with_suffix(".c").write_text(
        f"{XEN_NOTE if xen else ''}"
        f"static const char weak_banner[] __attribute__((used)) = {write_banner(weak)};"
        f'const char linux_banner[] = {write_banner(banner)}, salt[] = "{salt}"; int apply(void) {{ return 1; }}'
    )
    options = [
        "-O2",
        "-fno-toplevel-reorder",
        "-nostdlib",
        "-static",
        "-no-pie",
        f"-Wl,--build-id={'sha1' if build_id else 'none'}",
        "-Wl,-e0",
        *([f"-Wl,-T,{path.with_suffix('.ld')}"] if xen else []),
    ]
    subprocess.run(["gcc", *options, "-o", path, path.with_suffix(".c")], check=True, timeout=60)
    return path


def pack_lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


def pack_zstd(data: bytes) -> bytes:
    return run(["zstd", "-22", "--ultra"], data)


def pack_lz4(data: bytes) -> bytes:
    return run(["lz4", "-l", "-9"], data)


def run(words: list[str], data: bytes) -> bytes:
    """Pack as the kernel's build does."""
    return subprocess.run([*words, "-c", "-q"], input=data, capture_output=True, check=True, timeout=60).stdout


def pack_lzo(data: bytes) -> bytes:
    """Pack as no reader here can read: by the magic number of lzop alone."""
    return b"\x89LZO\0\r\n\x1a\n" + zlib.compress(data)


def make_image(
    path: Path, vmlinux: Path, pack: Callable[[bytes], bytes] = gzip.compress, *, version: str = VERSION
) -> Path:
    # The kernel's build puts the length behind what it has packed with most packers.
    payload = pack(vmlinux.read_bytes()) + b"\x12\x34\0\0"
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, 0x20F)
    struct.pack_into("<H", header, 0x20E, 0x300 - 0x200)
    header[0x300 : 0x300 + len(version)] = version.encode()
    struct.pack_into("<II", header, 0x248, PAYLOAD_AT, len(payload))
    path.write_bytes(bytes(header) + bytes(PAYLOAD_AT) + payload)
    return path


@pytest.fixture
def vmlinux(tmp_path: Path) -> Path:
    return make_vmlinux(tmp_path / "vmlinux")


def match(image: Path, vmlinux: Path) -> Match:
    return given._match(image, read_bzimage(image), vmlinux, read_kernel(vmlinux))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, pack_lzma, pack_zstd, pack_lz4, bytes])
def test_the_build_id_is_found_in_what_is_packed(tmp_path: Path, vmlinux: Path, pack: Callable[[bytes], bytes]) -> None:
    image = make_image(tmp_path / "bzImage", vmlinux, pack)
    with open(vmlinux, "rb") as source:
        build_id = read_build_id(source)
    assert len(build_id) == 40
    assert (read_bzimage(image).build_id, read_bzimage(image).release) == (build_id, RELEASE)
    assert match(image, vmlinux) is Match.BUILD_ID


def test_a_note_of_xens_is_not_the_build_id(tmp_path: Path) -> None:
    vmlinux = make_vmlinux(tmp_path / "vmlinux", xen=True)
    notes = subprocess.run(["readelf", "-n", vmlinux], check=True, capture_output=True, text=True, timeout=60).stdout
    assert 0 < notes.index("Xen") < notes.index("GNU")
    build_id = read_kernel(vmlinux).build_id
    assert f"Build ID: {build_id}" in notes
    image = make_image(tmp_path / "bzImage", vmlinux, gzip.compress)
    assert read_bzimage(image).build_id == build_id
    assert match(image, vmlinux) is Match.BUILD_ID


def test_another_build_of_the_same_version_is_refused(tmp_path: Path, vmlinux: Path) -> None:
    image = make_image(tmp_path / "bzImage", make_vmlinux(tmp_path / "other", salt="x"))
    with pytest.raises(UsageError, match=r"does not belong to kernel .* build ids"):
        take_kernel(image, vmlinux)


@pytest.mark.parametrize(
    "pack",
    [
        pack_lzo,
        lambda data: gzip.compress(data)[:60],
        lambda data: b"\xfd7zXZ\0" + data,
        lambda data: pack_zstd(data)[:60],
        lambda data: pack_zstd(data)[:4] + data,
        lambda data: pack_lz4(data)[:60],
        lambda data: pack_lz4(data)[:4] + b"\x10\0\0\0" + data,
        lambda data: pack_lz4(data)[:4] + b"\0\0\0\0" + data,
    ],
)
def test_what_cannot_be_unpacked_is_compared_by_version(
    tmp_path: Path, vmlinux: Path, pack: Callable[[bytes], bytes]
) -> None:
    assert match(make_image(tmp_path / "bzImage", vmlinux, pack), vmlinux) is Match.VERSION
    other = make_image(tmp_path / "bzImage", vmlinux, pack, version=VERSION.replace("#3", "#4"))
    with pytest.raises(UsageError, match=r"does not belong to kernel .*#3 SMP.*#4 SMP"):
        match(other, vmlinux)


def test_a_kernel_without_build_id_is_compared_by_version(tmp_path: Path) -> None:
    vmlinux = make_vmlinux(tmp_path / "vmlinux", build_id=False)
    assert match(make_image(tmp_path / "bzImage", vmlinux), vmlinux) is Match.VERSION


def test_the_banner_is_the_symbols_and_not_the_first_of_its_form(tmp_path: Path) -> None:
    """Since 6.1 a weak banner without number and date comes first."""
    weak = f"{RELEASE} (me@here) # SMP"
    vmlinux = make_vmlinux(tmp_path / "vmlinux", build_id=False, weak=weak)
    assert vmlinux.read_bytes().index(b"# SMP\n") < vmlinux.read_bytes().index(BUILD.encode())
    assert match(make_image(tmp_path / "bzImage", vmlinux), vmlinux) is Match.VERSION


def test_what_nothing_tells_of_is_refused(tmp_path: Path) -> None:
    vmlinux = make_vmlinux(tmp_path / "vmlinux", build_id=False, banner="")
    with pytest.raises(UsageError, match="neither build id nor version"):
        match(make_image(tmp_path / "bzImage", vmlinux), vmlinux)


@pytest.mark.parametrize("pack", [gzip.compress, pack_zstd, pack_lz4])
def test_what_unpacks_without_end_is_left_packed(
    tmp_path: Path, vmlinux: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    image = make_image(tmp_path / "bzImage", vmlinux, pack)
    monkeypatch.setattr(payload, "MAX_KERNEL_BYTES", 100)
    assert read_bzimage(image).build_id == ""


def spoil(offset: int, data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with open(path, "r+b") as sink:
            sink.seek(offset)
            sink.write(data)

    return write


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.unlink(), r"kernel '.*bzImage' is not there"),
        (replace_by_fifo, "no regular file"),
        (replace_by_folder, "no regular file"),
        (lambda path: path.write_bytes(b""), "is no bzImage"),
        (lambda path: path.write_bytes(path.read_bytes()[:0x220]), "is no bzImage"),
        (spoil(0x202, b"HdrT"), "is no bzImage"),
        (spoil(0x206, b"\x07\x02"), "before 2.08"),
        (spoil(0x20E, b"\0\0"), "does not name its version"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, vmlinux: Path, change: Callable[[Path], None], told: str) -> None:
    image = make_image(tmp_path / "bzImage", vmlinux)
    change(image)
    with pytest.raises(UsageError, match=told):
        take_kernel(image, vmlinux)


def test_a_payload_that_is_nowhere_is_compared_by_version(tmp_path: Path, vmlinux: Path) -> None:
    image = make_image(tmp_path / "bzImage", vmlinux)
    spoil(0x248, b"\xff\xff\xff\xff\xff\xff\xff\xff")(image)
    assert match(image, vmlinux) is Match.VERSION


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.unlink(), r"vmlinux '.*vmlinux' is not there"),
        (lambda path: path.write_bytes(b"no ELF"), "not an ELF file"),
        (lambda path: subprocess.run(["strip", path], check=True, timeout=60), "is stripped"),
        (spoil(18, b"\xb7\0"), "not for x86-64"),
    ],
)
def test_what_is_no_vmlinux_is_refused(
    tmp_path: Path, vmlinux: Path, change: Callable[[Path], object], told: str
) -> None:
    image = make_image(tmp_path / "bzImage", vmlinux)
    change(vmlinux)
    with pytest.raises(UsageError, match=told):
        take_kernel(image, vmlinux)


def test_a_kernel_without_late_loading_is_told_what_it_lacks(tmp_path: Path, vmlinux: Path) -> None:
    image = make_image(tmp_path / "bzImage", vmlinux)
    with pytest.raises(UsageError, match=r"kernel '.*bzImage': .*CONFIG_MICROCODE_LATE_LOADING=y"):
        take_kernel(image, vmlinux)


OURS = ("microcode_engine_load", "mclab_load_end", "mclab_record_release")


@pytest.mark.parametrize(
    ("functions", "release", "base"),
    [
        (("__reload_late", "__wait_for_cpus.constprop.0"), "6.1.170", "stock-before-6.7"),
        (("load_cpus_stopped", "load_late_stop_cpus"), "6.12.57", "stock-since-6.7"),
        (("load_cpus_stopped",), "7.2.0-rc1+", "stock-since-6.7"),
        (("__reload_late", *OURS), "6.1.170", "linux-6.1"),
        # The engine alone, or on a version that the lab does not build: nothing knows how the rest of it behaves.
        (("__reload_late", OURS[0]), "6.1.170", "stock-before-6.7"),
        (("__reload_late", *OURS), "6.2.0", "stock-before-6.7"),
        (("load_cpus_stopped", OURS[0]), "6.12.57", "linux-6.12"),
        (("load_cpus_stopped", OURS[0]), "6.13.0", "stock-since-6.7"),
    ],
)
def test_a_kernel_is_known_by_its_functions(functions: tuple[str, ...], release: str, base: str) -> None:
    kernel = Kernel(
        tuple(Function(name, 4096 * number, 4096 * number + 16) for number, name in enumerate(functions, 1)), {}
    )
    assert recognise(kernel, release).name == base
