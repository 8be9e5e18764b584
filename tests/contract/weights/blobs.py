"""Azure Blob Storage as far as a pull sees it, and whatever goes wrong with it."""

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import pytest

from gptoss_weights.sources import SourceSettings
from tests.contract.weights.proxy import Cut, Refuse, Request, Trickle, listening, send_body

ACCOUNT, CONTAINER, PREFIX = "acme", "models", "gpt-oss-tiny/v1"
KEY = "c2VjcmV0LWtleQ=="
SIGNATURE = "secret-signature"
BEARER = "secret-bearer"


def token(*, start: timedelta | None = None, expiry: timedelta = timedelta(hours=1)) -> str:
    """A shared access signature that the server accepts, and that says from when until when it counts."""
    now = datetime.now(UTC)
    said = {"sv": "2026-02-06", "sp": "r", "sr": "c", "se": f"{now + expiry:%Y-%m-%dT%H:%M:%SZ}", "sig": SIGNATURE}
    return urlencode(said | ({} if start is None else {"st": f"{now + start:%Y-%m-%dT%H:%M:%SZ}"}))


@dataclass
class Asked(Request):
    """A request, with what Azure's library sends beside."""

    path: str = ""
    authorization: str = ""
    if_match: str = ""


@dataclass
class Blobs:
    """``fault(request)`` says what goes wrong with one request; None lets it pass. ``headers`` go with each answer."""

    files: dict[str, bytes]
    endpoint: str = ""
    fault: Callable[[Asked], Refuse | Cut | Trickle | None] = lambda _: None
    headers: dict[str, str] = field(default_factory=dict)
    ignores_ranges: bool = False
    ignores_conditions: bool = False
    requests: list[Asked] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def uri(self) -> str:
        return f"az://{CONTAINER}/{PREFIX}"

    def settings(self, **changes: object) -> SourceSettings:
        values = {"azure_account": ACCOUNT, "azure_endpoint": self.endpoint, "azure_account_key": KEY, **changes}
        return SourceSettings(**values)

    def starts(self, name: str) -> list[int]:
        return [each.start for each in self.requests if (each.method, each.name) == ("GET", name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    blobs: Blobs

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.removeprefix(f"/{ACCOUNT}/{CONTAINER}/{PREFIX}/")
        start, end = self._range()
        request = Asked(
            self.command, name, start, 1, path=self.path,
            authorization=self.headers.get("Authorization", ""), if_match=self.headers.get("If-Match", ""),
        )  # fmt: skip
        with self.blobs.lock:
            request.number += sum((seen.method, seen.name) == (self.command, name) for seen in self.blobs.requests)
            self.blobs.requests.append(request)
        fault = self.blobs.fault(request)
        content = self.blobs.files.get(name)
        signed = (
            request.authorization.startswith(f"SharedKey {ACCOUNT}:")
            or SIGNATURE in self.path
            or request.authorization == f"Bearer {BEARER}"
        )
        try:
            if isinstance(fault, Refuse):
                self._refuse(fault.status, fault.code)
            elif not signed:
                self._refuse(401, "NoAuthenticationInformation")
            elif content is None:
                self._refuse(404, "BlobNotFound")
            elif request.if_match not in ("", _etag(content)) and not self.blobs.ignores_conditions:
                self._refuse(412, "ConditionNotMet")
            elif start >= len(content) and self.command == "GET":
                self._refuse(416, "InvalidRange")
            else:
                self._serve(content, (start, min(end, len(content))), request, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _range(self) -> tuple[int, int]:
        found = self.headers.get("x-ms-range")
        if found is None:
            return 0, 2**60
        first, _, last = found.removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1

    def _serve(self, content: bytes, extent: tuple[int, int], request: Asked, fault: Cut | Trickle | None) -> None:
        start, end = (0, len(content)) if self.command == "HEAD" or self.blobs.ignores_ranges else extent
        whole = self.command == "HEAD" or self.blobs.ignores_ranges
        self.send_response(200 if whole else 206)
        served = {} if whole else {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self._headers({"ETag": _etag(content), "x-ms-blob-type": "BlockBlob", **served}, end - start)
        if self.command == "HEAD":
            return
        send_body(self, content[start:end], request, fault, self.blobs.closed)

    def _refuse(self, status: int, code: str) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>secret-detail</Message></Error>'.encode()
        self.send_response(status)
        self._headers({"x-ms-error-code": code, "Content-Type": "application/xml"}, len(body))
        if self.command == "GET":
            self.wfile.write(body)

    def _headers(self, headers: dict[str, str], length: int) -> None:
        for name, value in {**headers, **self.blobs.headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.blobs.headers.get("Date", format_datetime(datetime.now(UTC), usegmt=True))

    def log_message(self, *_: object) -> None:
        pass


def _etag(content: bytes) -> str:
    return f'"0x{hashlib.sha256(content).hexdigest()[:16].upper()}"'


@pytest.fixture
def blobs(weights) -> Iterator[Blobs]:
    """A storage account with the signed model in it."""
    with storing(weights.folder) as state:
        yield state


@contextmanager
def storing(folder: Path, context: ssl.SSLContext | None = None) -> Iterator[Blobs]:
    """Serve a folder as a storage account, over TLS with ``context``."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    state = Blobs({name: path.read_bytes() for name, path in files.items()})
    with listening(type("Handler", (_Handler,), {"blobs": state}), state.closed, context) as url:
        state.endpoint = f"{url}/{ACCOUNT}"
        yield state
