"""What an administrator decides about replicas that KubeRay runs: images, limits, who may reach the pods."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from gptoss_api.accelerator import AcceleratorRequest, LabelValue, QualifiedName, Vendor
from gptoss_api.cache import CACHE_CLAIM
from gptoss_api.clusters import ClusterHardware
from gptoss_api.hardware import Family, accelerators_of_product
from gptoss_api.kuberay import EngineAccess
from gptoss_api.model import Name, StrictModel
from gptoss_api.pod import ClassName, NodeSelector, Pod, Quantity, Toleration
from gptoss_api.versions import OLDEST_RAY, is_older
from gptoss_operator.file_roots import FileRoot, tell_apart
from gptoss_operator.gcs_fault_tolerance import GcsFaultTolerance
from gptoss_operator.workload_identity import WorkloadIdentity
from gptoss_weights.location import Location

MOVE_SECONDS = 300
"""From KubeRay's move to another Ray cluster until nobody sends a request to the one before: the operator, which may
just be starting anew, leads our Service there, proxies on nodes follow it, and so do gateways' new connections."""


class Peer(StrictModel):
    """Pods of one namespace that may reach replicas."""

    namespace: Name = Field(description="Namespace of the pods.")
    pod_labels: dict[str, str] = Field(default_factory=dict, description="Labels they have; none is all of them.")


_Port = Annotated[int, Field(ge=1, le=65535)]


class Network(StrictModel):
    """Who may reach a deployment's pods. Anything else is kept out where NetworkPolicies are enforced."""

    gateway: Peer | None = Field(default=None, description="The gateways, by default those beside the operator.")
    operator: Peer | None = Field(
        default=None,
        description="This operator, which asks engines whether they answer, and pods how far their pulls are.",
    )
    kuberay: Peer = Field(
        default=Peer(namespace="kuberay-system", pod_labels={"app.kubernetes.io/component": "kuberay-operator"}),
        description="KubeRay's operator, which speaks to Ray's dashboard.",
    )
    prometheus: Peer | None = Field(default=None, description="Prometheus; without it nobody reads Ray's metrics.")
    egress_ports: tuple[_Port, ...] = Field(
        default=(443,),
        description="TCP ports of object stores and hubs, beside those that weightSources names: of endpoints, and of "
        "huggingFace.downloadHosts.",
    )
    api_server_ports: tuple[_Port, ...] = Field(
        default=(443, 6443),
        min_length=1,
        description="TCP ports of the API server's Service and of what it leads to, for Ray's autoscaler.",
    )


class NamespaceLimits(StrictModel):
    """What deployments of some namespaces may choose in spec.pod."""

    namespaces: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("*",), description="Namespaces; `*` is any. The first entry that fits counts."
    )
    priority_class_names: tuple[ClassName, ...] = ()
    runtime_class_names: tuple[ClassName, ...] = ()
    toleration_keys: tuple[QualifiedName, ...] = ("nvidia.com/gpu", "amd.com/gpu")
    max_accelerators: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Most accelerators of one deployment: replicas times parallelism."
    )
    cache_claims: tuple[ClassName, ...] = Field(
        default=(CACHE_CLAIM,),
        description="Claims of theirs that spec.cache may use: pods write to them, and their group gets what is there.",
    )

    def refusal(self, pod: Pod, accelerators: int, *, claim: str | None = None) -> str | None:
        """Say what of a pod block, or of a cache, is not allowed, with the field, the value and what to do."""
        if claim is not None and claim not in self.cache_claims:
            offered = ", ".join(self.cache_claims) or "none"
            return (
                f"spec.cache uses claim {claim}, and this namespace may use {offered}: correct spec.cache.claimName, "
                "set spec.cache.type to None, or ask an administrator to list it in cacheClaims of kubeRay.limits"
            )
        if pod.priority_class_name is not None and pod.priority_class_name not in self.priority_class_names:
            return _refused("spec.pod.priorityClassName", pod.priority_class_name, self.priority_class_names)
        if pod.runtime_class_name is not None and pod.runtime_class_name not in self.runtime_class_names:
            return _refused("spec.pod.runtimeClassName", pod.runtime_class_name, self.runtime_class_names)
        for toleration in pod.tolerations:
            if toleration.key not in self.toleration_keys:
                return _refused("spec.pod.tolerations[].key", toleration.key, self.toleration_keys)
        if self.max_accelerators is not None and accelerators > self.max_accelerators:
            return (
                f"spec.scaling.maxReplicas times spec.parallelism asks for {accelerators} accelerators and this "
                f"namespace may have {self.max_accelerators}: lower one of them, or ask an administrator for more"
            )
        return None


class NodePool(ClusterHardware):
    """Nodes that are alike and may have to come first, such as those of an autoscaled group."""

    product: LabelValue | None = Field(default=None, description="Value of their product label, if it is known.")
    resource_name: QualifiedName | None = Field(
        default=None, description="Extended resource of their accelerators, by default nvidia.com/gpu or amd.com/gpu."
    )

    def offers(self, request: AcceleratorRequest) -> bool:
        """Tell whether a deployment that asks for this could be given these."""
        vendor: Vendor = "amd" if self.card.family in {Family.CDNA3, Family.CDNA4} else "nvidia"
        of_it = AcceleratorRequest(vendor=vendor, resource_name=self.resource_name)
        if of_it.resource != request.resource:
            return False
        if request.product is None or self.product is not None:
            return request.product in {None, self.product}
        return self.card.name in {each.name for each in accelerators_of_product(request.product)}


_OfNamespaces = TypeVar("_OfNamespaces", bound=NamespaceLimits | WorkloadIdentity | GcsFaultTolerance)
"""An entry that is for some namespaces; of several, the first that fits counts."""


class KubeRaySettings(EngineAccess):
    """The operator's settings for KubeRay."""

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")] = Field(
        description="Serving image: Ray, vLLM and gptoss-operator[serving]. Pin it by digest."
    )
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[ClassName, ...] = Field(
        default=(), description="Secrets in the deployments' namespaces to pull the image with."
    )
    ray_version: str = Field(default="2.60.0", description="Version of Ray in the image.")
    run_as_user: Annotated[int, Field(ge=1)] = Field(default=1000, description="User id of Ray and the engine.")
    supplemental_groups: Annotated[tuple[Annotated[int, Field(ge=1, le=2**31 - 1)], ...], Field(max_length=16)] = Field(
        default=(),
        description="Further groups of workers' processes, such as the one that nodes let open /dev/dri and /dev/kfd.",
    )
    head_cpu: Quantity = "1"
    head_memory: Quantity = "6Gi"
    head_node_selector: NodeSelector = Field(
        default_factory=dict,
        description="Labels that a head's node must have. It computes on no accelerator: what specifications choose of "
        "nodes is about workers.",
    )
    head_tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = Field(
        default=(),
        description="Taints that heads tolerate, where all nodes have some; spec.pod.tolerations are about workers.",
    )
    cpus_per_accelerator: Annotated[int, Field(ge=1, le=256)] = 4
    memory_gib_per_accelerator: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=32, alias="memoryGiBPerAccelerator"
    )
    weights_size_limit: Quantity = Field(default="200Gi", description="Most that a node's verified copy may take.")
    shared_memory_size: Quantity = Field(default="8Gi", description="Size of /dev/shm, which counts as memory.")
    ray_cluster_deletion_delay_seconds: Annotated[int, Field(ge=0, le=86400)] = Field(
        default=MOVE_SECONDS,
        description="Seconds from a BlueGreen roll-out's move to another Ray cluster until the pods of the one "
        "before are told to go. They finish the requests that they have first, whatever is set here.",
    )
    cache_size_limit: Quantity = Field(default="30Gi", description="Most that compile caches may take.")
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default_factory=dict, description="Further environment of Ray's containers. Nothing secret."
    )
    limits: tuple[NamespaceLimits, ...] = Field(
        default=(NamespaceLimits(),), description="What namespaces may choose; no fitting entry means: not here."
    )
    workload_identities: tuple[WorkloadIdentity, ...] = Field(
        default=(),
        description="Identities of a cloud that fetch weights in the place of keys from gptoss-model-credentials.",
    )
    file_roots: tuple[FileRoot, ...] = Field(
        default=(),
        description="Folders of file:// that are claims; they count beside weightSources.fileRoots. The operator must "
        "have each of them mounted too.",
    )
    gcs_fault_tolerance: tuple[GcsFaultTolerance, ...] = Field(
        default=(), description="Where Ray's heads keep what engines need to outlive them; without it, in memory."
    )
    network: Network = Field(default_factory=Network)
    read_nodes: bool = Field(
        default=True,
        description="Learn accelerators from nodes' labels, for which the operator may list and watch them.",
    )
    hardware: tuple[NodePool, ...] = Field(
        default=(),
        description="The cluster's accelerators, where nodes do not tell them or come and go; nodes are not "
        "asked then.",
    )

    @field_validator("ray_version")
    @classmethod
    def _is_new_enough(cls, value: str) -> str:
        if re.fullmatch(r"\d+\.\d+\.\d+", value) is None or is_older(value, OLDEST_RAY):
            raise ValueError(f"rayVersion is {value!r}: give the image's version of Ray, {OLDEST_RAY} or later")
        return value

    @model_validator(mode="after")
    def _ends_are_told_apart(self) -> Self:
        if "{service}" not in self.service_url and "{namespace}" not in self.service_url:
            raise ValueError("kubeRay.serviceURL must name {service} and {namespace}: each deployment has its own")
        return self

    @model_validator(mode="after")
    def _file_roots_are_told_apart(self) -> Self:
        tell_apart(self.file_roots)
        return self

    def limits_of(self, namespace: str) -> NamespaceLimits | None:
        """Return what a namespace may choose; None if it may not run here."""
        return _first_for(namespace, self.limits)

    def identity_of(self, namespace: str) -> WorkloadIdentity | None:
        """Return what a namespace's weights are fetched as; None if with what its Secret holds."""
        return _first_for(namespace, self.workload_identities)

    def gcs_store_of(self, namespace: str) -> GcsFaultTolerance | None:
        """Return where the heads of a namespace keep their state; None if in memory."""
        return _first_for(namespace, self.gcs_fault_tolerance)

    def file_root_of(self, uri: str) -> FileRoot | None:
        """Return the claim below whose folder a URI lies; None of any other, and of all that is not ``file://``.

        Raises:
            SourceNotAllowedError: the folder can be read in two ways.
        """
        if not uri.startswith("file://"):
            return None
        place = Location.parse(uri)
        return next((root for root in self.file_roots if root.holds(place)), None)


def _first_for(namespace: str, entries: Iterable[_OfNamespaces]) -> _OfNamespaces | None:
    return next((entry for entry in entries if {"*", namespace} & {*entry.namespaces}), None)


def _refused(field: str, value: str, allowed: tuple[str, ...]) -> str:
    offered = f"use one of {', '.join(allowed)}" if allowed else "remove it"
    return f"{field} {value} is not allowed in this namespace: {offered}, or ask an administrator to allow it"
