# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tired engineer types: one sentence, status 2, nothing half-written."""

import os
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from evidence_builder import Load
from report_samples import write_sample_run

from lab import __version__
from lab.campaign.runs import read_run
from lab.evidence.folder import read_evidence, write_evidence
from lab.host.paths import ROOT
from lab.judge import judge
from lab.model.verdict import EXIT_STATUS, Outcome


def run_lab(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


TRIAL = ("trial", "--mechanism", "nmi-self", "--out", "{out}")

SWEEP = ("sweep", "--mechanism", "nmi-self", "--out", "{out}")

REFUSED = {
    "sweep without a mechanism": (("sweep", "--out", "{out}"), "a mechanism is needed: give --mechanism NAME"),
    "sweep of an unknown mechanism": (("sweep", "--mechanism", "x", "--out", "{out}"), "mechanism 'x' is unknown"),
    "sweep of a phase without blocks": ((*SWEEP, "--from", "before"), "from is before: allowed is gather, armed,"),
    "sweep backwards": ((*SWEEP, "--from", "release", "--to", "armed"), "the load goes the other way"),
    "sweep of another core's thread": ((*SWEEP, "--role", "other"), "role is other: allowed is primary, sibling,"),
    "sweep of nobody": ((*SWEEP, "--role", "nobody"), "role is nobody: allowed is primary, sibling, offline"),
    "sweep of offline siblings that are online": (
        (*SWEEP, "--role", "offline"),
        "role is offline: siblings are online",
    ),
    "sweep of a core that is not there": ((*SWEEP, "--core", "1"), "core is 1: topology 1x1x2 has 0 to 0"),
    "sweep of siblings nobody may aim at": (
        ("sweep", "--mechanism", "init-sipi", "--out", "{out}"),
        "an NMI is for a sibling: not with mechanism 'init-sipi'",
    ),
    "sweep to go on with that is not there": (("sweep", "--resume", "--out", "{out}"), "holds no sweep: sweep.jsonl"),
    "unknown mechanism": (
        ("trial", "--mechanism", "nmi-sefl", "--out", "{out}"),
        "lab: mechanism 'nmi-sefl' is unknown: there are stop-machine, nmi-spin-as-posted, nmi-self,",
    ),
    "unknown mechanism of a run": (("run", "--mechanism", "x", "--out", "{out}"), "mechanism 'x' is unknown"),
    "topology of another form": ((*TRIAL, "--topology", "2x2"), "topology '2x2' is not SOCKETSxCORESxTHREADS"),
    "no siblings": ((*TRIAL, "--topology", "1x4x1"), "topology '1x4x1' has 1 threads per core: allowed is 2"),
    "too many vCPUs": ((*TRIAL, "--topology", "3x4x2"), "has 24 vCPUs: allowed are up to 16 (the kernel's NR_CPUS)"),
    "negative stretch": ((*TRIAL, "--stretch-us", "-1"), "stretch of -1 us: allowed is 0 to 800000 us"),
    "huge stretch": (
        (*TRIAL, "--stretch-us", "1500000"),
        "since the 6.1 rendezvous panics when a thread has waited for one second",
    ),
    "stretch that is no number": ((*TRIAL, "--stretch-us", "10ms"), "stretch-us '10ms' is not a whole number"),
    "stretch of other cores": ((*TRIAL, "--stretch-us", "1,2,3"), "stretch names 3 cores: topology 1x2x2 has 2"),
    "negative NMIs": ((*TRIAL, "--nmis", "-3"), "nmis is -3: allowed is 0 to 1000"),
    "unknown aim": ((*TRIAL, "--aim", "everyone"), "'everyone' is not one of 'broadcast', 'sibling', 'primary'"),
    "seed out of range": ((*TRIAL, "--seed", "-1"), "seed is -1: allowed is 0 to"),
    "no trials": (("run", "--trials", "0", "--out", "{out}"), "--trials"),
    "no output folder": (("trial", "--mechanism", "nmi-self"), "--out"),
    "unknown command": (("trail",), "No such command 'trail'"),
    "mistyped command": (("trail",), "Did you mean 'trial'"),
    "mistyped command of a campaign": (("campaign", "strat"), "Did you mean 'start'"),
    "mistyped option": ((*TRIAL, "--topolgy", "1x1x2"), "--topology"),
    "mistyped mechanism": (("trial", "--mechanism", "nmi-sefl", "--out", "{out}"), "did you mean 'nmi-self'?"),
    "mistyped base": (("build", "kernel", "--base", "linux6.12"), "did you mean 'linux-6.12'?"),
    "mistyped recipe": (("build", "obsever"), "did you mean 'observer'?"),
    "mistyped mutant": (("mutants", "clams-all", "--out", "{out}"), "did you mean 'claims-all'?"),
    "mistyped scenario": (
        ("trial", "--scenario", "upstream-offlin", "--out", "{out}"),
        "is neither a file nor a name of lab scenarios; did you mean 'upstream-offline'?",
    ),
    "mistyped phase": ((*TRIAL, "--phase", "windw"), "did you mean 'window'?"),
    "mistyped role": ((*TRIAL, "--phase", "window", "--role", "siblng"), "did you mean 'sibling'?"),
    "mistyped phase of a sweep": ((*SWEEP, "--to", "relase"), "did you mean 'release'?"),
    "mistyped role of a place": ((*TRIAL, "--place", "at=release,role=primry"), "did you mean 'primary'?"),
    "mistyped key of a place": ((*TRIAL, "--place", "at=release,rol=primary"), "did you mean 'role'?"),
    "phase that no sweep tries": ((*SWEEP, "--to", "after"), "to is after: allowed is gather, armed, window,"),
    "unknown recipe": (
        ("build", "kernels"),
        "'kernels' cannot be built: there are kernel, initramfs, observer, all, qemu",
    ),
    "qemu of no release": (
        ("build", "qemu"),
        "qemu needs --release: there are bullseye, bookworm, bookworm-backports,",
    ),
    "qemu of an unknown release": (
        ("build", "qemu", "--release", "../x"),
        "release '../x' is unknown: there are bullseye",
    ),
    "release of something else": (
        ("build", "observer", "--release", "trixie"),
        "--release is a QEMU's: 'lab build qemu",
    ),
    "release of a tree": (
        ("build", "kernel", "--tree", "{out}", "--release", "trixie"),
        "--release is a QEMU's: --tree",
    ),
    "unknown kernel": (
        ("build", "kernel", "--base", "linux-5.0"),
        "'linux-5.0' is unknown: there are linux-6.1, linux-6.12",
    ),
    "tree for something else": (
        ("build", "observer", "--tree", "{out}"),
        "--tree is a kernel's: 'lab build kernel --tree",
    ),
    "tree for all": (("build", "--tree", "{out}"), "and not 'all'"),
    "tree and base": (("build", "kernel", "--tree", "{out}", "--base", "linux-6.12"), "--base is for the lab's own"),
    "tree that is none": (("build", "kernel", "--tree", "{out}"), "is not a folder"),
    "patches without tree": (("build", "kernel", "--patches", "{out}"), "--patches goes with --tree only"),
    "settings without tree": (("build", "kernel", "--config", "{out}"), "--config goes with --tree only"),
    "kernel without vmlinux": (("trial", "--kernel", "{out}", "--out", "{out}"), "--kernel and --vmlinux go together"),
    "vmlinux without kernel": (("run", "--vmlinux", "{out}", "--out", "{out}"), "--kernel and --vmlinux go together"),
    "kernel that is not there": (
        ("trial", "--kernel", "{out}", "--vmlinux", "{out}", "--out", "{out}"),
        "/out' is not there",
    ),
    "mechanism of others' kernels": (
        ("trial", "--mechanism", "stock-nmi", "--out", "{out}"),
        "mechanism 'stock-nmi' is not there: the lab's own kernels have stop-machine, ",
    ),
    "all mechanisms in one trial": (
        ("trial", "--mechanism", "all", "--out", "{out}"),
        "mechanism 'all' is several, and a trial has one",
    ),
    "folder to judge that is none": (("judge", "{out}"), "is not a folder: an evidence folder is needed"),
    "folder to report that is none": (("report", "{out}"), "is not a folder: that of a run or of a campaign is needed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence_and_status_2(case: str, tmp_path: Path) -> None:
    words, sentence = REFUSED[case]
    out = tmp_path / "out"
    done = run_lab(*(word.format(out=out) for word in words))
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("trial", "--mechanism", "nmi-self", "--out"),
        ("run", "--out"),
        ("judge",),
        ("report",),
        ("judge", "--json"),
        ("build",),
    ],
)
def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = os.fsencode(tmp_path / "caf") + b"\xe9"
    if words[0] in ("judge", "report"):
        Path(os.fsdecode(path)).mkdir()
    done = run_lab(*words, os.fsdecode(path))
    assert done.returncode == 2
    assert done.stderr.endswith("caf\\xe9' is not UTF-8: name files and folders in UTF-8\n")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert words[0] in ("judge", "report") or not any(tmp_path.iterdir())


def test_a_cache_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    done = run_lab("build", "initramfs", "--json", XDG_CACHE_HOME=os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    assert done.returncode == 2
    assert "is not UTF-8; set XDG_CACHE_HOME" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    write_sample_run(tmp_path, trials=1)
    before = sorted(tmp_path.rglob("*"))
    for words, sentence in (
        (("trial", "--mechanism", "nmi-self"), "is that of a run: name an empty or new one"),
        (("run",), "holds a run: name an empty or new one, or replace that run with --replace"),
    ):
        done = run_lab(*words, "--out", str(tmp_path))
        assert done.returncode == 2
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
    (tmp_path / "notes.txt").touch()
    done = run_lab("run", "--replace", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "'notes.txt', which the lab did not leave" in done.stderr
    (tmp_path / "notes.txt").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_mechanisms_are_listed_and_the_command_is_shown() -> None:
    assert "mechanisms" in run_lab("--help").stdout
    done = run_lab("mechanisms", "--json")
    assert {"nmi-self", "stop-machine"} <= {each["name"] for each in msgspec.json.decode(done.stdout)["mechanisms"]}


#: Ends itself in the step that its second word names, as a user would, with the rest made up.
INTERRUPTED = """
import os, signal, sys
from pathlib import Path
import lab.build.images, lab.kernelimage.vmlinux, lab.trial.pool
import lab.campaign.station as station
import lab.cli.runs as runs, lab.cli.trials as trials
from lab.build.images import ImageSet
from lab.cli import main
from lab.model.qemu import Qemu
from report_samples import make_evidence
from lab.trial.session import Kept
step, number, count = sys.argv.pop(1), int(sys.argv.pop(1)), 0

class Guest:
    failed_boots = 0
    def retire(self): pass
    def __init__(self, *_, **__): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def run_trial(self, scenario, *_):
        global count
        count += 1
        if step == "trial" and count == 3 or sys.argv[1] == "trial":
            os.kill(os.getpid(), number)
        return Kept(make_evidence(scenario.mechanism), {})

def build_images(tell, qemu, base):
    if step == "build":
        os.kill(os.getpid(), number)
    files = {name: Path("/") / name for name in ("kernel", "vmlinux", "initramfs", "observer")}
    hashes = {f"{name}_sha256": "0" * 64 for name in files}
    on = Qemu(path=Path("/qemu"), version="7.2.22", interface_min=1, interface_max=1, sha256="0" * 64)
    return ImageSet(kernel_release="6.1", qemu=on, **files, **hashes)

runs.find_qemu = trials.find_qemu = lambda _: None
station.WarmGuest = lab.trial.pool.WarmGuests = Guest
station.find_images, station.read_kernel = lambda images: images, lambda _: None
lab.build.images.build_images, lab.kernelimage.vmlinux.read_kernel = build_images, lambda _: None
main()
"""


#: A shell that starts tests in the background has them ignore SIGINT, and every program they start.
HEARS_SIGINT = ("env", "--default-signal=INT")


def interrupt(step: str, number: signal.Signals, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HEARS_SIGINT, sys.executable, "-c", INTERRUPTED, step, str(int(number)), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_what_is_kept(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "it's"
    done = interrupt("trial", number, "run", "--out", str(out))
    assert done.returncode == 130, done.stderr
    sentence = f"lab: interrupted: no guest is left; 2 trials and their page are kept in '{out}' (lab campaign resume "
    assert sentence in done.stderr
    words = shlex.split(done.stderr.strip().rpartition("(")[2].removesuffix(")"))
    assert words[-3:] == ["lab", "report", str(out)]
    assert len(read_run(out).records) == 2
    assert (out / "index.html").exists()
    assert run_lab("report", str(out)).returncode == 0


def test_an_interrupted_trial_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    done = interrupt("trial", signal.SIGTERM, "trial", "--mechanism", "nmi-self", "--out", str(tmp_path / "out"))
    assert done.returncode == 130
    assert done.stderr == "lab: interrupted: no guest is left, and nothing of this trial is kept\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_before_the_first_trial_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    done = interrupt("build", signal.SIGINT, "run", "--out", str(tmp_path / "out"))
    assert done.returncode == 130
    assert "0 trials and their page are kept" in done.stderr
    assert f"lab campaign resume {tmp_path / 'out'}" in done.stderr
    assert read_run(tmp_path / "out").records == ()


def test_an_output_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run_lab("trial", "--mechanism", "nmi-self", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "holds something that this command may not replace" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_qemu_it_says_what_mends_it(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "setpriv").symlink_to("/usr/bin/setpriv")
    done = run_lab("trial", "--mechanism", "nmi-self", "--out", str(tmp_path / "out"), PATH=str(tools))
    assert done.returncode == 2
    assert "apt-get install qemu-system-x86" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="shown for root, whom permissions do not stop")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run_lab("build", "initramfs", XDG_CACHE_HOME=str(blocked))
    assert done.returncode == 2
    assert f"cache folder '{blocked}" in done.stderr
    assert "set XDG_CACHE_HOME" in done.stderr


def test_it_says_its_version() -> None:
    assert run_lab("--version").stdout == f"lab {__version__}\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("lab m", {"mail", "mechanisms", "minimise", "mutants"}),
        ("lab campaign re", {"resume"}),
        ("lab trial --si", {"--siblings"}),
        ("lab trial --phase w", {"window"}),
        ("lab sweep --to ", {"gather", "armed", "window", "closing", "release"}),
    ],
)
def test_a_shell_completes_commands_options_and_values(words: str, offered: set[str]) -> None:
    asked = {"_LAB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert set(run_lab(**asked).stdout.split()) == offered


def test_no_arguments_show_the_help() -> None:
    done = run_lab()
    assert done.returncode == 2
    assert "doctor" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("lacking", ["manifest.json", "oracle.json", "plan.json"])
def test_a_truncated_folder_is_invalid_with_what_is_missing(tmp_path: Path, lacking: str) -> None:
    folder = tmp_path / "evidence"
    write_evidence(folder, Load().build(), {})
    (folder / lacking).unlink()
    done = run_lab("judge", str(folder))
    assert done.returncode == EXIT_STATUS[Outcome.INVALID]
    assert lacking in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_foreign_folder_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").symlink_to("/dev/zero")
    done = run_lab("judge", str(tmp_path), "--json")
    assert done.returncode == EXIT_STATUS[Outcome.INVALID]
    assert msgspec.json.decode(done.stdout)["outcome"] == "INVALID"


def test_judging_again_gives_the_same_verdict(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    write_evidence(folder, Load().build(), {})
    verdict = judge(read_evidence(folder))
    done = run_lab("judge", str(folder), "--json")
    assert done.returncode == EXIT_STATUS[verdict.outcome]
    told = msgspec.json.decode(done.stdout)
    assert told["outcome"] == verdict.outcome.value
    assert told["invariants"] == {each.name: each.finding.value for each in verdict.invariants}
    assert {"mechanism", "seed", "nmis", "window_us", "evidence"} <= told.keys()
    assert {"sent", "handled"} <= told["nmis"].keys()


def test_doctor_tells_a_machine_the_same(tmp_path: Path) -> None:
    done = run_lab("doctor", "--json", XDG_CACHE_HOME=str(tmp_path))
    told = msgspec.json.decode(done.stdout)
    checks = {check["name"]: check for check in told["checks"]}
    assert {"qemu", "qemu's user", "cache", "kvm"} <= checks.keys()
    assert checks["cache"]["ok"]
    assert told["qemus"][0]["usable"]
    assert told["qemus"][0]["level"] >= 1
    assert stat.S_ISDIR((tmp_path / "microcode-nmi-lab").stat().st_mode)
