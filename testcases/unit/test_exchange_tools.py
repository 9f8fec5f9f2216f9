# SPDX-License-Identifier: GPL-2.0-or-later
"""KCIDB JSON and Parquet, each read by the format's own tool."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evidence_builder import MS, WINDOW_AT_NS, Load
from report_samples import IMAGES, write_sample_run

from lab.errors import UsageError
from lab.expected.expect import Expected
from lab.host.paths import ROOT
from lab.judge import judge
from lab.mechanisms.mechanism import Expectation
from lab.model.evidence import Ending, EventKind
from lab.report.kcidb import UNKNOWN, make_kcidb
from lab.report.parquet import format_parquet
from lab.trial.record import make_record

_EVIDENCE = (
    Load().build(),
    Load().add(WINDOW_AT_NS + MS, EventKind.OUTSIDE, 1).build(),
    Load().drop(EventKind.WINDOW_CLOSE, 2).build(),
    Load(ending=Ending.LAB).build(),
)
PASS, FAIL, INVALID, ERROR = (make_record(1, each, judge(each), "") for each in _EVIDENCE)
CLEAN, CAUGHT = Expected(kind=Expectation.CLEAN), Expected(kind=Expectation.CAUGHT)
HOSTILE = "\x1b[31m\x00\u202e../\n<script>" + "x" * 5_000
STARTED = "2026-03-01T22:14:05+01:00"


def validate(made: dict[str, Any]) -> dict[str, Any]:
    """Have KCIDB's own library say whether this can be submitted, and return what it would get."""
    kcidb_io = pytest.importorskip("kcidb_io", reason="kcidb-io is in the extra 'dev'")
    data = msgspec.json.decode(msgspec.json.encode(made))
    kcidb_io.schema.V5_3.validate(data)
    return dict(data)


def test_kcidb_takes_what_is_written_and_nothing_refers_to_what_is_not_there() -> None:
    trials = {"sound": (CLEAN, [PASS, FAIL, INVALID, ERROR]), "control": (CAUGHT, [FAIL])}
    made = validate(make_kcidb(trials, (IMAGES,), "one", STARTED))
    assert [each["status"] for each in made["tests"]] == ["FAIL", "PASS", "FAIL", "SKIP", "MISS", "PASS", "PASS"]
    assert {each["build_id"] for each in made["tests"]} <= {each["id"] for each in made["builds"]}
    assert {each["checkout_id"] for each in made["builds"]} <= {each["id"] for each in made["checkouts"]}
    assert len({each["id"] for each in made["tests"]}) == len(made["tests"])
    assert made["checkouts"][0]["comment"] == IMAGES.kernel_release
    assert made["tests"][0]["start_time"] == STARTED
    assert made["tests"][1]["misc"]["seed"] == PASS.seed


def test_kcidb_tells_runs_apart_and_the_same_run_is_the_same() -> None:
    one, again, other = (make_kcidb({"a": (CLEAN, [PASS])}, (), run, STARTED) for run in ("1", "1", "2"))
    assert one == again
    assert {each["id"] for each in one["tests"]}.isdisjoint(each["id"] for each in other["tests"])


@pytest.mark.parametrize("started", ["", "yesterday", "2026-03-01T22:14:05"])
def test_kcidb_takes_trials_without_a_kernel_and_text_of_others(started: str) -> None:
    bad = msgspec.structs.replace(FAIL, reason=HOSTILE, bucket=HOSTILE, evidence=HOSTILE, kernel_sha256=HOSTILE)
    gone = msgspec.structs.replace(ERROR, kernel_sha256="")
    odd = msgspec.structs.replace(IMAGES, kernel_release=HOSTILE, qemu_version=HOSTILE)
    made = validate(make_kcidb({HOSTILE: (CLEAN, [bad, gone])}, (odd,), HOSTILE, started))
    assert made["tests"][2]["build_id"].endswith(f":{UNKNOWN}")
    assert not {"\x1b", "\x00", "\u202e"} & set("".join(each["comment"] for each in made["tests"]))
    assert all("start_time" not in each for each in made["tests"])
    only = validate(make_kcidb({"a": (CLEAN, [gone])}, (IMAGES,), "1", started))
    assert only["tests"][1]["build_id"] == only["builds"][0]["id"]


@pytest.mark.parametrize("origin", ["", "Upper", "a-b", "ä"])
def test_an_origin_that_kcidb_refuses_is_refused(origin: str) -> None:
    with pytest.raises(UsageError, match="--origin"):
        make_kcidb({}, (), "1", "", origin)


def test_parquet_has_a_row_for_each_trial_with_its_types() -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is in the extra 'parquet'")
    bad = msgspec.structs.replace(FAIL, reason=HOSTILE)
    table = parquet.read_table(io.BytesIO(format_parquet({"a": (CLEAN, [PASS]), "b": (CLEAN, [bad])})))
    rows = table.to_pylist()
    assert [(row["scenario"], row["outcome"], row["invariant quiet"]) for row in rows] == [
        ("a", "PASS", "held"),
        ("b", "FAIL", "broken"),
    ]
    assert rows[0]["seed"] == PASS.seed
    assert rows[0]["load_us"] == PASS.durations.host_load_us
    assert rows[0]["windows_us"] == [span.us for span in PASS.durations.host_windows_us]
    assert "\x00" not in rows[1]["reason"]
    assert str(table.schema.field("load_us").type) == "double"


def test_parquet_of_nothing_is_a_table_without_rows() -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is in the extra 'parquet'")
    assert parquet.read_table(io.BytesIO(format_parquet({}))).num_rows == 0


def run_lab(*words: str | Path, before: str = "pass") -> subprocess.CompletedProcess[bytes]:
    program = f"import sys; {before}; from lab.cli import main; main()"
    command = (sys.executable, "-c", program, "export", *map(str, words))
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)


def test_the_command_writes_both(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "run", trials=5)
    done = run_lab(tmp_path / "run", "--format", "kcidb", "--origin", "mine", "--out", tmp_path / "k.json")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    made = validate(msgspec.json.decode((tmp_path / "k.json").read_bytes()))
    assert {each["origin"] for each in made["tests"]} == {"mine"}
    assert len(made["tests"]) == 3 * (5 + 1)
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is in the extra 'parquet'")
    done = run_lab(tmp_path / "run", "--format", "parquet")
    assert parquet.read_table(io.BytesIO(done.stdout)).num_rows == 3 * 5


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "run", trials=5)
    done = run_lab(tmp_path / "run", "--format", "parquet", before="sys.modules['pyarrow'] = None")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"pip install 'microcode-nmi-lab[parquet]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "kcidb", "--origin", "Not Mine"), b"--origin 'Not Mine'"),
        (("--format", "csv", "--origin", "mine"), b"--origin goes with --format kcidb"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], said: bytes, tmp_path: Path) -> None:
    write_sample_run(tmp_path / "run", trials=5)
    done = run_lab(tmp_path / "run", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
