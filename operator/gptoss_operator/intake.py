"""Where news of the API server arrives: into the cache, and as keys into the queue. It can't fail."""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from gptoss_api.report import GatewayReportSpec
from gptoss_operator.cache import Cache, Kind, Raw, served_name
from gptoss_operator.clock import Clock
from gptoss_operator.keys import DeploymentKey, Key
from gptoss_operator.plan.demand import Demand, Gateway, changed_uids, demand_for, follow
from gptoss_operator.workqueue import Priority, WorkQueue

_log = logging.getLogger(__name__)
_DEAD_SECONDS = 3600.0


class Intake:
    """Takes in objects that were seen or are gone, and knows what gateways said."""

    def __init__(self, *, cache: Cache, queue: WorkQueue[Key], clock: Clock) -> None:
        self._cache = cache
        self._queue = queue
        self._clock = clock
        self._gateways: dict[str, Gateway] = {}
        self._keys_by_uid: dict[str, DeploymentKey] = {}
        self.first_look = True
        """True until the first complete LIST of everything is in: what is old then is no news."""

    def seen(self, kind: Kind, raw: Mapping[str, Any], *, unless_older: bool = True) -> None:
        """An object was listed, added or changed. What is older than what is known is passed over."""
        metadata = raw["metadata"]
        identity = (metadata.get("namespace") or "", metadata["name"])
        before = self._cache.get(kind, *identity)
        version = self._cache.policies_version
        if not self._cache.put(kind, raw, unless_older=unless_older):
            return
        match kind:
            case Kind.DEPLOYMENT:
                self._deployment(DeploymentKey(*identity), before, raw)
            case Kind.REPORT:
                self._report(metadata["name"], raw)
            case Kind.POLICY:
                if version != self._cache.policies_version:
                    self.everything(Priority.CHANGE)
            case Kind.NAMESPACE:
                self._namespace(metadata["name"])

    def gone(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> None:
        """An object was deleted. With a uid, only if it is that very one."""
        before = self._cache.get(kind, namespace, name)
        if not self._cache.remove(kind, namespace, name, uid):
            return
        match kind:
            case Kind.DEPLOYMENT:
                self._deployment(DeploymentKey(namespace, name), before, None)
            case Kind.REPORT:
                old = self._gateways.pop(name, None)
                self._enqueue(changed_uids(old, None))
            case Kind.POLICY:
                self.everything(Priority.CHANGE)
            case Kind.NAMESPACE:
                self._namespace(name)

    def everything(self, priority: Priority) -> None:
        """Ask for a look at every deployment."""
        for namespace, name in sorted(self._cache.snapshot(Kind.DEPLOYMENT)):
            self._queue.add(DeploymentKey(namespace, name), priority)

    def demand(self, uid: str) -> Demand:
        """Return the demand for a deployment, as all gateways report it."""
        return demand_for(uid, self._gateways, self._clock.now())

    def dead_gateways(self) -> list[str]:
        """Return the names of reports whose gateway has not been heard of for an hour."""
        now = self._clock.now()
        return sorted(
            name
            for name, gateway in self._gateways.items()
            if now - max(gateway.first_seen, gateway.beat_at or gateway.first_seen) > _DEAD_SECONDS
        )

    def _namespace(self, namespace: str) -> None:
        """Its labels may have changed, and with them the policies that select it."""
        for key in sorted(self._keys_by_uid.values()):
            if key.namespace == namespace:
                self._queue.add(key)

    def _deployment(self, key: DeploymentKey, before: Raw | None, after: Mapping[str, Any] | None) -> None:
        for raw in (before, after):
            if raw is not None:
                # Whoever claims the same name must hear of it.
                for other in self._cache.claimants(key.namespace, served_name(raw)):
                    if before is None or after is None or served_name(before) != served_name(after):
                        self._queue.add(other)
        if before is not None:
            self._keys_by_uid.pop(before["metadata"]["uid"], None)
        if after is not None:
            self._keys_by_uid[after["metadata"]["uid"]] = key
        self._queue.add(key)

    def _report(self, name: str, raw: Mapping[str, Any]) -> None:
        try:
            report = GatewayReportSpec.model_validate(raw.get("spec") or {})
        except ValidationError as error:
            # A gateway that can't be understood still lives as far as we knew: unknown is not zero.
            _log.warning("GatewayReport %s can't be read: %s", name, error.errors()[0]["msg"])
            return
        now = self._clock.now()
        before = self._gateways.get(name)
        after = follow(self._gateways, name, report, now, first_look=self.first_look)
        self._gateways[name] = after
        self._enqueue(changed_uids(before, after))
        if after.fresh(now) and not (before is not None and before.fresh(now)):
            self.everything(Priority.RESYNC)

    def _enqueue(self, uids: Any) -> None:
        for uid in uids:
            key = self._keys_by_uid.get(uid)
            if key is not None:
                self._queue.add(key)
