"""Where clients come in: in the clear, or after a TLS handshake.

With TLS a connection takes its place at the door when it is accepted, not only once its handshake is done: who opens
connections and leaves it at that is bounded like everybody else. Each handshake is done with the
certificate of its moment, so a renewed one needs no new listener.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Protocol

from gptoss_gateway.acceptor import BACKLOG, Acceptor
from gptoss_gateway.certificate import Certificate
from gptoss_gateway.errors import RequestError
from gptoss_gateway.settings import Listener

_log = logging.getLogger(__name__)

_GOODBYE_SECONDS = 2.0
"""How long a closing connection waits for its peer's own close."""


class Entrance(Protocol):
    """Where connections come in and are counted."""

    def enter(self, client: str) -> RequestError | None:
        """Count a connection in; returns why it may not stay."""
        ...

    def leave(self, client: str) -> None:
        """Count a connection out."""
        ...

    def connection(self, came_in: Callable[[], None] | None = None) -> asyncio.Protocol:
        """Return a connection's protocol; it calls ``came_in`` just before it counts itself in."""
        ...


class ClientListener:
    """Accepts connections, with handshakes if there is a ``certificate``.

    A handshake has ``seconds``; ``failed`` is told of each that comes to nothing.
    """

    def __init__(
        self,
        entrance: Entrance,
        certificate: Certificate | None,
        *,
        seconds: float,
        failed: Callable[[], None],
    ) -> None:
        self._entrance = entrance
        self._certificate = certificate
        self._seconds = seconds
        self._failed = failed
        self._acceptors: list[Acceptor] = []
        self._arrivals: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """The first address that it listens on."""
        host, port = self.sockets[0].getsockname()[:2]
        return host, port

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """What it listens at."""
        return tuple(acceptor.listening for acceptor in self._acceptors)

    async def start(self, listener: Listener) -> None:
        """Listen; raises OSError where an address can't be bound."""
        found = await asyncio.get_running_loop().getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
                self.share(socket.create_server(address[:2], family=family, backlog=BACKLOG))
        except OSError:
            self.stop()
            raise

    def share(self, listening: socket.socket) -> None:
        """Listen at a socket, which other processes may listen at, too; raises OSError where it can't be."""
        take = self._let_in if self._certificate is None else self._shake_hands
        self._acceptors.append(Acceptor(listening, take))

    def stop(self) -> None:
        """Accept no more; what is on its way in goes on."""
        for acceptor in self._acceptors:
            acceptor.close()

    async def close(self) -> None:
        """End what is on its way in."""
        arrivals = tuple(self._arrivals)
        for task in arrivals:
            task.cancel()
        await asyncio.gather(*arrivals, return_exceptions=True)

    def _let_in(self, accepted: socket.socket, _: str) -> None:
        self._expect(self._connect(accepted))

    def _shake_hands(self, accepted: socket.socket, client: str) -> None:
        if self._entrance.enter(client) is not None:  # nobody can read why before there is a handshake
            self._entrance.leave(client)
            accepted.close()
            return
        self._expect(self._shake(accepted, client))

    def _expect(self, arrival: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(arrival, name="arrival")
        self._arrivals.add(task)
        task.add_done_callback(self._arrivals.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._entrance.connection, accepted)
        except OSError as error:  # there is no socket to be had from it any more
            accepted.close()
            _log.debug("connection lost on its way in", extra={"error": str(error)})

    async def _shake(self, accepted: socket.socket, client: str) -> None:
        assert self._certificate is not None  # noqa: S101 - or nobody shakes hands
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
