"""What stands around a RayService, kept as it was made: whoever deletes or edits it, it comes back.

NetworkPolicies, PodDisruptionBudgets and Services are watched, and only a digest of what is ours in each is
kept. ConfigMaps are not, for a right to list them would reach everybody's: they are applied again now and then.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gptoss_api.conditions import Reason
from gptoss_api.names import FIELD_MANAGER
from gptoss_kube.client import Kube, Object
from gptoss_kube.errors import Forbidden
from gptoss_kube.resources import NETWORK_POLICIES, POD_DISRUPTION_BUDGETS, SERVICES, Resource, resource_of
from gptoss_kube.watch import Informer
from gptoss_operator.keys import RayServiceKey
from gptoss_operator.plan.rayservice.render import digest
from gptoss_operator.plan.rayservice.workload import DEPLOYMENT_LABEL, MANAGED_BY, UID_LABEL, Raw

AGAIN_SECONDS = 300.0
"""Between two applications of what is not watched."""

_WATCHED = (NETWORK_POLICIES, POD_DISRUPTION_BUDGETS, SERVICES)
_SELECTOR = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
_OUR_LABELS = (*MANAGED_BY, DEPLOYMENT_LABEL, UID_LABEL)
_Name = tuple[str, str, str]
"""Kind, namespace and name."""


@dataclass(frozen=True, kw_only=True)
class _Write:
    """Our last write of an object: what was wanted, what the server made of it, and when."""

    wanted: str
    answer: str
    at: float


class Children:
    """The objects around the RayServices of the watched namespaces."""

    def __init__(self, kube: Kube, *, namespaces: tuple[str, ...], news: Callable[[RayServiceKey], object]) -> None:
        """``news`` is called for every change of one of them."""
        self._kube = kube
        self._news = news
        self._found: dict[_Name, Raw] = {}
        self._writes: dict[RayServiceKey, dict[_Name, _Write]] = defaultdict(dict)
        self._informers = {
            resource.kind: [
                Informer(
                    kube,
                    resource,
                    namespace=namespace,
                    label_selector=_SELECTOR,
                    on_change=partial(self._seen, resource),
                    on_delete=partial(self._gone, resource),
                    keep=partial(lean_child, resource.kind),
                )
                for namespace in namespaces or (None,)
            ]
            for resource in _WATCHED
        }
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Begin to follow."""
        for informer in self.informers:
            await self._stack.enter_async_context(informer)

    async def close(self) -> None:
        """End it."""
        await self._stack.aclose()

    @property
    def informers(self) -> list[Informer]:
        """Everything that is watched."""
        return [informer for informers in self._informers.values() for informer in informers]

    def flaw(self) -> tuple[str, str] | None:
        """Say what can't be looked after for want of a right. Nothing stops for it."""
        refused = {each.resource.plural for each in self.informers if isinstance(each.last_error, Forbidden)}
        if not refused:
            return None
        return (
            Reason.CONFIGURATION_REFUSED,
            f"the operator may not watch {', '.join(sorted(refused))}: what others change or delete of them around "
            "engines does not come back; an administrator grants its role for KubeRay (list and watch)",
        )

    async def apply(self, document: Raw) -> None:
        """Apply one by server-side apply, and take the answer in; raises KubeError."""
        resource = resource_of(document)
        answer = await self._kube.apply(document, resource=resource, field_manager=FIELD_MANAGER)
        lean = lean_child(resource.kind, answer)
        write = _Write(wanted=_digest(document), answer=lean["digest"], at=time.monotonic())
        self._writes[_key(lean)][_name(resource, document)] = write
        if resource.kind in self._informers:
            self._take_in(resource, lean)

    def amiss(self, wanted: Iterable[Raw]) -> list[Raw]:
        """Return those that are not there, or not as they are wanted."""
        return [document for document in wanted if self._is_amiss(document)]

    def forget(self, key: RayServiceKey) -> None:
        """The deployment is gone."""
        self._writes.pop(key, None)

    def _is_amiss(self, document: Raw) -> bool:
        resource = resource_of(document)
        name, wanted = _name(resource, document), _digest(document)
        write = self._writes.get(_key(lean_child(resource.kind, document)), {}).get(name)
        if resource.kind not in self._informers:
            return write is None or write.wanted != wanted or time.monotonic() - write.at > AGAIN_SECONDS
        if not all(informer.synced.is_set() for informer in self._informers[resource.kind]):
            return False  # Unknown is not missing.
        found = self._found.get(name)
        if found is None:
            return True
        # What the server made of our own words (a webhook may add to them) is no reason to say them again.
        said = write is not None and (write.wanted, write.answer) == (wanted, found["digest"])
        return found["digest"] != wanted and not said

    def _seen(self, resource: Resource, lean: Object) -> None:
        if self._take_in(resource, lean):
            self._tell(lean)

    def _take_in(self, resource: Resource, lean: Object) -> bool:
        """Remember it unless a newer state is known; tell whether that is another than before."""
        name = _name(resource, lean)
        known = self._found.get(name)
        same = known is not None and known["metadata"]["uid"] == lean["metadata"]["uid"]
        if known is not None and same and _version(lean) <= _version(known):
            return False
        self._found[name] = lean
        return known is None or not same or bool(known["digest"] != lean["digest"])

    def _gone(self, resource: Resource, lean: Object) -> None:
        name = _name(resource, lean)
        known = self._found.get(name)
        if known is not None and known["metadata"]["uid"] == lean["metadata"]["uid"]:
            del self._found[name]
            self._tell(lean)

    def _tell(self, lean: Raw) -> None:
        if lean["deployment"]:
            self._news(_key(lean))


def lean_child(kind: str, raw: Raw) -> Raw:
    """Leave everything out but who it is, whose it is, and a digest of what is ours in it."""
    metadata = raw["metadata"]
    kept = {name: metadata.get(name) for name in ("name", "namespace", "uid", "resourceVersion")}
    deployment = (metadata.get("labels") or {}).get(DEPLOYMENT_LABEL)
    return {"metadata": kept, "deployment": deployment, "digest": _digest({"kind": kind, **raw})}


def _digest(document: Mapping[str, Any]) -> str:
    """Name the content that is ours: equal for what we write and what the server stores of it."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    labels = metadata.get("labels") or {}
    content: Any = document.get("data") if "data" in document else spec
    if document["kind"] == SERVICES.kind:
        ports = [[port.get(name) for name in ("name", "port", "targetPort", "protocol")] for port in spec["ports"]]
        content = [spec.get("type"), spec.get("selector"), ports]
    owners = sorted(owner["uid"] for owner in metadata.get("ownerReferences") or () if owner.get("controller"))
    return digest([{name: labels.get(name) for name in _OUR_LABELS}, owners, content])


def _key(lean: Raw) -> RayServiceKey:
    return RayServiceKey(lean["metadata"]["namespace"], lean["deployment"] or "")


def _name(resource: Resource, raw: Raw) -> _Name:
    return resource.kind, raw["metadata"]["namespace"], raw["metadata"]["name"]


def _version(raw: Raw) -> int:
    return int(raw["metadata"].get("resourceVersion") or 0)
