# SPDX-License-Identifier: GPL-2.0-or-later
"""What the plugin refuses, said by a real QEMU that then ends."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from observer_bench import TOPOLOGY, compile_plugin

from lab.build.qemu import find_qemu
from lab.observer import ObserverLink
from lab.observer.layout import Shape
from lab.trial.opening import PROCESSOR

LANDMARKS = "# none\n\npoint nmi-entry ffff 0xffffffff81000000\nregion 1 1000 2000 # a region\n"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_plugin(tmp_path_factory.mktemp("observer"))


@pytest.fixture
def link(tmp_path: Path) -> Iterator[ObserverLink]:
    with ObserverLink.create(tmp_path, TOPOLOGY, ring_records=16, table_blocks=4, cover_blocks=1) as link:
        yield link


def start(argument: str, *, pass_fds: tuple[int, ...] = (), smp: str = "2,cores=1,threads=2") -> tuple[int | None, str]:
    """Run QEMU until it refuses the plugin; one that it takes runs on, and is ended: status None."""
    command = [
        os.fspath(find_qemu().path),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "pc,accel=tcg",
        "-S",
    ]
    command += ["-smp", smp, "-m", "16", "-plugin", argument, "-chardev", "null,id=none"]
    try:
        done = subprocess.run(command, pass_fds=pass_fds, capture_output=True, text=True, timeout=3, check=False)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stderr


def refused(link: ObserverLink, argument: str, *, smp: str = "2,cores=1,threads=2") -> str:
    status, said = start(argument, pass_fds=(link.pass_fd,), smp=smp)
    assert status == 1
    return said


def write(tmp_path: Path, text: str = LANDMARKS) -> Path:
    path = tmp_path / "landmarks"
    path.write_text(text)
    return path


def test_a_right_command_line_is_taken(plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    status, _ = start(link.plugin_arguments(plugin, write(tmp_path)), pass_fds=(link.pass_fd,))
    assert status is None


def test_commas_in_paths_reach_the_plugin(plugin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    copy = folder / "or,acle.so"
    copy.write_bytes(plugin.read_bytes())
    with ObserverLink.create(folder, TOPOLOGY, ring_records=16, table_blocks=4, cover_blocks=1) as link:
        argument = link.plugin_arguments(copy, write(folder, "point nonsense ffff 1\n"))
        said = refused(link, argument)
    assert f"landmarks '{folder}/landmarks', line 1" in said


def test_unknown_option_is_named_with_those_there_are(plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    said = refused(link, link.plugin_arguments(plugin, write(tmp_path)) + ",speed=3")
    there = "landmarks=FILE, shm=FILE, link=FD, threads=N, engine=on|off, signature=HEX, platforms=HEX, revision=HEX"
    assert f"option 'speed=3' is unknown: there are {there}" in said


@pytest.mark.parametrize("name", ["landmarks", "shm", "link", "threads"])
def test_missing_option_is_named(name: str, plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    parts = link.plugin_arguments(plugin, write(tmp_path)).split(",")
    said = refused(link, ",".join(part for part in parts if not part.startswith(f"{name}=")))
    assert f"option {name} is missing: required are landmarks, shm, link, threads" in said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("threads=0", "option threads is '0': allowed is 1 to 64"),
        ("threads=two", "option threads is 'two': allowed is 1 to 64"),
        ("threads=1", "is for 2 vCPUs with 2 threads per core, the guest has 2 with 1"),
        ("link=-1", "option link is '-1': allowed is 0 to"),
        ("link=77", "option link: 77 is not an open SEQPACKET or DGRAM socket"),
        ("link=2", "option link: 2 is not an open SEQPACKET or DGRAM socket"),
        ("landmarks=/nowhere/at all", "landmarks '/nowhere/at all' cannot be opened: No such file"),
        ("shm=/nowhere/at all", "shm '/nowhere/at all' cannot be mapped: No such file"),
        ("shm=/dev/null", "shm '/dev/null' cannot be mapped: not a regular file of a page or more"),
    ],
)
def test_unfit_value_is_named(option: str, message: str, plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    parts = link.plugin_arguments(plugin, write(tmp_path)).split(",")
    name = option.split("=")[0]
    said = refused(link, ",".join(option if part.startswith(f"{name}=") else part for part in parts))
    assert message in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("engine=yes", "option engine is 'yes': allowed is on or off"),
        ("signature=50654x", "option signature is '50654x': allowed is 0 to ffffffff, in hex"),
        ("platforms=-1", "option platforms is '-1': allowed is 0 to ffffffff, in hex"),
        ("revision=100000000", "option revision is '100000000': allowed is 0 to ffffffff, in hex"),
        ("engine=on", "option engine is 'on': it needs signature, platforms and revision"),
    ],
)
def test_unfit_engine_is_named(more: str, message: str, plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    assert message in refused(link, f"{link.plugin_arguments(plugin, write(tmp_path))},{more}")


def test_where_registers_cannot_be_written_there_is_no_engine(plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    argument = link.plugin_arguments(plugin, write(tmp_path), engine=PROCESSOR)
    status, said = start(argument, pass_fds=(link.pass_fd,))
    if find_qemu().can_be_engine:
        assert status is None
    else:
        assert status == 1
        assert "option engine is 'on': plugin interface" in said
        assert "allowed from interface 6 on" in said


def test_stream_socket_is_refused(plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argument = link.plugin_arguments(plugin, write(tmp_path))
        argument = argument.replace(f"link={link.pass_fd}", f"link={theirs.fileno()}")
        _, said = start(argument, pass_fds=(theirs.fileno(),))
    assert "is not an open SEQPACKET or DGRAM socket" in said


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("point", "fewer than four words"),
        ("point nmi-entry ffff 1 2", "more than four words"),
        ("points nmi-entry ffff 1", "neither 'point' nor 'region'"),
        ("point window ffff 1", "unknown kind of point"),
        ("point nmi-entry 10000 1", "the mechanism mask is not 1 to ffff"),
        ("point nmi-entry 0 1", "the mechanism mask is not 1 to ffff"),
        ("point nmi-entry ffff 1g", "the address is not a hex number"),
        ("point nmi-entry ffff -1", "the address is not a hex number"),
        ("point nmi-entry ffff 10000000000000000", "the address is not a hex number"),
        ("region 1 2000 2000", "the region ends before it starts"),
        ("region 1 2000", "fewer than four words"),
        ("region 1 x 2000", "start or end is not a hex number"),
        ("# " + "x" * 300, "the line is too long"),
    ],
)
def test_malformed_landmark_is_named(line: str, problem: str, plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    path = write(tmp_path, LANDMARKS + line + "\n")
    said = refused(link, link.plugin_arguments(plugin, path))
    assert f"landmarks '{path}', line 5: {problem}" in said


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("magic", 1, "it is not the observer's"),
        ("version", 99, "it is of another version"),
        ("record_size", 32, "its parts are of other sizes"),
        ("block_size", 0, "its parts are of other sizes"),
        ("vcpus", 3, "do not make up to 16 whole cores"),
        ("threads", 0, "do not make up to 16 whole cores"),
        ("ring_records", 0, "its ring has no or too many records"),
        ("table_blocks", 3, "its tables' size is not a power of two"),
        ("total_size", 4096, "it is not as long as it says"),
        ("ring_records", 17, "a part reaches past its end"),
        ("ring_offset", 2**64 - 64, "a part reaches past its end"),
        ("table_offset", 8, "a part reaches past its end"),
    ],
)
def test_unfit_file_is_refused(
    field: str, value: int, problem: str, plugin: Path, link: ObserverLink, tmp_path: Path
) -> None:
    place = getattr(Shape, field)
    with open(tmp_path / "observer.shm", "r+b") as file:
        file.seek(place.offset)
        file.write(value.to_bytes(place.size, "little"))
    assert problem in refused(link, link.plugin_arguments(plugin, write(tmp_path)))


def test_truncated_file_is_refused(plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    os.truncate(tmp_path / "observer.shm", 5000)
    assert "it is not as long as it says" in refused(link, link.plugin_arguments(plugin, write(tmp_path)))


def test_other_topology_is_refused(plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    said = refused(link, link.plugin_arguments(plugin, write(tmp_path)), smp="4,cores=2,threads=2")
    assert "is for 2 vCPUs with 2 threads per core, the guest has 4 with 2" in said


def test_too_many_vcpus_are_refused(plugin: Path, link: ObserverLink, tmp_path: Path) -> None:
    said = refused(link, link.plugin_arguments(plugin, write(tmp_path)), smp="2,maxcpus=65")
    assert "this guest may have 65 vCPUs, the observer takes up to 64" in said
