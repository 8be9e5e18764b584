"""What the operator makes of what Kubernetes' own components and kubelets say of a deployment's pods."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gptoss_cli.local.object_store import S3Access
from tests.cluster.cluster import Cluster
from tests.cluster.house import KubeRayHouse, always_up, gpu_node, kuberay_house
from tests.cluster.kubelet import FATE, Fate
from tests.controlplane import install_crds
from tests.kuberay import install_rayservices

RECREATE = {"rolloutStrategy": {"type": "Recreate"}}
CHANGED = {"engine": {"maxNumSeqs": 8}}
OURS = "gptossdeployments,rayservices,services,configmaps,secrets,networkpolicies,poddisruptionbudgets,pods"


@pytest.fixture(scope="module")
def kinds(cluster: Cluster) -> None:
    install_crds(cluster.plane)
    install_rayservices(cluster.plane)


@pytest.fixture
def nodes(cluster: Cluster, kinds: None) -> Iterator[None]:
    """Two nodes with room for an engine each."""
    with cluster.nodes(gpu_node("a"), gpu_node("b")), cluster.scheduler():
        yield


@pytest.fixture
async def home(
    cluster: Cluster, nodes: None, space: str, object_store: S3Access, tmp_path: Path, free_port: int
) -> AsyncIterator[KubeRayHouse]:
    async with kuberay_house(cluster, space, object_store, tmp_path, free_port) as built:
        yield built


async def test_a_roll_out_goes_beside_what_serves_and_says_what_it_lacks(home: KubeRayHouse) -> None:
    await home.serve()
    await home.serve(**CHANGED)
    first, second = home.kuberay.made

    async def only_the_second() -> bool:
        return all(name.startswith(second) for name in await home.pods())

    await home.eventually(only_the_second, f"the pods of {first} are gone")
    (free,) = {"a", "b"} - {(await home.worker())["spec"]["nodeName"]}
    await home.kubectl("cordon", free)
    await home.apply(**always_up(engine={"maxNumSeqs": 16}))
    said = await home.message("Ready", "Unknown", "Unschedulable")
    assert "for want of nvidia.com/gpu" in said
    assert await home.condition("EngineReady") == ("True", "Answering"), "what ran before still serves"
    await home.kubectl("uncordon", free)
    await home.wait_for("Ready", "True", "Serving")
    assert len(home.kuberay.made) == 3


async def test_weights_that_a_pod_refuses_are_untrusted_in_its_own_words(home: KubeRayHouse) -> None:
    model = home.weights / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\x01")
    home.upload()
    home.doom(Fate.INIT_FAILS, home.refusal())
    await home.apply(**always_up())
    said = await home.message("WeightsVerified", "False", "DigestMismatch")
    assert "model.safetensors" in said
    assert await home.condition("Stalled") == ("True", "UntrustedWeights")
    await home.wait_for_no_pods()


async def test_a_fetch_that_ends_again_and_again_is_given_up(home: KubeRayHouse) -> None:
    home.doom(Fate.INIT_FAILS, "Traceback (most recent call last):\nRuntimeError: the disk is on fire")
    await home.apply(**always_up())
    said = await home.message("Stalled", "True", "EngineFailed")
    assert "ended with code 3" in said
    assert "the disk is on fire" in said
    assert await home.condition("Ready") == ("False", "WeightsNotFetched")
    await home.wait_for_no_pods()


async def test_an_image_that_is_not_there_is_named_and_waited_for(home: KubeRayHouse) -> None:
    home.doom(Fate.IMAGE_MISSING)
    await home.apply(**always_up())
    said = await home.message("Ready", "Unknown", "ImagePullFailed")
    assert "registry.example.com/serving@sha256:1111" in said
    assert "kubeRay.image" in said
    await home.spare()
    await home.wait_for("Ready", "True", "Serving")
    assert len(home.kuberay.made) == 1


async def test_an_engine_that_is_killed_for_its_memory_is_told_so_and_given_up(home: KubeRayHouse) -> None:
    await home.serve()
    worker = (await home.worker())["metadata"]["name"]
    await home.kubectl("annotate", "pod", worker, "-n", home.namespace, f"{FATE}={Fate.OUT_OF_MEMORY}")
    said = await home.message("Ready", "False", "OutOfMemory")
    assert "was killed for its memory: raise spec.pod.resources.memory" in said
    await home.wait_for("Stalled", "True", "EngineFailed")
    assert await home.condition("Ready") == ("False", "OutOfMemory")
    await home.wait_for_no_pods()


async def test_a_lost_node_is_told_and_what_hangs_on_it_too(home: KubeRayHouse) -> None:
    await home.serve(**RECREATE)
    worker = await home.worker()
    name, lost = worker["metadata"]["name"], worker["spec"]["nodeName"]
    home.cluster.lose(lost)
    said = await home.message("Ready", "False", "NodeLost")
    assert f"he node of pod {name} does not answer" in said
    assert await home.condition("EngineReady") == ("False", "NodeLost")

    # Without its kubelet nobody can say that the pod is gone, so what comes after it waits.
    await home.apply(**always_up(**RECREATE, **CHANGED))
    said = await home.message("Ready", "Unknown", "WaitingForPods")
    assert f"od {name} of the Ray cluster before" in said
    assert "its node does not answer" in said
    assert len(home.kuberay.made) == 1

    home.cluster.find(lost)
    await home.wait_for("Ready", "True", "Serving")
    assert len(home.kuberay.made) == 2


async def test_a_quota_is_told_in_the_api_servers_words_and_waited_for(home: KubeRayHouse) -> None:
    await bound(home, 1)
    await home.apply(**always_up())
    said = await home.message("Ready", "Unknown", "PodsRefused")
    assert "exceeded quota: accelerators" in said
    assert "requests.nvidia.com/gpu=2" in said
    assert "larger quota of the namespace" in said
    await bound(home, 2)
    await home.wait_for("Ready", "True", "Serving")


async def test_serves_on_accelerators_is_suspended_and_resumed_and_leaves_nothing(home: KubeRayHouse) -> None:
    listed = await home.kubectl("get", OURS, "-n", home.namespace, "-o", "name")
    await home.serve()
    worker = await home.worker()
    assert worker["spec"]["nodeName"] in {"a", "b"}
    assert worker["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"

    await home.apply(**always_up(suspend=True))
    await home.wait_for("Ready", "True", "Suspended")
    await home.wait_for_no_pods()
    await home.wait_for("ScaledToZero", "True", "Suspended")
    assert await home.condition("EngineReady") == ("False", "Stopped")

    await home.serve(suspend=False)
    assert len(home.kuberay.made) == 2
    assert await home.condition("EngineReady") == ("True", "Answering")

    await home.kubectl("delete", "gptoss", "assistant", "-n", home.namespace)

    async def only_what_was_there_before() -> bool:
        return await home.kubectl("get", OURS, "-n", home.namespace, "-o", "name") == listed

    await home.eventually(only_what_was_there_before, "nothing of the deployment is left")


async def bound(home: KubeRayHouse, accelerators: int) -> None:
    """Give the namespace a quota, and wait until its controller has counted."""
    hard = {"requests.nvidia.com/gpu": str(accelerators)}
    metadata = {"name": "accelerators", "namespace": home.namespace}
    await home.apply_object({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}})

    async def counted() -> bool:
        found = json.loads(
            await home.kubectl("get", "resourcequota", "accelerators", "-n", home.namespace, "-o", "json")
        )
        return bool(found.get("status", {}).get("hard") == hard)

    await home.eventually(counted, "the quota is counted")
