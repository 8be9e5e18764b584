"""The listener that asks for a TLS handshake first.

A connection takes its place at the door when it is accepted, not only once its handshake is done: who opens
connections and leaves it at that is bounded like everybody else. Each handshake is done with the
certificate of its moment, so a renewed one needs no new listener.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from gptoss_gateway.certificate import Certificate
from gptoss_gateway.errors import RequestError
from gptoss_gateway.settings import Listener

_log = logging.getLogger(__name__)

_GOODBYE_SECONDS = 2.0
"""How long a closing connection waits for its peer's own close."""
_BREATH_SECONDS = 1.0
"""Pause where the process has no file left for another connection."""
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Entrance(Protocol):
    """Where connections come in and are counted."""

    def enter(self, client: str) -> RequestError | None:
        """Count a connection in; returns why it may not stay."""
        ...

    def leave(self, client: str) -> None:
        """Count a connection out."""
        ...

    def connection(self, came_in: Callable[[], None]) -> asyncio.Protocol:
        """Return a connection's protocol; it calls ``came_in`` just before it counts itself in."""
        ...


class SecureListener:
    """Accepts connections. ``failed`` is told of each handshake that comes to nothing; it has ``seconds``."""

    def __init__(
        self,
        entrance: Entrance,
        certificate: Certificate,
        *,
        seconds: float,
        failed: Callable[[], None],
    ) -> None:
        self._entrance = entrance
        self._certificate = certificate
        self._seconds = seconds
        self._failed = failed
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """The first address that it listens on."""
        host, port = self._sockets[0].getsockname()[:2]
        return host, port

    async def start(self, listener: Listener, *, backlog: int) -> None:
        """Listen; raises OSError where an address can't be bound."""
        found = await asyncio.get_running_loop().getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
                listening = socket.create_server(address[:2], family=family, backlog=backlog)
                self._sockets.append(listening)
        except OSError:
            await self.stop()
            raise
        self._open()

    def share(self, listening: socket.socket) -> None:
        """Listen at a socket that other processes listen at, too."""
        self._sockets = [listening]
        self._open()

    async def stop(self) -> None:
        """Accept no more; handshakes that are under way go on."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self._sockets:
            listening.close()

    async def close(self) -> None:
        """End the handshakes that are under way."""
        handshakes = tuple(self._handshakes)
        for task in handshakes:
            task.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)

    def _open(self) -> None:
        for listening in self._sockets:
            listening.setblocking(False)  # noqa: FBT003
        self._accepting = [asyncio.create_task(self._accept(each), name="accept") for each in self._sockets]

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _SHORTAGES:
                    _log.error("no connection can be accepted", extra={"error": str(error)})
                    await asyncio.sleep(_BREATH_SECONDS)
                continue
            client = str(address[0])
            if self._entrance.enter(client) is not None:  # nobody can read why before there is a handshake
                self._entrance.leave(client)
                accepted.close()
                continue
            task = asyncio.create_task(self._shake(accepted, client), name="handshake")
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake(self, accepted: socket.socket, client: str) -> None:
        place = _Place(self._entrance, client)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._entrance.connection(place.give_up),
                accepted,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._seconds,
                ssl_shutdown_timeout=_GOODBYE_SECONDS,
            )
        except OSError as error:  # TLS' own errors and time-outs among them
            self._failed()
            _log.debug("handshake failed", extra={"client": client, "error": str(error)})
        finally:
            place.give_up()


class _Place:
    """A handshake's place, which its connection takes over."""

    def __init__(self, entrance: Entrance, client: str) -> None:
        self._entrance = entrance
        self._client: str | None = client

    def give_up(self) -> None:
        if self._client is not None:
            self._entrance.leave(self._client)
            self._client = None
