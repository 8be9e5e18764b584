"""What can be read off one raw pod of a Ray cluster."""

from collections.abc import Mapping
from typing import Any

from gptoss_operator.plan.rayservice.render import CLUSTER_LABEL
from gptoss_operator.plan.rayservice.workload import REVISION_LABEL, ROLE_LABEL, WORKER


def cluster_of(pod: Mapping[str, Any]) -> str:
    """Return the name of its Ray cluster, empty if it has none."""
    return str(_labels(pod).get(CLUSTER_LABEL) or "")


def revision_of(pod: Mapping[str, Any]) -> str | None:
    """Return the revision that it was made from."""
    return _labels(pod).get(REVISION_LABEL)


def is_worker(pod: Mapping[str, Any]) -> bool:
    """Whether it runs engines, and is no head."""
    return _labels(pod).get(ROLE_LABEL) == WORKER


def stays(pod: Mapping[str, Any]) -> bool:
    """Whether nobody has told it to go."""
    return "deletionTimestamp" not in pod["metadata"]


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether Kubernetes holds it for ready."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def takes_requests(pod: Mapping[str, Any]) -> bool:
    """Whether a Service of KubeRay's would lead to it."""
    return _labels(pod).get("ray.io/serve") == "true" and is_ready(pod)


def is_lost(pod: Mapping[str, Any]) -> bool:
    """Whether somebody else than its node's kubelet says that a pod is not ready.

    The controller that gives a node up turns ``Ready`` alone and gives no reason, where a kubelet that finds containers
    unready turns both. Source: Kubernetes' ``MarkPodsNotReady``.
    """
    conditions = (pod.get("status") or {}).get("conditions") or ()
    now = {each.get("type"): each for each in conditions}
    ready, containers = now.get("Ready") or {}, now.get("ContainersReady") or {}
    gated = ready.get("reason") == "ReadinessGatesNotReady"
    return ready.get("status") == "False" and containers.get("status") == "True" and not gated


def _labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}
