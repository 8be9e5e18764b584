"""Lines to engines: HTTP/1.1 with one aim, to pass an answer on in the step of the event loop that brought it.

An answer is pulled (``read``) until somebody knows what it is, and then poured: each piece is handed
over from the event loop's own read, without a task that must be woken for it first. That is most of
what a proxy in Python costs for each event of a stream.
"""

import asyncio
import functools
import re
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohappyeyeballs

from gptoss_gateway.answer import Line, Sink
from gptoss_gateway.errors import UpstreamUnavailableError

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 4.0
"""How long a line is kept for the next request; servers close theirs after five seconds and more."""
LINE_SECONDS = 15.0
"""How long after a line was opened requests begin on it. A Service finds another pod only for a new connection: on an
old one a pod that is told to go, or the engines before a roll-out, would be asked for as long as requests come.
"""
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, kw_only=True)
class _Address:
    host: str
    port: int
    tls: bool
    authority: str


class Answer:
    """An engine's answer: its status and media type, and a body that is read once."""

    def __init__(self, line: Line, address: _Address, lines: "Lines") -> None:
        self.status = line.status
        self.content_type = line.content_type
        self._line = line
        self._address = address
        self._lines = lines

    async def read(self) -> bytes:
        """Return the bytes that came since, waiting for some; none at the end.

        Raises:
            EngineLostError: the line broke before the answer's end.
        """
        return await self._line.read()

    async def pour(self, sink: Sink) -> bool:
        """Hand every piece to ``sink`` as it comes; True at the end, False once the sink wants no more for now.

        Raises:
            EngineLostError: the line broke before the answer's end. What the sink raises is raised, too.
        """
        return await self._line.pour(sink)

    def close(self) -> None:
        """Be done with the answer: its line is kept only if it was read to its end."""
        self._lines.give_back(self._line, self._address)


class Lines:
    """A process' lines to every engine. Idle ones are kept for a moment."""

    def __init__(self) -> None:
        self._idle: dict[_Address, deque[tuple[Line, float]]] = defaultdict(deque)
        self._busy: set[Line] = set()
        self._tls: ssl.SSLContext | None = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a request and wait for the head of its answer.

        Raises:
            UpstreamUnavailableError: there is no connection to be had.
            EngineLostError: the connection broke before an answer.
        """
        address, target = _parts(url)
        head = _head(address.authority, target, headers, len(body))
        line = self._take(address) or await self._connect(address)
        self._busy.add(line)
        try:
            await line.ask(head, body)
        except BaseException:
            self._busy.discard(line)
            line.close()
            raise
        return Answer(line, address, self)

    def give_back(self, line: Line, address: _Address) -> None:
        """Take back a line that is needed no longer; for answers."""
        if line not in self._busy:
            return
        self._busy.discard(line)
        now = asyncio.get_running_loop().time()
        if line.rest() and now < line.opened_at + LINE_SECONDS:
            self._idle[address].append((line, now))
        else:
            line.close()

    def sweep(self) -> None:
        """Close what was idle for too long; called once a second."""
        before = asyncio.get_running_loop().time() - IDLE_SECONDS
        for address, idle in tuple(self._idle.items()):
            while idle and idle[0][1] <= before:
                idle.popleft()[0].close()
            if not idle:
                del self._idle[address]

    def close(self) -> None:
        """Close every line."""
        for line in (*self._busy, *(line for idle in self._idle.values() for line, _ in idle)):
            line.close()
        self._busy.clear()
        self._idle.clear()

    def _take(self, address: _Address) -> Line | None:
        idle = self._idle.get(address)
        now = asyncio.get_running_loop().time()
        while idle:
            line, since = idle.pop()  # the last one used: the others may grow old and go
            if line.is_open and now < min(since + IDLE_SECONDS, line.opened_at + LINE_SECONDS):
                return line
            line.close()
        return None

    async def _connect(self, address: _Address) -> Line:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
                raw = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=0.25, interleave=1)
                try:
                    _, line = await loop.create_connection(
                        lambda: Line(loop),
                        sock=raw,
                        ssl=self._context() if address.tls else None,
                        server_hostname=address.host if address.tls else None,
                    )
                except BaseException:
                    raw.close()
                    raise
        except TimeoutError as error:
            raise UpstreamUnavailableError("no connection in time", reached_engine=False) from error
        except OSError as error:
            raise UpstreamUnavailableError(f"no connection: {error}", reached_engine=False) from error
        return line

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


@functools.lru_cache(maxsize=4096)
def _parts(url: str) -> tuple[_Address, str]:
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    authority = parts.netloc.rpartition("@")[2]
    return _Address(host=parts.hostname or "", port=port, tls=tls, authority=authority), parts.path or "/"


def _head(authority: str, target: str, headers: Mapping[str, str], size: int) -> bytes:
    values = "".join((authority, target, *headers.values()))
    if not _VALUE.fullmatch(values):
        raise UpstreamUnavailableError("a header for the engine has control characters", reached_engine=False)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {target} HTTP/1.1\r\nHost: {authority}\r\n{lines}Content-Length: {size}\r\n\r\n".encode("latin-1")
