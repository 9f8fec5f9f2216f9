# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of examples/ci: valid YAML of the shape that each service wants, shell that parses, commands that exist."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cli.deferred import Deferred
from lab.cli.main import app
from lab.host.paths import ROOT
from lab.mechanisms.table import STOCK_MECHANISMS

FOLDER = ROOT / "examples" / "ci"
GITHUB, GITLAB = FOLDER / "github.yml", FOLDER / "gitlab.yml"
LAB = re.compile(r"\S*/\.venv/bin/lab$")
#: The service or the file itself sets these, to numbers and names.
VARIABLE = re.compile(r"\$[A-Z_]+")
#: An expression of GitHub is text by the time that a shell sees it.
EXPRESSION = re.compile(r"\$\{\{.*?\}\}")


def load(path: Path) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="pyyaml is in the extra 'dev'")
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def list_scripts(path: Path) -> Iterator[str]:
    found = load(path)
    if path == GITHUB:
        for job in found["jobs"].values():
            yield from (step["run"] for step in job["steps"] if "run" in step)
        return
    for job in found.values():
        if isinstance(job, dict):
            for key in ("before_script", "script", "after_script"):
                yield from job.get(key, ())


def list_commands(path: Path) -> Iterator[list[str]]:
    """Yield the words behind the lab's program in each command of a file's scripts."""
    for script in list_scripts(path):
        for line in script.replace("\\\n", " ").splitlines():
            words = [VARIABLE.sub("7", word) for word in shlex.split(line)]
            if words and LAB.match(words[0]):
                end = next((at for at, word in enumerate(words) if word in (">", ">>", "|", "&&", ";")), len(words))
                yield words[1:end]


def test_each_file_of_the_folder_is_checked_here() -> None:
    assert sorted(FOLDER.glob("*.yml")) == [GITHUB, GITLAB]


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=lambda path: path.name)
def test_no_file_names_somebodys_home(path: Path) -> None:
    """Where a job's home and workspace are is the service's to say."""
    assert re.findall(r"(?<!\S)/(?:root|home)\b\S*", path.read_text()) == []


def test_github_keeps_the_folder_that_the_lab_uses_as_its_cache() -> None:
    (job,) = load(GITHUB)["jobs"].values()
    (kept,) = [step["with"]["path"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache@")]
    (said,) = re.findall(
        r'"XDG_CACHE_HOME=\$GITHUB_WORKSPACE/(\S+)" >> "\$GITHUB_ENV"', "\n".join(list_scripts(GITHUB))
    )
    assert kept == f"{said}/microcode-nmi-lab"


def test_github_gets_jobs_with_steps_that_run_or_use_something() -> None:
    found = load(GITHUB)
    # YAML 1.1 takes the key 'on' for a truth value.
    assert set(found) == {"name", True, "jobs"}
    for job in found["jobs"].values():
        assert job["runs-on"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert set(step) <= {"name", "run", "uses", "with", "if"}


def test_gitlab_gets_jobs_of_its_stages_with_scripts_of_text() -> None:
    found = load(GITLAB)
    jobs = {name: job for name, job in found.items() if name != "stages"}
    assert jobs
    for job in jobs.values():
        assert job["stage"] in found["stages"]
        assert all(isinstance(line, str) for key in ("before_script", "script", "after_script") for line in job[key])


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=lambda path: path.name)
def test_each_script_is_shell(path: Path) -> None:
    scripts = list(list_scripts(path))
    assert scripts
    for script in scripts:
        command = ["bash", "-n", "-c", EXPRESSION.sub("x", script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=lambda path: path.name)
def test_each_command_of_the_lab_exists_with_its_options(path: Path) -> None:
    commands = list(list_commands(path))
    assert len(commands) >= 4
    for name, *words in commands:
        deferred = app.commands[name]
        assert isinstance(deferred, Deferred)
        # What typer reads is what a user's shell gives it: a wrong option or a missing one is an error here.
        with deferred.make_context(name, list(words)) as context:
            assert context.params


def test_each_file_names_a_mechanism_of_a_users_kernel() -> None:
    found = [job["env"]["MECHANISM"] for job in load(GITHUB)["jobs"].values()]
    found += [job["variables"]["MECHANISM"] for job in load(GITLAB).values() if isinstance(job, dict)]
    assert set(found) <= {each.name for each in STOCK_MECHANISMS}


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=lambda path: path.name)
def test_each_target_of_make_exists(path: Path) -> None:
    targets = re.findall(r"\bmake -C \S+ (\S+)", "\n".join(list_scripts(path)))
    assert targets
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(known)
