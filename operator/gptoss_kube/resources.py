"""Which kinds we speak of, and where the API server serves them. Kept by hand: few kinds, no discovery."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from gptoss_api import names


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """One resource type of the Kubernetes API. The core group's name is empty."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """The ``apiVersion`` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, *, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of a collection (no name), an object or its subresource.

        A namespaced resource without a namespace is the collection of all namespaces.
        Raises ValueError where a namespace is missing or out of place.
        """
        if namespace and not self.namespaced:
            raise ValueError(f"{self.kind} is cluster-scoped, yet a namespace ({namespace}) was given")
        if name and self.namespaced and not namespace:
            raise ValueError(f"{self.kind} {name}: a namespace is needed")
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(parts)


def _core(plural: str, kind: str, *, namespaced: bool = True) -> Resource:
    return Resource(group="", version="v1", plural=plural, kind=kind, namespaced=namespaced)


def _ours(plural: str, kind: str, *, namespaced: bool = True) -> Resource:
    return Resource(group=names.GROUP, version=names.VERSION, plural=plural, kind=kind, namespaced=namespaced)


GPT_OSS_DEPLOYMENTS = _ours("gptossdeployments", "GptOssDeployment")
WEIGHT_TRUST_POLICIES = _ours("weighttrustpolicies", "WeightTrustPolicy", namespaced=False)
GATEWAY_REPORTS = _ours("gatewayreports", "GatewayReport")

NAMESPACES = _core("namespaces", "Namespace", namespaced=False)
NODES = _core("nodes", "Node", namespaced=False)
SECRETS = _core("secrets", "Secret")
SERVICES = _core("services", "Service")
CONFIG_MAPS = _core("configmaps", "ConfigMap")
PODS = _core("pods", "Pod")

NETWORK_POLICIES = Resource(
    group="networking.k8s.io", version="v1", plural="networkpolicies", kind="NetworkPolicy", namespaced=True
)
POD_DISRUPTION_BUDGETS = Resource(
    group="policy", version="v1", plural="poddisruptionbudgets", kind="PodDisruptionBudget", namespaced=True
)
RAY_SERVICES = Resource(group="ray.io", version="v1", plural="rayservices", kind="RayService", namespaced=True)
EVENTS = Resource(group="events.k8s.io", version="v1", plural="events", kind="Event", namespaced=True)
LEASES = Resource(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease", namespaced=True)
CUSTOM_RESOURCE_DEFINITIONS = Resource(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    namespaced=False,
)

RESOURCES: Mapping[tuple[str, str], Resource] = {
    (resource.api_version, resource.kind): resource
    for resource in (
        GPT_OSS_DEPLOYMENTS,
        WEIGHT_TRUST_POLICIES,
        GATEWAY_REPORTS,
        NAMESPACES,
        NODES,
        SECRETS,
        SERVICES,
        CONFIG_MAPS,
        PODS,
        NETWORK_POLICIES,
        POD_DISRUPTION_BUDGETS,
        RAY_SERVICES,
        EVENTS,
        LEASES,
        CUSTOM_RESOURCE_DEFINITIONS,
    )
}


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """Return the resource of a raw object by its apiVersion and kind; KeyError names an unknown one."""
    return RESOURCES[obj["apiVersion"], obj["kind"]]
