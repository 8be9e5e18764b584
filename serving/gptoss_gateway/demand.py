"""The gateway's own account of demand, per deployment: what its GatewayReport says.

Every request past admission's door is counted in exactly one place, waiting or in flight, from one
event-loop step to the next: an acknowledged drain epoch is true only because of that. A client that
gives up waiting leaves its demand behind for a while, so that its retry finds a warm model.
"""

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gptoss_api.report import DeploymentDemand
from gptoss_gateway.catalogue import ServedModel

LINGER_SECONDS = 60.0
"""How long the demand of a client that left while waiting is kept."""

MAX_REPORTED = 5000
"""Most deployments that a report may list (``GatewayReportSpec``)."""


class Place(enum.Enum):
    """Where a request is."""

    WAITING = "waiting"
    IN_FLIGHT = "in flight"
    GONE = "gone"


@dataclass(kw_only=True)
class _Account:
    namespace: str
    name: str
    waiting: int = 0
    in_flight: int = 0
    last_request: str = ""
    drain_epoch: int = 0
    draining: bool = False
    awake: bool = False
    left: list[float] = field(default_factory=list)


class Claim:
    """One request's place in the ledger."""

    def __init__(self, ledger: "Ledger", uid: str, tenant: str) -> None:
        self._ledger = ledger
        self._uid = uid
        self._tenant = tenant
        self._place: Place = Place.GONE

    def wait(self) -> None:
        """Count the request as waiting for an engine."""
        self._move(Place.WAITING)

    def fly(self) -> None:
        """Count the request as being answered."""
        self._move(Place.IN_FLIGHT)

    def close(self, *, keep: bool = True) -> None:
        """Count it no longer; the demand of one that still waited is kept for a while if ``keep``."""
        self._move(Place.GONE, keep=keep)

    def _move(self, place: Place, *, keep: bool = False) -> None:
        if place is not self._place:
            before, self._place = self._place, place
            self._ledger.move(self._uid, self._tenant, before, place, keep=keep)


class Ledger:
    """Counts per deployment. ``changed`` is called when the report should be written at once."""

    def __init__(
        self, *, monotonic: Callable[[], float], timestamp: Callable[[], str], changed: Callable[[], None]
    ) -> None:
        self._monotonic = monotonic
        self._timestamp = timestamp
        self._changed = changed
        self._accounts: dict[str, _Account] = {}
        self._tenants: Counter[tuple[str, Place]] = Counter()
        self._listeners: list[Callable[[str], None]] = []

    def on_landing(self, listener: Callable[[str], None]) -> None:
        """Have ``listener`` told the deployment of every request that an engine no longer answers."""
        self._listeners.append(listener)

    def open(self, model: ServedModel, tenant: str = "") -> Claim:
        """Note the arrival of a tenant's request. Its place must be told in the same event-loop step."""
        account = self._account(model)
        account.last_request = self._timestamp()
        account.awake = model.engine_ready
        return Claim(self, model.uid, tenant)

    def move(self, uid: str, tenant: str, before: Place, after: Place, *, keep: bool) -> None:
        """Move one request from place to place; for claims."""
        self._tenants[tenant, before] -= 1
        self._tenants[tenant, after] += 1
        for place in Place:
            if place is Place.GONE or not self._tenants[tenant, place]:
                del self._tenants[tenant, place]
        account = self._accounts.get(uid)
        if account is None:  # its deployment is gone
            return
        was_wanted = account.waiting + len(account.left) > 0
        if before is Place.WAITING:
            account.waiting -= 1
            if keep:
                account.left.append(self._monotonic() + LINGER_SECONDS)
        elif before is Place.IN_FLIGHT:
            account.in_flight -= 1
            account.last_request = self._timestamp()
        if after is Place.WAITING:
            account.waiting += 1
        elif after is Place.IN_FLIGHT:
            account.in_flight += 1
            account.left.clear()  # the model is awake: lastRequest keeps it so
        # Who waits for a place of an engine that is awake asks nothing of the operator, unless it failed.
        asks = not account.awake or before is Place.IN_FLIGHT
        if account.draining or (after is Place.WAITING and not was_wanted and asks):
            self._changed()
        if before is Place.IN_FLIGHT:
            for listener in self._listeners:
                listener(uid)

    def follow(self, uid: str, model: ServedModel | None) -> None:
        """Take over a change of a deployment: acknowledge its drain, or forget it."""
        if model is None:
            if self._accounts.pop(uid, None) is not None:
                self._changed()
            return
        if model.draining_epoch is None:
            if (known := self._accounts.get(uid)) is not None:
                known.draining = False
                known.awake = model.engine_ready
            return
        account = self._account(model)
        account.draining = True
        if model.draining_epoch > account.drain_epoch:
            account.drain_epoch = model.draining_epoch
            self._changed()

    def counts(self, uid: str) -> tuple[int, int]:
        """Return how many requests of a deployment wait and how many are in flight."""
        account = self._accounts.get(uid)
        return (0, 0) if account is None else (account.waiting, account.in_flight)

    def tenants(self) -> Mapping[tuple[str, Place], int]:
        """Return how many requests of each tenant are at each place, where there are any."""
        return self._tenants

    def demands(self) -> tuple[DeploymentDemand, ...]:
        """Return what the report says now, the busiest first."""
        now = self._monotonic()
        demands = []
        for uid, account in self._accounts.items():
            account.left = [until for until in account.left if until > now]
            demands.append(
                DeploymentDemand(
                    uid=uid,
                    namespace=account.namespace,
                    name=account.name,
                    waiting=account.waiting + len(account.left),
                    in_flight=account.in_flight,
                    last_request=account.last_request,
                    drain_epoch_seen=account.drain_epoch,
                )
            )
        demands.sort(key=lambda demand: (demand.waiting + demand.in_flight, demand.last_request), reverse=True)
        return tuple(demands[:MAX_REPORTED])

    def _account(self, model: ServedModel) -> _Account:
        return self._accounts.setdefault(model.uid, _Account(namespace=model.namespace, name=model.name))
