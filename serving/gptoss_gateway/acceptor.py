"""Takes connections from a listening socket: the more at a time, the longer they have queued.

uvloop's own servers take one connection in each round of the event loop. The rounds of a busy process are long, so
newcomers queue there for longer than they are willing to wait, and in the end those are taken that are gone again.
Taking all there are at once would be as wrong: of processes that share a socket, the first to look would get them all.
"""

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

_log = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that the kernel keeps until they are taken; as many as Linux allows by default (net.core.somaxconn)."""
MOST_AT_ONCE = 64
"""Connections that are taken in one round of the event loop, so that open ones never wait long for newcomers."""
_BREATH_SECONDS = 1.0
"""Pause where the process has no file left for another connection."""
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_QUEUE = struct.Struct("24x2I")
"""Where Linux' tcp_info has a listening socket's queue and its bound (tcpi_unacked, tcpi_sacked)."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """The connections that wait at a listening socket, and how many may."""

    waiting: int
    bound: int


def queue(listening: socket.socket) -> Queue | None:
    """Return who waits at a listening socket; None where there is no telling, as when it is closed."""
    try:
        told = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUE.size)
        waiting, bound = _QUEUE.unpack(told)
    except (OSError, AttributeError, struct.error):  # closed, no TCP, or not Linux
        return None
    return Queue(waiting=waiting, bound=bound)


class Acceptor:
    """Hands each connection and its peer's host to ``take`` until ``close``; begins at once, in a running event loop.

    Raises:
        OSError: the socket can't be watched.
    """

    def __init__(self, listening: socket.socket, take: Callable[[socket.socket, str], None]) -> None:
        self.listening = listening
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._at_once = 1
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)  # noqa: FBT003
        self._watch()

    def close(self) -> None:
        """Take no more and close the socket; other processes' share of it stays open."""
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self.listening)
        self.listening.close()

    def _watch(self) -> None:
        self._pause = None
        self._loop.add_reader(self.listening, self._accept)

    def _accept(self) -> None:
        for _ in range(self._at_once):
            try:
                connection, address = self.listening.accept()
            except BlockingIOError:
                self._at_once = 1
                return
            except OSError as error:
                if error.errno in _SHORTAGES:
                    self._rest(error)
                    return
                continue  # that one was gone before it was taken
            self._take(connection, str(address[0]))
        self._at_once = min(2 * self._at_once, MOST_AT_ONCE)

    def _rest(self, shortage: OSError) -> None:
        _log.error("no connection can be accepted", extra={"error": str(shortage)})
        self._loop.remove_reader(self.listening)
        self._pause = self._loop.call_later(_BREATH_SECONDS, self._watch)
