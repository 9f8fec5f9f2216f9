# SPDX-License-Identifier: GPL-2.0-or-later
"""images/host/setup with the real apt and dpkg, an archive of a few empty packages and a system that has nothing."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from small_archive import make_deb, make_mirror, make_system

from lab.host.paths import ROOT

EXIT_HOST = 4
NOBODY = 65534

PACKAGES = """\
# a list of ours
lab-alpha
lab-old-name | lab-new-name  # either
optional lab-source-6.1   # it is fetched
"""
#: Takes what setup wants of Python, and is quick.
PYTHON = (
    '#!/bin/bash\n[ "$2" != venv ] || { mkdir -p "$3/bin"; for each in pip lab; do printf "#!/bin/sh\\n"'
    ' >"$3/bin/$each"; chmod +x "$3/bin/$each"; done; }\n'
)


class Host:
    """A checkout, and the system that its setup works on."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        shutil.copytree(ROOT / "images/host", self.checkout / "images/host")
        (self.checkout / "pyproject.toml").write_text("[project]\n")
        self.list_packages(PACKAGES)
        tools = folder / "tools"
        tools.mkdir()
        self.add_tool("python3.11", PYTHON)
        self.environment = {**os.environ, **make_system(folder, source), "PATH": f"{tools}:{os.environ['PATH']}"}
        if os.geteuid() != 0:
            self.add_tool("sudo", '#!/bin/bash\n"$@"\n')

    def list_packages(self, text: str) -> None:
        (self.checkout / "images/host/packages").write_text(text)

    def add_tool(self, name: str, script: str) -> None:
        path = self.folder / "tools" / name
        path.write_text(script)
        path.chmod(0o755)

    def start(self, *prefix: str) -> subprocess.Popen[str]:
        words = [*prefix, os.fspath(self.checkout / "images/host/setup")]
        return subprocess.Popen(
            words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def set_up(self, *prefix: str) -> tuple[int, str]:
        with self.start(*prefix) as process:
            printed, _ = process.communicate(timeout=240)
        return process.returncode, printed

    def list_installed(self) -> list[str]:
        query = ["dpkg-query", "-W", "-f", "${Package}\n"]
        done = subprocess.run(query, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        return sorted(done.stdout.split())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    names = ("lab-alpha", "lab-new-name", "lab-source-6.12", "lab-old-names")
    mirror = make_mirror(tmp_path / "mirror", [make_deb(tmp_path, name) for name in names])
    return Host(tmp_path, f"[trusted=yes] file:{mirror}/debian trixie main")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yield a folder that another user can come to, which those of pytest are not."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_setup_installs_what_the_archive_has_and_says_what_it_lacks(host: Host) -> None:
    status, printed = host.set_up()
    assert status == 0, printed
    assert "setup: lab-source-6.1 is not there: it is fetched\n" in printed
    assert host.list_installed() == ["lab-alpha", "lab-new-name"], "lab-source-6.12 matches lab-source-6.1 as a pattern"
    status, printed = host.set_up()
    assert (status, printed.splitlines()[0]) == (0, "setup: all packages are there")


def test_setup_names_the_package_that_the_archive_lacks_and_installs_nothing(host: Host) -> None:
    host.list_packages("lab-alpha\nlab-source-6.1\n")
    status, printed = host.set_up()
    assert status == EXIT_HOST
    assert "setup: error: this host's archive has no package lab-source-6.1: check the network" in printed
    assert host.list_installed() == []


def test_setup_notices_a_package_that_apt_left_out(host: Host) -> None:
    host.add_tool("apt-get", '#!/bin/bash\n[[ $* != *install* ]] || exit 0\nexec /usr/bin/apt-get "$@"\n')
    status, printed = host.set_up()
    assert status == EXIT_HOST
    assert "these packages are not there: lab-alpha lab-old-name lab-new-name: run 'apt-get install" in printed


def test_setup_refuses_a_line_that_is_no_name(host: Host) -> None:
    host.list_packages("lab-alpha\n--allow-unauthenticated\n")
    status, printed = host.set_up()
    assert (status, host.list_installed()) == (EXIT_HOST, [])
    assert "images/host/packages: '--allow-unauthenticated' is no name of a package" in printed


def test_setup_twice_at_once_installs_once(host: Host) -> None:
    with host.start() as one, host.start() as other:
        printed = [process.communicate(timeout=240)[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), printed
    assert sorted("waiting for another setup of this checkout" in text for text in printed) == [False, True]
    assert sum("setup: installing lab-alpha" in text for text in printed) == 1
    assert host.list_installed() == ["lab-alpha", "lab-new-name"]


def test_setup_without_network_says_so(tmp_path: Path) -> None:
    host = Host(tmp_path, "[trusted=yes] http://127.0.0.1:1/debian trixie main")
    status, printed = host.set_up("unshare", *(() if os.geteuid() == 0 else ("-r",)), "--net")
    assert (status, host.list_installed()) == (EXIT_HOST, [])
    assert "check the network" in printed.splitlines()[-1]


def test_setup_without_sudo_says_what_to_run_as_root(open_folder: Path) -> None:
    host = Host(open_folder, "[trusted=yes] file:/nonexistent trixie main")
    for name in ("dpkg-query", "apt-cache", "awk", "sed", "dirname", "env", "flock", "bash"):
        (open_folder / "tools" / name).symlink_to(shutil.which(name) or name)
    (open_folder / "tools/sudo").unlink(missing_ok=True)
    host.environment["PATH"] = f"{open_folder}/tools"
    prefix = []
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", str(NOBODY), host.checkout], check=True, timeout=30)
        prefix = [str(shutil.which("setpriv")), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    status, printed = host.set_up(*prefix)
    assert status == EXIT_HOST
    assert printed.splitlines()[-1] == (
        "setup: error: packages are missing and there is no sudo: run as root: apt-get install lab-alpha lab-old-name"
    )
    assert not (host.checkout / ".venv").exists()
