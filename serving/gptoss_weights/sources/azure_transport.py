"""How Azure's library reaches the network: through connections that look where they lead.

The library reads a range into memory, and tries again by itself where that breaks. Here a body is no longer than
the range that was asked for, and what breaks is an error of ours, for one policy tries again (see ``retry.py``).
"""

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import requests
from azure.core.pipeline.transport import RequestsTransport
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, Retry
from urllib3.exceptions import HTTPError

from gptoss_weights.errors import SourceError, SourceUnavailableError
from gptoss_weights.sources.connections import connection_pools
from gptoss_weights.sources.settings import SourceSettings

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/\d+")


class AzureTransport(RequestsTransport):  # type: ignore[misc]  # the library hides its class behind a __getattr__
    """Sends requests of several threads. Redirects, proxies, cookies and ``.netrc`` are not used."""

    def __init__(self, settings: SourceSettings) -> None:
        session = requests.Session()
        session.trust_env = False
        # The bytes that were signed are those of the blob, not of a compressed one.
        session.headers = {"Accept-Encoding": "identity"}  # type: ignore[assignment]  # requests takes any mapping
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(max_retries=Retry(total=False, redirect=False)))
        super().__init__(
            session=session,
            session_owner=False,  # closed here, when no other thread needs it any more
            use_env_settings=False,
            connection_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.read_timeout_seconds,
        )
        self._adapters = session
        self._lock = threading.Lock()
        self._open: set[BaseHTTPResponse] = set()
        self._shut = False

    def send(self, request: Any, **kwargs: Any) -> Any:
        """Send a request; the answer to a range has a body of ours."""
        if self._shut:
            raise SourceUnavailableError("the source was closed")
        answer: Any = super().send(request, **kwargs)
        if answer.status_code in (200, 206) and kwargs.get("stream"):
            body = _Body(self, answer, request.headers.get("x-ms-range", ""))
            answer.stream_download = lambda *_, **__: body
        return answer

    def shut(self) -> None:
        """Close the connections, and end the bodies that other threads still wait for."""
        with self._lock:
            self._shut = True
            for raw in self._open:
                with suppress(ValueError, RuntimeError, OSError):
                    raw.shutdown()
        self._adapters.close()

    def opened(self, raw: BaseHTTPResponse) -> None:
        """Note a body that is going to be read.

        Raises:
            SourceUnavailableError: nobody waits for it any more.
        """
        with self._lock:
            if self._shut:
                raise SourceUnavailableError("the source was closed")
            self._open.add(raw)

    def done(self, raw: BaseHTTPResponse) -> None:
        """Note that a body was read, or will not be."""
        with self._lock:
            self._open.discard(raw)


class _Body:
    """The bytes of one range, in one piece: that is how the library wants them."""

    def __init__(self, transport: AzureTransport, answer: Any, asked: str) -> None:
        self._transport = transport
        self._raw: BaseHTTPResponse = answer.internal_response.raw
        self.response = answer
        try:
            self._start, self.content_length = _extent(self._raw, asked)
        except SourceError:
            self._raw.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        try:
            self._transport.opened(self._raw)
            found = self._raw.read(self.content_length, decode_content=False)
            # One byte more would be another range; to its end, so that the connection can be used again.
            if len(found) != self.content_length or self._raw.read(1, decode_content=False):
                raise SourceUnavailableError(f"the object store ended a range at {self._start} early or late")
            yield found
        except (HTTPError, OSError) as error:
            raise SourceUnavailableError(f"the connection broke ({type(error).__name__})") from None
        finally:
            self._transport.done(self._raw)
            self._raw.close()


def _extent(raw: BaseHTTPResponse, asked: str) -> tuple[int, int]:
    """Return where an answer's range begins and how long it is, once it is known to be the one that was asked for."""
    wanted = _RANGE.fullmatch(asked)
    served = _CONTENT_RANGE.fullmatch(raw.headers.get("Content-Range", ""))
    if wanted is None or served is None or raw.status != 206:
        raise SourceError("the object store does not answer range requests")
    start, end = int(served[1]), int(served[2])
    length = raw.headers.get("Content-Length", "")
    if start != int(wanted[1]) or not start <= end <= int(wanted[2]) or length != str(end - start + 1):
        raise SourceError("the object store answered another range than asked for")
    return start, end - start + 1


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *_: Any, **__: Any) -> None:
        self.poolmanager = connection_pools()

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """Nothing: the pools bring their own authorities."""
