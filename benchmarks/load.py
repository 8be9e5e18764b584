"""Clients: on the protocol, so that measuring takes little of the machine that is measured."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_EVENT = b"data: {"
_LAST_EVENT = b"data: [DONE]"
_LAST_CHUNK = b"\n0\r\n\r\n"
_MAX_HEAD_BYTES = 64 * 1024


@dataclass
class Seen:
    """What clients saw. Times are seconds."""

    events: int = 0
    streams: int = 0
    failures: int = 0
    first: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class Reply:
    """One answer, as far as it came. ``complete``: a stream had its last event, a document its whole length."""

    status: int = 0
    events: int = 0
    complete: bool = False


class Client(asyncio.Protocol):
    """One connection that sends one request after another."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._began = 0.0
        self._waiting_first = False
        self._done: asyncio.Future[Reply] | None = None
        self._reply = Reply()
        self._head = b""
        self._left: int | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, _: BaseException | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("connection lost"))

    def data_received(self, data: bytes) -> None:
        if not self._reply.status:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                if len(self._head) > _MAX_HEAD_BYTES:
                    self.leave()
                return
            self._read_head(head)
            data = b"\n" + data  # a body may be nothing but its end
        if self._left is None:
            self._read_stream(data)
        else:
            self._left -= len(data)
            if self._left <= 0:
                self._end(complete=self._left == 0)

    @property
    def so_far(self) -> Reply:
        """What came of the answer that is on its way, or of the last one."""
        return self._reply

    async def ask(self, request: bytes) -> Reply:
        """Send a request and read its answer to the end; raises ConnectionError."""
        self._done = self._loop.create_future()
        self._waiting_first, self._head, self._tail = True, b"", b""
        self._reply, self._left = Reply(), None
        self._began = self._loop.time()
        if self._transport.is_closing():
            raise ConnectionError("connection lost")
        self._transport.write(request)  # type: ignore[attr-defined]
        return await self._done

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def leave(self) -> None:
        """Hang up with an answer on its way."""
        self._transport.abort()  # type: ignore[attr-defined]

    def _read_head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        self._reply.status = int(lines[0].split()[1])
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self._left = int(value) + 1  # and the line's end that data_received puts before it

    def _read_stream(self, data: bytes) -> None:
        if self._waiting_first and b"data: " in data:
            self._waiting_first = False
            self._seen.first.append(self._loop.time() - self._began)
        tail, self._tail = self._tail, data[-32:] if len(data) >= 32 else (self._tail + data)[-32:]
        count = (tail[-len(_EVENT) + 1 :] + data).count(_EVENT)  # shorter than what is looked for: nothing counts twice
        self._reply.events += count
        self._seen.events += count
        if self._tail.endswith(_LAST_CHUNK):
            self._end(complete=_LAST_EVENT in self._tail)

    def _end(self, *, complete: bool) -> None:
        self._reply.complete = complete
        if self._done is not None and not self._done.done():
            self._seen.streams += 1
            self._seen.ends.append(self._loop.time())
            self._done.set_result(self._reply)


def request(
    url: str, path: str, key: str, *, model: str, events: int, pace: float, first: float, stream: bool = True
) -> bytes:
    """Return a whole question to the paced engine as bytes.

    ``first`` and ``pace`` are the seconds to the first event and between two.
    """
    body = {
        "model": model,
        "stream": stream,
        "max_tokens": events,
        "messages": [{"role": "user", "content": "Hello"}],
        "metadata": {"pace": pace, "first": first},
    }
    return post_request(url, path, authorization(key), body)


def authorization(key: str) -> dict[str, str]:
    """Return the header of a client with this API key."""
    return {"Authorization": f"Bearer {key}"}


def post_request(url: str, path: str, headers: Mapping[str, str], body: Mapping[str, object]) -> bytes:
    """Return a whole request as bytes."""
    data = json.dumps(body).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n{more}"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    ).encode() + data


async def connect(url: str, seen: Seen) -> Client:
    """Open one connection."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    _, client = await asyncio.get_running_loop().create_connection(lambda: Client(seen), parts.hostname, parts.port)
    return client


async def closed_loop(url: str, wire: bytes, *, workers: int, seconds: float) -> tuple[Seen, float]:
    """Have workers ask again and again for a while; return what they saw and how long it took."""
    seen = Seen()
    loop = asyncio.get_running_loop()
    clients = [await connect(url, seen) for _ in range(workers)]
    began = loop.time()

    async def work(client: Client, number: int) -> None:
        await asyncio.sleep(number / workers)  # not in step
        while loop.time() < began + seconds:
            try:
                reply = await client.ask(wire)
            except ConnectionError:
                seen.failures += 1
                return
            seen.failures += not (reply.status == 200 and reply.complete)

    await asyncio.gather(*(work(client, number) for number, client in enumerate(clients)))
    took = loop.time() - began
    for client in clients:
        client.close()
    return seen, took
