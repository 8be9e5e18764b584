"""The waiting room: requests held until an engine takes them, within bounds, and in a fair order.

Within a tenant first come is first served. Between tenants turns go round, weighted by priority: of two
tenants with priorities 3 and 1 that both wait, the first gets three places for each one of the second's.
Who was called in vain comes back to the very head and takes up nobody's place: bounds are of those that
have not been called yet, so an engine that fails many requests at once keeps no others out. When a
model's queue is full, the newest request of the tenant that takes up most of it, by weight, makes room
for one of a tenant that takes up less; likewise when the whole room is full, of places or of bytes.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from gptoss_gateway.catalogue import ServedModel
from gptoss_gateway.errors import Limit, RequestError, TooManyHeldError


@dataclass(eq=False, kw_only=True)
class Ticket:
    """One held request. ``called`` completes with None when it may go on, or with why it may not.

    ``retry_after`` tells, at any time, how many seconds its client should stay away if it is sent away then.
    """

    uid: str
    tenant: str
    size: int
    retry_after: Callable[[], float]
    called: asyncio.Future[RequestError | None]


class WaitingRoom:
    """Queues per model, bounded per model and, in number and bytes, all together."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._queues: dict[str, _Queue] = {}
        self._called: dict[str, set[Ticket]] = {}
        self._users: dict[str, _User] = {}
        self._requests = 0
        self._bytes = 0

    def enter(
        self,
        model: ServedModel,
        *,
        size: int,
        retry_after: Callable[[], float],
        tenant: str = "",
        priority: int = 1,
        returning: bool = False,
    ) -> Ticket:
        """Queue a request; one that returns after a failed attempt goes first and is always taken.

        Raises:
            TooManyHeldError: a bound is reached.
        """
        if not returning:
            self._make_room(model, tenant, priority, size=size, retry_after=retry_after)
        called: asyncio.Future[RequestError | None] = asyncio.get_running_loop().create_future()
        ticket = Ticket(uid=model.uid, tenant=tenant, size=size, retry_after=retry_after, called=called)
        self._queues.setdefault(model.uid, _Queue()).add(ticket, priority, first=returning)
        if not returning:  # who returns is never displaced, and was let in before
            self._users.setdefault(tenant, _User()).add(ticket, priority)
            self._requests += 1
            self._bytes += size
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Take a request out that no longer waits; one that was called is on its way no longer."""
        if (called := self._called.get(ticket.uid)) is not None:
            called.discard(ticket)
            if not called:
                del self._called[ticket.uid]
        self._take_out(ticket)

    def call(self, uid: str, count: int) -> int:
        """Let the next ``count`` requests of a model go on; return how many are left."""
        for _ in range(min(count, self.waiting(uid))):
            ticket = self._queues[uid].turn()
            self._take_out(ticket)
            self._called.setdefault(uid, set()).add(ticket)
            ticket.called.set_result(None)
        return self.waiting(uid)

    def refuse(self, uid: str, error: Callable[[], RequestError]) -> None:
        """End every wait for a model with an error, each with its own."""
        for ticket in tuple(self._queues.get(uid, ())):
            self._refuse(ticket, error())

    def waiting(self, uid: str) -> int:
        """Return how many requests are held for a model."""
        queue = self._queues.get(uid)
        return 0 if queue is None else len(queue)

    def called(self, uid: str) -> int:
        """Return how many requests were called and have not left the room yet."""
        return len(self._called.get(uid, ()))

    def _refuse(self, ticket: Ticket, error: RequestError) -> None:
        self._take_out(ticket)
        ticket.called.set_result(error)

    def _take_out(self, ticket: Ticket) -> None:
        queue = self._queues.get(ticket.uid)
        if queue is None or not queue.discard(ticket):
            return
        if not queue:
            del self._queues[ticket.uid]
        if (user := self._users.get(ticket.tenant)) is not None and ticket in user.tickets:
            if not user.discard(ticket):
                del self._users[ticket.tenant]
            self._requests -= 1
            self._bytes -= ticket.size

    def _make_room(
        self, model: ServedModel, tenant: str, priority: int, *, size: int, retry_after: Callable[[], float]
    ) -> None:
        """Let everybody go who must, or nobody and raise."""
        displaced: dict[Ticket, Callable[[Ticket], RequestError]] = {}
        queue = self._queues.get(model.uid)
        if (queue.uncalled if queue is not None else 0) >= model.max_held_requests:
            ticket = queue.displaced_by(tenant, priority) if queue is not None else None
            crowded = partial(_crowded, model)
            if ticket is None:
                raise crowded(tenant, retry_after())
            displaced[ticket] = lambda ticket: crowded(ticket.tenant, ticket.retry_after())
        places = _Bound(
            limit=self._max_requests, used=self._requests, wanted=1, used_by=lambda user: len(user.tickets), of=_one
        )
        space = _Bound(limit=self._max_bytes, used=self._bytes, wanted=size, used_by=lambda user: user.bytes, of=_size)
        for ticket in displaced:
            places.used -= 1
            space.used -= ticket.size
        while (bound := next((each for each in (places, space) if each.is_exceeded), None)) is not None:
            ticket = self._largest_users_newest(tenant, priority, bound, set(displaced))
            if ticket is None:
                raise _full(tenant, retry_after())
            displaced[ticket] = lambda ticket: _full(ticket.tenant, ticket.retry_after())
            places.used -= 1
            space.used -= ticket.size
        for ticket, error in displaced.items():
            self._refuse(ticket, error(ticket))

    def _largest_users_newest(self, tenant: str, priority: int, bound: "_Bound", gone: set[Ticket]) -> Ticket | None:
        """Return who must go from the whole room for one of a tenant that takes up less; None if nobody."""
        shares = {name: user.share(bound, gone) for name, user in self._users.items()}
        largest = max(shares, key=lambda name: shares[name], default=None)
        if largest is None or largest == tenant:
            return None
        own = self._users.get(tenant)
        mine = (own.share(bound, gone) * own.priority if own is not None else 0.0) + bound.wanted
        if mine / priority >= shares[largest]:
            return None
        return next(ticket for ticket in reversed(self._users[largest].tickets) if ticket not in gone)


@dataclass(kw_only=True)
class _Bound:
    """A bound of the whole room: ``used`` of ``limit``, and ``wanted`` more."""

    limit: int
    used: int
    wanted: int
    used_by: Callable[["_User"], int]
    of: Callable[[Ticket], int]

    @property
    def is_exceeded(self) -> bool:
        return self.used + self.wanted > self.limit


class _User:
    """What a tenant takes up of the whole room, in the order of arrival."""

    def __init__(self) -> None:
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.bytes = 0
        self.priority = 1

    def add(self, ticket: Ticket, priority: int) -> None:
        self.tickets[ticket] = None
        self.bytes += ticket.size
        self.priority = priority

    def discard(self, ticket: Ticket) -> int:
        """Take a ticket out; return how many are left."""
        if ticket in self.tickets:
            del self.tickets[ticket]
            self.bytes -= ticket.size
        return len(self.tickets)

    def share(self, bound: _Bound, gone: set[Ticket]) -> float:
        """Return what it takes up by weight, without the tickets that are to go."""
        freed = sum(bound.of(ticket) for ticket in gone if ticket in self.tickets)
        return (bound.used_by(self) - freed) / self.priority


def _one(_: Ticket) -> int:
    return 1


def _size(ticket: Ticket) -> int:
    return ticket.size


def _crowded(model: ServedModel, tenant: str, retry_after: float) -> RequestError:
    return TooManyHeldError(
        f"{model.max_held_requests} requests wait for {model.qualified_name!r} already, as many as "
        "its spec.scaling.maxHeldRequests allows: try again later.",
        limit=Limit.HELD_FOR_MODEL,
        tenant=tenant,
        retry_after=retry_after,
    )


def _full(tenant: str, retry_after: float) -> RequestError:
    return TooManyHeldError(
        "This gateway holds as many requests as it may: try again later.",
        limit=Limit.HELD_IN_ALL,
        tenant=tenant,
        retry_after=retry_after,
    )


class _Queue:
    """One model's queue. A tenant's turn is the virtual time at which it is due, 1/priority after its last."""

    def __init__(self) -> None:
        self._first: OrderedDict[Ticket, None] = OrderedDict()
        self._tenants: dict[str, OrderedDict[Ticket, None]] = {}
        self._priorities: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._first) + self.uncalled

    @property
    def uncalled(self) -> int:
        """How many wait that have not been called before."""
        return sum(map(len, self._tenants.values()))

    def __iter__(self) -> Iterator[Ticket]:
        yield from self._first
        for line in self._tenants.values():
            yield from line

    def add(self, ticket: Ticket, priority: int, *, first: bool) -> None:
        if first:
            self._first[ticket] = None
            self._first.move_to_end(ticket, last=False)
            return
        if ticket.tenant not in self._tenants:
            # Who did not wait has saved up nothing.
            self._due[ticket.tenant] = max(self._due.get(ticket.tenant, 0.0), self._now)
        self._tenants.setdefault(ticket.tenant, OrderedDict())[ticket] = None
        self._priorities[ticket.tenant] = priority

    def turn(self) -> Ticket:
        """Return whose turn it is; it must be taken out before the next one is asked for."""
        if self._first:
            return next(iter(self._first))
        tenant = min(self._tenants, key=lambda name: self._due[name])
        self._now = self._due[tenant]
        self._due[tenant] += 1 / self._priorities[tenant]
        return next(iter(self._tenants[tenant]))

    def discard(self, ticket: Ticket) -> bool:
        """Take a ticket out; tell whether it was there."""
        if ticket in self._first:
            del self._first[ticket]
            return True
        line = self._tenants.get(ticket.tenant)
        if line is None or ticket not in line:
            return False
        del line[ticket]
        if not line:
            del self._tenants[ticket.tenant]
        return True

    def displaced_by(self, tenant: str, priority: int) -> Ticket | None:
        """Return who must go, should a tenant be let in that takes up less than its share; None if nobody."""
        shares = {name: len(line) / self._priorities[name] for name, line in self._tenants.items()}
        largest = max(shares, key=lambda name: shares[name], default=None)
        if largest is None or largest == tenant:
            return None
        mine = (len(self._tenants.get(tenant, ())) + 1) / priority
        return next(reversed(self._tenants[largest])) if mine < shares[largest] else None
