"""From a resolved deployment to the objects that KubeRay and Kubernetes are given."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_api.kuberay import SERVE_PORT, engine_service
from gptoss_operator.gcs_fault_tolerance import GcsFaultTolerance
from gptoss_operator.plan.rayservice.network import network_policies
from gptoss_operator.plan.rayservice.pods import autoscaler_options, head_group, worker_group
from gptoss_operator.plan.rayservice.workload import (
    REVISION_LABEL,
    ROLE_LABEL,
    WORKER,
    WORKER_GROUP,
    KubeRaySite,
    Raw,
    Workload,
    gateway_tokens_config,
    owned_metadata,
    ray_token_secret,
)

MOST_PODS = 1024
"""Bound of a worker group that Ray scales. KubeRay never changes it in a living cluster, so it is constant:
the bound that counts stands in the application."""

CLUSTER_LABEL = "ray.io/cluster"
NOWHERE = "none"
"""No cluster is named like this: KubeRay appends to the RayService's name."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Everything of one deployment.

    Attributes:
        revision: changes if and only if engines must be started anew.
        rayservice: the RayService, awake.
        others: what stands around it; they come first.
        service: its stable address, leading nowhere yet.
        blue_green: a change may start beside what runs.
        token_secret: name of the Secret with Ray's token, which is made once and never read.
    """

    revision: str
    rayservice: Raw
    others: tuple[Raw, ...]
    service: Raw
    blue_green: bool
    token_secret: str


def render(workload: Workload, site: KubeRaySite) -> Rendered:
    """Return the objects of a deployment that is awake."""
    revision = _revision(workload, site)
    others = (
        *network_policies(workload, site),
        gateway_tokens(site, namespace=workload.namespace, deployment=workload.name, uid=workload.uid),
        _disruption_budget(workload),
    )
    rayservice = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": workload.metadata(workload.name, {REVISION_LABEL: revision}),
        "spec": {
            "suspend": False,
            # Also where the strategy is Recreate: then the change is made while it is suspended.
            "upgradeStrategy": {"type": "NewCluster" if workload.blue_green else "None"},
            "rayClusterDeletionDelaySeconds": site.settings.ray_cluster_deletion_delay_seconds,
            "serveConfigV2": serve_config(workload.application),
            "rayClusterConfig": _cluster(workload, site, revision),
        },
    }
    return Rendered(
        revision=revision,
        rayservice=rayservice,
        others=others,
        service=_service(workload),
        blue_green=workload.blue_green,
        token_secret=ray_token_secret(workload.name, workload.uid),
    )


def gateway_tokens(site: KubeRaySite, *, namespace: str, deployment: str, uid: str) -> Raw:
    """Return the ConfigMap by which a deployment's replicas know gateways."""
    name = gateway_tokens_config(deployment)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owned_metadata(name, namespace=namespace, deployment=deployment, uid=uid),
        "data": {"gateway-tokens": "".join(f"sha256:{each}\n" for each in site.gateway_token_hashes)},
    }


def serve_config(application: Mapping[str, Any]) -> str:
    """Return Serve's configuration as KubeRay takes it. JSON is YAML, and its bytes are stable."""
    document = {
        # Said from the first start on: Serve takes it in then and never again.
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},  # noqa: S104 - the network policies guard it
        "applications": [dict(application)],
    }
    return canonical(document)


def leading_to(service: Raw, cluster: str | None) -> Raw:
    """Return a deployment's Service with the Ray cluster that it leads to; None is nowhere."""
    spec = {**service["spec"], "selector": {**service["spec"]["selector"], CLUSTER_LABEL: cluster or NOWHERE}}
    return {**service, "spec": spec}


def canonical(document: Any) -> str:
    """Return JSON with sorted keys and nothing between them."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(document: Any) -> str:
    """Return a short name for a document's content."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()[:16]


def _revision(workload: Workload, site: KubeRaySite) -> str:
    cluster = _cluster(workload, site, revision="")
    if workload.autoscales:
        # Only the first number of pods; a living cluster's is Ray's affair.
        for group in cluster["workerGroupSpecs"]:
            del group["replicas"]
    code = {name: workload.application.get(name) for name in ("import_path", "args")}
    return digest({"cluster": cluster, "code": code})


def _cluster(workload: Workload, site: KubeRaySite, revision: str) -> Raw:
    pods = workload.min_replicas * workload.pods_per_replica
    cluster: Raw = {
        "rayVersion": site.settings.ray_version,
        "authOptions": {"mode": "token", "secretName": ray_token_secret(workload.name, workload.uid)},
        "enableInTreeAutoscaling": workload.autoscales,
        "headGroupSpec": head_group(workload, site, revision),
        "workerGroupSpecs": [
            {
                "groupName": WORKER_GROUP,
                "replicas": pods,
                "minReplicas": workload.pods_per_replica if workload.autoscales else pods,
                "maxReplicas": MOST_PODS if workload.autoscales else pods,
                **worker_group(workload, site, revision),
            }
        ],
    }
    if workload.autoscales:
        cluster["autoscalerOptions"] = autoscaler_options(site)
    if (store := site.settings.gcs_store_of(workload.namespace)) is not None:
        cluster["gcsFaultToleranceOptions"] = _gcs_store(store, workload.namespace)
    return cluster


def _gcs_store(store: GcsFaultTolerance, namespace: str) -> Raw:
    options: Raw = {"redisAddress": store.address_for(namespace)}
    if (secret := store.password_secret) is not None:
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
    return options


def _service(workload: Workload) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": workload.metadata(engine_service(workload.name)),
        "spec": {
            "type": "ClusterIP",
            "selector": {**workload.identity, "ray.io/serve": "true", CLUSTER_LABEL: NOWHERE},
            "ports": [{"name": "serve", "port": SERVE_PORT, "targetPort": SERVE_PORT, "protocol": "TCP"}],
        },
    }


def _disruption_budget(workload: Workload) -> Raw:
    """Return a budget that keeps all replicas but one, so it hinders nothing while there is only one.

    A number to keep, not to lose: the disruption controller knows no scale of a Ray cluster. Of a pipeline's
    pods only the one with Serve's proxy is ever ready, so each replica counts once.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": workload.metadata(f"{workload.name}-engine"),
        "spec": {
            "minAvailable": workload.min_replicas - 1,
            "selector": {"matchLabels": {**workload.identity, ROLE_LABEL: WORKER}},
        },
    }
