"""The waiting room: requests held for models that do not answer yet, within bounds, first come first served."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_gateway.catalogue import ServedModel
from gptoss_gateway.errors import RequestError, TooManyHeldError


@dataclass(eq=False, kw_only=True)
class Ticket:
    """One held request. ``called`` completes with None when it may go on, or with why it may not."""

    uid: str
    size: int
    called: asyncio.Future[RequestError | None]


class WaitingRoom:
    """Queues per model, bounded per model and, in number and bytes, all together."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._queues: dict[str, OrderedDict[Ticket, None]] = {}
        self._requests = 0
        self._bytes = 0

    def enter(self, model: ServedModel, *, size: int, retry_after: float, returning: bool = False) -> Ticket:
        """Queue a request; one that returns after a failed attempt goes first and is always taken.

        Raises:
            TooManyHeldError: a bound is reached.
        """
        if not returning:
            self._check_bounds(model, size=size, retry_after=retry_after)
        ticket = Ticket(uid=model.uid, size=size, called=asyncio.get_running_loop().create_future())
        queue = self._queues.setdefault(model.uid, OrderedDict())
        queue[ticket] = None
        if returning:
            queue.move_to_end(ticket, last=False)
        self._requests += 1
        self._bytes += size
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Take a request out that no longer waits; harmless for one that was called."""
        queue = self._queues.get(ticket.uid)
        if queue is None or ticket not in queue:
            return
        del queue[ticket]
        if not queue:
            del self._queues[ticket.uid]
        self._requests -= 1
        self._bytes -= ticket.size

    def call(self, uid: str, count: int) -> int:
        """Let the first ``count`` requests of a model go on; return how many are left."""
        for ticket in tuple(self._queues.get(uid, ()))[:count]:
            self.leave(ticket)
            ticket.called.set_result(None)
        return self.waiting(uid)

    def refuse(self, uid: str, error: Callable[[], RequestError]) -> None:
        """End every wait for a model with an error, each with its own."""
        for ticket in tuple(self._queues.get(uid, ())):
            self.leave(ticket)
            ticket.called.set_result(error())

    def waiting(self, uid: str) -> int:
        """Return how many requests are held for a model."""
        return len(self._queues.get(uid, ()))

    def _check_bounds(self, model: ServedModel, *, size: int, retry_after: float) -> None:
        if self.waiting(model.uid) >= model.max_held_requests:
            raise TooManyHeldError(
                f"{model.max_held_requests} requests wait for {model.qualified_name!r} already, as many as "
                "its spec.scaling.maxHeldRequests allows: try again when it is awake.",
                retry_after=retry_after,
            )
        if self._requests >= self._max_requests or self._bytes + size > self._max_bytes:
            raise TooManyHeldError(
                "This gateway holds as many requests for waking models as it may: try again later.",
                retry_after=retry_after,
            )
