# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian archive of a few empty packages in a folder, and an apt and a dpkg that know nothing else."""

import hashlib
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

SUITES = ("trixie", "trixie-updates")


def make_deb(folder: Path, name: str, version: str = "1.0", depends: str = "", files: Mapping[str, bytes] = {}) -> Path:
    """Build a real package; its script, which nobody but dpkg may run, leaves a trace."""
    tree = folder / f"{name}-{version}-tree"
    (tree / "DEBIAN").mkdir(parents=True)
    lines = [f"Package: {name}", f"Version: {version}", "Architecture: all", "Maintainer: Lab <lab@localhost>"]
    lines += [f"Depends: {depends}"] if depends else []
    (tree / "DEBIAN/control").write_text("\n".join([*lines, "Description: of a test", ""]))
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
        (tree / path).chmod(0o755)
    deb = folder / f"{name}_{version}_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "--build", os.fspath(tree), os.fspath(deb)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return deb


def describe_deb(deb: Path, where: str) -> str:
    control = subprocess.run(
        ["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    return f"{control}Filename: {where}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n\n"


def make_mirror(folder: Path, debs: Iterable[Path], suites: Iterable[str] = SUITES) -> Path:
    """Lay out ``debian/`` and ``debian-security/`` with the packages in the first suite; nothing is signed."""
    pool = folder / "debian/pool"
    pool.mkdir(parents=True)
    index = ""
    for deb in debs:
        deb.rename(pool / deb.name)
        index += describe_deb(pool / deb.name, f"pool/{deb.name}")
    for number, suite in enumerate(suites):
        write_suite(folder / "debian/dists" / suite, suite, "" if number else index)
    write_suite(folder / "debian-security/dists/trixie-security", "trixie-security", "")
    return folder


def write_suite(folder: Path, suite: str, index: str) -> None:
    packages = folder / "main/binary-amd64/Packages"
    packages.parent.mkdir(parents=True)
    packages.write_text(index)
    digest = hashlib.sha256(index.encode()).hexdigest()
    (folder / "Release").write_text(
        f"Suite: {suite}\nCodename: {suite}\nArchitectures: amd64 all\nComponents: main\n"
        f"Date: Sat, 01 Jan 2022 00:00:00 UTC\nSHA256:\n {digest} {len(index.encode())} main/binary-amd64/Packages\n"
    )


def make_system(folder: Path, source: str) -> dict[str, str]:
    """Make an empty system below a folder, and return the environment in which apt and dpkg work on it.

    :param source: what apt's list of sources says after ``deb``
    """
    root = folder / "root"
    for name in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "lists/partial", "archives/partial", "etc", "log"):
        (root / name).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    (root / "etc/sources.list").write_text(f"deb {source}\n")
    config = folder / "apt.conf"
    config.write_text(
        f'Dir::State "{root}";\nDir::State::lists "{root}/lists";\nDir::State::status "{root}/var/lib/dpkg/status";\n'
        f'Dir::Cache "{root}";\nDir::Cache::archives "{root}/archives";\nDir::Log "{root}/log";\n'
        f'Dir::Etc "{root}/etc";\nDir::Etc::sourcelist "{root}/etc/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::main "/dev/null";\nDir::Etc::parts "/dev/null";\n'
        f'DPkg::Options {{ "--root={root}"; "--force-not-root"; "--force-bad-path"; "--log=/dev/null"; }};\n'
        'APT::Architecture "amd64";\nAPT::Sandbox::User "root";\nAcquire::Languages "none";\nAcquire::Retries "0";\n'
    )
    return {"APT_CONFIG": os.fspath(config), "DPKG_ADMINDIR": os.fspath(root / "var/lib/dpkg"), "LC_ALL": "C"}
