# SPDX-License-Identifier: GPL-2.0-or-later
"""lab replay, minimise and explain on folders that may be anybody's: one sentence, status 2, nothing written."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from evidence_builder import MS, RELEASE_AT_NS, WINDOW_AT_NS, Load, change
from test_cli import run_lab

from lab.build.qemu import find_qemu
from lab.evidence.folder import write_evidence
from lab.judge import judge
from lab.model.evidence import EventKind, Evidence, Hazard
from lab.model.hold import Hold
from lab.model.plan import Injection
from lab.model.scenario import Aim
from lab.model.verdict import Outcome


def failing() -> Evidence:
    load = Load().add(WINDOW_AT_NS + 5 * MS, EventKind.NMI_ENTRY, 1).move(EventKind.RELEASE, 1, RELEASE_AT_NS)
    return load.add(WINDOW_AT_NS + 5 * MS + 1, EventKind.HAZARD, 1, hazard=Hazard.IRET).build()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "evidence"


def rewrite(folder: Path, name: str, **changes: object) -> None:
    """Alter a witness as a forger would: with a manifest that agrees."""
    data = msgspec.json.encode({**msgspec.json.decode((folder / name).read_bytes()), **changes})
    (folder / name).write_bytes(data)
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    entry = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = [entry if file["name"] == name else file for file in manifest["files"]]
    (folder / "manifest.json").write_bytes(msgspec.json.encode({**manifest, "files": files}))


@pytest.mark.parametrize("command", ["replay", "minimise", "explain"])
def test_what_is_no_folder_of_ours_is_refused(command: str, folder: Path) -> None:
    out = folder.parent / "out"
    more = ("--out", str(out)) if command != "explain" else ()
    missing = run_lab(command, str(folder), *more)
    assert (missing.returncode, missing.stderr) == (
        2,
        f"lab: '{folder}' is not a folder: an evidence folder is needed\n",
    )
    write_evidence(folder, failing(), {})
    for name, sentence in (("plan.json", "plan.json is missing"), ("manifest.json", "manifest.json is missing")):
        (folder / name).unlink()
        done = run_lab(command, str(folder), *more)
        assert (done.returncode, done.stderr) == (2, f"lab: evidence folder '{folder}' cannot be read: {sentence}\n")
    assert not out.exists()


@pytest.mark.parametrize("command", ["replay", "minimise", "explain"])
def test_a_folder_of_another_schema_is_refused(command: str, folder: Path) -> None:
    write_evidence(folder, change(failing(), "schema_version", 1), {})
    more = ("--out", str(folder.parent / "out")) if command != "explain" else ()
    done = run_lab(command, str(folder), *more)
    assert done.returncode == 2
    assert done.stderr == (
        f"lab: evidence folder '{folder}' cannot be read: it has schema version 1: this lab reads 2\n"
    )


FOREIGN = {
    "seed": ({"seed": -1}, "the plan's seed is -1: allowed is 0 to"),
    "cores": ({"stretch_us": [1]}, "the plan has a stretch for 1 cores: topology 1x2x2 has 2"),
    "stretch": ({"stretch_us": [1, 10**9]}, "the plan has a stretch of 1000000000 us: allowed is 0 to 800000 us"),
    "many": ({"injections": [Injection(0, Aim.BROADCAST, -1)] * 1017}, "the plan has 1017 NMIs: allowed are 1016"),
    "vCPU": ({"injections": [Injection(0, Aim.SIBLING, 4)]}, "NMI 0 of the plan has aim sibling and vCPU 4"),
    "aim": ({"injections": [Injection(0, Aim.SIBLING, -1)]}, "has aim sibling and vCPU -1, which do not go together"),
    "time": ({"injections": [Injection(10**6, Aim.SIBLING, 1)]}, "is at 1000000 ppm: allowed is 0 to 999999"),
    "hold": ({"injections": [Injection(0, Aim.SIBLING, 1, hold=0)]}, "is of hold 0: the plan has 0"),
    "core": ({"injections": [Injection(0, Aim.SIBLING, 1, core=2)]}, "is of core 2: topology 1x2x2 has 2"),
    "held": ({"holds": [Hold(at="call-in", vcpu=4)]}, "hold 0 of the plan is of vCPU 4: allowed is 0 to 3"),
    "bound": ({"holds": [Hold(at="call-in", vcpu=1, bound_us=600_000)]}, "bound is 600000 us: allowed is 1 to 500000"),
    "place": ({"holds": [Hold(at="\x1b[31m", vcpu=1)]}, "is neither a landmark"),
}


@pytest.mark.parametrize(("changes", "sentence"), FOREIGN.values(), ids=FOREIGN)
def test_a_plan_that_cannot_be_run_is_refused(changes: dict[str, object], sentence: str, folder: Path) -> None:
    write_evidence(folder, failing(), {})
    rewrite(folder, "plan.json", **msgspec.to_builtins(changes))
    done = run_lab("replay", str(folder))
    assert done.returncode == 2
    assert done.stderr.startswith(f"lab: evidence folder '{folder}' cannot be used: ")
    assert sentence in done.stderr
    assert "\x1b" not in done.stderr
    assert not (folder.parent / "evidence-replay").exists()


def test_another_qemu_is_refused_before_anything_is_built(folder: Path, tmp_path: Path) -> None:
    write_evidence(folder, change(failing(), "images.qemu_version", "6.0 (\x1b[31mred)"), {})
    done = run_lab("replay", str(folder), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 2
    there = find_qemu().version
    assert "cannot be replayed: QEMU differs: the trial's is 6.0 (" in done.stderr
    assert f", the one there is {there}; name the trial's own with --qemu\n" in done.stderr
    assert "\x1b" not in done.stderr
    assert not (tmp_path / "cache" / "microcode-nmi-lab" / "kernel").exists()


def test_a_trial_without_a_guest_is_refused(folder: Path) -> None:
    write_evidence(folder, msgspec.structs.replace(failing(), images=None), {})
    done = run_lab("replay", str(folder))
    assert done.returncode == 2
    assert "no guest was booted in this trial: there is nothing that could be run again" in done.stderr


def test_a_trial_that_does_not_fail_is_not_made_smaller(folder: Path, tmp_path: Path) -> None:
    write_evidence(folder, Load().build(), {})
    done = run_lab("minimise", str(folder), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (2, "lab: the trial ended as PASS, and only a FAIL can be made smaller\n")
    assert not (tmp_path / "out").exists()


REFUSED = {
    "times": (("replay", "{folder}", "--times", "0"), "--times"),
    "need": (("minimise", "{folder}", "--out", "{out}", "--need", "4/3"), "need '4/3' is not K/N with 1 <= K <= N"),
    "no out": (("minimise", "{folder}"), "--out"),
    "core": (("explain", "{folder}", "--core", "2"), "core is 2: topology 1x2x2 has 0 to 1"),
    "kernel alone": (("replay", "{folder}", "--kernel", "{out}"), "--kernel and --vmlinux go together"),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_words_are_refused(words: tuple[str, ...], sentence: str, folder: Path, tmp_path: Path) -> None:
    write_evidence(folder, failing(), {})
    out = tmp_path / "out"
    done = run_lab(*(word.format(folder=folder, out=out) for word in words))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_explain_tells_the_story_of_a_failing_trial(folder: Path) -> None:
    evidence = failing()
    assert judge(evidence).outcome is Outcome.FAIL
    write_evidence(folder, evidence, {})
    done = run_lab("explain", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("FAIL  nmi-self 1x2x2 seed 1: ")
    assert all(len(line) <= 160 for line in done.stdout.splitlines())
    for text in ("vCPU 1 sibling", "NMI 0 acknowledged", "WINDOW OPENS", "!! breaks", "iret at", ": closes"):
        assert text in done.stdout
    told = msgspec.json.decode(run_lab("explain", str(folder), "--json", "--rows", "10").stdout)
    assert len(told["rows"]) == 10
    assert told["left_out"] > 0
