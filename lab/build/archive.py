# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's archive, as images/host/archive.toml describes it. apt fetches packages, and nothing is installed.

apt keeps all its state in the lab's cache: the lab neither reads nor changes the host's lists, sources and packages.
apt runs as the user of the lab. apt verifies each suite's signature by the archive's keyring, and each package by the
suite's hashes.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from lab.build.cache import Progress, locked, make_folder
from lab.errors import DeadlineError, HostError, ProcessError, UsageError, tell_nearest
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.files import write_whole
from lab.host.paths import IMAGES

TABLE: Final = IMAGES / "host" / "archive.toml"
MIRROR_VARIABLE: Final = "MCLAB_DEBIAN_MIRROR"
PROGRAMS: Final = ("apt-get", "apt-cache", "apt-config", "dpkg-deb")

_ARCHITECTURE: Final = "amd64"
#: Lists have 20 MiB and packages up to 150 MiB. A fetch that takes longer than this has hung.
_MAX_FETCH_S: Final = 1800.0
_MAX_LOCAL_S: Final = 300.0
_PROGRESS_EVERY_S: Final = 1.0
_MIRROR: Final = re.compile(r"(?:https?|file)://[!-~]+")
#: Debian policy 5.6.7 and 5.6.12. A name or version that matches is never a pattern of apt; ``name=version`` could
#: otherwise be a pattern.
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION: Final = re.compile(r"[A-Za-z0-9.+:~-]+")
#: ``'http://..' NAME SIZE SHA256:..``, a line of ``--print-uris``.
_TO_FETCH: Final = re.compile(r"^'[^']*' (?P<name>[^\s/]+\.deb) (?P<size>\d+)", re.MULTILINE)
#: ``'http://../debian/dists/bookworm/InRelease' ..``, a line of ``update --print-uris``.
_SUITE: Final = re.compile(r"^'(?P<url>[^']+?)/+dists/(?P<suite>[^/']+)/InRelease'", re.MULTILINE)
#: The host's settings decide how to reach the network. They do not decide whom to trust.
_HOST_SETTING: Final = re.compile(
    r"^Acquire::(?:(?:https?|ftp)::|Retries|ForceIPv|Check-Valid-Until|Check-Date)[^;\n]*;$",
    re.IGNORECASE | re.MULTILINE,
)


class Suites(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One release of the table.

    :param base: another release; this release also has its suites
    """

    debian: tuple[str, ...]
    security: tuple[str, ...] = ()
    base: str = ""


class Mirror(msgspec.Struct, frozen=True):
    """URLs of the archive, without a slash at the end.

    :param security: URL of the security updates; empty if unknown, and then the lab leaves these updates out
    """

    debian: str
    security: str


class SourcePackage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The package with the source of a kernel.

    :param extra: no kernel of images/kernels uses this source
    """

    package: str
    release: str
    extra: bool = False


class QemuPackages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The packages of a QEMU of another release."""

    packages: tuple[str, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole content of images/host/archive.toml."""

    keyring: str
    release: dict[str, Suites]
    source: dict[str, SourcePackage]
    qemu: QemuPackages


class Package(msgspec.Struct, frozen=True):
    """One version of a package of the archive."""

    name: str
    version: str


def read_table() -> Table:
    """Return the table of packages that the lab may fetch.

    :raise HostError: the table is damaged
    """
    try:
        return msgspec.convert(tomllib.loads(TABLE.read_text()), Table)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise HostError(f"'{TABLE}' cannot be read: {error}") from error


def why_not_fetch(table: Table) -> str:
    """Return why this host cannot fetch packages, and what to do. Return an empty string if it can."""
    lacks = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacks:
        return f"this host has no '{lacks[0]}', which fetches from Debian's archive: install the packages apt and dpkg"
    if not Path(table.keyring).is_file():
        return (
            f"'{table.keyring}' is missing, which verifies Debian's archive: install the package debian-archive-keyring"
        )
    return ""


def check_release(table: Table, name: str) -> None:
    """Check that a release is in the table.

    :raise UsageError: the release is not in the table; the text lists all releases of the table
    """
    if name not in table.release:
        near = tell_nearest(name, table.release)
        raise UsageError(f"release '{name}' is unknown: there are {', '.join(table.release)}{near}")


class Archive:
    """One release, with apt's state in a folder. The caller has the folder's lock; see :func:`open_archive`."""

    def __init__(self, table: Table, release: str, folder: Path, progress: Progress) -> None:
        self._table = table
        self._release = release
        self._folder = folder
        self._progress = progress
        self._debs = folder / "archives"

    def update(self) -> None:
        """Write apt's settings and read the lists again. Remove the leftovers of a killed apt.

        :raise HostError: the archive cannot be reached, or its signature is not valid
        """
        mirror = find_mirror(self._table)
        shutil.rmtree(self._debs, ignore_errors=True)
        for path in (self._debs / "partial", self._folder / "lists" / "partial", self._folder / "etc"):
            path.mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        write_whole(self._folder / "etc/sources.list", self._list_sources(mirror).encode())
        write_whole(self._config, self._make_config().encode())
        self._progress(f"archive: reading the lists of {self._release}")
        try:
            self._run("apt-get", "-q", "update", seconds=_MAX_FETCH_S)
        except ProcessError as error:
            raise HostError(
                f"Debian's {self._release} could not be read from {mirror.debian} ({_pick_reason(error.output)}):"
                f" check the network, or set {MIRROR_VARIABLE} to a mirror that this host reaches"
            ) from error

    def find(self, name: str) -> Package:
        """Return the package of a name, in the version that this release has.

        :raise HostError: the release has no package of exactly this name
        """
        version = ""
        if _NAME.fullmatch(name):
            policy = self._run("apt-cache", *self._target, "policy", name, seconds=_MAX_LOCAL_S)
            version = _find_candidate(policy, name)
        if not _VERSION.fullmatch(version):
            raise HostError(f"Debian's {self._release} has no package '{name}'")
        return Package(name, version)

    def fetch(self, packages: Sequence[Package], *, with_dependencies: bool) -> tuple[Path, ...]:
        """Fetch packages and return their files. The files exist until the caller leaves the archive.

        :raise HostError: the packages could not be fetched
        """
        words = [f"{package.name}={package.version}" for package in packages]
        command = ["install", "-y", "--download-only", "--no-install-recommends"] if with_dependencies else ["download"]
        asked = ["apt-get", "-q", *self._target, *command]
        try:
            planned = self._run(*asked, "--print-uris", *words, seconds=_MAX_LOCAL_S)
            sizes = {match["name"]: int(match["size"]) for match in _TO_FETCH.finditer(planned)}
            self._fetch_all([*asked, *words], packages[0].name, sum(sizes.values()))
        except ProcessError as error:
            raise HostError(f"'{words[0]}' could not be fetched: {_pick_reason(error.output)}") from error
        files = tuple(sorted(path for path in self._debs.iterdir() if path.name in sizes))
        if not files or len(files) != len(sizes):
            raise HostError(f"apt fetched {len(files)} of {len(sizes)} packages for '{words[0]}'")
        return files

    def unpack(self, deb: Path, target: Path) -> None:
        """Unpack the files of a package into a folder. None of its scripts run.

        :raise HostError: the package is damaged, or the disk is full
        """
        proc.run(["dpkg-deb", "--extract", deb, target], deadline=Deadline.after(_MAX_LOCAL_S))

    def clean(self) -> None:
        """Remove the fetched packages."""
        shutil.rmtree(self._debs, ignore_errors=True)

    @property
    def _config(self) -> Path:
        return self._folder / "apt.conf"

    @property
    def _target(self) -> tuple[str, ...]:
        """Return apt's option that prefers backports.

        Among the suites of one release, apt takes the newest version by itself.
        """
        return ("-t", self._suites.debian[0]) if self._suites.base else ()

    @property
    def _suites(self) -> Suites:
        return self._table.release[self._release]

    def _list_sources(self, mirror: Mirror) -> str:
        base = [self._table.release[self._suites.base]] if self._suites.base else []
        # apt would use a package of a file: URL in place, and would fetch nothing.
        debian, security = (url.replace("file://", "copy:", 1) for url in (mirror.debian, mirror.security))
        option = f"[arch={_ARCHITECTURE} signed-by={self._table.keyring}]"
        lines = []
        for suites in (*base, self._suites):
            lines += [f"deb {option} {debian} {suite} main\n" for suite in suites.debian]
            lines += [f"deb {option} {security} {suite} main\n" for suite in suites.security if security]
        return "".join(lines)

    def _make_config(self) -> str:
        folder = self._folder
        host = proc.run(["apt-config", "dump"], env=_make_environment(None), deadline=Deadline.after(_MAX_LOCAL_S))
        settings = {
            "APT::Architecture": _ARCHITECTURE,
            "APT::Sandbox::User": _choose_sandbox_user(folder),
            # Without this setting, a list that cannot be read is only a warning.
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
            "APT::Get::AllowUnauthenticated": "false",
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Cache::archives": self._debs,
            "Dir::Etc": folder / "etc",
            "Dir::Etc::sourcelist": folder / "etc/sources.list",
            # Empty files: apt reads no part of the host's settings.
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": "/dev/null",
        }
        lines = [f'{name} "{value}";\n' for name, value in settings.items()]
        architectures = f'#clear APT::Architectures;\nAPT::Architectures {{ "{_ARCHITECTURE}"; }};\n'
        return architectures + "".join(f"{line}\n" for line in _HOST_SETTING.findall(host)) + "".join(lines)

    def _run(self, *words: str, seconds: float) -> str:
        deadline = Deadline.after(seconds)
        try:
            return proc.run(words, cwd=self._debs, env=_make_environment(self._config), deadline=deadline)
        except DeadlineError as error:
            raise HostError(f"'{words[0]}' of {self._release} did not end in {seconds:.0f} s: try again") from error

    def _fetch_all(self, command: Sequence[str], name: str, total: int) -> None:
        """Run apt to its end, and report how much of the total size is fetched."""
        log = self._folder / "fetch.log"
        deadline = Deadline.after(_MAX_FETCH_S)
        environment = _make_environment(self._config)
        with (
            open(log, "wb") as sink,
            proc.start_process(
                command, cwd=self._debs, env=environment, stdout=sink, stderr=subprocess.STDOUT
            ) as process,
        ):
            while process.returncode is None:
                self._progress(f"archive: fetching {name}, {_measure(self._debs) >> 20} of {total >> 20} MiB")
                if deadline.expired:
                    raise HostError(f"'{name}' could not be fetched in {_MAX_FETCH_S:.0f} s: try again")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PROGRESS_EVERY_S)
        if process.returncode != 0:
            raise ProcessError(tuple(command), process.returncode, log.read_text(errors="backslashreplace"))


@contextlib.contextmanager
def open_archive(table: Table, release: str, progress: Progress) -> Iterator[Archive]:
    """Yield a release of the archive with new lists, under its lock. Remove the fetched packages at the end.

    :raise UsageError: the release does not exist
    :raise HostError: this host cannot fetch, or the archive cannot be reached
    """
    check_release(table, release)
    reason = why_not_fetch(table)
    if reason:
        raise HostError(reason)
    folder = make_folder("apt")
    with locked(folder / f".{release}.lock", "list of packages", progress):
        archive = Archive(table, release, folder / release, progress)
        try:
            archive.update()
            yield archive
        finally:
            archive.clean()


def find_mirror(table: Table) -> Mirror:
    """Return the mirror that the variable names. Without the variable, return the mirror of this host's own apt.

    :raise UsageError: the variable is not a URL
    :raise HostError: there is no mirror; the text says what to do
    """
    named = os.environ.get(MIRROR_VARIABLE)
    if named:
        if not _MIRROR.fullmatch(named) or any(letter in named for letter in "'\"[]"):
            raise UsageError(
                f"{MIRROR_VARIABLE} is '{named}': allowed is a URL that begins with http://, https:// or file:///"
            )
        return Mirror(f"{named.rstrip('/')}/debian", f"{named.rstrip('/')}/debian-security")
    return _find_host_mirror(table)


def _find_host_mirror(table: Table) -> Mirror:
    # This works even if apt has never read a list; nothing is fetched.
    words = ("apt-get", "update", "--print-uris")
    listed = proc.run(words, env=_make_environment(None), deadline=Deadline.after(_MAX_LOCAL_S))
    found = {match["suite"]: match["url"] for match in _SUITE.finditer(listed) if _is_fit(match["url"])}
    security = [found[suite] for each in table.release.values() for suite in each.security if suite in found]
    debian = [found[suite] for each in table.release.values() for suite in each.debian if suite in found]
    debian += [url for url in found.values() if url.endswith("/debian")]
    if not debian:
        raise HostError(
            f"this host's apt knows no mirror of Debian: set {MIRROR_VARIABLE} to one, a URL with debian/ below it"
        )
    return Mirror(debian[0], security[0] if security else "")


def _is_fit(url: str) -> bool:
    return not any(letter in url for letter in "'\"[]") and not url.startswith("cdrom:")


def _make_environment(config: Path | None) -> dict[str, str]:
    """Return the user's environment, proxies included, with apt's messages in English."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    environment.pop("APT_CONFIG", None)
    return environment if config is None else {**environment, "APT_CONFIG": os.fspath(config)}


def _choose_sandbox_user(folder: Path) -> str:
    """Return the user that root's apt downloads as: apt's own user, or root if that user cannot reach the cache."""
    reachable = all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))
    return "_apt" if reachable else "root"


def _find_candidate(policy: str, name: str) -> str:
    """Return a package's version in the output of ``apt-cache policy``; empty if the output does not contain it."""
    found = ""
    for line in policy.splitlines():
        if not line.startswith(" "):
            found = line
        elif found == f"{name}:" and line.startswith("  Candidate: "):
            return line.split(": ", 1)[1].strip()
    return ""


def _pick_reason(output: str) -> str:
    """Return the line of apt's output that says what went wrong."""
    lines = [line for line in output.splitlines() if line.startswith(("E:", "W:", "Err:"))]
    telling = [line for line in lines if "NO_PUBKEY" in line or "Could not" in line or "404" in line]
    return (telling or lines or ["no output"])[0].split(":", 1)[-1].strip()


def _measure(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
