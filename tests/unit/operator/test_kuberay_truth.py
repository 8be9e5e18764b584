"""From what a cluster shows to what a deployment's conditions say, the whole way: view, plan, status."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gptoss_api.deployment_status import GptOssDeploymentStatus
from gptoss_operator.gateway_tokens import AcceptedTokens
from gptoss_operator.keys import DeploymentKey
from gptoss_operator.leadership import AlwaysLeader
from gptoss_operator.plan.applications import Absent, Present
from gptoss_operator.plan.demand import UNKNOWN
from gptoss_operator.plan.observation import KUBERAY, Observation, Placement, Site, Trusted
from gptoss_operator.plan.planner import Plan, plan
from gptoss_operator.substrates.kuberay.seen import lean
from gptoss_operator.substrates.kuberay.substrate import KubeRay
from tests.builders import DIGEST, deployment
from tests.contract.operator.house import ManualClock
from tests.unit.operator.rayservices import settings, site
from tests.unit.operator.test_kuberay_troubles import (
    GPUS,
    QUOTA,
    SECURITY,
    SELECTOR,
    TAINT,
    died,
    fetching,
    init_running,
    pod,
    refused_weights,
    unscheduled,
    waiting,
)

Raw = dict[str, Any]
KEY = DeploymentKey("ml", "assistant")
SITE = Site(installation="test", import_path="x:build", gateway_url="", kube_ray=site())
TRUSTED = Trusted(
    manifest_digest=DIGEST, signer="ab", authority="release", policy="default", source="one", checked_at="then"
)
CLUSTER = "assistant-abcde"


class Cluster:
    """What the substrate's copies of a cluster hold."""

    synced = True

    def __init__(self) -> None:
        self.raw: Raw | None = None
        self.seen_pods: list[Raw] = []
        self.amiss: tuple[str, str] | None = None
        self.flawed: tuple[str, str] | None = None

    def rayservice(self, _: object) -> Raw | None:
        return self.raw

    def pods(self, _: object) -> list[Raw]:
        return self.seen_pods

    def nodes(self) -> list[Raw]:
        return []

    def trouble(self) -> tuple[str, str] | None:
        return self.amiss

    def flaw(self) -> tuple[str, str] | None:
        return self.flawed


async def _never(_: str) -> bool:
    return False


async def _silent(_: str, __: str) -> str | None:
    return None


def observed(substrate: KubeRay, status: GptOssDeploymentStatus, now: float) -> Observation:
    asked = deployment(uid="11111111-2222-3333-4444-555555555555")
    return Observation(
        deployment=asked,
        status=status,
        placement=Placement(cluster=KUBERAY),
        application=substrate.view(KEY),
        hardware=substrate.hardware(asked),
        trust=TRUSTED,
        demand=UNKNOWN,
        now=now,
        wall="2026-01-01T00:00:00Z",
    )


def told(
    pods: list[Raw],
    status: Raw | None,
    amiss: tuple[str, str] | None = None,
    *,
    flaw: tuple[str, str] | None = None,
    seconds: float = 1.0,
) -> tuple[Plan, Mapping[str, tuple[str, str, str]]]:
    """Start a deployment on a cluster that then shows this; return the plan and the conditions."""
    cluster = Cluster()
    substrate = KubeRay(
        settings(),
        cluster,  # type: ignore[arg-type]
        tokens=AcceptedTokens(Path("/nowhere"), clock=ManualClock()),
        ask_engine=_never,
        read_report=_silent,
        leadership=AlwaysLeader(),
        news=lambda _: None,
    )
    started = plan(observed(substrate, GptOssDeploymentStatus(), 0.0), None, SITE)
    (ask,) = started.actions
    assert isinstance(ask.wish, Present)
    assert ask.wish.rendered is not None
    document = json.loads(json.dumps(ask.wish.rendered.rayservice))
    document["metadata"] |= {"uid": "rs", "generation": 1, "resourceVersion": "1"}
    cluster.raw = lean({**document, "status": status or {}})
    cluster.seen_pods = json.loads(json.dumps(pods))
    for each in cluster.seen_pods:
        each["metadata"]["labels"]["ray.io/cluster"] = CLUSTER
    cluster.amiss, cluster.flawed = amiss, flaw
    assert started.status is not None
    after = plan(observed(substrate, started.status, seconds), started.memory, SITE, asked=ask.wish)
    written = after.status or started.status
    return after, {each.type: (each.status, each.reason, each.message) for each in written.conditions}


def making(**cluster: Any) -> Raw:
    """KubeRay makes the first cluster."""
    return {"pendingServiceStatus": {"rayClusterName": CLUSTER, **cluster}}


def failed(words: str) -> Raw:
    """Ray gave the application up."""
    server = {"status": "UNHEALTHY", "message": words}
    application = {"status": "DEPLOY_FAILED", "serveDeploymentStatuses": {"GptOssServer:x": server}}
    return making(applicationStatuses={"app": application})


def refused(words: str) -> Raw:
    return making(rayClusterStatus={"conditions": [{"type": "ReplicaFailure", "status": "True", "message": words}]})


READY_HEAD = [pod("head", conditions=[{"type": "Ready", "status": "True"}]), pod()]
INVALID = {"conditions": [{"type": "Ready", "status": "False", "reason": "ValidationFailed", "message": "no good"}]}
MISSING = ("KubeRayMissing", "an administrator installs KubeRay")
EVICTED = [pod(phase="Failed", reason="Evicted", message="ephemeral local storage usage exceeds")]
CLAIM = "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."
BAD_ARGUMENT = "TypeError: EngineArgs.__init__() got an unexpected keyword argument 'bloc_size'"
NO_KERNEL = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
ROOT = "container has runAsNonRoot and image will run as root"

PASSING: dict[str, tuple[list[Raw], Raw | None, str, list[str]]] = {
    "KubeRay does not react": ([], None, "WaitingForKubeRay", ["operator runs and watches this namespace"]),
    "KubeRay does not resume": ([], {"conditions": [{"type": "Suspended", "status": "True"}]}, "WaitingForKubeRay", []),
    "KubeRay does not reach Ray": (READY_HEAD, making(), "WaitingForKubeRay", ["8265", "kubeRay.network.kuberay"]),
    "KubeRay finds it invalid": ([], INVALID, "ConfigurationRefused", ["no good", "tell an administrator"]),
    "no accelerators": (
        unscheduled(GPUS),
        making(),
        "Unschedulable",
        ["for want of memory, nvidia.com/gpu", "add nodes"],
    ),
    "no such nodes": (unscheduled(SELECTOR), making(), "Unschedulable", ["spec.accelerator.product"]),
    "a taint": (unscheduled(TAINT), making(), "Unschedulable", ["spec.pod.tolerations"]),
    "a claim that waits": (unscheduled(CLAIM), making(), "Unschedulable", ["storage classes"]),
    "quota": ([], refused(QUOTA), "PodsRefused", ["exceeded quota", "larger quota"]),
    "Pod Security": ([], refused(SECURITY), "PodsRefused", ["restricted"]),
    "an admission policy": ([], refused("webhook x denied the request: no"), "PodsRefused", ["ask its owner"]),
    "an image that is not there": (
        waiting("ImagePullBackOff", "not found"),
        making(),
        "ImagePullFailed",
        ["kubeRay.image"],
    ),
    "a secret that is gone": (
        waiting("CreateContainerConfigError", 'secret "x" not found'),
        making(),
        "ContainerRefused",
        [],
    ),
    "an image of root": (
        waiting("CreateContainerConfigError", ROOT),
        making(),
        "ContainerRefused",
        ["kubeRay.runAsUser"],
    ),
    "weights on their way": (init_running("weights"), making(), "FetchingWeights", []),
    "a head that is not there": (init_running("wait-gcs-ready"), making(), "WaitingForHead", []),
    "a store that is away": (
        fetching(refused_weights("SourceUnavailable", "no answer", retryable=True)),
        making(),
        "SourceUnavailable",
        ["answer"],
    ),
    "a full node": (EVICTED, making(), "PodEvicted", ["kubeRay.weightsSizeLimit"]),
    "a node that is gone": ([pod(phase="Failed", reason="NodeLost")], making(), "NodeLost", ["another pod"]),
    "a node without a plugin": (
        [pod(phase="Failed", reason="UnexpectedAdmissionError", message="no devices")],
        making(),
        "Unschedulable",
        ["device plugin"],
    ),
    "a runtime class that is not there": (
        [],
        refused('pods "x" is forbidden: pod rejected: RuntimeClass "gvisor" not found'),
        "PodsRefused",
        ["spec.pod.runtimeClassName"],
    ),
    "a node that does not begin": (
        [pod(phase="Pending", conditions=[{"type": "PodReadyToStartContainers", "status": "False"}])],
        making(),
        "WaitingForNode",
        ["see the pod's events"],
    ),
    "nodes that are not well": (
        unscheduled("0/1: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."),
        making(),
        "Unschedulable",
        ["look at them"],
    ),
    "a registry that wants credentials": (
        waiting("ErrImagePull", "failed to authorize: 401 Unauthorized"),
        making(),
        "ImagePullFailed",
        ["kubeRay.imagePullSecrets"],
    ),
    "a more important pod": ([pod(phase="Failed", reason="Preempting")], making(), "PodEvicted", ["priorityClassName"]),
    "a first crash": (died("boom", restarts=1), making(), "EngineCrashed", ["boom"]),
}


@pytest.mark.parametrize(("pods", "status", "reason", "said"), PASSING.values(), ids=PASSING.keys())
def test_what_may_pass_is_told_while_it_is_waited_for(
    pods: list[Raw], status: Raw | None, reason: str, said: list[str]
) -> None:
    planned, conditions = told(pods, status)
    assert conditions["Ready"][:2] == ("Unknown", reason)
    assert conditions["EngineReady"][:2] == ("False", reason)
    assert conditions["Reconciling"][0] == "True"
    assert conditions["Stalled"][0] == "False"
    assert [words for words in said if words not in conditions["Ready"][2]] == [], conditions["Ready"][2]
    assert not any(isinstance(action.wish, Absent) for action in planned.actions), "it is not given up"


@pytest.mark.parametrize(("pods", "status", "reason", "said"), PASSING.values(), ids=PASSING.keys())
def test_what_did_not_pass_in_time_ends_the_start_with_its_own_reason(
    pods: list[Raw], status: Raw | None, reason: str, said: list[str]
) -> None:
    planned, conditions = told(pods, status, seconds=4000.0)
    assert conditions["Stalled"][:2] == ("True", "StartTimeout")
    assert conditions["Ready"][:2] == ("False", reason)
    assert [words for words in ["startTimeoutSeconds", *said] if words not in conditions["Ready"][2]] == []
    assert [type(action.wish) for action in planned.actions] == [Absent]


FINAL: dict[str, tuple[list[Raw], Raw, tuple[str, str], list[str]]] = {
    "a flipped byte": (
        fetching(refused_weights("DigestMismatch", "a.safetensors differs")),
        making(),
        ("UntrustedWeights", "DigestMismatch"),
        ["a.safetensors differs"],
    ),
    "no right to the bucket": (
        fetching(refused_weights("AccessDenied", "403")),
        making(),
        ("EngineFailed", "AccessDenied"),
        ["403"],
    ),
    "a fetch that crashes": (
        fetching("ValueError: x", restarts=3),
        making(),
        ("EngineFailed", "WeightsNotFetched"),
        [],
    ),
    "an image name": (waiting("InvalidImageName"), making(), ("EngineFailed", "ImagePullFailed"), ["no image name"]),
    "a worker without memory": (
        died(code=137, reason="OOMKilled"),
        making(),
        ("EngineFailed", "OutOfMemory"),
        ["spec.pod.resources.memory"],
    ),
    "a head without memory": (
        died(code=137, role="head"),
        making(),
        ("EngineFailed", "OutOfMemory"),
        ["kubeRay.headMemory"],
    ),
    "an image without bash": (
        died("exec: bash: not found", code=127),
        making(),
        ("EngineFailed", "ImageIncomplete"),
        ["kubeRay.image"],
    ),
    "no kernel": ([], failed(NO_KERNEL), ("EngineFailed", "UnsupportedHardware"), ["spec.accelerator.product"]),
    "CUDA without memory": (
        [],
        failed("torch.OutOfMemoryError: CUDA out of memory."),
        ("EngineFailed", "OutOfAcceleratorMemory"),
        ["spec.engine.maxModelLen"],
    ),
    "a bad argument": ([], failed(BAD_ARGUMENT), ("EngineFailed", "InvalidEngineArgument"), ["status.engine.line"]),
    "no accelerator in the pod": (
        [],
        failed("RuntimeError: No CUDA GPUs are available"),
        ("EngineFailed", "AcceleratorMissing"),
        ["device plugin"],
    ),
    "an old driver": ([], failed("The NVIDIA driver on your system is too old"), ("EngineFailed", "DriverTooOld"), []),
    "cards that do not speak": (
        [],
        failed("DistBackendError: NCCL error in: x"),
        ("EngineFailed", "CommunicationFailed"),
        ["kubeRay.sharedMemorySize"],
    ),
    "another release's image": (
        [],
        failed("gptoss-reason=ServingVersionMismatch; schema 2"),
        ("ServingVersionMismatch", "ServingVersionMismatch"),
        ["schema 2"],
    ),
    "an old Ray": (
        [],
        failed("gptoss-reason=RayTooOld; Ray 2.55.1 runs here and 2.60.0 or later is needed"),
        ("EngineFailed", "RayTooOld"),
        ["Ray 2.55.1 runs here"],
    ),
    "words of nobody": ([], failed("KeyError: 'x'"), ("EngineFailed", "EngineFailed"), ["KeyError: 'x'"]),
}


@pytest.mark.parametrize(("pods", "status", "reasons", "said"), FINAL.values(), ids=FINAL.keys())
def test_what_will_not_pass_ends_the_start(
    pods: list[Raw], status: Raw, reasons: tuple[str, str], said: list[str]
) -> None:
    planned, conditions = told(pods, status)
    assert (conditions["Stalled"][1], conditions["Ready"][1]) == reasons
    assert (conditions["Stalled"][0], conditions["Ready"][0]) == ("True", "False")
    assert [words for words in said if words not in conditions["Ready"][2]] == [], conditions["Ready"][2]
    assert [type(action.wish) for action in planned.actions] == [Absent], "its accelerators are given back"


def test_a_byte_that_a_node_refused_is_told_of_the_weights() -> None:
    _, conditions = told(fetching(refused_weights("DigestMismatch", "a.safetensors differs")), making())
    assert conditions["WeightsVerified"][:2] == ("False", "DigestMismatch")


@pytest.mark.parametrize("reason", ["KubeRayMissing", "KubeRayTooOld", "ConfigurationRefused"])
def test_trouble_with_kuberay_itself_is_told_and_changes_nothing(reason: str) -> None:
    planned, conditions = told([], making(), (reason, "an administrator does something"))
    assert conditions["Degraded"] == ("True", reason, "an administrator does something")
    assert conditions["Ready"][:2] == ("Unknown", reason)
    assert not any(isinstance(action.wish, Absent) for action in planned.actions)


def test_what_nothing_stops_for_is_told_beside_what_goes_on() -> None:
    flaw = ("ConfigurationRefused", "the operator may not watch networkpolicies")
    _, conditions = told([], making(), flaw=flaw)
    assert conditions["Degraded"] == ("True", *flaw)
    assert conditions["Ready"][:2] == ("Unknown", "Progressing")
    assert conditions["Stalled"][0] == "False"
    _, conditions = told([], making(), ("KubeRayMissing", "it is gone"), flaw=flaw)
    assert conditions["Degraded"] == ("True", "KubeRayMissing", "it is gone"), "what stops everything comes first"


def test_a_cache_that_was_changed_or_could_not_be_used_is_told_and_stops_nothing() -> None:
    def fetched(name: str, **receipt: Any) -> Raw:
        message = json.dumps({"receipt": {"manifestDigest": "sha256:…", **receipt}})
        ended = {"exitCode": 0, "reason": "Completed", "message": message}
        return pod(name=name, initContainerStatuses=[{"name": "weights", "state": {"terminated": ended}}])

    well = fetched("a", cacheUsed=True, cacheProblem=None, cacheReplaced=0)
    full = fetched("b", cacheUsed=False, cacheProblem="NoSpace: the claim is full", cacheReplaced=0)
    changed = fetched("c", cacheUsed=True, cacheProblem=None, cacheReplaced=3)
    for pods, reason, said in (
        ([changed, full, well], "CacheDamaged", ("3 files", "pod c ", "`kubectl logs c -c weights`")),
        ([well, full], "CacheNotUsed", ("pod b ", "the claim is full")),
    ):
        _, conditions = told(pods, making())
        assert conditions["Degraded"][:2] == ("True", reason)
        assert all(words in conditions["Degraded"][2] for words in said)
        assert conditions["Ready"][:2] == ("Unknown", "Progressing")
        assert conditions["Stalled"][0] == "False"
    for silent in ([well], [fetched("d")], [fetching(message="no receipt", code=0)[0]]):
        assert told(silent, making())[1]["Degraded"][0] == "False"


def test_a_start_that_goes_well_has_nothing_to_tell() -> None:
    _, conditions = told([], making())
    assert conditions["Ready"][:2] == ("Unknown", "Progressing")
    assert conditions["Degraded"][0] == "False"
