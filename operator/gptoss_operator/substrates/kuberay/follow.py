"""Copies of all RayServices, of our pods and of nodes' labels, kept true by watches, and the few writes to them.

Where KubeRay's CRD is missing, or too old to suspend, or its operator is, this says so, and goes on looking.
"""

import asyncio
import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from gptoss_api.conditions import Reason
from gptoss_api.names import FIELD_MANAGER
from gptoss_api.versions import OLDEST_KUBERAY
from gptoss_kube.client import Kube, Object
from gptoss_kube.errors import AlreadyExists, Forbidden, NotFound, UnknownResource
from gptoss_kube.resources import CUSTOM_RESOURCE_DEFINITIONS, NODES, PODS, RAY_SERVICES, SECRETS, resource_of
from gptoss_kube.watch import Informer
from gptoss_operator.keys import RayServiceKey
from gptoss_operator.plan.rayservice.workload import DEPLOYMENT_LABEL, MANAGED_BY, Raw
from gptoss_operator.substrates.kuberay.children import Children
from gptoss_operator.substrates.kuberay.maker import Maker, maker_of
from gptoss_operator.substrates.kuberay.nodes import lean_node
from gptoss_operator.substrates.kuberay.seen import lean

_SELECTOR = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
_PODS = f"{_SELECTOR},ray.io/node-type!=redis-cleanup"
"""Without those of KubeRay's Job that empties a Redis: they carry a head's labels, and hold no model up."""
_CRD = "rayservices.ray.io"
_LOOK_AGAIN_SECONDS = 10.0
_NODES_SECONDS = 1.0
"""News of nodes come in crowds, and concern everybody: one look follows for all of them."""
_NEWS = Callable[[RayServiceKey], object]


class KubeRayObjects:
    """RayServices and pods of the watched namespaces, and the cluster's nodes where those may be read."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespaces: tuple[str, ...],
        read_nodes: bool,
        news: _NEWS,
        everything: Callable[[], None],
    ) -> None:
        """``news`` is called for every change, ``everything`` when what is known of all has changed."""
        self._kube = kube
        self._news = news
        self._everything = everything
        self._rayservices: dict[RayServiceKey, Raw] = {}
        self._pods: dict[RayServiceKey, dict[str, Raw]] = defaultdict(dict)
        self._maker = Maker()
        self._informers: list[Informer] = []
        for namespace in namespaces or (None,):
            self._informers += [
                Informer(kube, RAY_SERVICES, namespace=namespace, on_change=self.put, on_delete=self._gone, keep=lean),
                Informer(
                    kube,
                    PODS,
                    namespace=namespace,
                    label_selector=_PODS,
                    on_change=self._pod_seen,
                    on_delete=self._pod_gone,
                    keep=lean_pod,
                ),
            ]
        self._nodes: dict[str, Raw] = {}
        self._node_informer = (
            Informer(kube, NODES, on_change=self._node_seen, on_delete=self._node_gone, keep=lean_node)
            if read_nodes
            else None
        )
        self._crowd: asyncio.TimerHandle | None = None
        self.children = Children(kube, namespaces=namespaces, news=news)
        self._stack = contextlib.AsyncExitStack()
        self._suspends: bool | None = None
        self._looked_at = 0.0
        self._missing = False

    async def start(self) -> None:
        """Begin to follow."""
        for informer in self._informers:
            await self._stack.enter_async_context(informer)
        if self._node_informer is not None:
            await self._stack.enter_async_context(self._node_informer)
        await self.children.start()

    async def close(self) -> None:
        """End it."""
        if self._crowd is not None:
            self._crowd.cancel()
        await self.children.close()
        await self._stack.aclose()

    def rayservice(self, key: RayServiceKey) -> Raw | None:
        """Return a RayService as last seen."""
        return self._rayservices.get(key)

    def pods(self, key: RayServiceKey) -> list[Raw]:
        """Return the pods of a deployment."""
        return list(self._pods.get(key, {}).values())

    def nodes(self) -> list[Raw] | None:
        """Return the cluster's nodes, none if they may not be read; None if they were not looked at yet."""
        informer = self._node_informer
        if informer is None or informer.synced.is_set() or informer.last_error is not None:
            return list(self._nodes.values())
        return None

    def follows(self) -> dict[str, bool]:
        """Tell of each kind that is watched, by its plural name, whether the copy is kept true right now."""
        informers = [*self._informers, *self.children.informers]
        if self._node_informer is not None:
            informers.append(self._node_informer)
        kinds = {each.resource.plural for each in informers}
        return {kind: all(each.follows for each in informers if each.resource.plural == kind) for kind in kinds}

    def trouble(self) -> tuple[str, str] | None:
        """Say why nothing can be known or done now."""
        for informer in self._informers:
            error = informer.last_error
            if isinstance(error, UnknownResource):
                return (
                    Reason.KUBERAY_MISSING,
                    f"the cluster does not know RayServices: an administrator installs KubeRay {OLDEST_KUBERAY} or "
                    "later, and this goes on by itself",
                )
            if isinstance(error, Forbidden):
                return (
                    Reason.CONFIGURATION_REFUSED,
                    "the operator may not watch RayServices or pods: an administrator grants its role for KubeRay",
                )
        if self._suspends is False:
            return (
                Reason.KUBERAY_TOO_OLD,
                "KubeRay's RayService can't be suspended: an administrator updates KubeRay (CRDs and operator) to "
                f"{OLDEST_KUBERAY} or later, and this goes on by itself",
            )
        return None

    def flaw(self) -> tuple[str, str] | None:
        """Say what is not as it should be, though nothing stops for it."""
        return self._maker.flaw() or self.children.flaw()

    @property
    def synced(self) -> bool:
        """Whether everything that exists was listed, and RayServices are of a kind that can be used."""
        everything = all(informer.synced.is_set() for informer in self._informers)
        return everything and self._suspends is True and self.nodes() is not None

    async def look_at_version(self) -> None:
        """Find out whether this KubeRay can suspend, unless that is known; raises KubeError."""
        missing = any(isinstance(informer.last_error, UnknownResource) for informer in self._informers)
        if missing != self._missing:
            self._missing, self._suspends = missing, None
            self._everything()
        if missing or self._suspends or not all(informer.synced.is_set() for informer in self._informers):
            return
        if self._suspends is False and time.monotonic() - self._looked_at < _LOOK_AGAIN_SECONDS:
            return
        self._looked_at = time.monotonic()
        crd = await self._kube.get(CUSTOM_RESOURCE_DEFINITIONS, _CRD)
        before, self._suspends = self._suspends, _can_suspend(crd)
        if before != self._suspends:
            self._everything()

    async def apply_rayservice(self, document: Raw) -> None:
        """Apply a RayService and take the answer in; raises KubeError."""
        self.put(lean(await self._kube.apply(document, resource=RAY_SERVICES, field_manager=FIELD_MANAGER)))

    async def patch(self, key: RayServiceKey, spec: Mapping[str, Any], *, uid: str) -> None:
        """Change a part of exactly this RayService; raises KubeError."""
        patch = {"metadata": {"uid": uid}, "spec": spec}
        answer = await self._kube.merge_patch(
            RAY_SERVICES, key.name, patch, namespace=key.namespace, field_manager=FIELD_MANAGER
        )
        self.put(lean(answer))

    async def lead_nowhere(self, namespace: str, service: str, selector: Mapping[str, str]) -> None:
        """Change the selector of a Service that may not be there; raises KubeError."""
        with contextlib.suppress(NotFound):
            await self._kube.merge_patch(
                resource_of({"apiVersion": "v1", "kind": "Service"}),
                service,
                {"spec": {"selector": dict(selector)}},
                namespace=namespace,
                field_manager=FIELD_MANAGER,
            )

    async def make_token(self, metadata: Raw) -> None:
        """Create the Secret with Ray's token unless it is there. It is never read; raises KubeError."""
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "Opaque",
            "immutable": True,
            "stringData": {"auth_token": secrets.token_urlsafe(32)},
        }
        with contextlib.suppress(AlreadyExists):
            await self._kube.create(document, resource=SECRETS, field_manager=FIELD_MANAGER)

    def put(self, raw: Object) -> None:
        """Take a RayService in, unless a newer state of it is known."""
        key = _key(raw)
        known = self._rayservices.get(key)
        if (
            known is not None
            and known["metadata"]["uid"] == raw["metadata"]["uid"]
            and _version(raw) <= _version(known)
        ):
            return
        self._rayservices[key] = raw
        self._news(key)

    def _gone(self, raw: Object) -> None:
        key = _key(raw)
        known = self._rayservices.get(key)
        if known is not None and known["metadata"]["uid"] == raw["metadata"]["uid"]:
            del self._rayservices[key]
            self._news(key)

    def _node_seen(self, raw: Object) -> None:
        name = raw["metadata"]["name"]
        before, self._nodes[name] = self._nodes.get(name), raw
        if before is None or (before["labels"], before["counts"]) != (raw["labels"], raw["counts"]):
            self._of_nodes(raw)

    def _node_gone(self, raw: Object) -> None:
        self._nodes.pop(raw["metadata"]["name"], None)
        self._of_nodes(raw)

    def _of_nodes(self, raw: Object) -> None:
        """Have everybody look again, soon, if it has accelerators."""
        if raw["counts"] and self._crowd is None:
            self._crowd = asyncio.get_running_loop().call_later(_NODES_SECONDS, self._tell_of_nodes)

    def _tell_of_nodes(self) -> None:
        self._crowd = None
        self._everything()

    def _pod_seen(self, raw: Object) -> None:
        key = _owner(raw)
        if key is not None:
            self._pods[key][raw["metadata"]["name"]] = raw
            self._news(key)
            if self._maker.saw(raw["metadata"].get("creationTimestamp") or "", raw["maker"]):
                self._everything()

    def _pod_gone(self, raw: Object) -> None:
        key = _owner(raw)
        if key is not None:
            self._pods[key].pop(raw["metadata"]["name"], None)
            if not self._pods[key]:
                del self._pods[key]
            self._news(key)


def lean_pod(raw: Raw) -> Raw:
    """Leave a pod's specification out, but which claims it has and who made it: what it says of itself is looked at."""
    claims = [each for each in (raw.get("spec") or {}).get("volumes") or () if "persistentVolumeClaim" in each]
    return {
        "metadata": raw["metadata"],
        "spec": {"volumes": claims},
        "status": raw.get("status") or {},
        "maker": maker_of(raw),
    }


def _can_suspend(crd: Mapping[str, Any]) -> bool:
    for version in crd["spec"]["versions"]:
        if version["name"] == RAY_SERVICES.version and version.get("served"):
            spec = version["schema"]["openAPIV3Schema"].get("properties", {}).get("spec", {})
            return "suspend" in spec.get("properties", {})
    return False


def _owner(pod: Raw) -> RayServiceKey | None:
    name = (pod["metadata"].get("labels") or {}).get(DEPLOYMENT_LABEL)
    return RayServiceKey(pod["metadata"]["namespace"], name) if name else None


def _key(raw: Raw) -> RayServiceKey:
    return RayServiceKey(raw["metadata"]["namespace"], raw["metadata"]["name"])


def _version(raw: Raw) -> int:
    return int(raw["metadata"].get("resourceVersion") or 0)
