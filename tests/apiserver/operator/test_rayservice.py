"""What is rendered for KubeRay, before a real API server: strict schemas, and Pod Security `restricted`."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.pod import Pod
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_operator.plan.rayservice.render import leading_to, render
from gptoss_operator.plan.rayservice.workload import KubeRaySite, Workload
from tests.kuberay import CRDS_VARIABLE, install_rayservices, install_real_rayservices, real_crds, remove_rayservices
from tests.unit.operator.rayservices import settings, site, workload

POD = Pod.model_validate(
    {
        "resources": {"cpu": "7", "memory": "48Gi"},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
    }
)
WORKLOADS = {
    "one replica": workload(),
    "autoscaled": workload(max_replicas=4),
    "a pipeline that users shaped": workload(
        pods_per_replica=2,
        min_replicas=2,
        max_replicas=2,
        pod=POD,
        accelerator=AcceleratorRequest(product="NVIDIA-H100"),
    ),
    "with a cache": workload(cache_claim="gptoss-weights-cache", cache_max_bytes="200Gi"),
    "on a CPU": workload(tensor=1, accelerator=AcceleratorRequest(vendor="cpu"), blue_green=False),
}

ACCOUNT = "gptoss-weights"
IDENTITY = {
    "namespaces": ["*"],
    "serviceAccountName": ACCOUNT,
    "aws": {"roleARN": "arn:aws:iam::123456789012:role/gptoss-weights"},
}


@pytest.fixture
def restricted(control_plane: ControlPlane, namespace: str) -> str:
    """A namespace that admits restricted pods only."""
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


@pytest.fixture
def rayservices(control_plane: ControlPlane) -> Iterator[None]:
    install_rayservices(control_plane)
    yield
    remove_rayservices(control_plane)


def dry_run(plane: ControlPlane, document: dict[str, Any]) -> dict[str, Any]:
    """Have the server check a document strictly, as the operator applies it."""
    flags = ("--server-side", "--field-manager=gptoss-operator", "--dry-run=server", "--validate=strict", "-o", "json")
    return json.loads(plane.kubectl("apply", *flags, "-f", "-", stdin=json.dumps(document)))


def pods_of(of: Workload, at: KubeRaySite | None = None) -> dict[str, dict[str, Any]]:
    """The pods that KubeRay would make, with its autoscaler as it puts it in."""
    cluster = render(of, at or site()).rayservice["spec"]["rayClusterConfig"]
    head = cluster["headGroupSpec"]["template"]
    if "autoscalerOptions" in cluster:
        options = cluster["autoscalerOptions"]
        sidecar = {name: options[name] for name in ("securityContext", "resources", "volumeMounts", "env")}
        head["spec"]["serviceAccountName"] = "made-by-kuberay"
        head["spec"]["containers"].append({"name": "autoscaler", "image": "serving", **sidecar})
    worker = cluster["workerGroupSpecs"][0]["template"]
    return {
        name: {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": name}, **rest(template)}
        for name, template in (("head", head), ("worker", worker))
    }


def rest(template: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {key: value for key, value in template["spec"].items() if key != "runtimeClassName"}}


@pytest.mark.parametrize("of", WORKLOADS.values(), ids=WORKLOADS.keys())
def test_pods_are_admitted_where_only_restricted_ones_are(
    control_plane: ControlPlane, restricted: str, of: Workload
) -> None:
    for pod in pods_of(replace(of, namespace=restricted)).values():
        pod["metadata"]["namespace"] = restricted
        admitted = dry_run(control_plane, pod)
        assert admitted["spec"]["securityContext"]["runAsNonRoot"] is True
        pod["spec"]["containers"][0]["securityContext"] = {"runAsNonRoot": True}
        with pytest.raises(StepError, match="violates PodSecurity"):
            dry_run(control_plane, pod)


def test_an_identitys_token_is_admitted_where_only_restricted_pods_are(
    control_plane: ControlPlane, restricted: str
) -> None:
    there = site(settings=settings(workloadIdentities=[IDENTITY]))
    pod = pods_of(workload(namespace=restricted), there)["worker"]
    pod["metadata"]["namespace"] = restricted
    admitted = dry_run(control_plane, pod)["spec"]
    assert admitted["serviceAccountName"] == ACCOUNT
    (projected,) = [each["projected"] for each in admitted["volumes"] if "projected" in each]
    assert projected["sources"] == [
        {"serviceAccountToken": {"audience": "sts.amazonaws.com", "expirationSeconds": 3600, "path": "token"}}
    ]
    (fetch,) = admitted["initContainers"]
    assert [mount["name"] for mount in fetch["volumeMounts"]] == ["weights", "identity"]
    for source in next(each for each in pod["spec"]["volumes"] if "projected" in each)["projected"]["sources"]:
        source["serviceAccountToken"]["expirationSeconds"] = 60
    with pytest.raises(StepError, match="10 minutes"):
        dry_run(control_plane, pod)


def test_a_claim_with_weights_is_admitted_and_read_only_in_one_container(
    control_plane: ControlPlane, restricted: str
) -> None:
    there = site(settings=settings(fileRoots=[{"path": "/models", "claimName": "models"}]))
    of = workload(namespace=restricted, weights_uri="file:///models/gpt-oss-120b", cache_claim="gptoss-weights-cache")
    pod = pods_of(of, there)["worker"]
    pod["metadata"]["namespace"] = restricted
    admitted = dry_run(control_plane, pod)["spec"]
    claims = {each["name"]: each["persistentVolumeClaim"] for each in admitted["volumes"] if each["name"] == "source"}
    assert claims == {"source": {"claimName": "models", "readOnly": True}}
    (fetch,), (engine,) = admitted["initContainers"], admitted["containers"]
    assert {"name": "source", "mountPath": "/models", "readOnly": True} in fetch["volumeMounts"]
    assert "source" not in {each["name"] for each in engine["volumeMounts"]}
    for document in render(of, there).others:
        assert dry_run(control_plane, document)["metadata"]["name"] == document["metadata"]["name"]


@pytest.mark.parametrize("of", WORKLOADS.values(), ids=WORKLOADS.keys())
def test_everything_around_a_rayservice_is_valid(control_plane: ControlPlane, namespace: str, of: Workload) -> None:
    here = replace(of, namespace=namespace)
    for document in (
        *render(here, site(s3_endpoint="http://store:9000")).others,
        leading_to(render(here, site()).service, "assistant-abcde"),
    ):
        assert dry_run(control_plane, document)["metadata"]["name"] == document["metadata"]["name"]


@pytest.mark.usefixtures("rayservices")
def test_applying_it_twice_writes_once(control_plane: ControlPlane, namespace: str) -> None:
    document = render(workload(namespace=namespace), site()).rayservice
    del document["metadata"]["ownerReferences"]  # nobody has that uid: the garbage collector would take it away
    versions = set()
    for _ in range(2):
        control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(document))
        found = json.loads(control_plane.kubectl("get", "rayservice", "assistant", "-n", namespace, "-o", "json"))
        versions.add(found["metadata"]["resourceVersion"])
    assert len(versions) == 1
    assert found["spec"] == document["spec"]


@pytest.mark.skipif(real_crds() is None, reason=f"{CRDS_VARIABLE} names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("of", WORKLOADS.values(), ids=WORKLOADS.keys())
def test_kuberays_own_schema_takes_it_strictly(
    control_plane: ControlPlane, namespace: str, kuberay_crds: None, of: Workload
) -> None:
    document = render(replace(of, namespace=namespace), site()).rayservice
    stored = dry_run(control_plane, document)
    assert stored["spec"]["serveConfigV2"] == document["spec"]["serveConfigV2"]
    document["spec"]["rayClusterConfig"]["headGroupSpec"]["surprise"] = 1
    with pytest.raises(StepError, match="surprise"):
        dry_run(control_plane, document)


@pytest.fixture(scope="module")
def kuberay_crds(control_plane: ControlPlane) -> Iterator[None]:
    """KubeRay's own RayService."""
    folder = real_crds()
    assert folder is not None
    install_real_rayservices(control_plane, folder)
    yield
    remove_rayservices(control_plane)
