# SPDX-License-Identifier: GPL-2.0-or-later
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.build import qemu_release
from lab.build.doctor import examine_host
from lab.build.observer import NAME, build_observer
from lab.host.paths import ROOT
from lab.model.qemu import MAX_LEVEL, MIN_LEVEL

EXIT_USAGE = 2
EXIT_HOST = 4


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose packages and .venv are there already: its tools are stand-ins on a PATH of their own."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "images/host", root / "images/host")
    (root / "pyproject.toml").write_text("[project]\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    add_tool(tools, "dpkg-query", 'shift 3; for name; do echo "installed $name"; done')
    add_tool(tools, "apt-get", 'echo "apt-get $*" >>"$LOG"')
    add_tool(tools, "apt-cache", 'printf "%s:\\n  Candidate: 1.0\\n" "$2"')
    add_tool(tools, "sudo", '"$@"')
    add_tool(
        tools,
        "python3.11",
        'echo "python $*" >>"$LOG"; [ "$2" != venv ] || { mkdir -p "$3/bin";'
        ' printf "#!/bin/sh\\necho pip >>\\"\\$LOG\\"\\nexit \\${PIP_STATUS:-0}\\n" >"$3/bin/pip";'
        ' cp "$3/bin/pip" "$3/bin/lab"; chmod +x "$3/bin/pip" "$3/bin/lab"; }',
    )
    return root


def add_tool(tools: Path, name: str, script: str) -> None:
    (tools / name).write_text(f"#!/bin/bash\n{script}\n")
    (tools / name).chmod(0o755)


def set_up(root: Path, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
    """Run setup; return its status, what it printed, and which of the stand-ins it ran."""
    tools, log = root.parent / "tools", root.parent / "log"
    log.write_text("")
    done = subprocess.run(
        [root / "images/host/setup", *arguments],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(log), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()


def test_second_setup_does_nothing(checkout: Path) -> None:
    status, _, ran = set_up(checkout)
    assert (status, ran[-1]) == (0, "pip")
    assert set_up(checkout) == (
        0,
        "setup: all packages are there\nsetup: Python packages are there\nsetup: done\n",
        [],
    )


def test_changed_requirements_are_installed(checkout: Path) -> None:
    set_up(checkout)
    (checkout / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert set_up(checkout)[2][-1] == "pip"


def test_failed_setup_is_told_and_done_again(checkout: Path) -> None:
    status, printed, _ = set_up(checkout, PIP_STATUS="1")
    assert status == EXIT_HOST
    assert "setup: error: pip could not install" in printed
    assert set_up(checkout)[2][-1] == "pip", "no stamp was written by the failed one"


def test_only_missing_packages_are_installed(checkout: Path) -> None:
    add_tool(
        checkout.parent / "tools",
        "dpkg-query",
        'shift 3; for name; do case $name in bc) ;; flex) echo "config-files flex" ;;'
        ' *) echo "installed $name" ;; esac; done; exit 1',
    )
    # What apt has not installed is not there afterwards either.
    add_tool(
        checkout.parent / "tools",
        "apt-get",
        'echo "apt-get $*" >>"$LOG"; [[ $* != *install* ]] ||'
        f" printf '#!/bin/bash\\nshift 3; for name; do echo \"installed $name\"; done'"
        f" >{checkout.parent}/tools/dpkg-query",
    )
    status, _, ran = set_up(checkout)
    assert status == 0
    assert [line for line in ran if line.startswith("apt-get")] == [
        "apt-get -q -o DPkg::Lock::Timeout=600 update",
        "apt-get -q -o DPkg::Lock::Timeout=600 install -y --no-install-recommends flex bc",
    ]


def test_unknown_word_is_a_usage_error(checkout: Path) -> None:
    status, printed, ran = set_up(checkout, "now")
    assert (status, printed, ran) == (EXIT_USAGE, "usage: images/host/setup\n", [])


def test_every_check_that_fails_says_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checks = examine_host()
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.found for check in checks)
    assert all(bool(check.mend) != check.ok for check in checks)


def test_host_without_anything_is_examined_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(qemu_release, "SYSTEM_CACHE", tmp_path / "none")
    lacks = {check.name: check.mend for check in examine_host() if not check.ok}
    assert {"qemu", "cache"} <= set(lacks)
    assert lacks["qemu"] == "apt-get install qemu-system-x86"


@pytest.mark.parametrize("level", range(MIN_LEVEL, MAX_LEVEL + 1))
def test_observer_compiles_without_a_warning(level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plugin = build_observer(lambda _: None, level) / NAME
    assert plugin.read_bytes()[:4] == b"\x7fELF"
    assert str(ROOT).encode() not in plugin.read_bytes(), "no path of this machine may get into the file"
