"""Clients that stream: on the protocol, so that measuring takes little of the machine that is measured."""

import asyncio
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Seen:
    """What clients saw. Times are seconds."""

    events: int = 0
    streams: int = 0
    failures: int = 0
    first: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection that sends one request after another."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._began = 0.0
        self._waiting_first = False
        self._done: asyncio.Future[None] | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, _: BaseException | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("connection lost"))

    def data_received(self, data: bytes) -> None:
        if self._waiting_first and b"data: " in data:
            self._waiting_first = False
            self._seen.first.append(self._loop.time() - self._began)
        data = self._tail + data  # shorter than what is looked for, so nothing counts twice
        self._seen.events += data.count(b"data: {")
        self._tail = data[-6:]
        if data.endswith(b"\n0\r\n\r\n") and self._done is not None and not self._done.done():
            self._seen.streams += 1
            self._seen.ends.append(self._loop.time())
            self._done.set_result(None)

    async def ask(self, request: bytes) -> None:
        """Send a request and read its stream to the end."""
        self._done = self._loop.create_future()
        self._waiting_first, self._tail = True, b""
        self._began = self._loop.time()
        self._transport.write(request)  # type: ignore[attr-defined]
        await self._done

    def close(self) -> None:
        """Leave."""
        self._transport.close()


def request(url: str, path: str, key: str, body: dict[str, object]) -> bytes:
    """Return a whole request as bytes."""
    data = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    ).encode() + data


async def connect(url: str, seen: Seen) -> Client:
    """Open one connection."""
    parts = urlsplit(url)
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
                await client.ask(wire)
            except ConnectionError:
                seen.failures += 1
                return

    await asyncio.gather(*(work(client, number) for number, client in enumerate(clients)))
    took = loop.time() - began
    for client in clients:
        client.close()
    return seen, took
