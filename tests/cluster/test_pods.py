"""What a real scheduler, API server and node controller say of our pods, and what we make of it."""

import json
import re
from typing import Any

import pytest

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.conditions import Reason
from gptoss_api.pod import Pod
from gptoss_cli.local.errors import StepError
from gptoss_operator.plan.rayservice.workload import Workload
from gptoss_operator.substrates.kuberay.follow import lean_pod
from gptoss_operator.substrates.kuberay.pods import trouble_of
from tests.cluster.cluster import Cluster, Raw, condition, node
from tests.cluster.kubelet import PRESSURE_LABEL
from tests.unit.operator.rayservices import settings, site, workload

DEDICATED = {"key": "dedicated", "value": "others", "effect": "NoSchedule"}
SICK = {PRESSURE_LABEL: "true"}


def unscheduled(pods: Any) -> bool:
    return any(condition(pod, "PodScheduled").get("status") == "False" for pod in pods)


def scheduled(pods: Any) -> bool:
    return all(pod["spec"].get("nodeName") for pod in pods)


def ready(pods: Any) -> bool:
    return all(condition(pod, "Ready").get("status") == "True" for pod in pods)


UNSCHEDULABLE: dict[str, tuple[Workload, list[Raw], list[str]]] = {
    "no node": (workload(), [], ["add nodes"]),
    "too few accelerators": (
        workload(),
        [node("a", gpu="1"), node("b", gpu="0")],
        ["for want of nvidia.com/gpu", "free accelerators", "lower spec.parallelism.tensor"],
    ),
    "accelerators of another vendor": (
        workload(accelerator=AcceleratorRequest(vendor="amd")),
        [node("a")],
        ["for want of amd.com/gpu"],
    ),
    "too little memory": (workload(), [node("a", memory="8Gi")], ["for want of memory", "spec.pod.resources.memory"]),
    "too few CPUs": (workload(), [node("a", cpu="2")], ["for want of cpu", "lower spec.pod.resources.cpu"]),
    "another product": (
        workload(accelerator=AcceleratorRequest(product="NVIDIA-H100-80GB-HBM3")),
        [node("a", labels={"nvidia.com/gpu.product": "Tesla-T4"})],
        ["spec.accelerator.product", "label nodes"],
    ),
    "another pool": (
        workload(pod=Pod.model_validate({"nodeSelector": {"pool": "gpu"}})),
        [node("a", labels={"pool": "cpu"})],
        ["spec.pod.nodeSelector"],
    ),
    "a taint": (workload(), [node("a", taints=[DEDICATED])], ["untolerated taint", "spec.pod.tolerations"]),
    "a sick node": (workload(), [node("a", labels=SICK)], ["untolerated taint", "nodes that are not well"]),
    "a cordoned node": (workload(), [node("a", unschedulable=True)], ["uncordon"]),
}


@pytest.mark.parametrize(("of", "nodes", "said"), UNSCHEDULABLE.values(), ids=UNSCHEDULABLE.keys())
def test_what_the_scheduler_lacks_is_told_with_what_to_do(
    cluster: Cluster, space: str, of: Workload, nodes: list[Raw], said: list[str]
) -> None:
    with cluster.nodes(*nodes):
        cluster.make(of, space, "worker")
        with cluster.scheduler():
            trouble = trouble_of(cluster.until(space, unscheduled))
    assert trouble is not None
    assert trouble.failure.reason == Reason.UNSCHEDULABLE
    assert not trouble.final, "a node may come"
    for each in said:
        assert each in trouble.failure.message


@pytest.mark.parametrize(
    ("there", "missing", "said"),
    [
        ("gptoss-weights-cache", "models", "with the folder that spec.model.uri names"),
        ("models", "gptoss-weights-cache", "make the claim that spec.cache names"),
    ],
)
def test_a_claim_that_is_not_there_is_told_by_what_it_is_for(
    cluster: Cluster, space: str, there: str, missing: str, said: str
) -> None:
    at = site(settings=settings(fileRoots=[{"path": "/models", "claimName": "models"}]))
    of = workload(weights_uri="file:///models/gpt-oss-120b", cache_claim="gptoss-weights-cache")
    cluster.share(there, space)
    with cluster.nodes(node("a")):
        cluster.make(of, space, "worker", at=at)
        with cluster.scheduler():
            trouble = trouble_of([lean_pod(pod) for pod in cluster.until(space, unscheduled)])
            assert trouble is not None
            assert trouble.failure.reason == Reason.UNSCHEDULABLE
            assert f'"{missing}" not found' in trouble.failure.message
            assert said in trouble.failure.message
            cluster.share(missing, space)
            cluster.until(space, scheduled)


def test_a_replica_is_scheduled_where_there_is_room_and_waits_where_another_took_it(
    cluster: Cluster, space: str
) -> None:
    tolerant = workload(
        tensor=8,
        pod=Pod.model_validate({"tolerations": [{"key": "dedicated", "operator": "Exists"}]}),
        accelerator=AcceleratorRequest(product="NVIDIA-H100-80GB-HBM3"),
    )
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    here = (node("a"), node("b", labels=labels, taints=[DEDICATED]))
    with cluster.nodes(*here), cluster.scheduler():
        cluster.make(tolerant, space, "head", "worker")
        # Until its kubelet has taken a pod through its init containers, that it fetches its weights is told of it.
        pods = {pod["metadata"]["generateName"]: pod for pod in cluster.until(space, ready)}
        assert {name: pod["spec"]["nodeName"] for name, pod in pods.items()} == {"head-": "a", "worker-": "b"}
        assert trouble_of(list(pods.values())) is None

        cluster.make(tolerant, space, "worker")
        trouble = trouble_of(cluster.until(space, unscheduled))
        assert trouble is not None
        assert "for want of nvidia.com/gpu" in trouble.failure.message
        # The first one goes: the second takes its place without anybody's doing.
        gone = pods["worker-"]["metadata"]["name"]
        cluster.plane.kubectl("delete", "pod", gone, "-n", space, "--grace-period=0", "--force")
        assert trouble_of(cluster.until(space, lambda pods: len(pods) == 2 and ready(pods))) is None


def test_a_node_that_is_lost_is_told_of_its_pods(cluster: Cluster, space: str) -> None:
    with cluster.nodes(node("a")):
        cluster.make(workload(), space, "worker")
        with cluster.scheduler():
            (pod,) = cluster.until(space, ready)
        assert trouble_of([pod]) is None
        cluster.lose("a")
        trouble = trouble_of(cluster.until(space, lambda pods: not ready(pods)))
        assert trouble is not None
        assert (trouble.failure.reason, trouble.final) == (Reason.NODE_LOST, False)
        assert f"the node of pod {pod['metadata']['name']} does not answer" in trouble.failure.message
        cluster.find("a")
        assert trouble_of(cluster.until(space, ready)) is None


QUOTA = {"requests.nvidia.com/gpu": "1"}
LIMITS = [{"type": "Container", "max": {"memory": "4Gi"}}]


@pytest.mark.parametrize(
    ("around", "of", "said"),
    [
        (
            {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": QUOTA}},
            workload(),
            ["exceeded quota", "requests.nvidia.com/gpu", "larger quota of the namespace"],
        ),
        (
            {"apiVersion": "v1", "kind": "LimitRange", "spec": {"limits": LIMITS}},
            workload(),
            ["maximum memory usage per Container is 4Gi", "fit spec.pod.resources to the namespace's LimitRange"],
        ),
        (
            None,
            workload(pod=Pod.model_validate({"priorityClassName": "high"})),
            ["no PriorityClass with name high", "correct spec.pod.priorityClassName"],
        ),
        (
            None,
            workload(pod=Pod.model_validate({"runtimeClassName": "gvisor"})),
            ["gvisor", "correct spec.pod.runtimeClassName"],
        ),
    ],
    ids=["quota", "limit range", "priority class", "runtime class"],
)
def test_pods_that_the_api_server_refuses_are_told_with_its_words(
    cluster: Cluster, space: str, around: Raw | None, of: Workload, said: list[str]
) -> None:
    if around is not None:
        cluster.create({**around, "metadata": {"name": "bounds", "namespace": space}})
    words = refusal(cluster, space, of)
    trouble = trouble_of([], refused=words)
    assert trouble is not None
    assert trouble.failure.reason == Reason.PODS_REFUSED
    for each in said:
        assert each in trouble.failure.message


def refusal(cluster: Cluster, namespace: str, of: Workload) -> str:
    """What the API server says to a worker of this workload, once it knows what is around."""
    refused: list[str] = []

    def says_no(_: Any) -> bool:
        try:
            (made,) = cluster.make(of, namespace, "worker")
        except StepError as error:
            refused.append(re.sub(r"\s+", " ", str(error)))
            return True
        cluster.plane.kubectl("delete", "pod", made["metadata"]["name"], "-n", namespace, "--grace-period=0", "--force")
        return False

    cluster.until(namespace, says_no)
    return json.dumps(refused[0])
