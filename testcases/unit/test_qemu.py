# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU is chosen, what it is found to be, and why another is refused: on the host's own, and on false ones."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from test_cli import run_lab

from lab.build import probe
from lab.build.doctor import examine_qemus
from lab.build.qemu import NAME, VARIABLE, examine_qemu, find_qemu, find_same_qemu, list_paths, match_qemu
from lab.errors import HostError, UsageError
from lab.host.user import find_unprivileged
from lab.model.qemu import MAX_LEVEL, MIN_LEVEL, Qemu

#: Further QEMUs to try, as PATH has folders.
OTHERS = tuple(Path(each) for each in os.environ.get("MCLAB_QEMUS", "").split(os.pathsep) if each)
needs_root = pytest.mark.skipif(find_unprivileged() is None, reason="only root runs QEMU as another user")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of any QEMU yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that whoever QEMU runs as may enter."""
    with tempfile.TemporaryDirectory(prefix="test-qemu-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def write_script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def wrap(path: Path, words: str = 'exec {} "$@"') -> Path:
    """Write a script that runs the QEMU of this run."""
    return write_script(path, words.format(find_qemu().path))


@pytest.mark.parametrize("path", [None, *OTHERS], ids=str)
def test_a_qemu_says_itself_what_it_is(path: Path | None) -> None:
    found = find_qemu(path)
    assert found.path.is_absolute()
    assert found.version.split(".", 1)[0].isdecimal()
    assert found.interface_min <= found.level <= found.interface_max
    assert MIN_LEVEL <= found.level <= MAX_LEVEL
    assert len(found.sha256) == 64
    assert found.sees[0] == "blocks, instructions and halts"
    assert ("the register that names an MSR" in found.sees) is (found.level >= 2)


@pytest.mark.skipif(not OTHERS, reason="MCLAB_QEMUS names no further QEMU")
def test_qemus_side_by_side_are_told_apart() -> None:
    found = {find_qemu(path) for path in (None, *OTHERS)}
    assert len({each.sha256 for each in found}) == len(OTHERS) + 1
    for each in found:
        assert find_same_qemu(each.sha256).sha256 == each.sha256


def test_what_is_known_of_a_qemu_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_qemu()

    def ask(*_: object) -> None:
        raise AssertionError("it was asked again")

    for name in ("ask_version", "ask_interfaces", "ask_itself", "try_start"):
        monkeypatch.setattr(probe, name, ask)
    assert find_qemu() == first


def test_a_qemu_that_was_replaced_is_asked_again(folder: Path) -> None:
    script = wrap(folder / "qemu")
    assert examine_qemu(script).sha256 == find_qemu().sha256
    write_script(script, "echo I am another one")
    with pytest.raises(HostError, match="it says 'I am another one'"):
        examine_qemu(script)


def test_the_option_wins_over_the_variable_and_that_over_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    on_path = wrap(folder / "bin" / NAME)
    named, given = wrap(folder / "named"), wrap(folder / "given")
    monkeypatch.setenv("PATH", f"{on_path.parent}:{os.environ['PATH']}")
    monkeypatch.setenv(VARIABLE, "")
    assert find_qemu().path == on_path
    monkeypatch.setenv(VARIABLE, str(named))
    assert find_qemu().path == named
    assert find_qemu(given).path == given
    monkeypatch.chdir(folder)
    assert find_qemu(Path("given")).path == given
    assert list_paths(given)[:3] == (given, named, on_path)


def test_a_script_is_told_from_another_by_the_program_that_it_runs(folder: Path) -> None:
    assert find_qemu(wrap(folder / "qemu")).sha256 == find_qemu().sha256


def test_the_same_program_is_found_wherever_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = find_qemu()
    elsewhere = msgspec.structs.replace(here, path=folder / "of another host")
    assert match_qemu(elsewhere) == here
    with pytest.raises(
        HostError, match=f"this host has no QEMU that is {here.version[:4]}.*: install it, or set MCLAB"
    ):
        match_qemu(msgspec.structs.replace(elsewhere, sha256="e" * 64))
    # Another one is the default, and the wanted one is known from before.
    script = wrap(folder / "qemu")
    monkeypatch.setenv(VARIABLE, str(script))
    assert find_same_qemu(here.sha256).sha256 == here.sha256


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        find_qemu(path)
    assert str(error.value).startswith("--qemu: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_program_is_refused(folder: Path) -> None:
    (folder / "plain").write_text("words")
    os.mkfifo(folder / "pipe", 0o755)
    assert f"QEMU '{folder}/none' is not there: name the file of a {NAME}" in refused(folder / "none")
    assert f"QEMU '{folder}' is a folder: name the file of a {NAME} in it" in refused(folder)
    assert f"QEMU '{folder}/pipe' is no regular file" in refused(folder / "pipe")
    assert f"QEMU '{folder}/plain' is not executable: allow it with 'chmod +x'" in refused(folder / "plain")


def test_another_program_is_refused(folder: Path) -> None:
    said = refused(Path("/bin/true"))
    assert "'/bin/true' is no system emulator of QEMU: to --version it says 'true (GNU coreutils)" in said
    user = write_script(folder / "qemu-x86_64", "echo 'qemu-x86_64 version 7.2.22 (Debian)'")
    assert "no system emulator of QEMU: to --version it says 'qemu-x86_64 version 7.2.22" in refused(user)
    silent = write_script(folder / "silent", "exit 3")
    assert "it says 'nothing, and ends with status 3'" in refused(silent)


def test_what_a_program_says_is_shown_as_text_and_cut(folder: Path) -> None:
    loud = write_script(folder / "loud", r"printf '\033[31mred%0500d\n' 7")
    done = run_lab("trial", "--mechanism", "nmi-self", "--qemu", str(loud), "--out", str(folder / "out"))
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert len(done.stderr) < 600
    assert not (folder / "out").exists()


def test_a_program_that_does_not_answer_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_ANSWER_S", 0.5)
    assert "gives no answer within 0 s" in refused(write_script(folder / "slow", "sleep 60"))


def test_an_older_qemu_is_refused(folder: Path) -> None:
    old = write_script(folder / "old", "echo 'QEMU emulator version 6.2.0 (Debian 1:6.2)'")
    assert f"QEMU '{old}' is 6.2.0 (Debian 1:6.2), which is too old: 7.2 or newer is needed" in refused(old)


def test_a_qemu_of_another_machine_is_refused() -> None:
    other = shutil.which("qemu-system-i386")
    if other is None:
        pytest.skip("this host has no qemu-system-i386")
    assert "emulates machines of i386: machines of x86_64 are needed" in refused(Path(other))


def test_a_qemu_without_plugins_is_refused(folder: Path) -> None:
    words = 'case "$*" in *-plugin*) echo "-plugin: invalid option" >&2; exit 1;; esac\nexec {} "$@"'
    said = refused(wrap(folder / "qemu", words))
    assert "takes no plugins, and says '-plugin: invalid option': use a QEMU built with --enable-plugins" in said


def test_a_qemu_whose_interface_nobody_knows_yet_is_refused(folder: Path) -> None:
    limits = f"supports only a minimum version of {MAX_LEVEL + 1}, supports only up to version {MAX_LEVEL + 2}"
    words = f'case "$*" in *-plugin*) echo "{limits}" >&2; exit 1;; esac\nexec {{}} "$@"'
    said = refused(wrap(folder / "qemu", words))
    assert f"too new: it takes plugins of interface {MAX_LEVEL + 1} to {MAX_LEVEL + 2}" in said
    assert f"the observer speaks {MIN_LEVEL} to {MAX_LEVEL}" in said


def test_a_script_that_starts_qemu_as_another_process_is_refused(folder: Path) -> None:
    said = refused(wrap(folder / "qemu", '{} "$@"\nexit $?'))
    assert "starts QEMU as a process of its own: have the script end in 'exec'" in said


def test_a_qemu_that_starts_no_machine_is_refused(folder: Path) -> None:
    words = 'case "$*" in *q35*) echo "no firmware" >&2; exit 1;; esac\nexec {} "$@"'
    assert "does not start the lab's kind of machine" in refused(wrap(folder / "qemu", words))


@needs_root
def test_a_qemu_that_nobody_can_reach_is_refused_with_what_opens_it(folder: Path) -> None:
    script = wrap(folder / "qemu")
    script.chmod(0o700)
    assert f"runs QEMU as nobody, who may not execute it: allow it with 'chmod o+rx {script}'" in refused(script)
    script.chmod(0o755)
    assert find_qemu(script).path == script
    folder.chmod(0o700)
    said = refused(script)
    assert f"who may not enter '{folder}': move QEMU to where all may, or allow it with 'chmod o+x {folder}'" in said


def test_the_variable_is_named_where_it_is_wrong(folder: Path) -> None:
    done = run_lab("run", "--out", str(folder / "out"), MCLAB_QEMU=str(folder / "none"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"lab: MCLAB_QEMU: QEMU '{folder}/none' is not there")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("trial", "--mechanism", "nmi-self"),
        ("run",),
        ("sound",),
        ("sweep", "--mechanism", "nmi-self"),
        ("mutants",),
        ("bench",),
        ("campaign", "start", "testcases/campaigns/all-mechanisms.toml", "--trials", "1"),
        ("build", "observer"),
        ("build", "all"),
    ],
    ids=" ".join,
)
def test_each_command_that_boots_takes_a_qemu(words: tuple[str, ...], folder: Path) -> None:
    out = () if words[0] in ("bench", "build") else ("--out", str(folder / "out"))
    done = run_lab(*words, *out, "--qemu", str(folder / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"lab: --qemu: QEMU '{folder}/none' is not there")
    assert not (folder / "out").exists()


def test_what_is_the_same_for_each_qemu_takes_none() -> None:
    done = run_lab("build", "kernel", "--qemu", "/bin/true")
    assert (done.returncode, done.stderr) == (
        2,
        "lab: --qemu goes with observer and all only: 'kernel' is the same for each QEMU\n",
    )


def test_the_doctor_lists_qemus_that_are_fit_and_those_that_are_not(folder: Path) -> None:
    good, bad = find_qemu(), write_script(folder / "bad", "echo none")
    found = {each.path: each for each in examine_qemus(bad)}
    assert next(iter(found)) == str(bad)
    assert not found[str(bad)].usable
    assert "no system emulator" in found[str(bad)].problem
    fit = found[str(good.path)]
    assert fit.usable
    assert (fit.version, fit.level, fit.sees) == (good.version, good.level, good.sees)
    assert fit.runs_as


def test_a_release_with_a_known_defect_is_told_of() -> None:
    old = Qemu(path=Path("/q"), version="8.0.5", interface_min=0, interface_max=1, sha256="")
    assert old.caution.startswith("8.0 can hang")
    assert not msgspec.structs.replace(old, version="8.1.0").caution
