"""A server on loopback that misbehaves as told: each request takes the next of its behaviours, then the plain one."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Behaviour = Callable[[BaseHTTPRequestHandler, bytes], None]


class Server:
    """Serves ``payload`` under every path; ``asked`` lists the path and Range header of each request."""

    def __init__(self, payload: bytes):
        self.payload = payload
        self.behaviours: list[Behaviour] = []
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append((self.path, self.headers.get("Range")))
                behaviour = outer.behaviours.pop(0) if outer.behaviours else plain
                behaviour(self, outer.payload)

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.asked]

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


def _head(handler, status, length=None, **headers):
    handler.send_response(status)
    headers.setdefault("Content-Type", "application/octet-stream")
    if length is not None:
        headers["Content-Length"] = str(length)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def _start(handler) -> int:
    asked = handler.headers.get("Range")
    return int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0


def plain(handler, payload):
    """Honours Range."""
    drop_after(len(payload))(handler, payload)


def drop_after(count):
    """Honours Range, and closes the connection after ``count`` bytes."""

    def behave(handler, payload):
        start = _start(handler)
        if start >= len(payload) and start:
            return _head(handler, 416, 0, Content_Range=f"bytes */{len(payload)}")
        rest = payload[start:]
        if start:
            _head(handler, 206, len(rest), Content_Range=f"bytes {start}-{len(payload) - 1}/{len(payload)}")
        else:
            _head(handler, 200, len(rest))
        handler.wfile.write(rest[:count])
        handler.close_connection = True
        return None

    return behave


def whole(count=None):
    """Ignores Range; closes the connection after ``count`` bytes."""

    def behave(handler, payload):
        _head(handler, 200, len(payload))
        handler.wfile.write(payload[:count])
        handler.close_connection = True

    return behave


def without_length(count=None):
    """Says nothing of the size, so that a file cut off looks like a whole one."""

    def behave(handler, payload):
        _head(handler, 200)
        handler.wfile.write(payload[:count])
        handler.close_connection = True

    return behave


def status(code, **headers):
    return lambda handler, payload: _head(handler, code, 0, **headers)


def page(handler, payload):
    text = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    _head(handler, 200, len(text), Content_Type="text/html; charset=utf-8")
    handler.wfile.write(text)


def other_bytes(content):
    def behave(handler, payload):
        _head(handler, 200, len(content))
        handler.wfile.write(content)

    return behave


def wrong_part(handler, payload):
    """Answers a Range with another one."""
    _head(handler, 206, 10, Content_Range=f"bytes 3-12/{len(payload)}")
    handler.wfile.write(payload[3:13])


def stall_after(count, release: threading.Event):
    """Falls silent after ``count`` bytes until ``release`` is set."""

    def behave(handler, payload):
        _head(handler, 200, len(payload))
        handler.wfile.write(payload[:count])
        handler.wfile.flush()
        release.wait(5)
        handler.close_connection = True

    return behave


def in_drops(size, release: threading.Event):
    """Slow but steady."""

    def behave(handler, payload):
        _head(handler, 200, len(payload))
        for i in range(0, len(payload), size):
            handler.wfile.write(payload[i : i + size])
            handler.wfile.flush()
            release.wait(0.04)

    return behave
