"""Where a deployment runs: on which of the administrator's Ray clusters, on KubeRay, or nowhere, and why."""

from collections.abc import Mapping
from typing import Any

from gptoss_api.conditions import Reason
from gptoss_api.deployment import GptOssDeployment
from gptoss_operator.plan.observation import KUBERAY, Placement
from gptoss_operator.settings import Settings


def placement_of(deployment: GptOssDeployment, settings: Settings) -> Placement:
    """Return where a deployment runs, or why it may not run there."""
    substrate = deployment.spec.substrate
    named = substrate.ray_serve.cluster_name if substrate is not None and substrate.ray_serve is not None else None
    name = _chosen(settings, kube_ray=substrate is not None and substrate.kube_ray is not None, named=named)
    return _on_kuberay(deployment.namespace, settings) if name == KUBERAY else _on_ray(name, deployment, settings)


def cluster_of(raw: Mapping[str, Any], settings: Settings) -> str | None:
    """Return what a raw object, which may not be readable otherwise, names: a Ray cluster, KubeRay, or nothing."""
    substrate = (raw.get("spec") or {}).get("substrate") or {}
    named = (substrate.get("rayServe") or {}).get("clusterName")
    return _chosen(settings, kube_ray=substrate.get("kubeRay") is not None, named=named)


def _chosen(settings: Settings, *, kube_ray: bool, named: str | None) -> str | None:
    if kube_ray or (named is None and settings.kube_ray_is_default):
        return KUBERAY
    return named or settings.default_ray_cluster


def _on_ray(name: str | None, deployment: GptOssDeployment, settings: Settings) -> Placement:
    cluster = next((each for each in settings.ray_clusters if each.name == name), None)
    if cluster is None:
        return Placement(
            reason=Reason.UNKNOWN_CLUSTER,
            message=f"there is no Ray cluster {name}; correct spec.substrate.rayServe.clusterName, or ask an "
            "administrator to add it to the operator's rayClusters"
            if name
            else "there is no default Ray cluster; set spec.substrate.rayServe.clusterName, "
            "or ask an administrator for a defaultRayCluster",
        )
    if not cluster.allows(deployment.namespace):
        return Placement(
            reason=Reason.NAMESPACE_NOT_ALLOWED,
            message=f"namespace {deployment.namespace} may not use Ray cluster {cluster.name}; name another in "
            "spec.substrate.rayServe.clusterName, or ask an administrator to allow it",
        )
    return Placement(cluster=cluster.name)


def _on_kuberay(namespace: str, settings: Settings) -> Placement:
    if settings.kube_ray is None:
        return Placement(
            reason=Reason.UNKNOWN_CLUSTER,
            message="this operator does not run replicas on KubeRay; name a Ray cluster in "
            "spec.substrate.rayServe.clusterName, or ask an administrator for kubeRay in the operator's settings",
        )
    if settings.kube_ray.limits_of(namespace) is None:
        return Placement(
            reason=Reason.NAMESPACE_NOT_ALLOWED,
            message=f"namespace {namespace} may not run replicas on KubeRay; ask an administrator for an entry in "
            "kubeRay.limits",
        )
    return Placement(cluster=KUBERAY)
