"""The client's side of one request: headers, heartbeats, bytes and errors, in the order they may come.

Three states. *Silent*: nothing was sent, an error has its own status code. *Held open*: a stream's
headers and comments were sent, no byte of an answer; another attempt is still possible, but an error
must be an event. *Answered*: bytes of the engine were sent; what breaks now can't be repaired.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from aiohttp import web

from gptoss_gateway.errors import ClientLeftError, Dialect, RequestError, error_event
from gptoss_gateway.usage import Tally

_EVENT_STREAM = "text/event-stream; charset=utf-8"
_MAX_UNSENT = 64 * 1024
"""Bytes that may wait for a client before its engine has to: where transports, too, ask to hold on."""


class Exchange:
    """Answers one request, once. ``blocked_since`` is when it began to wait for the client to read (loop time)."""

    def __init__(
        self, request: web.BaseRequest, *, request_id: str, dialect: Dialect, closing: Callable[[], bool]
    ) -> None:
        self.dialect = dialect
        self.request_id = request_id
        self.stream = False
        self.tally = Tally()
        self.answered = False
        self.status: int | None = None
        self.response: web.StreamResponse | None = None
        self.blocked_since: float | None = None
        self._request = request
        self._headers = {"x-request-id": request_id, "Server": "gptoss-gateway"}
        self._closing = closing
        self._chunked = False

    def abort(self) -> None:
        """Drop the connection of a client that takes nothing any more."""
        if (transport := self._request.transport) is not None:
            transport.abort()

    @property
    def preferences(self) -> Sequence[str]:
        """The client's ``Prefer`` headers."""
        return self._request.headers.getall("Prefer", ())

    def tell(self, headers: Mapping[str, str]) -> None:
        """Add headers to whatever will be answered."""
        self._headers |= headers

    async def heartbeat(self, comment: str) -> None:
        """Show a waiting stream that it is alive; requests without a stream wait silently."""
        if self.stream and not self.answered:
            await self._open_stream()
            await self._write(b": " + comment.encode() + b"\n\n")

    async def write(self, data: bytes) -> None:
        """Pass on bytes of the engine's stream."""
        if self.response is None:
            await self._open_stream()
        self.answered = True
        await self._write(data)

    def push(self, data: bytes) -> bool:
        """Pass on bytes of a stream that was answered already, in this very step; False once too much lies unsent.

        Raises:
            ClientLeftError: there is nobody to pass them to.
        """
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ClientLeftError
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return transport.get_write_buffer_size() <= _MAX_UNSENT

    async def catch_up(self) -> None:
        """Wait until the client has read enough of what was pushed."""
        self.blocked_since = asyncio.get_running_loop().time()
        try:
            await self._request.writer.drain()
        except ConnectionError as error:
            raise ClientLeftError from error
        finally:
            self.blocked_since = None

    async def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a whole JSON document; on a stream held open it becomes an error event."""
        if self.response is not None:
            await self._write(_as_event(status, body, self.dialect))
            await self._end()
            return
        self.status = status
        self.response = web.Response(
            status=status, body=body, headers={**self._headers, **(headers or {})}, content_type="application/json"
        )
        await self._prepare()
        await self._end()

    async def fail(self, error: RequestError) -> None:
        """Tell the client what went wrong, in the way that its state still allows."""
        if self.response is None:
            body = json.dumps(error.body(self.dialect)).encode()
            await self.answer(error.status, body, error.headers)
        else:
            await self._write(error.event(self.dialect))
            await self._end()

    async def give_up(self, error: RequestError) -> None:
        """Tell the client what went wrong, if it is still there."""
        with contextlib.suppress(ClientLeftError):
            await self.fail(error)

    async def finish(self) -> None:
        """End a stream."""
        await self._open_stream()
        await self._end()

    async def _open_stream(self) -> None:
        if self.response is not None:
            return
        self.status = 200
        self.response = web.StreamResponse(
            status=200, headers={**self._headers, "Content-Type": _EVENT_STREAM, "Cache-Control": "no-store"}
        )
        await self._prepare()
        self._chunked = self.response.headers.get("Transfer-Encoding") == "chunked"

    async def _prepare(self) -> None:
        assert self.response is not None  # noqa: S101 - made by every caller
        if self._closing() or not self._request.content.is_eof():
            self.response.force_close()  # what is left of a body that nobody reads must not look like a request
        try:
            await self.response.prepare(self._request)
        except ConnectionError as error:
            raise ClientLeftError from error

    async def _write(self, data: bytes) -> None:
        assert self.response is not None  # noqa: S101 - opened by every caller
        self.blocked_since = asyncio.get_running_loop().time()
        try:
            await self.response.write(data)
        except ConnectionError as error:
            raise ClientLeftError from error
        finally:
            self.blocked_since = None

    async def _end(self) -> None:
        assert self.response is not None  # noqa: S101 - opened by every caller
        self.blocked_since = asyncio.get_running_loop().time()
        try:
            await self.response.write_eof()
        except ConnectionError as error:
            raise ClientLeftError from error
        finally:
            self.blocked_since = None


def _as_event(status: int, body: bytes, dialect: Dialect) -> bytes:
    if status >= HTTPStatus.BAD_REQUEST and dialect is Dialect.RESPONSES:  # whose errors have members of their own
        return error_event(json.loads(body), dialect)
    line = body.translate(None, b"\r\n")  # between JSON's tokens: strings hold none
    return (b"" if dialect is Dialect.OPENAI else b"event: error\n") + b"data: " + line + b"\n\n"
