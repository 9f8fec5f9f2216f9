# SPDX-License-Identifier: GPL-2.0-or-later
import os
import subprocess
from pathlib import Path

import pytest

from lab.errors import EvidenceError
from lab.host.paths import IMAGES
from lab.report.hosts_page import RECORDS, write_hosts_report

HOST = '{"release":"trixie","commit":"0123","dirty":false,"started":"2026-01-01T00:00:00Z"}\n'
STEP = '{{"name":"{name}","command":"make run","status":{status},"seconds":61}}\n'
SCRIPT = IMAGES / "host" / "test-hosts"


def write_steps(folder: Path, *steps: tuple[str, int]) -> str:
    (folder / RECORDS).write_text(HOST + "".join(STEP.format(name=name, status=status) for name, status in steps))
    return write_hosts_report(folder).read_text()


def test_page_is_green_only_when_something_ran_and_all_ended_well(tmp_path: Path) -> None:
    assert "all that ran ended well" in write_steps(tmp_path, ("run", 0), ("test", 0))
    assert "not all ended well" in write_steps(tmp_path, ("run", 0), ("test", 1))
    assert "not all ended well" in write_steps(tmp_path)


def test_log_is_escaped_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("first line\n" + "x" * 200 * 1024 + "\n\x1b[31m<script>alert(1)</script>\n")
    page = write_steps(tmp_path, ("run", 0))
    assert "&lt;script&gt;alert(1)" in page
    assert not {"<script", "\x1b", "first line"} & {word for word in ("<script", "\x1b", "first line") if word in page}
    assert len(page) < 64 * 1024


def test_name_of_a_step_chooses_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "hosts"
    folder.mkdir()
    (tmp_path / "secret.log").write_text("secret words")
    (folder / "link.log").symlink_to(tmp_path / "secret.log")
    page = write_steps(folder, ("../secret", 0), ("link", 0))
    assert "secret words" not in page
    assert page.count("no log") == 2


@pytest.mark.parametrize("text", ["", "{}\n", HOST + "{\n", "\xff\n"])
def test_damaged_records_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORDS).write_text(text)
    with pytest.raises(EvidenceError, match="is damaged"):
        write_hosts_report(tmp_path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--release", "sid"), "release 'sid' is unknown: there are trixie and bookworm"),
        (("tests",), "'tests' is unknown: usage:"),
        (("--out",), "--out needs a word: usage:"),
        (("--out", "."), "is there already"),
    ],
)
def test_bad_words_are_one_sentence_and_status_2(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert sentence in done.stderr
    assert not any(tmp_path.iterdir())
