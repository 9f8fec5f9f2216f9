# SPDX-License-Identifier: GPL-2.0-or-later
"""What reviewers should not have to look for, over all files of the checkout that git does not ignore."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.host.paths import ROOT

#: Which rooms of lab/ each may import from; every room may import from itself and from lab.errors.
ROOMS = {
    "errors": set[str](),
    "host": set[str](),
    "mechanisms": set[str](),
    "microcode": set[str](),
    "model": {"mechanisms"},
    "expected": {"mechanisms", "model"},
    "kernelimage": {"host", "mechanisms", "model"},
    "build": {"host", "mechanisms", "model", "expected", "kernelimage"},
    "guest": {"host", "model"},
    "observer": {"host", "model", "kernelimage"},
    "evidence": {"host", "model", "guest"},
    "judge": {"mechanisms", "model"},
}
ROOMS["trial"] = set(ROOMS)
for above in ("sweep", "reduce", "bisect", "pytest_plugin"):
    ROOMS[above] = set(ROOMS) - {"sweep", "reduce", "bisect", "pytest_plugin"}
ROOMS["campaign"] = {*ROOMS["trial"], "trial", "sweep"}
ROOMS["cluster"] = {*ROOMS["campaign"], "campaign"}
ROOMS["report"] = {"host", "mechanisms", "model", "expected"}
#: The command line sits on top of all rooms.
TOP = {"cli"}
ROOMS |= {module: set(ROOMS) | TOP for module in TOP}
#: Beyond its rooms, a report may import what reads the store and evidence folders, and nothing that runs trials.
READERS = {
    "lab.campaign.about",
    "lab.campaign.database",
    "lab.campaign.run_folder",
    "lab.campaign.old_runs",
    "lab.campaign.runs",
    "lab.campaign.details",
    "lab.campaign.reader",
    "lab.campaign.sums",
    "lab.evidence.folder",
}
#: Kinds of files that carry a licence line; others are data, or have a format without comments.
SOURCES = {".py", ".c", ".h", ".S", ".sh", ".toml", ".html", ".css", ".js"}
#: The licence line must be seen without scrolling.
SPDX_LINES = 3


def list_files() -> list[Path]:
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    paths = (ROOT / name for name in sorted(set(listed.split("\0"))) if name)
    return [path for path in paths if path.is_file()]


def run(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, f"{command[0]} {command[1]}:\n{done.stdout}"
    return done.stdout


def read_shebang(path: Path) -> bytes:
    with open(path, "rb") as source:
        first = source.readline(200)
    return first if first.startswith(b"#!") else b""


def find_room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def list_imports(path: Path) -> list[tuple[int, str]]:
    """Return line and name of each module of the lab that a file imports, wherever in the file it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module or ""
            # "from lab import build" names rooms; "from lab.x import y" has its room in the module already.
            found += (
                [(node.lineno, f"lab.{alias.name}") for alias in node.names]
                if module == "lab"
                else [(node.lineno, module)]
            )
    return [(line, module) for line, module in found if module.split(".")[0] == "lab"]


def test_mypy_strict() -> None:
    run([sys.executable, "-m", "mypy", "--strict"])


def test_ruff_check() -> None:
    run([sys.executable, "-m", "ruff", "check", "--quiet", "."])


def test_ruff_format() -> None:
    run([sys.executable, "-m", "ruff", "format", "--quiet", "--diff", "."])


def test_shellcheck() -> None:
    scripts = [path for path in list_files() if read_shebang(path).rstrip().endswith((b"sh",))]
    assert ROOT / "images/initramfs/init" in scripts
    run(["shellcheck", *scripts])


def test_clang_format() -> None:
    images = ROOT / "images"
    sources = [path for path in list_files() if path.suffix in {".c", ".h"} and path.is_relative_to(images)]
    assert sources
    run(["clang-format", "--style=file", "--fallback-style=none", "--dry-run", "-Werror", *sources])


def test_each_source_names_its_licence() -> None:
    bare = []
    for path in list_files():
        if path.suffix in SOURCES or path.name == "Makefile" or read_shebang(path):
            head = path.read_text(errors="replace").splitlines()[:SPDX_LINES]
            if not any("SPDX-License-Identifier: GPL-2.0" in line for line in head):
                bare.append(str(path.relative_to(ROOT)))
    assert bare == []


def test_imports_go_one_way() -> None:
    wrong = []
    for path in list_files():
        name = path.relative_to(ROOT)
        if name.parts[0] != "lab" or path.suffix != ".py":
            continue
        room = find_room(".".join(name.with_suffix("").parts))
        allowed = {room, "errors", "", "__init__", "__version__"} | ROOMS.get(room, set())
        wrong += [
            f"{name}:{line}: {module}"
            for line, module in list_imports(path)
            if find_room(module) not in allowed and not (room == "report" and module in READERS)
        ]
    assert wrong == []


@pytest.mark.parametrize("banned", ["print", "sys.exit", "os._exit"])
def test_only_the_command_line_prints_and_exits(banned: str) -> None:
    wrong = []
    for path in list_files():
        name = path.relative_to(ROOT)
        if path.suffix != ".py" or name.parts[0] != "lab" or name.parts[1] in TOP:
            continue
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        wrong += [f"{name}:{node.lineno}" for node in calls if ast.unparse(node.func) == banned]
    assert wrong == []
