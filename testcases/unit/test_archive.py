# SPDX-License-Identifier: GPL-2.0-or-later
"""The real apt on an archive of a few packages. It is unsigned, which only a class of these tests accepts."""

import os
from pathlib import Path

import pytest
from small_archive import describe_deb, make_deb, make_mirror, write_suite

from lab.build import archive, kernel_source
from lab.build.archive import MIRROR_VARIABLE, Archive, find_mirror, open_archive, read_table, why_not_fetch
from lab.build.kernel_source import Origin, find_source, locate_source
from lab.errors import HostError, UsageError
from lab.host.paths import IMAGES
from lab.mechanisms.base import BASES

SOURCE = b"a tarball"
POSTINST = b"#!/bin/sh\ntouch /tmp/lab-postinst-was-run\n"


class TrustingArchive(Archive):
    """Takes an archive that nobody signed."""

    def _list_sources(self, mirror: archive.Mirror) -> str:
        return super()._list_sources(mirror).replace("signed-by=", "trusted=yes signed-by=")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive, an empty cache, and a host that has no source of a kernel."""
    debs = [
        make_deb(tmp_path, "linux-source-6.1", files={"usr/src/linux-source-6.1.tar.xz": SOURCE, "x/y": b""}),
        make_deb(tmp_path, "linux-source-6.12", files={"usr/src/linux-source-6.12.tar.xz": SOURCE}),
        make_deb(tmp_path, "lab-tool", depends="lab-library (>= 1)"),
        make_deb(tmp_path, "lab-library"),
    ]
    folder = make_mirror(tmp_path / "mirror", debs, ("bookworm", "bookworm-updates"))
    write_suite(folder / "debian-security/dists/bookworm-security", "bookworm-security", "")
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(MIRROR_VARIABLE, f"file://{folder}")
    monkeypatch.setattr(kernel_source, "SOURCES", tmp_path / "no-sources")
    return folder


@pytest.fixture
def trusted(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(archive, "Archive", TrustingArchive)
    return mirror


def test_every_kernel_of_the_lab_has_a_source_in_the_table() -> None:
    table = read_table()
    assert {base.name for base in BASES} <= set(table.source)
    assert {path.parent.name for path in (IMAGES / "kernels").glob("*/series")} <= set(table.source)
    assert {source.release for source in table.source.values()} <= set(table.release)
    assert {suites.base for suites in table.release.values()} - {""} <= set(table.release)


def test_archive_that_nobody_signed_is_refused(mirror: Path) -> None:
    with pytest.raises(HostError, match=r"Debian's bookworm could not be read from file://.*not signed"):
        find_source("linux-6.1", lambda _: None)
    assert mirror.is_dir()
    assert locate_source("linux-6.1").origin is Origin.ARCHIVE, "nothing half-fetched is kept"


def test_source_is_fetched_once_and_kept(trusted: Path) -> None:
    assert locate_source("linux-6.1").origin is Origin.ARCHIVE
    path = find_source("linux-6.1", lambda _: None)
    assert (path.name, path.read_bytes()) == ("linux-source-6.1.tar.xz", SOURCE)
    assert {each.name for each in path.parent.iterdir()} == {path.name, "SHA256SUMS", "version"}
    place = locate_source("linux-6.1")
    assert (place.origin, place.found) == (Origin.CACHE, "1.0, in the cache")
    trusted.rename(trusted.with_name("gone"))
    assert find_source("linux-6.1", lambda _: None) == path


def test_installed_source_is_taken_before_any_other(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_source, "SOURCES", mirror)
    (mirror / "linux-source-6.1.tar.xz").write_bytes(b"of the distribution")
    assert find_source("linux-6.1", lambda _: None) == mirror / "linux-source-6.1.tar.xz"
    assert locate_source("linux-6.1").origin is Origin.PACKAGE


def test_name_is_never_a_pattern(trusted: Path) -> None:
    with open_archive(read_table(), "bookworm", lambda _: None) as here:
        for name in ("linux-source-6", "linux-source-6.", "linux-source-.*", "~nlinux", "-y", "lab-tool+", ""):
            with pytest.raises(HostError, match="has no package"):
                here.find(name)
    assert trusted.is_dir()


def test_packages_come_with_what_they_depend_on_and_run_no_script(trusted: Path, tmp_path: Path) -> None:
    scripted = make_deb(tmp_path, "lab-scripted", depends="lab-tool", files={"DEBIAN/postinst": POSTINST, "z": b"1"})
    with open_archive(read_table(), "bookworm", lambda _: None) as here:
        files = here.fetch([here.find("lab-tool")], with_dependencies=True)
        assert [path.name.split("_")[0] for path in files] == ["lab-library", "lab-tool"]
        here.unpack(scripted, tmp_path / "unpacked")
    assert (tmp_path / "unpacked/z").read_bytes() == b"1"
    assert not Path("/tmp/lab-postinst-was-run").exists()
    assert not files[0].exists(), "what was fetched goes when the archive is left"
    assert trusted.is_dir()


def test_backports_win_over_their_base(trusted: Path, tmp_path: Path) -> None:
    newer = make_deb(tmp_path, "lab-library", version="2.0~bpo12+1")
    newer.rename(trusted / "debian/pool" / newer.name)
    index = describe_deb(trusted / "debian/pool" / newer.name, f"pool/{newer.name}")
    write_suite(trusted / "debian/dists/bookworm-backports", "bookworm-backports", index)
    for release, version in (("bookworm", "1.0"), ("bookworm-backports", "2.0~bpo12+1")):
        with open_archive(read_table(), release, lambda _: None) as here:
            assert here.find("lab-library").version == version


def test_damaged_package_is_refused(trusted: Path) -> None:
    pool = trusted / "debian/pool/lab-library_1.0_all.deb"
    pool.write_bytes(pool.read_bytes()[:-1] + b"x")
    with (
        open_archive(read_table(), "bookworm", lambda _: None) as here,
        pytest.raises(HostError, match=r"'lab-library=1\.0' could not be fetched"),
    ):
        here.fetch([here.find("lab-library")], with_dependencies=False)


def test_archive_out_of_reach_is_one_sentence(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, f"file://{mirror}/nowhere/")
    with pytest.raises(HostError, match=r"linux-source-6\.1 is not in .*check the network.*--tree") as caught:
        find_source("linux-6.1", lambda _: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["mirror.example", "ftp://host/", "http://host/ main", "http://h/] [x", "file:"])
def test_mirror_that_is_no_url_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, url)
    with pytest.raises(UsageError, match=f"{MIRROR_VARIABLE} is '.*': allowed is a URL"):
        find_mirror(read_table())


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (
            "deb http://one.example/debian/ bookworm main\ndeb http://two.example/security/ bookworm-security main\n",
            ("http://one.example/debian", "http://two.example/security"),
        ),
        ("deb mirror+file:/etc/list trixie main\n", ("mirror+file:/etc/list", "")),
        ("deb http://one.example/debian sid main\n", ("http://one.example/debian", "")),
        ("deb http://one.example/ubuntu noble main\n", None),
        ("", None),
    ],
)
def test_mirror_is_the_one_that_the_hosts_own_apt_uses(
    sources: str, found: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.list").write_text(sources)
    config = tmp_path / "apt.conf"
    config.write_text(f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n')
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr(archive, "_make_environment", lambda _: {**os.environ, "APT_CONFIG": str(config)})
    if found is None:
        with pytest.raises(HostError, match=f"set {MIRROR_VARIABLE}"):
            find_mirror(read_table())
    else:
        assert find_mirror(read_table()) == archive.Mirror(*found)


def test_host_without_apt_or_keyring_is_told_what_to_install(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why_not_fetch(read_table()) == ""
    table = read_table()
    no_keyring = type(table)(str(tmp_path / "no.gpg"), table.release, table.source, table.qemu)
    assert "debian-archive-keyring" in why_not_fetch(no_keyring)
    monkeypatch.setenv("PATH", os.fspath(mirror))
    assert why_not_fetch(table).startswith("this host has no 'apt-get'")
    place = locate_source("linux-6.1")
    assert (place.origin, place.mend.split(",")[0]) == (Origin.NOWHERE, "apt-get install linux-source-6.1")


def test_settings_of_the_host_choose_the_way_and_never_whom_to_trust(
    trusted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = 'Acquire::http::Proxy "http://127.0.0.1:3142";\nAcquire::AllowInsecureRepositories "true";\nDPkg::x "y";\n'
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-config").write_text(f"#!/bin/sh\ncat <<'E'\n{dump}E\n")
    (tools / "apt-config").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with open_archive(read_table(), "bookworm", lambda _: None):
        config = (tmp_path / "cache/microcode-nmi-lab/apt/bookworm/apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://127.0.0.1:3142";' in config
    assert 'Acquire::AllowInsecureRepositories "true"' not in config
    assert "DPkg::x" not in config
    assert trusted.is_dir()
