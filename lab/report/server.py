# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves a folder by HTTP: GET and HEAD of files below it, one request for each connection, all bounded.

Python's own server has no deadline, no bound of connections, and follows links. Here, each connection has a deadline
that no trickle of bytes can move, and a page of another site cannot read what is served (DNS rebinding), since the
Host of each request must be an address and no name.
"""

import contextlib
import http
import ipaddress
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO, Final

from lab.errors import LabError, UsageError
from lab.report.served_files import INDEX, Refused, Served, open_served

#: From accept to the last byte.
DEADLINE_S: Final = 30.0
#: Further connections are closed at once.
MAX_CONNECTIONS: Final = 32
#: How often the page of a campaign that runs asks for itself again.
REFRESH_S: Final = 10
_POLL_S: Final = 0.5
_PORT: Final = re.compile(r":\d{1,5}$", re.ASCII)
_CHUNK_BYTES: Final = 64 * 1024
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline';"
        " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class FolderServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server of one folder. A context manager; :meth:`serve_forever` serves until it is interrupted.

    :ivar running: whether what is served is still being written, so that its page asks for itself again
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, root: Path, address: str, port: int, running: Callable[[], bool], deadline_s: float = DEADLINE_S
    ) -> None:
        """Listen.

        :param address: of an interface, IPv4 or IPv6
        :param port: 0 for a free one
        :raise UsageError: this host cannot listen there
        """
        found = parse_address(address)
        self.address_family = socket.AF_INET6 if found.version == 6 else socket.AF_INET
        self.root = root
        self.running = running
        self._deadline_s = deadline_s
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        try:
            super().__init__((str(found), port), _Handler)
        except OSError as error:
            raise UsageError(f"cannot listen on {address} port {port}: {error.strerror or error}") from error
        self._host = f"[{found}]" if found.version == 6 else str(found)

    @property
    def port(self) -> int:
        """The port that was asked for, or the free one that was found."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """What a browser opens."""
        return f"http://{self._host}:{self.port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, unless there are too many."""
        with self._lock:
            full = len(self._open) >= MAX_CONNECTIONS
            if not full:
                self._open[request] = time.monotonic() + self._deadline_s
        if full:
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection, and close it."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections whose deadline is over. Their threads see the end of their sockets."""
        now = time.monotonic()
        with self._lock:
            late = [each for each, end in self._open.items() if end <= now]
        for each in late:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that its client or the deadline ended."""

    def serve(self) -> None:
        """Serve until a KeyboardInterrupt."""
        self.serve_forever(_POLL_S)

    def server_close(self) -> None:
        """Stop listening, and end all connections."""
        super().server_close()
        with self._lock:
            left = list(self._open)
        for each in left:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection with one request, as HTTP/1.0 has it."""

    server: FolderServer
    server_version = "lab"
    sys_version = ""
    #: Of one read; the deadline of the whole is the server's.
    timeout = DEADLINE_S

    def do_GET(self) -> None:
        """Answer with headers and content."""
        self._answer(content=True)

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self._answer(content=False)

    def _answer(self, content: bool) -> None:
        if not is_own_host(self.headers.get("Host", "")):
            self.send_error(http.HTTPStatus.MISDIRECTED_REQUEST, "Unknown host")
            return
        try:
            with open_served(self.server.root, self.path) as served:
                self._send(served, content)
        except Refused:
            self.send_error(http.HTTPStatus.NOT_FOUND, "Nothing is served by this path")

    def _send(self, served: Served, content: bool) -> None:
        path = self.path.partition("?")[0]
        if served.moved:
            self.send_response(http.HTTPStatus.MOVED_PERMANENTLY)
            # Relative to the server, also if a path begins with two slashes.
            self.send_header("Location", f"./{path.rsplit('/', 1)[-1]}/")
        else:
            self.send_response(http.HTTPStatus.OK)
            self.send_header("Content-Type", served.kind)
        self.send_header("Content-Length", str(served.size))
        if path in ("/", f"/{INDEX}") and self.server.running():
            self.send_header("Refresh", str(REFRESH_S))
        self.end_headers()
        if not content:
            return
        if served.source is not None:
            _copy(served.source, self.wfile, served.size)
        else:
            self.wfile.write(served.data)

    def end_headers(self) -> None:
        """Send the headers that each answer has, too."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        """Say nothing of requests: their text is that of others."""


def _copy(source: BinaryIO, sink: BufferedIOBase, size: int) -> None:
    """Copy as much of a file as was promised, though the file may grow."""
    while size > 0 and (data := source.read(min(_CHUNK_BYTES, size))):
        sink.write(data)
        size -= len(data)


def is_own_host(text: str) -> bool:
    """Say whether a request's Host is an address or ``localhost``, with any port: ``ssh -L`` may forward another one.

    A page of another site can have its own name lead here, but that name is then the Host.
    """
    name = _PORT.sub("", text)
    if name == "localhost":
        return True
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
        return True
    return False


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address of an interface.

    :raise UsageError: it is none
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise UsageError(
            f"--address '{text}' is no IPv4 or IPv6 address: allowed are such as 127.0.0.1 and ::1"
        ) from None


class LivePage:
    """Writes a page again whenever what it shows has changed. A context manager: a thread looks while it is open.

    :param write: writes the page
    :param problem: told why a page was not written, once for each reason
    """

    def __init__(
        self,
        watched: tuple[Path, ...],
        write: Callable[[], object],
        problem: Callable[[str], None],
        poll_s: float = 1.0,
    ) -> None:
        self._watched = watched
        self._write = write
        self._problem = problem
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="live-page", daemon=True)
        self._told = ""
        self._seen: tuple[object, ...] = ()

    def __enter__(self) -> "LivePage":
        self._seen = self._look()
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> tuple[object, ...]:
        seen: list[object] = []
        for path in self._watched:
            with contextlib.suppress(OSError):
                status = path.stat()
                seen.append((path, status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(seen)

    def _watch(self) -> None:
        pause_s = self._poll_s
        while not self._stop.wait(pause_s):
            pause_s = self._poll_s
            now = self._look()
            if now == self._seen:
                continue
            begin = time.monotonic()
            self._seen = now
            self._rewrite()
            # The page of a large campaign takes seconds, and the campaign needs the processor itself.
            pause_s = max(self._poll_s, 5 * (time.monotonic() - begin))

    def _rewrite(self) -> None:
        try:
            self._write()
            self._told = ""
        except (LabError, OSError) as error:
            if str(error) != self._told:
                self._told = str(error)
                self._problem(self._told)


def check_loopback(address: str, expose: bool) -> None:
    """Refuse to serve to others by accident.

    :raise UsageError: the address is not of this host alone, and the user did not ask for that
    """
    if not parse_address(address).is_loopback and not expose:
        raise UsageError(
            f"--address {address} is not a loopback address: whoever reaches it could read the folder;"
            " give --expose to allow that"
        )
