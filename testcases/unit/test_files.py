# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines that are added to a file whole or not at all, on a disk that fills and under an interrupt."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from lab.host.files import append_whole
from lab.host.paths import ROOT

LINE = b"x" * 99 + b"\n"
#: Adds two lines, then one for which the disk has room but for its last bytes, then another one.
FULL_DISK = """
import resource, sys
from lab.host.files import append_whole
line = b"x" * 99 + b"\\n"
with open(sys.argv[1], "ab", buffering=0) as sink:
    for _ in range(2):
        append_whole(sink, line)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * len(line) - 10, hard))
    try:
        append_whole(sink, line)
    except OSError as error:
        print(error)
    if "go on" in sys.argv:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        append_whole(sink, line)
"""


@pytest.mark.parametrize(("words", "count"), [((), 2), (("go on",), 3)])
def test_a_disk_that_fills_within_a_line_costs_that_line_alone(
    tmp_path: Path, words: tuple[str, ...], count: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "lines"), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    assert "File too large" in done.stdout, done.stderr
    assert done.returncode == 0
    assert (tmp_path / "lines").read_bytes() == LINE * count


def test_an_interrupt_within_a_line_leaves_no_part_of_it(tmp_path: Path) -> None:
    class Half:
        def __init__(self, sink: io.FileIO) -> None:
            self.fileno = sink.fileno

        def write(self, data: bytes) -> int:
            os.write(self.fileno(), data[:20])
            raise KeyboardInterrupt

    with open(tmp_path / "lines", "ab", buffering=0) as sink:
        append_whole(sink, LINE)
        with pytest.raises(KeyboardInterrupt):
            append_whole(cast(io.FileIO, Half(sink)), LINE)
    assert (tmp_path / "lines").read_bytes() == LINE


def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "ab", buffering=0) as sink, pytest.raises(OSError, match="No space left"):
        append_whole(sink, LINE)
