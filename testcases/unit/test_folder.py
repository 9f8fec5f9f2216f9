# SPDX-License-Identifier: GPL-2.0-or-later
import hashlib
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_samples import make_evidence, make_verdict

from lab.errors import EvidenceError, UsageError
from lab.evidence import folder as folder_module
from lab.evidence.folder import claim_trial_output, read_evidence, read_verdict, write_evidence, write_verdict
from lab.model.evidence import SCHEMA_VERSION, Ending, Evidence

RAW = {"state.txt": b"cpu=0 role=primary\n", "ledger-before.txt": b"", "console.log": b"\x1b[31mraw\x00\r\n"}
OPTIONAL = ("images", "observer", "injections", "guest", "timings")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "trial"
    write_evidence(folder, make_evidence(), RAW)
    write_verdict(folder, make_verdict(make_evidence()))
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rewrite_manifest(folder: Path, **changes: object) -> None:
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(msgspec.json.encode({**manifest, **changes}))


def rewrite_witness(folder: Path, name: str, data: bytes) -> None:
    """Alter a file as a forger would: with a manifest that agrees."""
    (folder / name).write_bytes(data)
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    entry = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_manifest(folder, files=[entry if file["name"] == name else file for file in manifest["files"]])


def test_evidence_comes_back_as_it_was_written(saved: Path) -> None:
    assert read_evidence(saved) == make_evidence()
    assert read_verdict(saved) == make_verdict(make_evidence())
    assert (saved / "console.log").read_bytes() == RAW["console.log"]
    assert (saved / "dmesg.txt").read_text().startswith("microcode:")


@pytest.mark.parametrize("absent", [*((name,) for name in OPTIONAL), OPTIONAL])
def test_a_witness_that_saw_nothing_stays_none(tmp_path: Path, absent: tuple[str, ...]) -> None:
    evidence: Evidence = msgspec.structs.replace(
        make_evidence(), ending=Ending.PANIC, reason="Kernel panic - not syncing", **dict.fromkeys(absent)
    )
    write_evidence(tmp_path / "trial", evidence, {})
    assert read_evidence(tmp_path / "trial") == evidence
    assert not {f"{name}.json" for name in absent} & set(names_in(tmp_path / "trial"))


def test_nothing_else_is_left_beside_the_folder(saved: Path) -> None:
    write_evidence(saved, make_evidence(seed=8), {})
    assert names_in(saved.parent) == ["trial"]
    assert read_evidence(saved) == make_evidence(seed=8)
    assert not (saved / "verdict.json").exists()


def test_a_folder_of_something_else_is_not_replaced(saved: Path) -> None:
    (saved / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="holds something other than evidence"):
        write_evidence(saved, make_evidence(), {})
    assert (saved / "thesis.tex").read_text() == "years"
    assert names_in(saved.parent) == ["trial"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    write_evidence(claim_trial_output(tmp_path / "new" / "trial"), make_evidence(), {})
    assert read_evidence(tmp_path / "new" / "trial") == make_evidence()


def test_raw_files_keep_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_RAW_BYTES", 4)
    write_evidence(tmp_path / "trial", make_evidence(), {"console.log": b"a long story: panic"})
    assert (tmp_path / "trial" / "console.log").read_bytes() == b"anic"


@pytest.mark.parametrize("name", ["../x", "oracle.json", "manifest.json", "verdict.json", ".hidden", "a/b", ""])
def test_raw_files_cannot_take_other_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        write_evidence(tmp_path / "trial", make_evidence(), {name: b""})
    assert names_in(tmp_path) == []


def test_text_that_is_not_unicode_is_an_evidence_error(tmp_path: Path) -> None:
    evidence = msgspec.structs.replace(make_evidence(), reason="\udc80")
    with pytest.raises(EvidenceError, match="not Unicode"):
        write_evidence(tmp_path / "trial", evidence, {})
    assert names_in(tmp_path) == []


def test_the_error_names_what_is_missing(saved: Path) -> None:
    (saved / "oracle.json").unlink()
    with pytest.raises(EvidenceError, match=r"oracle\.json is missing"):
        read_evidence(saved)


def test_the_error_names_what_was_altered(saved: Path) -> None:
    (saved / "plan.json").write_text("{}")
    with pytest.raises(EvidenceError, match=r"plan\.json does not match its manifest"):
        read_evidence(saved)


def test_a_required_witness_cannot_be_left_out_of_the_manifest(saved: Path) -> None:
    rewrite_manifest(saved, files=[])
    with pytest.raises(EvidenceError, match=r"ending\.json is missing"):
        read_evidence(saved)


def test_another_schema_is_named(saved: Path) -> None:
    rewrite_manifest(saved, schema_version=7, files="unknown to us")
    with pytest.raises(EvidenceError, match=f"schema version 7: this lab reads {SCHEMA_VERSION}"):
        read_evidence(saved)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "verdict.json", "sub/file", "a\x1b[2J", "x" * 65])
def test_the_manifest_does_not_choose_paths(saved: Path, name: str) -> None:
    rewrite_manifest(saved, files=[{"name": name, "size": 1, "sha256": ""}])
    with pytest.raises(EvidenceError, match="no file of ours"):
        read_evidence(saved)


def test_links_are_not_followed(saved: Path, tmp_path: Path) -> None:
    shutil.move(saved / "guest.json", tmp_path / "elsewhere.json")
    (saved / "guest.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(EvidenceError, match=r"guest\.json is not a readable regular file"):
        read_evidence(saved)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["manifest.json", "oracle.json", "console.log"])
def test_a_fifo_does_not_block(saved: Path, name: str) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(EvidenceError, match="not a regular file"):
        read_evidence(saved)


def test_sizes_are_checked_before_reading(saved: Path) -> None:
    os.truncate(saved / "oracle.json", 1 << 40)  # sparse
    with pytest.raises(EvidenceError, match="at most"):
        read_evidence(saved)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plan.json", b"[" * 100_000),
        ("plan.json", b'{"x":' + b"[" * 100_000),
        ("plan.json", b"\xff"),
        ("plan.json", b'{"seed": "7"}'),
        ("scenario.json", b'{"mechanism": "x", "topology": {"sockets": 1000000, "cores": 1000000, "threads": 2}}'),
        ("scenario.json", b'{"mechanism": "x", "nmis": 1000000000}'),
        ("ending.json", b'{"ending": "rapture", "reason": "", "console_tail": []}'),
    ],
)
def test_forged_content_is_refused(saved: Path, name: str, data: bytes) -> None:
    rewrite_witness(saved, name, data)
    with pytest.raises(EvidenceError, match=name):
        read_evidence(saved)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(choice=st.integers(0, 11), cut=st.floats(0, 1), patch=st.binary(max_size=12), shorten=st.booleans())
def test_any_damage_is_an_evidence_error(saved: Path, choice: int, cut: float, patch: bytes, shorten: bool) -> None:
    folder = saved.parent / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    names = names_in(folder)
    path = folder / names[choice % len(names)]
    data = path.read_bytes()
    at = int(cut * len(data))
    damaged = data[:at] + patch + (b"" if shorten else data[at + len(patch) :])
    path.write_bytes(damaged)
    for read in (read_evidence, read_verdict):
        try:
            read(folder)
        except EvidenceError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert damaged == data or path.name in ("verdict.json", "manifest.json") or read is read_verdict


def test_no_folder_is_an_evidence_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file", tmp_path):
        with pytest.raises(EvidenceError):
            read_evidence(path)


def test_output_may_be_new_empty_or_ours(tmp_path: Path, saved: Path) -> None:
    assert claim_trial_output(tmp_path / "a" / "b").is_dir()
    assert claim_trial_output(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert claim_trial_output(saved) == saved
    (tmp_path / "link").symlink_to("trial")
    assert claim_trial_output(tmp_path / "link") == saved
    (saved / ".verdict.json.abcd_123").touch()  # the lab was killed while it wrote
    assert claim_trial_output(saved) == saved


def test_a_trial_does_not_go_into_a_run(tmp_path: Path) -> None:
    (tmp_path / ".mclab-run").touch()
    with pytest.raises(UsageError, match="is that of a run"):
        claim_trial_output(tmp_path)
    assert names_in(tmp_path) == [".mclab-run"]


def test_output_whose_name_is_not_text_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bad\\xff' is not UTF-8"):
        claim_trial_output(tmp_path / "bad\udcff")
    assert names_in(tmp_path) == []


def test_output_may_not_be_a_users_folder_or_file(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "photo.jpg").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in ("home", "home/photo.jpg", "home/photo.jpg/below", "dangling"):
        with pytest.raises(UsageError, match=path.split("/")[-1]):
            claim_trial_output(tmp_path / path)
    assert names_in(tmp_path) == ["dangling", "home"]
    assert names_in(tmp_path / "home") == ["photo.jpg"]
