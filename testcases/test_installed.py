# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab as others install it: a wheel in an environment of its own, used from another folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from conftest import find_unpatched
from lab import __version__
from lab.build.images import ImageSet
from lab.host.paths import ROOT

#: What the wheel is made of.
SOURCES = ("lab", "images", "testcases/scenarios", "pyproject.toml", "README.md", "LICENSE")
#: An environment with all that the lab depends on, on a crowded host.
INSTALL_S = 900

#: A suite whose few trials were all INVALID is red, and says so. A crowded host may do that, and not three times.
NOTHING_SHOWN = "trials were INVALID, so nothing was shown"
TRIES = 3

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2 * INSTALL_S)]


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command as somebody who has never seen this checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    for _ in range(TRIES):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
        if done.returncode == 0 or NOTHING_SHOWN not in done.stdout:
            break
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    source, wheels, environment = folder / "source", folder / "wheels", folder / "venv"
    # A build in the checkout would leave its folder there.
    for name in SOURCES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, source / name)
    run((sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, source), folder)
    shutil.rmtree(source)
    (wheel,) = wheels.glob("*.whl")
    run((sys.executable, "-m", "venv", environment), folder)
    run((environment / "bin/pip", "install", "--quiet", f"{wheel}[pytest]"), folder)
    return environment / "bin"


def test_a_wheel_knows_its_own_scenarios_images_and_version(installed: Path, tmp_path: Path, images: ImageSet) -> None:
    assert run((installed / "lab", "--version"), tmp_path) == f"lab {__version__}\n"
    scenarios = msgspec.json.decode(run((installed / "lab", "scenarios", "--json"), tmp_path))["scenarios"]
    here = {path.stem for path in (ROOT / "testcases/scenarios").glob("*.toml")}
    assert {each["name"] for each in scenarios} == here
    # Of the same sources as the checkout's, and so found in the cache and not built again.
    built = msgspec.json.decode(run((installed / "lab", "build", "all", "--json"), tmp_path))
    assert built["kernel"] == str(images.kernel)
    assert built["observer"] == str(images.observer)
    assert built["initramfs"] == str(images.initramfs)


def test_the_example_suite_passes_from_another_folder(installed: Path, tmp_path: Path, images: ImageSet) -> None:
    assert images.kernel.exists()
    suite = tmp_path / "suite"
    shutil.copytree(ROOT / "examples", suite)
    said = run((installed / "pytest", "-q", "-p", "no:cacheprovider", "--lab-trials", "2", suite), tmp_path)
    assert "4 passed" in said


def test_the_example_suite_takes_a_kernel_that_is_brought(installed: Path, tmp_path: Path) -> None:
    own = find_unpatched("stock-since-6.7")
    suite = tmp_path / "suite"
    shutil.copytree(ROOT / "examples", suite)
    files = ("--lab-kernel", own.image, "--lab-vmlinux", own.vmlinux)
    said = run((installed / "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "own", suite), tmp_path)
    assert "1 passed" in said
    command = (installed / "pytest", "-q", "-p", "no:cacheprovider", *files[:2], suite)
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert refused.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--lab-kernel and --lab-vmlinux go together" in refused.stderr


def test_a_checkout_with_its_conftest_takes_the_plugin_once(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "suite")
    (tmp_path / "suite" / "conftest.py").write_text('pytest_plugins = ["lab.pytest_plugin.plugin"]\n')
    said = run((installed / "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "suite"), tmp_path)
    assert "4 tests collected" in said
