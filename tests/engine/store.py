"""An object store of a few lines, so that a test can hold a pull in the middle: S3's HEAD and GET over one folder."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SECONDS = 300.0


class Store:
    """Serves ``s3://<bucket>/<path>`` from ``folder/<path>``. Signatures are nobody's concern here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = ""
        self._held: dict[str, threading.Event] = {}

    def hold(self, path: str) -> threading.Event:
        """Send no byte of a file until the event is set."""
        return self._held.setdefault(path, threading.Event())

    def environment(self) -> dict[str, str]:
        """Return what a node needs to find this store."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL_S3": self.endpoint}

    def release_all(self) -> None:
        for released in self._held.values():
            released.set()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path).lstrip("/").partition("/")[2]
        file = self.folder / path
        if not file.is_file():
            request.send_response(404)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        content = file.read_bytes()
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("ETag", f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"')
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        if request.command == "GET":
            if (released := self._held.get(path)) is not None:
                released.wait(_SECONDS)
            request.wfile.write(content[start:])


@contextmanager
def started_store(folder: Path) -> Iterator[Store]:
    """Run one on a port of its own."""
    store = Store(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with suppress(ConnectionError):
                store.answer(self)

        do_HEAD = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        store.release_all()
        server.shutdown()
        thread.join()
        server.server_close()
