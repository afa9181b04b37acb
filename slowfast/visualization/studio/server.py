"""HTTP for the page: addresses to functions of ``app``, files in parts, and what is refused before anything is done.

The one idea: a page of another site, open in the same browser, can reach this server too. So requests must name this
host (a foreign name that was pointed here is refused), those that change anything must carry a header that no foreign
page can set, and the page itself may load nothing from elsewhere.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from slowfast.visualization.studio.app import RefusedError, Studio, status_of

logger = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MARK = "X-Studio"  # a header of requests that change something
MAX_BODY = 64 << 10  # bytes of a request that is no upload
MAX_CONNECTIONS = 64
CHUNK = 256 << 10
IDLE_S = 60.0  # a connection on which nothing happens is closed after
LINGER_S = 2.0  # what a refused upload may still send
SAFETY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_ID = r"([A-Za-z0-9-]{1,80})"
ROUTES: list[tuple[str, re.Pattern, Callable[..., Any]]] = [
    (method, re.compile(pattern), function)
    for method, pattern, function in (
        ("GET", r"/api/about", lambda app, query, body: app.about()),
        ("GET", r"/api/runs", lambda app, query, body: app.runs()),
        ("GET", rf"/api/runs/{_ID}", lambda app, query, body, run: app.run(run)),
        (
            "GET",
            rf"/api/runs/{_ID}/tests/{_ID}/videos",
            lambda app, query, body, run, test: app.videos(run, test, query),
        ),
        ("GET", r"/api/compare", lambda app, query, body: app.compare(query)),
        ("GET", rf"/api/videos/{_ID}", lambda app, query, body, video: app.video(video)),
        ("GET", r"/api/uploads", lambda app, query, body: app.uploads()),
        ("DELETE", rf"/api/uploads/{_ID}", lambda app, query, body, upload: app.remove(upload)),
        ("POST", r"/api/jobs", lambda app, query, body: app.start(body)),
        ("GET", rf"/api/jobs/{_ID}", lambda app, query, body, job: app.job(job)),
        ("DELETE", rf"/api/jobs/{_ID}", lambda app, query, body, job: app.cancel(job)),
    )
]
_MEDIA, _PICTURE = re.compile(rf"/media/{_ID}"), re.compile(rf"/pictures/{_ID}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a Host header, without its port; empty where it is none."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", header)
    return found[1].strip("[]").lower() if found else ""


def is_ours(name: str, listening: str) -> bool:
    """Whether a request for host ``name`` means this server, and not a foreign name that was pointed at it.

    On loopback only its own names do. Otherwise the machine's name and every plain address do too: an address cannot
    be pointed anywhere.
    """
    if is_loopback(name) or name == listening.lower():
        return True
    if is_loopback(listening):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in (socket.gethostname().lower(), socket.getfqdn().lower())
    return True


class StudioServer(ThreadingHTTPServer):
    """Serves ``app`` at ``host`` and ``port``; port 0 takes a free one. ``OSError`` where the port is taken."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, app: Studio, host: str, port: int) -> None:
        self.app, self.host = app, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Where to point a browser."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        name = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(name, name)
        return f"http://{name}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Without looking up the machine's name, which may take long where there is no network."""
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.host, self.server_address[1]

    def process_request(self, request, client_address) -> None:
        """As many at once as there is room for; more are turned away."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        """One connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request, client_address) -> None:
        """A connection that broke is nobody's fault; anything else is written down."""
        logger.debug("connection from %s ended", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "slowfast-studio", ""
    timeout = IDLE_S
    server: StudioServer
    _unread = False

    def finish(self) -> None:
        """End the connection; whoever was refused in the middle of sending gets time to read why."""
        super().finish()
        if not self._unread:
            return
        end = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_S)
            while time.monotonic() < end and self.connection.recv(CHUNK):
                pass

    def do_GET(self) -> None:
        """Pages, values, pictures and videos."""
        self._answer("GET")

    def do_POST(self) -> None:
        """Uploads and jobs."""
        self._answer("POST")

    def do_DELETE(self) -> None:
        """Away with an upload or a job."""
        self._answer("DELETE")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are only written down when somebody looks for errors."""
        logger.debug(format, *args)

    # ------------------------------------------------------------ one request

    def _answer(self, method: str) -> None:
        self._unread = method != "GET"  # a body of which nobody knows how much is left on the connection
        try:
            self._check(method)
            self._route(method)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # of this request: the server goes on
            status = status_of(error)
            if status is None:
                logger.error("%s %s", method, self.path, exc_info=error)
            text = str(error) if status else f"the server failed at this ({type(error).__name__}): see its output"
            self._send_json({"error": text}, status or HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check(self, method: str) -> None:
        host = self.headers.get("Host", "")
        if not is_ours(host_name(host), self.server.host):
            raise RefusedError(HTTPStatus.FORBIDDEN, "this server does not answer to that host name")
        if method == "GET":
            return
        origin = self.headers.get("Origin")
        if self.headers.get(MARK) is None or (origin is not None and origin.partition("://")[2] != host):
            raise RefusedError(HTTPStatus.FORBIDDEN, "only the page of this server may do that")

    def _route(self, method: str) -> None:
        try:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, max_num_fields=20))
        except ValueError:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "this is no address") from None
        if method == "POST" and parts.path == "/api/uploads":
            stored = self.server.app.receive(self.rfile, self._length(), query.get("name", ""))
            self._unread = False
            return self._send_json(stored)
        if method == "GET" and (found := _MEDIA.fullmatch(parts.path)):
            return self._send_file(self.server.app.media_file(found[1]), "video/mp4")
        if method == "GET" and (found := _PICTURE.fullmatch(parts.path)):
            picture = self.server.app.picture_file(found[1])
            if picture is None:
                return self._head(HTTPStatus.NO_CONTENT, "image/jpeg", None)
            return self._send_file(picture, "image/jpeg", keep_s=600)
        known = False
        for route_method, pattern, function in ROUTES:
            if found := pattern.fullmatch(parts.path):
                known = True
                if route_method == method:
                    return self._send_json(function(self.server.app, query, self._body(method), *found.groups()))
        if known:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not possible here")
        return self._send_page(parts.path, method)

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,15}", text, re.ASCII) or self.headers.get("Transfer-Encoding"):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the length of the body must be given")
        return int(text)

    def _body(self, method: str) -> Any:
        """The JSON of a request; None where it has none."""
        if method != "POST":
            self._unread = self.headers.get("Content-Length", "0") != "0"
            return None
        length = self._length()
        if length > MAX_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes are more than {MAX_BODY}")
        text = self.rfile.read(length)
        self._unread = False
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None

    # ------------------------------------------------------------ answers

    def _send_page(self, path: str, method: str) -> None:
        name = "index.html" if path == "/" else path.removeprefix("/static/")
        # Only what lies there is a name that can be asked for: nothing is joined and looked up.
        files = {file.name: file for file in STATIC.iterdir() if file.suffix in KINDS}
        if method != "GET" or name not in files or (path != "/" and not path.startswith("/static/")):
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        self._send(files[name].read_bytes(), f"{KINDS[files[name].suffix]}; charset=utf-8")

    def _send_json(self, value: Any, status: int = HTTPStatus.OK) -> None:
        self._send(json.dumps(value, allow_nan=False, separators=(",", ":")).encode(), "application/json", status)

    def _send(self, data: bytes, kind: str, status: int = HTTPStatus.OK) -> None:
        self._head(status, kind, len(data))
        self.wfile.write(data)

    def _head(self, status: int, kind: str, length: int | None, *, keep_s: int = 0, **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", f"private, max-age={keep_s}" if keep_s else "no-store")
        for name, value in (*SAFETY.items(), *more.items()):
            self.send_header(name.replace("_", "-"), value)
        if self._unread:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def _send_file(self, path: Path, kind: str, *, keep_s: int = 0) -> None:
        """A file, or the part of it that is asked for: a player jumps to where somebody clicks."""
        with path.open("rb") as file:
            size = file.seek(0, 2)
            part = byte_range(self.headers.get("Range", ""), size)
            if part is None:
                return self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, kind, 0, Content_Range=f"bytes */{size}")
            first, last = part
            more = {"Accept_Ranges": "bytes"}
            whole = "Range" not in self.headers
            if not whole:
                more["Content_Range"] = f"bytes {first}-{last}/{size}"
            self._head(
                HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT, kind, last - first + 1, keep_s=keep_s, **more
            )
            file.seek(first)
            left = last - first + 1
            while left and (chunk := file.read(min(CHUNK, left))):
                self.wfile.write(chunk)
                left -= len(chunk)


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte that a Range header asks for: all where it asks for none; None where there are no such."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip(), re.ASCII)
    if found is None or found[1] == found[2] == "":
        return (0, size - 1)
    if found[1] == "":
        count = min(int(found[2]), size)
        return (size - count, size - 1) if count else None
    first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
    return (first, last) if first <= last else None
