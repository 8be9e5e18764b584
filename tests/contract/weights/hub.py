"""A Hugging Face hub over HTTPS, and the download host that it redirects to for large files.

It answers as the public one does: ``resolve/`` leads small files to a copy within the hub and large ones, with
their size and SHA-256 in headers, to an address of the download host that is signed for a while.
"""

import hashlib
import ipaddress
import itertools
import re
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gptoss_weights.sources import SourceSettings
from tests.contract.weights.proxy import Cut, Refuse, Request, Trickle, listening, send_body
from tests.unit.weights.pki import SERVER, YEAR, issue

OWNER, REPOSITORY, COMMIT = "acme", "gpt-oss-tiny", "0123456789abcdef" * 2 + "01234567"
TOKEN = "hf_a-tenants-own"
LARGE = re.compile(r"\.safetensors$|^tokenizer\.json$")


@dataclass
class Asked(Request):
    """A request to the hub or to the download host, and the token that came with it."""

    host: str = "hub"
    authorization: str = ""
    range: str = ""


@dataclass
class Hub:
    """``fault(request)`` says what goes wrong with one request; None lets it pass."""

    files: dict[str, bytes]
    endpoint: str = ""
    download: str = ""
    authorities: Path = Path()
    token: str | None = None
    commit: str | None = COMMIT
    """What ``X-Repo-Commit`` says."""
    elsewhere: Callable[[str], str | None] = lambda _: None
    """Where a request for a file is redirected to instead."""
    fault: Callable[[Asked], Refuse | Cut | Trickle | None] = lambda _: None
    retry_after: str | None = None
    requests: list[Asked] = field(default_factory=list)
    signatures: set[str] = field(default_factory=set)
    closed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def uri(self) -> str:
        return f"hf://{OWNER}/{REPOSITORY}"

    def settings(self, **changes: object) -> SourceSettings:
        values = {"hf_endpoint": self.endpoint, "hf_download_hosts": (urlsplit(self.download).netloc,), **changes}
        return SourceSettings(**values)

    def ranges(self, name: str) -> list[str]:
        """What was asked of the download host, as the header says it."""
        return [each.range for each in self.requests if (each.host, each.method, each.name) == ("files", "GET", name)]

    def starts(self, name: str) -> list[int]:
        return [each.start for each in self.requests if (each.host, each.method, each.name) == ("files", "GET", name)]

    def of(self, name: str) -> list[Asked]:
        return [each for each in self.requests if each.name == name]

    def sign(self) -> str:
        self.signatures.add(found := secrets.token_hex(8))
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    host = "hub"

    def do_GET(self) -> None:
        byte_range = self.headers.get("Range")
        name = unquote(urlsplit(self.path).path).rpartition("/")[2]
        request = Asked(
            self.command, name, int(byte_range.removeprefix("bytes=").partition("-")[0]) if byte_range else 0, 1,
            host=self.host, authorization=self.headers.get("Authorization", ""), range=byte_range or "",
        )  # fmt: skip
        with self.hub.lock:
            same = (self.host, self.command, name)
            request.number += sum((seen.host, seen.method, seen.name) == same for seen in self.hub.requests)
            self.hub.requests.append(request)
        fault = self.hub.fault(request)
        try:
            if isinstance(fault, Refuse):
                self._answer(fault.status, {"X-Error-Code": fault.code}, b"secret-detail")
            else:
                self._serve(name, request, fault)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _serve(self, name: str, request: Asked, fault: Cut | Trickle | None) -> None:
        parts = urlsplit(self.path).path.split("/")
        content = self.hub.files.get(name)
        commit = {} if self.hub.commit is None else {"X-Repo-Commit": self.hub.commit}
        if self.hub.token is not None and request.authorization != f"Bearer {self.hub.token}":
            self._answer(401, {"X-Error-Code": "RepoNotFound"}, b"secret-detail")
        elif (OWNER, REPOSITORY) not in itertools.pairwise(parts):
            self._answer(404, {"X-Error-Code": "RepoNotFound"}, b"secret-detail")
        elif COMMIT not in parts:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"}, b"secret-detail")
        elif content is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound", **commit}, b"secret-detail")
        elif (elsewhere := self.hub.elsewhere(name)) is not None:
            self._answer(302, {"Location": elsewhere, **commit, **_linked(content)}, b"Found")
        elif "resolve-cache" in parts:
            self._send(content, {**commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, request, fault)
        elif LARGE.search(name):
            signed = f"{self.hub.download}/{hashlib.sha256(content).hexdigest()}/{name}?sig={self.hub.sign()}"
            self._answer(302, {"Location": signed, **commit, **_linked(content)}, b"Found")
        else:
            copy = f"/api/resolve-cache/models/{OWNER}/{REPOSITORY}/{COMMIT}/{name}?etag=%22x%22"
            self._answer(307, {"Location": copy, **commit}, b"Temporary Redirect")

    def _send(self, content: bytes, headers: dict[str, str], request: Asked, fault: Cut | Trickle | None) -> None:
        last = request.range.rpartition("-")[2]
        end = int(last) + 1 if last else len(content)
        extent = {"Content-Range": f"bytes {request.start}-{end - 1}/{len(content)}"} if request.range else {}
        self.send_response(206 if request.range else 200)
        for header, value in {**headers, **extent, "Content-Length": str(end - request.start)}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        send_body(self, content[request.start : end], request, fault, self.hub.closed)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        if self.hub.retry_after is not None:
            headers = {**headers, "Retry-After": self.hub.retry_after}
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Files(_Handler):
    """The download host: an address is good once it is signed, and no token belongs there."""

    host = "files"

    def _serve(self, name: str, request: Asked, fault: Cut | Trickle | None) -> None:
        signature = parse_qs(urlsplit(self.path).query).get("sig", [""])[0]
        if signature not in self.hub.signatures:
            self._answer(403, {}, b"secret-detail")
            return
        content = self.hub.files[name]
        self._send(content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}, request, fault)


def _linked(content: bytes) -> dict[str, str]:
    return {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"'}


@pytest.fixture
def hub(weights, tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub with the signed model, and its authority among those that this process trusts."""
    files = {path.relative_to(weights.folder).as_posix(): path for path in weights.folder.rglob("*") if path.is_file()}
    state = Hub({name: path.read_bytes() for name, path in files.items()})
    context = _certified(tmp_path, state)
    monkeypatch.setenv("SSL_CERT_FILE", str(state.authorities))
    resolving, downloading = (type("Handler", (kind,), {"hub": state}) for kind in (_Handler, _Files))
    with (
        listening(resolving, state.closed, context) as state.endpoint,
        listening(downloading, state.closed, context) as state.download,
    ):
        yield state


def _certified(folder: Path, state: Hub) -> ssl.SSLContext:
    now = datetime.now(UTC)
    lifetime = {"not_before": now - YEAR, "not_after": now + YEAR}
    root = issue("hub authority", authority=True, **lifetime)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    server = issue("hub", by=root, purposes=SERVER, names=[address], **lifetime)
    state.authorities = root.write(folder / "authorities.pem")
    chain = folder / "server.pem"
    key = server.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    chain.write_text(server.pem + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context
