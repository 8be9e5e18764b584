"""Broken situations, each with the reason and the advice that people get to see."""

import json
from typing import Any

import pytest

from gptoss_api.deployment_status import PullStatus
from gptoss_operator.substrates.failures import failure_of
from gptoss_operator.substrates.kuberay.pods import fetching_at, pull_of, trouble_of
from gptoss_operator.substrates.kuberay.remains import remaining

PATIENT, IMPATIENT = 0, 3


def pod(role: str = "worker", name: str | None = None, **status: Any) -> dict[str, Any]:
    labels = {"serving.gptoss.dev/role": role}
    return {"metadata": {"name": name or f"{role}-0", "labels": labels}, "status": status}


def unscheduled(message: str, role: str = "worker") -> list[dict[str, Any]]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return [pod(role, phase="Pending", conditions=[condition])]


def fetching(message: str = "", code: int = 1, restarts: int = PATIENT, reason: str = "Error") -> list[dict[str, Any]]:
    ended = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    state = {"name": "weights", "restartCount": restarts, "state": waiting, "lastState": ended}
    return [pod(initContainerStatuses=[state])]


def refused_weights(reason: str, message: str, *, retryable: bool = False) -> str:
    return json.dumps({"error": {"reason": reason, "message": message, "file": None, "retryable": retryable}})


def waiting(reason: str, message: str = "", role: str = "worker") -> list[dict[str, Any]]:
    state = {"name": f"ray-{role}", "image": "serving:1", "state": {"waiting": {"reason": reason, "message": message}}}
    return [pod(role, containerStatuses=[state])]


def died(
    message: str = "", code: int = 1, reason: str = "Error", restarts: int = IMPATIENT, role: str = "worker"
) -> list[dict[str, Any]]:
    ended = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    state = {"name": f"ray-{role}", "restartCount": restarts, "state": ended, "ready": False}
    return [pod(role, containerStatuses=[state])]


def init_running(name: str) -> list[dict[str, Any]]:
    return [pod(initContainerStatuses=[{"name": name, "state": {"running": {}}}])]


GPUS = "0/5 nodes are available: 3 Insufficient nvidia.com/gpu, 2 Insufficient memory."
TAINT = "0/2 nodes are available: 2 node(s) had untolerated taint {dedicated: gpu}."
SELECTOR = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
HEADLESS = "No node info found for head node in GCS. Did the head node or gcs start successfully?"
QUOTA = 'pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=4'
ACCOUNT = (
    'pods "x" is forbidden: error looking up service account ml/gptoss-weights: '
    'serviceaccount "gptoss-weights" not found'
)
SECURITY = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": hostNetwork'

PODS: list[tuple[str, list[dict[str, Any]], str | None, str, bool, tuple[str, ...]]] = [
    ("no accelerators", unscheduled(GPUS), None, "Unschedulable", False, ("nvidia.com/gpu", "parallelism.tensor")),
    ("no memory", unscheduled("0/1: 1 Insufficient memory."), None, "Unschedulable", False, ("resources.memory",)),
    (
        "no cpu",
        unscheduled("0/1: 1 Insufficient cpu."),
        None,
        "Unschedulable",
        False,
        ("for want of cpu", "resources.cpu"),
    ),
    ("no disk", unscheduled("1 Insufficient ephemeral-storage"), None, "Unschedulable", False, ("local storage",)),
    (
        "a taint that has no name",
        unscheduled("0/2 nodes are available: 2 node(s) had untolerated taint(s)."),
        None,
        "Unschedulable",
        False,
        ("see the nodes' taints", "spec.pod.tolerations", "not well"),
    ),
    ("a taint", unscheduled(TAINT), None, "Unschedulable", False, ("dedicated: gpu", "spec.pod.tolerations")),
    ("no such node", unscheduled(SELECTOR), None, "Unschedulable", False, ("spec.accelerator.product",)),
    (
        "full nodes",
        unscheduled("0/1 nodes are available: 1 Too many pods."),
        None,
        "Unschedulable",
        False,
        ("add nodes",),
    ),
    ("a gate", unscheduled("Scheduling is blocked: gated"), None, "Unschedulable", False, ("scheduling gate",)),
    (
        "image missing",
        waiting("ImagePullBackOff", "not found"),
        None,
        "ImagePullFailed",
        False,
        ("serving:1", "kubeRay.image"),
    ),
    ("image name", waiting("InvalidImageName"), None, "ImagePullFailed", True, ("no image name",)),
    ("image never", waiting("ErrImageNeverPull"), None, "ImagePullFailed", False, ("imagePullPolicy",)),
    (
        "secret gone",
        waiting("CreateContainerConfigError", 'secret "x" not found'),
        None,
        "ContainerRefused",
        False,
        ("next start",),
    ),
    (
        "root image",
        waiting("CreateContainerConfigError", "image will run as root; non-root"),
        None,
        "ContainerRefused",
        False,
        ("runAsUser",),
    ),
    (
        "gpu hook",
        waiting("RunContainerError", "nvidia-container-cli: driver"),
        None,
        "ContainerRefused",
        False,
        ("runtimeClassName",),
    ),
    (
        "flipped byte",
        fetching(refused_weights("DigestMismatch", "a.safetensors differs")),
        None,
        "DigestMismatch",
        True,
        ("a.safetensors differs",),
    ),
    (
        "signed anew",
        fetching(refused_weights("ManifestChanged", "signed again")),
        None,
        "ManifestChanged",
        True,
        ("signed again",),
    ),
    (
        "store away",
        fetching(refused_weights("SourceUnavailable", "no answer", retryable=True)),
        None,
        "SourceUnavailable",
        False,
        ("no answer",),
    ),
    (
        "store long away",
        fetching(refused_weights("SourceUnavailable", "no answer", retryable=True), restarts=3),
        None,
        "SourceUnavailable",
        True,
        ("no answer",),
    ),
    ("no rights", fetching(refused_weights("AccessDenied", "403")), None, "AccessDenied", True, ("403",)),
    ("fetch killed", fetching(code=137, reason="OOMKilled"), None, "WeightsNotFetched", False, ("memory",)),
    (
        "fetch crashed",
        fetching("Traceback\nValueError: x", restarts=3),
        None,
        "WeightsNotFetched",
        True,
        ("ValueError: x",),
    ),
    ("fetch runs", init_running("weights"), None, "FetchingWeights", False, ("fetched and verified",)),
    ("head not there", init_running("wait-gcs-ready"), None, "WaitingForHead", False, ("head",)),
    ("head not joined", died(f"Traceback\nException: {HEADLESS}"), None, "WaitingForHead", False, ("head",)),
    (
        "head died before workers could join",
        died(f"Exception: {HEADLESS}") + died("Exception: timed out during startup", role="head"),
        None,
        "EngineCrashed",
        True,
        ("ray-head", "timed out during startup"),
    ),
    (
        "worker out of memory",
        died(code=137, reason="OOMKilled"),
        None,
        "OutOfMemory",
        True,
        ("spec.pod.resources.memory",),
    ),
    ("head out of memory", died(code=137, role="head"), None, "OutOfMemory", True, ("kubeRay.headMemory",)),
    ("no bash", died("exec: bash: not found", code=127), None, "ImageIncomplete", True, ("kubeRay.image",)),
    (
        "read-only",
        died("OSError: [Errno 30] Read-only file system: '/x'"),
        None,
        "ImageIncomplete",
        True,
        ("runs as any user",),
    ),
    ("ray crashed", died("boom\nlast words"), None, "EngineCrashed", True, ("last words", "log")),
    ("ray crashed once", died("last words", restarts=1), None, "EngineCrashed", False, ("last words",)),
    (
        "disk evicted",
        [pod(phase="Failed", reason="Evicted", message="ephemeral local storage usage exceeds")],
        None,
        "PodEvicted",
        False,
        ("weightsSizeLimit",),
    ),
    ("node gone", [pod(phase="Failed", reason="NodeLost")], None, "NodeLost", False, ("another pod",)),
    (
        "device plugin",
        [pod(phase="Failed", reason="UnexpectedAdmissionError", message="no devices")],
        None,
        "Unschedulable",
        False,
        ("device plugin",),
    ),
    (
        "node silent",
        [pod(conditions=[{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}])],
        None,
        "NodeLost",
        False,
        ("does not answer",),
    ),
    ("quota", [], QUOTA, "PodsRefused", False, ("exceeded quota", "maxReplicas")),
    ("no account", [], ACCOUNT, "PodsRefused", False, ("ml/gptoss-weights", "kubeRay.workloadIdentities")),
    ("pod security", [], SECURITY, "PodsRefused", False, ("restricted",)),
    ("priority class", [], "no PriorityClass with name high was found", "PodsRefused", False, ("priorityClassName",)),
    ("webhook", [], 'admission webhook "x" denied the request', "PodsRefused", False, ("admission policy",)),
    (
        "image without credentials",
        waiting("ErrImagePull", "failed to authorize: 401 Unauthorized"),
        None,
        "ImagePullFailed",
        False,
        ("401", "imagePullSecrets"),
    ),
    (
        "image for another platform",
        waiting("ImagePullBackOff", "no match for platform in manifest"),
        None,
        "ImagePullFailed",
        False,
        ("of a platform",),
    ),
    ("registry limits", waiting("ErrImagePull", "toomanyrequests"), None, "ImagePullFailed", False, ("mirror",)),
    (
        "no room for the image",
        waiting("ErrImagePull", "no space left on device"),
        None,
        "ImagePullFailed",
        False,
        ("disk",),
    ),
    (
        "registry not found",
        waiting("ErrImagePull", "dial tcp: lookup images.test: no such host"),
        None,
        "ImagePullFailed",
        False,
        ("how nodes reach the registry",),
    ),
    ("image not signed", waiting("SignatureValidationFailed"), None, "ImagePullFailed", False, ("not signed",)),
    (
        "nodes not well",
        unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }."),
        None,
        "Unschedulable",
        False,
        ("not well", "disk-pressure"),
    ),
    ("cordoned", unscheduled("0/1: 1 node(s) were unschedulable."), None, "Unschedulable", False, ("uncordon",)),
    (
        "no nodes at all",
        unscheduled("no nodes available to schedule pods"),
        None,
        "Unschedulable",
        False,
        ("add nodes",),
    ),
    (
        "spread",
        unscheduled("0/2: 2 node(s) didn't match pod topology spread constraints."),
        None,
        "Unschedulable",
        False,
        ("add nodes", "already"),
    ),
    (
        "anti-affinity",
        unscheduled("0/2: 2 node(s) didn't match pod anti-affinity rules."),
        None,
        "Unschedulable",
        False,
        ("add nodes", "already"),
    ),
    (
        "claim pending",
        unscheduled("0/2: pod has unbound immediate PersistentVolumeClaims."),
        None,
        "Unschedulable",
        False,
        ("storage classes",),
    ),
    (
        "no such claim",
        unscheduled('0/2 nodes are available: persistentvolumeclaim "gptoss-weights-cache" not found.'),
        None,
        "Unschedulable",
        False,
        ("make the claim that spec.cache names", '"gptoss-weights-cache" not found'),
    ),
    (
        "a claim for one pod",
        unscheduled(
            "0/2: 2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
        ),
        None,
        "Unschedulable",
        False,
        ("make it ReadWriteMany",),
    ),
    (
        "other vendor's cards",
        unscheduled("0/2: 2 Insufficient gpu.example.com/i915."),
        None,
        "Unschedulable",
        False,
        ("for want of gpu.example.com/i915",),
    ),
    (
        "sandbox never made",
        [
            pod(
                phase="Pending",
                hostIP="10.0.0.1",
                conditions=[{"type": "PodReadyToStartContainers", "status": "False"}],
            )
        ],
        None,
        "WaitingForNode",
        False,
        ("10.0.0.1", "events", "runtime class", "ReadWriteOnce"),
    ),
    (
        "memory evicted",
        [pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")],
        None,
        "PodEvicted",
        False,
        ("low on resource: memory", "spec.pod.resources"),
    ),
    (
        "preempted",
        [pod(phase="Failed", reason="Preempting", message="Preempted in order to admit critical pod")],
        None,
        "PodEvicted",
        False,
        ("priorityClassName",),
    ),
    (
        "node shuts down",
        [pod(phase="Failed", reason="Terminated", message="Pod was terminated in response to imminent node shutdown.")],
        None,
        "NodeLost",
        False,
        ("shuts down", "another pod"),
    ),
    (
        "node's labels changed",
        [pod(phase="Failed", reason="NodeAffinity", message="Predicate NodeAffinity failed")],
        None,
        "Unschedulable",
        False,
        ("the node refused",),
    ),
    (
        "node without room",
        [pod(phase="Failed", reason="OutOfnvidia.com/gpu", message="Node didn't have enough resource")],
        None,
        "Unschedulable",
        False,
        ("what else runs there",),
    ),
    (
        "init killed for memory again",
        fetching(code=137, reason="OOMKilled", restarts=3),
        None,
        "WeightsNotFetched",
        True,
        ("memory",),
    ),
    ("head crashed", died("boom", role="head"), None, "EngineCrashed", True, ("ray-head", "boom")),
    (
        "bad flag of the worker",
        died("error: unrecognized arguments: --x"),
        None,
        "InvalidEngineArgument",
        True,
        ("spec.engine",),
    ),
    (
        "runtime class",
        [],
        'pods "x" is forbidden: pod rejected: RuntimeClass "gvisor" not found',
        "PodsRefused",
        False,
        ("spec.pod.runtimeClassName",),
    ),
    (
        "limit range",
        [],
        "maximum memory usage per Container is 8Gi, but limit is 64Gi",
        "PodsRefused",
        False,
        ("LimitRange",),
    ),
    (
        "no right",
        [],
        'pods is forbidden: User "x" cannot create resource "pods"',
        "PodsRefused",
        False,
        ("docs/rbac.md",),
    ),
]


@pytest.mark.parametrize(
    ("pods", "refused", "reason", "final", "said"), [row[1:] for row in PODS], ids=[row[0] for row in PODS]
)
def test_a_broken_pod_has_a_reason_and_an_advice(
    pods: list[dict[str, Any]], refused: str | None, reason: str, final: bool, said: tuple[str, ...]
) -> None:
    found = trouble_of(pods, refused=refused)
    assert found is not None
    assert (found.failure.reason, found.final) == (reason, final)
    for words in said:
        assert words in found.failure.message
    assert len(found.failure.message) < 1000


def test_a_pull_is_known_by_its_first_pods_beginning_and_by_what_one_tells() -> None:
    def pulling(name: str, begun: str, address: str | None = None) -> dict[str, Any]:
        state = {"name": "weights", "state": {"running": {"startedAt": begun}}}
        return pod(name=name, initContainerStatuses=[state], **({"podIP": address} if address else {}))

    early, late = pulling("a", "2026-11-21T18:00:00Z"), pulling("b", "2026-11-21T18:05:00Z", "10.0.0.7")
    assert pull_of([late, early], told=None) == PullStatus(started_at="2026-11-21T18:00:00Z")
    told = PullStatus(started_at="2026-11-21T18:05:01Z", progress="41% of 60.8 GiB", bytes_done=7)
    assert pull_of([late, early], told=told) == told.model_copy(update={"started_at": "2026-11-21T18:00:00Z"})
    over = [pod(podIP="10.0.0.8"), *fetching(), *init_running("wait-gcs-ready")]
    assert pull_of(over, told=told) is None, "what was told last is of the past"
    assert fetching_at([late, early, *over]) == {"10.0.0.7"}, "a pod without an address can't be asked"
    trouble = trouble_of([early])
    assert trouble is not None
    assert "`kubectl logs a -c weights` says how far" in trouble.failure.message


def test_pods_that_run_have_no_trouble() -> None:
    running = {"name": "ray-worker", "ready": True, "restartCount": 1, "state": {"running": {}}}
    running["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
    restarted = [{"type": "PodReadyToStartContainers", "status": "False"}]
    assert trouble_of([pod(phase="Running", conditions=restarted, containerStatuses=[running])]) is None
    assert trouble_of([]) is None


def test_what_will_not_pass_comes_before_what_may() -> None:
    found = trouble_of([*unscheduled(GPUS), *fetching(refused_weights("DigestMismatch", "bytes"))])
    assert found is not None
    assert found.failure.reason == "DigestMismatch"


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("0/1: 1 Insufficient memory.", "kubeRay.headMemory"),
        ("0/1: 1 Insufficient cpu.", "kubeRay.headCpu"),
        (TAINT, "kubeRay.headTolerations"),
        ("0/2 nodes are available: 2 node(s) had untolerated taint(s).", "kubeRay.headTolerations"),
        (SELECTOR, "kubeRay.headNodeSelector"),
        ("0/1: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.", "nodes are not well"),
    ],
)
def test_a_head_without_a_node_names_what_an_administrator_can_change(message: str, advice: str) -> None:
    found = trouble_of(unscheduled(message, role="head"))
    assert found is not None
    assert advice in found.failure.message
    of_worker = trouble_of(unscheduled(message))
    assert of_worker is not None
    assert "kubeRay.headMemory" not in of_worker.failure.message


ENGINE: list[tuple[str, str, str]] = [
    (
        "ValueError: 9.0 GiB KV cache is needed, which is larger than the available KV cache memory",
        "OutOfAcceleratorMemory",
        "maxModelLen",
    ),
    (
        "ValueError: No available memory for the cache blocks. Try increasing gpu_memory_utilization",
        "OutOfAcceleratorMemory",
        "parallelism.tensor",
    ),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "OutOfAcceleratorMemory", "maxNumSeqs"),
    ("torch.OutOfMemoryError: HIP out of memory", "OutOfAcceleratorMemory", "maxNumSeqs"),
    (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "UnsupportedHardware",
        "accelerator.product",
    ),
    (
        "ValueError: mxfp4: requires GPU compute capability 80",
        "UnsupportedHardware",
        "accelerator.product",
    ),
    (
        "RuntimeError: The NVIDIA driver on your system is too old: driver 12020 is too old",
        "DriverTooOld",
        "administrator",
    ),
    ("RuntimeError: No CUDA GPUs are available", "AcceleratorMissing", "device plugin"),
    ("ImportError: libcuda.so.1: cannot open shared object file", "AcceleratorMissing", "runtimeClassName"),
    (
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp",
        "CommunicationFailed",
        "sharedMemorySize",
    ),
    ("ERROR: Unexpected bus error encountered in worker. Bus error", "CommunicationFailed", "sharedMemorySize"),
    ("OSError: [Errno 28] No space left on device", "VolumeFull", "size limit"),
    (
        "TypeError: EngineArgs.__init__() got an unexpected keyword argument 'bloc_size'",
        "InvalidEngineArgument",
        "spec.engine",
    ),
    (
        "ValueError: User-specified max_model_len (200000) is greater than the derived max_model_len",
        "InvalidEngineArgument",
        "spec.engine",
    ),
    (
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        "OutOfMemory",
        "resources.memory",
    ),
    ("ModuleNotFoundError: No module named 'gptoss_serving'", "ImageIncomplete", "kubeRay.image"),
    ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.", "EngineCrashed", "log"),
]


@pytest.mark.parametrize(("words", "reason", "advice"), ENGINE, ids=[words[:32] for words, _, _ in ENGINE])
def test_an_engines_last_words_are_translated(words: str, reason: str, advice: str) -> None:
    traceback = f"\x1b[36mray::ServeReplica\x1b[39m\n  File x, line 1\n{words}\n"
    found = failure_of({"message": "Failed to update", "deployments": {"GptOssServer:x": {"message": traceback}}})
    assert found.reason == reason
    assert advice in found.message
    assert "\x1b" not in found.message


def test_a_reason_that_our_own_code_named_comes_before_any_translation() -> None:
    text = "ImportError: x\ngptoss-reason=DigestMismatch; a.safetensors differs"
    assert failure_of({"deployments": {"x": {"message": text}}}).reason == "DigestMismatch"


def test_pods_that_hold_a_roll_out_up_are_named_a_lost_one_first() -> None:
    lost = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    assert remaining([]) is None
    finishing = remaining([pod(name="b"), pod(name="a")])
    assert finishing is not None
    assert finishing.reason == "WaitingForPods"
    assert finishing.message.startswith("pod a of the Ray cluster before")
    assert "for at most 3660 s" in finishing.message
    hanging = remaining([pod(name="a"), pod(name="b", conditions=lost)])
    assert hanging is not None
    assert hanging.message.startswith("pod b of")
    assert "its node does not answer" in hanging.message
