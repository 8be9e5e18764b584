"""Between a pull and a real S3 server: passes requests on, counts them, and breaks the answers that a test names.

The servers that stand for other sources break theirs by the same faults, and listen by the same means.
"""

import http.client
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

_CHUNK = 64 * 1024
_FORWARDED = (
    "etag",
    "content-length",
    "content-range",
    "content-type",
    "last-modified",
    "accept-ranges",
    "x-ms-blob-type",
)


@dataclass
class Request:
    """One request: its method, the last part of the object's name, its range, and the bytes of the answer."""

    method: str
    name: str
    start: int
    number: int
    """Which request for this name and method it is, from 1."""
    body_bytes: int = 0


@dataclass(frozen=True)
class Refuse:
    """Answer with an error of S3's instead of asking the server."""

    status: int
    code: str


@dataclass(frozen=True)
class Cut:
    """Close the connection after so many bytes of the body."""

    after: int
    then: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Trickle:
    """Send so many bytes of the body, then one byte every now and then, for ever."""

    after: int


@dataclass
class Proxy:
    """``fault(request)`` says what goes wrong with one request; None lets it pass."""

    upstream: str
    fault: Callable[[Request], Refuse | Cut | Trickle | None] = lambda _: None
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    closed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def starts(self, name: str) -> list[int]:
        return [request.start for request in self.requests if request.name == name and request.method == "GET"]

    def note(self, method: str, path: str, byte_range: str | None) -> Request:
        start = int(byte_range.removeprefix("bytes=").partition("-")[0]) if byte_range else 0
        name = unquote(urlsplit(path).path).rpartition("/")[2]
        with self.lock:
            number = 1 + sum((seen.method, seen.name) == (method, name) for seen in self.requests)
            request = Request(method, name, start, number)
            self.requests.append(request)
        return request


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_GET(self) -> None:
        request = self.proxy.note(self.command, self.path, self.headers.get("Range") or self.headers.get("x-ms-range"))
        fault = self.proxy.fault(request)
        if isinstance(fault, Refuse):
            self._refuse(fault)
            return
        upstream = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=10)
        try:
            # The signature covers the Host that the client saw.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() in _FORWARDED:
                    self.send_header(name, value)
            self.end_headers()
            self._relay(answer, request, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            upstream.close()

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _relay(self, answer: http.client.HTTPResponse, request: Request, fault: Cut | Trickle | None) -> None:
        limit = None if fault is None else fault.after
        while chunk := answer.read(_CHUNK if limit is None else min(_CHUNK, limit - request.body_bytes)):
            self.wfile.write(chunk)
            request.body_bytes += len(chunk)
        if fault is None:
            return
        self.close_connection = True
        if isinstance(fault, Cut):
            fault.then()
            return
        while not self.proxy.closed.is_set() and (byte := answer.read(1)):
            self.wfile.write(byte)
            request.body_bytes += 1
            time.sleep(0.02)

    def _refuse(self, fault: Refuse) -> None:
        body = f"<Error><Code>{fault.code}</Code><Message>secret-detail</Message></Error>".encode()
        self.send_response(fault.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(object_store) -> Iterator[Proxy]:
    """A proxy before the real server; pull from its ``endpoint``."""
    with proxied(object_store.endpoint) as state:
        yield state


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy before a server."""
    state = Proxy(upstream)
    with listening(type("Handler", (_Handler,), {"proxy": state}), state.closed) as state.endpoint:
        yield state


@contextmanager
def listening(
    handler: type[BaseHTTPRequestHandler], closed: threading.Event, context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve on a free port; yield the URL. ``closed`` is set in the end, for answers that trickle."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that go away are what these tests are about
    if context is not None:
        # Shaken hands with in the thread of each connection, so that a client that waits delays nobody.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http{'' if context is None else 's'}://127.0.0.1:{server.server_port}"
    finally:
        closed.set()
        server.shutdown()
        thread.join()
        server.server_close()


def send_body(
    handler: BaseHTTPRequestHandler,
    content: bytes,
    request: Request,
    fault: Cut | Trickle | None,
    closed: threading.Event,
) -> None:
    """Send a body, or what a fault leaves of it."""
    stop = len(content) if fault is None else min(len(content), fault.after)
    for at in range(0, stop, _CHUNK):
        handler.wfile.write(content[at : min(at + _CHUNK, stop)])
    request.body_bytes = stop
    if fault is None:
        return
    handler.close_connection = True
    if isinstance(fault, Cut):
        fault.then()
        return
    while not closed.is_set():
        handler.wfile.write(b"x")
        time.sleep(0.02)


def on(name: str, fault: object, *, until: int = 10**6, method: str = "GET") -> Callable[[Request], Any]:
    """The fault for the first requests for one file."""
    return lambda request: (
        fault if (request.method, request.name) == (method, name) and request.number < until else None
    )
