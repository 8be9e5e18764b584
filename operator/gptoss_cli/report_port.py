"""Tells how far a pull is on a port, for the operator to show: what it does on Ray nodes by a file.

It is no secret, and nothing relies on it, so whoever reaches the port may ask. One question is answered at a time,
and one that stops coming for seconds is given up: who fills the port hides progress and hinders no pull.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from threading import Thread
from typing import Final

import click

from gptoss_api.pull_report import report_name
from gptoss_weights.materialise import PullProgress
from gptoss_weights.reports import PullReports

_ASKED_SECONDS: Final = 3.0
_LOOK_SECONDS: Final = 0.5


@contextmanager
def reported_on(port: int | None, manifest_digest: str) -> Iterator[Callable[[PullProgress], None]]:
    """Yield what a pull tells its progress. A port of None, or one that can't be had, tells nobody."""
    if port is None:
        yield lambda _: None
        return
    try:
        server = _Server(port, f"/{report_name(manifest_digest)}")
    except OSError as error:
        click.echo(f"--report-port {port} can't be had: {error.strerror or error}; the pull goes on", err=True)
        yield lambda _: None
        return
    thread = Thread(target=server.forever, name="report port", daemon=True)
    thread.start()
    reports = PullReports()

    def tell(now: PullProgress) -> None:
        server.report = reports.of(now) or server.report

    try:
        yield tell
    finally:
        server.over = True
        thread.join(_LOOK_SECONDS * 2)  # a question that hangs is left behind


class _Server(TCPServer):
    """Answers for one path, on all of the pod's addresses. HTTPServer would ask for the host's name first."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    allow_reuse_address = True
    timeout = _LOOK_SECONDS

    def __init__(self, port: int, path: str) -> None:
        self.path = path
        self.report = ""
        self.over = False
        super().__init__(("", port), _Handler)

    def server_bind(self) -> None:
        """Listen for IPv4 too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def forever(self) -> None:
        """Answer until it is over."""
        with self:
            while not self.over:
                self.handle_request()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who left before the answer is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _ASKED_SECONDS
    server: _Server
    server_version, sys_version = "gptoss", ""

    def do_GET(self) -> None:
        """Hand out the last report."""
        report = self.server.report.encode()
        if not report or self.path != self.server.path:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(report)))
        self.end_headers()
        self.wfile.write(report)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Stay silent: standard error is the pull's."""
