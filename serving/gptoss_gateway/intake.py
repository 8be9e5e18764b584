"""Reads request bodies within bounds: of one body, of all together, and of the time that a client takes.

What all tenants share is never taken up by one: a tenant may have as much as ``SHARE`` times what is
still free then (dynamic thresholds, as switches share their buffers), so there is room for the next one.
"""

import asyncio
from collections import Counter
from types import TracebackType

import aiohttp
from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import RequestPayloadError

from gptoss_gateway.errors import (
    BadRequestError,
    ClientLeftError,
    TooBusyError,
    TooLargeError,
    TooSlowError,
    UnsupportedMediaError,
)
from gptoss_gateway.settings import Limits

SHARE = 8
"""One tenant alone may have eight ninths of the memory; a second one finds room however much the first one has."""


class Parcel:
    """One tenant's body and its share of the memory for bodies, given back when it is dropped."""

    def __init__(self, intake: "Intake", tenant: str = "") -> None:
        self.body = b""
        self._intake = intake
        self._tenant = tenant
        self._size = 0

    def grow(self, size: int) -> None:
        """Take more of the memory for bodies; raises TooBusyError when there is none left for this tenant."""
        self._intake.take(size, self._tenant)
        self._size += size

    def drop(self) -> None:
        """Let the body go: nobody needs it again."""
        self.body = b""
        self._intake.give(self._size, self._tenant)
        self._size = 0

    def __enter__(self) -> "Parcel":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.drop()


class Intake:
    """Where bodies come in, one per process."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._taken = 0
        self._of: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Bytes of bodies in memory."""
        return self._taken

    def take(self, size: int, tenant: str = "") -> None:
        """Count bytes in; raises TooBusyError."""
        free = self._limits.max_bodies_bytes - self._taken - size
        if free < 0 or self._of[tenant] + size > SHARE * free:
            raise TooBusyError("This gateway has as many request bodies in memory as it may: try again.", retry_after=1)
        self._taken += size
        self._of[tenant] += size

    def give(self, size: int, tenant: str = "") -> None:
        """Count bytes out."""
        self._taken -= size
        self._of[tenant] -= size
        if not self._of[tenant]:
            del self._of[tenant]

    async def read(self, request: web.BaseRequest, parcel: Parcel) -> None:
        """Read a body into its parcel.

        Raises:
            BadRequestError, UnsupportedMediaError, TooLargeError, TooSlowError, TooBusyError: it is not taken.
            ClientLeftError: the client went away.
        """
        self._require_form(request)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                await _invite(request)
                parcel.body = await self._collect(request, parcel)
        except TimeoutError as error:
            raise TooSlowError(f"The body did not arrive within {self._limits.body_seconds:g} s.") from error
        except RequestPayloadError as error:
            raise BadRequestError("The body's transfer encoding is broken, or it ended too soon.") from error
        except (ConnectionError, aiohttp.ClientError) as error:
            raise ClientLeftError from error

    def _require_form(self, request: web.BaseRequest) -> None:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaError("Compressed bodies are not taken: send it without Content-Encoding.")
        if request.content_type != "application/json":
            raise UnsupportedMediaError("The body must be JSON: send it with Content-Type: application/json.")
        if (request.content_length or 0) > self._limits.max_body_bytes:
            raise self._too_large()

    async def _collect(self, request: web.BaseRequest, parcel: Parcel) -> bytes:
        parts = bytearray()
        async for chunk in request.content.iter_any():
            if len(parts) + len(chunk) > self._limits.max_body_bytes:
                raise self._too_large()
            parcel.grow(len(chunk))
            parts += chunk
        return bytes(parts)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"The body is larger than {self._limits.max_body_bytes} bytes, the most that is taken.")


async def _invite(request: web.BaseRequest) -> None:
    """Tell a client that asks first to send its body: only now, so a refused one is never sent."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer's own head is still to come
