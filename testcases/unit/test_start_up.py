# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command loads before it knows that there is something to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lab.cli.deferred import Deferred
from lab.cli.main import COMMANDS, app
from lab.host.paths import ROOT

#: What only running trials, reading kernels and drawing pages need. Each takes longer than all the rest together.
HEAVY = {
    "asyncio",
    "capstone",
    "cryptography",
    "dask",
    "distributed",
    "elftools",
    "jinja2",
    "matplotlib",
    "numpy",
    "paramiko",
    "psutil",
    "qemu",
    "rich",
    "scipy",
    "sqlite3",
}
#: Typer checks values with it.
CHECKS = {"pydantic"}
#: Modules of the lab itself; the command line with all its commands has three times as many.
MAX_OWN = 60

LIST_MODULES = """
import sys
from lab.cli import main
try:
    main()
finally:
    sys.stderr.write("\\n" + " ".join(sys.modules))
"""


def load(*words: str) -> tuple[int, set[str]]:
    """Run the lab, and return its exit status and the modules that it has loaded."""
    command = (sys.executable, "-c", LIST_MODULES, *words)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, set(done.stderr.rpartition("\n")[2].split())


def is_of(modules: set[str], packages: set[str]) -> set[str]:
    return {module for module in modules if module.partition(".")[0] in packages}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("", 2),
        ("--help", 0),
        ("--version", 0),
        ("mechanisms", 0),
        ("mechanisms --json", 0),
        ("scenarios", 0),
        ("trial --help", 0),
        ("trail", 2),
        ("trial --sede 1", 2),
    ],
)
def test_what_needs_no_guest_loads_nothing_that_runs_one(words: str, status: int) -> None:
    returned, modules = load(*words.split())
    assert returned == status
    assert is_of(modules, HEAVY | CHECKS) == set()
    assert len(is_of(modules, {"lab"})) <= MAX_OWN


@pytest.mark.parametrize(
    "words",
    [
        "trial --mechanism nmi-sefl --out {out}",
        "trial --mechanism nmi-self --topology 2x2 --out {out}",
        "trial --mechanism nmi-self",
        "judge {out}",
        "replay {out}",
        "landmarks --base linux-6",
        "build kernels",
        "ucode goood",
        "run --mechanism nmi-sefl --out {out}",
        "run --mechanism nmi-self --topology 2x2 --out {out}",
        "report {out}",
        "mail {out}",
        "serve {out}",
        "export {out} --format kcidb",
        "bisect --tree {out} --good a --bad b --scenario upstrem --out {out}",
        "sound --only nobody --out {out}",
        "sweep --role nobody --out {out}",
        "sweep --mechanism nmi-sefl --out {out}",
        "bench --runs 1",
        "mutants --trials 0",
        "mutants clams-all",
        "mutants --list nobody",
        "campaign start {out} --out {out}",
        "campaign start {out} --trials 0 --out {out}",
        "campaign list {out}",
    ],
)
def test_a_value_that_is_refused_loads_nothing_that_runs_a_guest(words: str, tmp_path: Path) -> None:
    returned, modules = load(*words.format(out=tmp_path / "out").split())
    assert returned == 2
    assert is_of(modules, HEAVY) == set()
    assert len(is_of(modules, {"lab"})) <= MAX_OWN


def test_the_plugin_that_every_suite_loads_brings_nothing_that_runs_a_guest() -> None:
    command = (sys.executable, "-c", "import sys, lab.pytest_plugin.plugin\nprint(*sys.modules)")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    modules = set(done.stdout.split())
    assert "lab.pytest_plugin.plugin" in modules
    assert is_of(modules, HEAVY) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    deferred = app.commands[name]
    assert isinstance(deferred, Deferred)
    module, _, attribute = deferred.where.partition(":")
    found = getattr(__import__(module, fromlist=[attribute]), attribute)
    if not isinstance(found, typer.Typer):
        assert found.__doc__.partition("\n")[0] == deferred.help
    assert deferred.load().name == name
