# SPDX-License-Identifier: GPL-2.0-or-later
"""``lab ucode``: the file that was asked for, or one sentence and status 2."""

import errno
import os
from pathlib import Path

import msgspec
import pytest
from test_cli import run_lab

from lab.cli.ucode import GUEST_REVISION
from lab.guest.config import BOOT_REVISION
from lab.microcode.files import FILES, UcodeCpu, find_file

REFUSED = {
    "unknown name": (("bad-chekcsum", "--out", "{out}"), "'bad-chekcsum' is unknown: the nearest are bad-checksum"),
    "no name": (("--out", "{out}"), "--out goes with a file's name"),
    "no output": (("good",), "--out is missing: say where to write 'good'"),
    "no file": (("no-file", "--out", "{out}"), "'no-file' stands for no file at all: there is nothing to write"),
    "no such folder": (("good", "--out", "{out}/in/it"), os.strerror(errno.ENOENT)),
    "signature in words": (
        ("good", "--out", "{out}", "--signature", "skylake"),
        "signature 'skylake' is not a number: write 10 or 0x0a",
    ),
    "signature of 33 bits": (
        ("good", "--out", "{out}", "--signature", "0x100000000"),
        "signature is 0x100000000: allowed is 0x0 to 0xffffffff",
    ),
    "two platforms": (("good", "--out", "{out}", "--platform", "3"), "platform is 0x3: allowed is one bit, 0x1 to"),
    "revision that none is older than": (
        ("good", "--out", "{out}", "--revision", "0"),
        "revision is 0x0: allowed is 0x1 to 0xfffffffd",
    ),
    "revision that none is newer than": (("--revision", "0xffffffff"), "revision is 0xffffffff: allowed is 0x1 to"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence_and_status_2(case: str, tmp_path: Path) -> None:
    words, sentence = REFUSED[case]
    out = tmp_path / "out"
    done = run_lab("ucode", *(word.format(out=out) for word in words))
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_is_there_is_not_overwritten(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("years of work")
    elif kind == "folder":
        out.mkdir()
    else:
        out.symlink_to(tmp_path / "elsewhere")
    done = run_lab("ucode", "good", "--out", str(out))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"lab: '{out}' is there already: name a file that is not\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert kind != "file" or out.read_text() == "years of work"


def test_the_file_is_written_for_the_cpu_that_was_named(tmp_path: Path) -> None:
    out = tmp_path / "06-3c-03"
    cpu = ("--signature", "0x306C3", "--platform", "0x20", "--revision", "17")
    done = run_lab("ucode", "good-then-header", "--out", str(out), *cpu, "--json")
    assert done.returncode == 0, done.stderr
    made = find_file("good-then-header").make(UcodeCpu(signature=0x306C3, platform=0x20, revision=17))
    assert out.read_bytes() == made
    told = msgspec.json.decode(done.stdout)
    assert (told["name"], told["bytes"], told["asked_for_as"]) == ("good-then-header", 2096, "intel-ucode/06-3c-03")


def test_without_a_cpu_it_is_for_the_labs_own(tmp_path: Path) -> None:
    out = tmp_path / "made"
    done = run_lab("ucode", "empty", "--out", str(out))
    assert done.stdout == f"{out}: no bytes; 0 bytes, which the kernel asks for as intel-ucode/06-55-04\n"
    assert out.read_bytes() == b""


def test_all_are_listed() -> None:
    done = run_lab("ucode")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [each.name for each in FILES]
    listed = msgspec.json.decode(run_lab("ucode", "--json").stdout)["files"]
    assert [(each["name"], each["summary"]) for each in listed] == [(each.name, each.summary) for each in FILES]


def test_a_file_is_for_the_guests_own_revision_unless_told() -> None:
    assert int(GUEST_REVISION, 16) == BOOT_REVISION
