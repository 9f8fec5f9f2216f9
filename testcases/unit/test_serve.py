# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder by HTTP: what is served, that nothing else is, deadlines, and a page that follows its store."""

import contextlib
import functools
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evidence_builder import Load
from night_samples import make_done, make_spec, open_store

from lab.campaign.store import Kept
from lab.errors import UsageError
from lab.evidence.folder import write_evidence
from lab.host.paths import ROOT
from lab.report.server import MAX_CONNECTIONS, FolderServer, LivePage, check_loopback

SECRET = "secret of the host"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "run"
    (root / "deep/er").mkdir(parents=True)
    (root / "index.html").write_text("<title>page</title>")
    (root / "deep/er/notes.txt").write_text("notes")
    (root / "deep/<b>.txt").write_text("odd name")
    write_evidence(root / "trial", Load().build(), {"evil.html": b"<script>1</script>", "evil.svg": b"<svg/>"})
    (tmp_path / "secret.txt").write_text(SECRET)
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    (root / "inside.txt").symlink_to("deep/er/notes.txt")
    os.mkfifo(root / "fifo")
    return root


def serve(folder: Path, deadline_s: float = 10.0, address: str = "127.0.0.1") -> Iterator[FolderServer]:
    with FolderServer(folder, address, 0, lambda: True, deadline_s) as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(folder: Path) -> Iterator[FolderServer]:
    yield from serve(folder)


def ask(server: FolderServer, path: str, method: str = "GET", host: str = "") -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.port}")
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


@pytest.mark.parametrize(
    ("path", "kind", "text"),
    [
        ("/", "text/html", "<title>page</title>"),
        ("/index.html?again=1", "text/html", "<title>page</title>"),
        ("/deep/er/notes.txt", "text/plain", "notes"),
        ("/deep//er/notes.txt", "text/plain", "notes"),
        ("/deep/%3Cb%3E.txt", "text/plain", "odd name"),
        ("/trial/evil.html", "text/plain", "<script>1</script>"),
        ("/trial/evil.svg", "text/plain", "<svg/>"),
    ],
)
def test_files_below_the_folder_are_served_and_those_of_guests_as_text(
    server: FolderServer, path: str, kind: str, text: str
) -> None:
    status, headers, got = ask(server, path)
    assert (status, got) == (200, text)
    assert headers["Content-Type"].startswith(kind)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(server, path, "HEAD")[2] == ""


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/deep/../../secret.txt",
        "/deep/..%2f..%2fsecret.txt",
        "/..%5csecret.txt",
        "//etc/passwd",
        "/link.txt",
        "/inside.txt",
        "/up/secret.txt",
        "/up/",
        "/fifo",
        "/none",
        "/index.html/",
        "/index.html/x",
        "/%00",
        "/" + "x" * 3_000,
        "/" + "a/" * 100,
        "secret.txt",
        "http://127.0.0.1/",
        "*",
    ],
)
def test_nothing_else_is_served(server: FolderServer, path: str) -> None:
    status, _, text = ask(server, path)
    assert status in (400, 404)
    assert SECRET not in text


def test_a_folder_is_listed_and_its_names_are_text(server: FolderServer) -> None:
    status, headers, text = ask(server, "/deep/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert '<a href="./%3Cb%3E.txt">&lt;b&gt;.txt</a>' in text
    assert '<a href="./er/">' in text
    status, headers, _ = ask(server, "/deep?x")
    assert (status, headers["Location"]) == (301, "./deep/")
    assert "evil.html" in ask(server, "/trial/")[2]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{}", "127.0.0.1.evil.example:{}", "localhost.evil.example", "[::1", " "]
)
def test_a_page_of_another_site_gets_nothing(server: FolderServer, host: str) -> None:
    status, _, text = ask(server, "/", host=host.format(server.port))
    assert status == 421
    assert "page" not in text


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "192.0.2.1:{}", "[::1]:{}"])
def test_an_address_and_a_forwarded_port_are_served(server: FolderServer, host: str) -> None:
    assert ask(server, "/", host=host.format(server.port))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_reading_is_there(server: FolderServer, method: str) -> None:
    assert ask(server, "/", method)[0] == 501


def test_a_request_that_trickles_ends_by_its_deadline_and_others_are_served(folder: Path) -> None:
    for server in serve(folder, deadline_s=2.0):
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
            closed = False
            while not closed and time.monotonic() - begin < 15:
                try:
                    slow.sendall(b"G")
                    slow.settimeout(0.2)
                    closed = slow.recv(1) == b""
                except TimeoutError:
                    pass
                except OSError:
                    closed = True
                assert ask(server, "/")[0] == 200
        assert closed
        assert time.monotonic() - begin >= 1.5


def test_connections_are_bounded(folder: Path) -> None:
    for server in serve(folder, deadline_s=60.0):
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(MAX_CONNECTIONS)]
        time.sleep(1)
        one_more = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        with one_more, contextlib.suppress(ConnectionResetError):
            assert one_more.recv(1) == b""
        held.pop().close()
        wait_until(functools.partial(is_served, server))
        for each in held:
            each.close()


def is_served(server: FolderServer) -> bool:
    try:
        return ask(server, "/")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_ipv6_loopback_is_served_under_its_own_name(folder: Path) -> None:
    for server in serve(folder, address="::1"):
        connection = http.client.HTTPConnection("::1", server.port, timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200


def test_only_loopback_is_served_without_being_asked() -> None:
    check_loopback("127.0.0.1", expose=False)
    check_loopback("::1", expose=False)
    check_loopback("192.0.2.1", expose=True)
    for address in ("0.0.0.0", "::", "192.0.2.1", "localhost", ""):
        with pytest.raises(UsageError, match="--address"):
            check_loopback(address, expose=False)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_page_is_written_again_when_its_store_changes_and_not_before(tmp_path: Path) -> None:
    store, written, said = tmp_path / "store", [0], list[str]()
    store.write_text("one")

    def write() -> None:
        written[0] += 1
        if store.read_text() == "bad":
            raise UsageError("damaged")

    with LivePage((store,), write, said.append, poll_s=0.05):
        time.sleep(0.5)
        assert written == [1]
        store.write_text("other")
        wait_until(lambda: written == [2])
        store.write_text("bad")
        wait_until(lambda: said == ["damaged"])
        store.write_text("good")
        wait_until(lambda: written == [4])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_a_campaign_that_grows_and_ends_well(number: signal.Signals, tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec(trials=9)) as store:
        store.add(make_done(1), Kept(), 0.0)
        command = (sys.executable, "-m", "lab.cli", "serve", str(tmp_path))
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])

        def read() -> str:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/")
            return connection.getresponse().read().decode()

        before = read()
        store.add(make_done(2, part="control"), Kept(), 0.0)
        wait_until(lambda: read() != before)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{dir}/none",), "is not a folder"),
        (("{dir}",), "lab: "),
        (("{dir}", "--address", "0.0.0.0"), "is not a loopback address"),
        (("{dir}", "--port", "70000"), "'--port'"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "lab.cli", "serve", *(word.format(dir=tmp_path) for word in words))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen"):
        FolderServer(tmp_path, "127.0.0.1", taken.getsockname()[1], lambda: False)
