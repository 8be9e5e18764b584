"""One connection to an engine: a request goes out whole, its answer comes back in pieces.

The parser is llhttp, in C (httptools). What it does not bound is bounded here: the size of a head, and
how much of an answer waits for whoever reads it.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from gptoss_gateway.errors import EngineLostError

MAX_HEAD_BYTES = 64 * 1024
MAX_UNREAD_BYTES = 256 * 1024
"""How much of an answer waits for its reader before the engine has to."""

Sink = Callable[[bytes], bool]
"""Takes a piece of an answer; False if it wants no more for now."""


class Line(asyncio.Protocol):
    """A connection that carries one request after another.

    Attributes:
        status: 0 until an answer's head is there.
        content_type: of that answer.
        opened_at: when it was connected, by the event loop's clock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.content_type = ""
        self.opened_at = loop.time()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._fault: Exception | None = None
        self._lost: str | None = None
        self._pieces: list[bytes] = []
        self._forget()

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send a request and wait until ``status`` is known; raises EngineLostError."""
        self._forget()
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is None or self._transport.is_closing():
            raise EngineLostError("the connection is closed")
        self._transport.writelines([head, body])
        while not self.status:
            if self._lost is not None:
                raise EngineLostError(self._lost)
            await self._wait()

    async def read(self) -> bytes:
        """Return what came since, waiting for something; nothing at the end. Raises EngineLostError."""
        while not self._pieces and not self._complete:
            if self._lost is not None:
                raise EngineLostError(self._lost)
            await self._wait()
        piece = self._unread()
        self._resume()
        return piece

    async def pour(self, sink: Sink) -> bool:
        """Hand every piece to ``sink`` as it comes; True at the end, False once the sink wants no more for now.

        Raises:
            EngineLostError: the connection broke before the answer's end. What the sink raises is raised, too.
        """
        self._sink, self._full = sink, False
        try:
            if self._pieces:
                self._hand_over()
            if not self._full:
                self._resume()
            while not self._full and not self._complete and self._lost is None:
                await self._wait()
        finally:
            self._sink = None
        if self._fault is not None:
            raise self._fault
        if self._full:
            return False
        if not self._complete:
            raise EngineLostError(self._lost or "the connection is closed")
        return True

    def rest(self) -> bool:
        """Forget the request; tell whether another may follow on this connection."""
        self._parser = None  # what comes now was not asked for
        if self._transport is None or self._transport.get_write_buffer_size():
            return False
        if self._paused:  # its reader left with the last piece: the next answer would never be read
            return False
        return self.is_open and self._complete and self._reusable and not self._pieces

    def close(self) -> None:
        """Drop the connection and what is on its way."""
        self._parser = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a new connection."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the connection's end; an answer that has no length of its own ends with it."""
        self._transport = None
        self._parser = None
        self._reusable = False
        if exc is None and self.status and not self._delimited and self._lost is None:
            self._complete = True
        elif self._lost is None:
            self._lost = "the engine's side closed it" if exc is None else f"it broke: {exc!r}"
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Parse what came and hand it over."""
        if self._parser is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._lose(f"what came is not HTTP: {error}")
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._lose("the answer's head is too large")
        if self._sink is None:
            if self._waiter is not None:
                self._wake()
            elif sum(map(len, self._pieces)) > MAX_UNREAD_BYTES:
                self._pause()
            return
        if self._pieces and not self._full:
            self._hand_over()
        if self._complete or self._full or self._lost is not None:
            self._wake()

    def on_message_begin(self) -> None:
        """Note that an answer begins; for the parser, as are all of these."""
        if self._complete:
            self._reusable = False  # a second answer, which nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what is needed of an answer's headers."""
        if self.status:
            return  # a trailer
        match name.lower():
            case b"content-type":
                self.content_type = value.partition(b";")[0].strip().lower().decode("latin-1")
            case b"content-length" | b"transfer-encoding":
                self._delimited = True

    def on_headers_complete(self) -> None:
        """Take over the status, unless the answer is still to come."""
        status = self._parser.get_status_code() if self._parser is not None else 0
        self._informational = 100 <= status < 200
        if not self._informational and not self.status:
            self.status = status

    def on_body(self, body: bytes) -> None:
        """Keep a piece until all that came at once is parsed."""
        if not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Note the answer's end."""
        if self._informational:
            self.content_type, self._delimited = "", False
        elif not self._complete and self._parser is not None:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()

    def _forget(self) -> None:
        self.status, self.content_type = 0, ""
        self._head_bytes = 0
        self._delimited = self._informational = self._complete = self._full = self._paused = False
        self._reusable = True
        self._pieces = []
        self._sink = self._fault = self._lost = None

    def _unread(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _hand_over(self) -> None:
        assert self._sink is not None  # noqa: S101 - callers looked
        try:
            self._full = not self._sink(self._unread())
        except Exception as error:  # noqa: BLE001 - it is the reader's, who gets it
            self._fault, self._full = error, True
        if self._full:
            self._pause()

    def _lose(self, why: str) -> None:
        if self._lost is None and not self._complete:
            self._lost = why
        self._reusable = False
        self.close()

    def _pause(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
