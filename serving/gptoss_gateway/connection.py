"""Clients' connections: how many there may be, how long and how large a request's head, and what broken HTTP is told.

aiohttp's parser refuses what two parsers could read differently (both lengths, repeated lengths, unknown
codings, folded lines). What it leaves open is here: a head that trickles in, heads as a whole, crowds,
and refusals in the API's shape that repeat nothing of what was sent and fill no log.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from gptoss_gateway.errors import BadRequestError, Dialect, HeadTooLargeError, RequestError, TooBusyError, TooSlowError
from gptoss_gateway.settings import Limits

_KEEPALIVE_SECONDS = 75.0
_LINGER_SECONDS = 2.0
"""How long the rest of a refused request is read and thrown away, so that its sender sees the refusal."""


class Door(web.Server):
    """Where clients come in. ``refused`` is called with the status of each refusal that no handler saw."""

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        limits: Limits,
        refused: Callable[[int], None],
    ) -> None:
        super().__init__(self._guard, handler_cancellation=True)  # a client that leaves ends its request at once
        self.limits = limits
        self.refused = refused
        self._handle = handle
        self._clients: Counter[str] = Counter()

    def connection(self, came_in: Callable[[], None] | None = None) -> RequestHandler:
        """Return the protocol of a new connection; it calls ``came_in`` just before it counts itself in."""
        return _Connection(self, loop=asyncio.get_running_loop(), came_in=came_in)

    def enter(self, client: str) -> RequestError | None:
        """Count a connection in; returns why it may not stay."""
        self._clients[client] += 1
        if self._clients.total() > self.limits.max_connections:
            return TooBusyError("This gateway has as many connections as it may: try again.", retry_after=1)
        if self._clients[client] > self.limits.max_connections_per_client:
            return TooBusyError(
                "There are as many connections from this address as there may be: use fewer, or keep them open.",
                code="too_many_connections",
                retry_after=1,
            )
        return None

    def leave(self, client: str) -> None:
        """Count a connection out."""
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    async def _guard(self, request: web.BaseRequest) -> web.StreamResponse:
        size = len(request.raw_path) + sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
        if size > self.limits.max_head_bytes:
            return self.refusal(self.head_too_large())
        if request.version < HttpVersion11 and "Transfer-Encoding" in request.headers:
            return self.refusal(BadRequestError("HTTP/1.0 has no Transfer-Encoding: send a Content-Length."))
        return await self._handle(request)

    def head_too_large(self) -> RequestError:
        """Return the refusal of a head that is too large."""
        return HeadTooLargeError(
            f"The request line and headers are larger than {self.limits.max_head_bytes} bytes, or there are too many."
        )

    def refusal(self, error: RequestError) -> web.Response:
        """Return an error as a response after which the connection ends."""
        self.refused(error.status)
        response = web.Response(
            status=error.status,
            body=_document(error),
            headers={"Server": "gptoss-gateway", **error.headers},
            content_type="application/json",
        )
        response.force_close()
        return response


class _Connection(RequestHandler):
    __slots__ = ("_came_in", "_client", "_door", "_head_bytes", "_head_timer", "_refusing")

    def __init__(
        self, door: Door, *, loop: asyncio.AbstractEventLoop, came_in: Callable[[], None] | None = None
    ) -> None:
        super().__init__(
            door,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            lingering_time=_LINGER_SECONDS,
            max_line_size=door.limits.max_head_bytes,
            max_field_size=door.limits.max_head_bytes,
        )
        self._door = door
        self._came_in = came_in
        self._client: str | None = None
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = self.peername
        self._client = str(peer[0]) if isinstance(peer, tuple) else "local"
        if self._came_in is not None:
            self._came_in()
        if (error := self._door.enter(self._client)) is not None:
            self._refuse(error)
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_head()
        if self._client is not None:
            self._door.leave(self._client)
            self._client = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusing:
            return
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo) and self._current_request is not None:
            # The parser tells the next request, which there is none of; the body's reader would wait for ever.
            self._current_request.content.set_exception(RequestPayloadError("the body's encoding is broken"))
        if self._request_count and (self._waiter is None or self._waiter.done()):  # what came may be a body
            self._forget_head()
            return
        self._head_bytes += len(data)
        if self._head_bytes > self._door.limits.max_head_bytes:
            self._refuse(self._door.head_too_large())
        elif self._head_timer is None:
            seconds = self._door.limits.head_seconds
            error = TooSlowError(f"The request's head did not arrive within {seconds:g} s.")
            self._head_timer = self._loop.call_later(seconds, self._refuse, error)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun")
        if status >= 500:  # our own handler's; it has none that are not caught
            self.log_exception("request failed outside its handler", exc_info=exc)
            return self._door.refusal(RequestError("The gateway failed on this request; its log says why."))
        if isinstance(exc, LineTooLong) or "many headers" in (message or ""):
            return self._door.refusal(self._door.head_too_large())
        why = (message or "").strip().partition("\n")[0].rstrip(":")
        return self._door.refusal(BadRequestError(f"This is not a valid HTTP/1.1 request: {why[:100]}."))

    def _make_error_handler(self, err_info: _ErrInfo) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            response = self.handle_error(request, err_info.status, err_info.exc, err_info.message)
            await response.prepare(request)
            await response.write_eof()
            self._stop_listening()
            await asyncio.sleep(_LINGER_SECONDS)  # cancelled when the client leaves
            return response

        return handler

    def _forget_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: RequestError) -> None:
        """Answer without a request, and close when the client has seen it."""
        self._forget_head()
        self._door.refused(error.status)
        if self.transport is not None:
            self.transport.write(_raw(error))
        self._stop_listening()
        self._head_timer = self._loop.call_later(_LINGER_SECONDS, self.force_close)

    def _stop_listening(self) -> None:
        """Throw away what still comes: closing at once would take back the refusal that is on its way."""
        self._refusing = True
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()


def _document(error: RequestError) -> bytes:
    return json.dumps(error.body(Dialect.OPENAI)).encode()


def _raw(error: RequestError) -> bytes:
    body = _document(error)
    headers: dict[str, Any] = {
        "Content-Type": "application/json",
        "Content-Length": len(body),
        "Connection": "close",
        **error.headers,
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
