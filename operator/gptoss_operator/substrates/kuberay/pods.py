"""Why pods do not start, in a word, a sentence and an advice. Pure: raw pods go in.

What may pass by itself (a node that comes, a fetch that is tried again) is an obstacle; what will not is
a failure: the start is given up and tried again with growing pauses.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_api.conditions import Reason
from gptoss_api.deployment_status import PullStatus
from gptoss_operator.plan.observation import FETCHING, Failure
from gptoss_operator.plan.rayservice.workload import ENGINE_CONTAINER, SOURCE_VOLUME, WEIGHTS_CONTAINER
from gptoss_operator.substrates.engine_words import LONGEST, last_line, translated
from gptoss_operator.substrates.kuberay.traits import is_lost, is_worker

_PATIENCE = 3
"""Restarts of a container after which trying on is no use."""
_KILLED = 137
_GCS_CONTAINER = "wait-gcs-ready"
_HEADLESS = "No node info found for head node in GCS"
"""What ``ray start`` of a worker ends with. Source: Ray's ``get_all_node_info_until_retrieved``."""
_IMAGE = {
    "ErrImagePull": "can't be pulled",
    "ImagePullBackOff": "can't be pulled",
    "InvalidImageName": "is no image name",
    "ErrImageNeverPull": "is not on the node and kubeRay.imagePullPolicy is Never",
    "ImageInspectError": "can't be read on the node",
    "RegistryUnavailable": "can't be pulled: the registry does not answer",
    "SignatureValidationFailed": "is not signed as the node's policy asks",
}
_IMAGE_ADVICE = (
    (r"unauthorized|authentication required|40[13] ", "an administrator corrects kubeRay.imagePullSecrets"),
    (
        r"no match for platform|no matching manifest|exec format",
        "use nodes of a platform that kubeRay.image is built for",
    ),
    (r"toomanyrequests|rate limit|429 ", "the registry limits pulls: wait, or have nodes pull from a mirror"),
    (r"no space left", "the node's disk is full: free it, or use nodes with more local storage"),
    (
        r"no such host|i/o timeout|connection refused|deadline exceeded|x509|TLS handshake",
        "see how nodes reach the registry: its name, network, proxy and certificate",
    ),
)
_CONFIGURATION = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One finding; ``final`` if it won't pass by itself."""

    failure: Failure
    final: bool = False


def trouble_of(pods: Sequence[Mapping[str, Any]], *, refused: str | None = None) -> Trouble | None:
    """Return what most keeps a Ray cluster's pods from running, or None.

    ``refused`` is KubeRay's message on pods that it could not even make.
    """
    found = [trouble for pod in sorted(pods, key=_rank) for trouble in _of_pod(pod)]
    final = [trouble for trouble in found if trouble.final]
    if final:
        return final[0]
    if refused:
        return Trouble(failure=_refused(refused))
    blocking = [trouble for trouble in found if trouble.failure.reason not in _PROGRESS]
    return next(iter(blocking or found), None)


_PROGRESS = frozenset({Reason.FETCHING_WEIGHTS, Reason.WAITING_FOR_HEAD, Reason.WAITING_FOR_NODE})


def pull_of(pods: Sequence[Mapping[str, Any]], *, told: PullStatus | None) -> PullStatus | None:
    """Return since when pods have been fetching weights, and how far the slowest is if one has ``told``."""
    begun = [str(running["startedAt"]) for pod in pods if "startedAt" in (running := _fetching(pod))]
    if not begun:
        return None
    since = PullStatus(started_at=min(begun))
    return told.model_copy(update={"started_at": since.started_at}) if told is not None else since


def fetching_at(pods: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the addresses of pods whose weights are being fetched."""
    addresses = {str(pod["status"].get("podIP") or "") for pod in pods if _fetching(pod)}
    return frozenset(addresses - {""})


def _fetching(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what Kubernetes says of a container that runs to fetch weights, nothing if none does."""
    for container in (pod.get("status") or {}).get("initContainerStatuses") or ():
        if container.get("name") == WEIGHTS_CONTAINER:
            return (container.get("state") or {}).get("running") or {}
    return {}


def cache_flaw_of(pods: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return reason and message of what pods found wrong with their cache of weights, damage first."""
    in_order = sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
    receipts = [(pod["metadata"]["name"], receipt) for pod in in_order if (receipt := _receipt_of(pod))]
    for name, receipt in receipts:
        if replaced := receipt.get("cacheReplaced"):
            return (
                Reason.CACHE_DAMAGED,
                f"{replaced} files on the claim of spec.cache were not as they were signed; pod {name} threw them out "
                "and fetched them again, and none of them reached its engine. See who may write to the claim; "
                f"`kubectl logs {name} -c {WEIGHTS_CONTAINER}` names the files",
            )
    for name, receipt in receipts:
        if problem := receipt.get("cacheProblem"):
            return (
                Reason.CACHE_NOT_USED,
                f"pod {name} left the claim of spec.cache aside and fetched the weights from their source: "
                f"{str(problem)[:LONGEST]}",
            )
    return None


def images_of(pods: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the images that engines run, by their digests as nodes tell them, each once."""
    told = {
        str(container["imageID"]).removeprefix("docker-pullable://")
        for pod in pods
        for container in (pod.get("status") or {}).get("containerStatuses") or ()
        if container.get("name") == ENGINE_CONTAINER and container.get("imageID")
    }
    return tuple(sorted(told))


def advice_on(refusal: str) -> str:
    """Return what to do about the API server's words when it refuses an object."""
    known = (advice for pattern, advice in _REFUSALS if re.search(pattern, refusal))
    return next(known, "see the events of the RayService and its RayCluster")


def _of_pod(pod: Mapping[str, Any]) -> Iterator[Trouble]:
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    if status.get("phase") == "Failed" and status.get("reason"):
        yield Trouble(failure=_pod_failed(name, status))
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield Trouble(failure=_unscheduled(pod, str(condition.get("message") or "")))
        unready = condition.get("type") == "PodReadyToStartContainers" and condition.get("status") == "False"
        if unready and status.get("phase") == "Pending":
            yield Trouble(failure=_not_set_up(name, status))
    if is_lost(pod):
        yield Trouble(
            failure=Failure(
                reason=Reason.NODE_LOST,
                message=f"the node of pod {name} does not answer: wait for it, or delete the pod",
            )
        )
    for container in status.get("initContainerStatuses") or ():
        yield from _of_init_container(name, container)
    for container in status.get("containerStatuses") or ():
        yield from _of_container(name, container)


def _not_set_up(pod: str, status: Mapping[str, Any]) -> Failure:
    """What keeps a node from beginning is told by events alone, which nobody but the node's kubelet writes."""
    node = f"node {status['hostIP']}" if status.get("hostIP") else "its node"
    return Failure(
        reason=Reason.WAITING_FOR_NODE,
        message=f"pod {pod} waits for {node} to set it up; if that lasts, see the pod's events: network, volumes (a "
        "claim that is ReadWriteOnce is on one node at a time, and a file server may not answer), or a runtime class "
        "that the node does not know",
    )


def _of_init_container(pod: str, container: Mapping[str, Any]) -> Iterator[Trouble]:
    yield from _waiting(pod, container)
    state = container.get("state") or {}
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    if ended is not None and ended.get("exitCode"):
        again = int(container.get("restartCount") or 0)
        if container.get("name") == WEIGHTS_CONTAINER:
            yield _not_fetched(ended, again)
        else:
            yield Trouble(failure=_died(pod, container, ended), final=again >= _PATIENCE)
    elif "running" in state and container.get("name") == WEIGHTS_CONTAINER:
        told = f"{FETCHING.message}; `kubectl logs {pod} -c {WEIGHTS_CONTAINER}` says how far"
        yield Trouble(failure=Failure(reason=FETCHING.reason, message=told))
    elif "running" in state and container.get("name") == _GCS_CONTAINER:
        yield _waits_for_head(pod)


def _of_container(pod: str, container: Mapping[str, Any]) -> Iterator[Trouble]:
    yield from _waiting(pod, container)
    state = container.get("state") or {}
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    restarts = int(container.get("restartCount") or 0)
    if ended is None or container.get("ready") or not (ended.get("exitCode") or ended.get("reason") == "Error"):
        return
    if _HEADLESS in str(ended.get("message") or ""):
        # The head's GCS answers before the head has joined it. What keeps the head is told of the head.
        yield _waits_for_head(pod)
    else:
        yield Trouble(failure=_died(pod, container, ended), final=restarts >= _PATIENCE)


def _waits_for_head(pod: str) -> Trouble:
    message = f"pod {pod} waits for the Ray cluster's head"
    return Trouble(failure=Failure(reason=Reason.WAITING_FOR_HEAD, message=message))


def _waiting(pod: str, container: Mapping[str, Any]) -> Iterator[Trouble]:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    if reason in _IMAGE:
        yield Trouble(
            failure=Failure(
                reason=Reason.IMAGE_PULL_FAILED,
                message=f"image {container.get('image')} of pod {pod} {_IMAGE[reason]}{_because(message)}: "
                f"{_image_advice(message)}",
            ),
            final=reason == "InvalidImageName",
        )
    elif reason in _CONFIGURATION:
        yield Trouble(
            failure=Failure(
                reason=Reason.CONTAINER_REFUSED,
                message=f"container {container.get('name')} of pod {pod} can't be started{_because(message)}: "
                f"{_container_advice(message)}",
            )
        )


def _image_advice(message: str) -> str:
    known = (advice for pattern, advice in _IMAGE_ADVICE if re.search(pattern, message, re.IGNORECASE))
    return next(known, "an administrator corrects kubeRay.image or kubeRay.imagePullSecrets")


def _receipt_of(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for container in (pod.get("status") or {}).get("initContainerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        if container.get("name") == WEIGHTS_CONTAINER and ended.get("exitCode") == 0:
            try:
                receipt = json.loads(str(ended.get("message") or ""))["receipt"]
            except (ValueError, KeyError, TypeError):
                return None
            return receipt if isinstance(receipt, dict) else None
    return None


def _not_fetched(ended: Mapping[str, Any], restarts: int) -> Trouble:
    message = str(ended.get("message") or "")
    try:
        error = json.loads(message)["error"]
        failure = Failure(reason=str(error["reason"]), message=str(error["message"])[:LONGEST])
        return Trouble(failure=failure, final=not error.get("retryable") or restarts >= _PATIENCE)
    except (ValueError, KeyError, TypeError):
        pass
    if ended.get("reason") == "OOMKilled" or ended.get("exitCode") == _KILLED:
        text = "the container that fetches weights was killed for its memory: tell the project, for it streams"
    else:
        text = (
            f"the container that fetches weights ended with code {ended.get('exitCode')}{_because(last_line(message))}"
        )
    return Trouble(failure=Failure(reason=Reason.WEIGHTS_NOT_FETCHED, message=text), final=restarts >= _PATIENCE)


def _died(pod: str, container: Mapping[str, Any], ended: Mapping[str, Any]) -> Failure:
    name, message = container.get("name"), str(ended.get("message") or "")
    if ended.get("reason") == "OOMKilled" or ended.get("exitCode") == _KILLED:
        field = "spec.pod.resources.memory" if name != "ray-head" else "kubeRay.headMemory (an administrator's setting)"
        return Failure(
            reason=Reason.OUT_OF_MEMORY,
            message=f"container {name} of pod {pod} was killed for its memory: raise {field}",
        )
    if (known := translated(message)) is not None:
        return known
    if ended.get("exitCode") in (126, 127):
        return Failure(
            reason=Reason.IMAGE_INCOMPLETE,
            message=f"container {name} of pod {pod} has no program to start{_because(last_line(message))}: an "
            "administrator corrects kubeRay.image",
        )
    return Failure(
        reason=Reason.ENGINE_CRASHED,
        message=f"container {name} of pod {pod} ended with code {ended.get('exitCode')}{_because(last_line(message))}: "
        "look at the pod's log",
    )


def _unscheduled(pod: Mapping[str, Any], message: str) -> Failure:
    known = _SCHEDULING if is_worker(pod) else (*_SCHEDULING_OF_HEADS, *_SCHEDULING)
    advice = _advice_on_missing_claim(pod, message) or next(
        (advice for pattern, advice in known if re.search(pattern, message)), "free capacity or add nodes"
    )
    lacking = sorted(set(re.findall(r"Insufficient ([\w./-]*\w)", message)))
    what = f" for want of {', '.join(lacking)}" if lacking else ""
    name = pod["metadata"]["name"]
    return Failure(
        reason=Reason.UNSCHEDULABLE, message=f"pod {name} finds no node{what}{_because(message, ' (')}: {advice}"
    )


def _advice_on_missing_claim(pod: Mapping[str, Any], message: str) -> str | None:
    missing = re.search(r'persistentvolumeclaim "([^"]*)" not found', message)
    if missing is None:
        return None
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    claims = {each["name"]: (each.get("persistentVolumeClaim") or {}).get("claimName") for each in volumes}
    if claims.get(SOURCE_VOLUME) == missing[1]:
        return (
            "make the claim in the deployment's namespace, with the folder that spec.model.uri names (it is this claim "
            "by an administrator's kubeRay.fileRoots), or correct spec.model.uri"
        )
    return "make the claim that spec.cache names, in the deployment's namespace, or remove spec.cache"


_SCHEDULING_OF_HEADS = (
    (
        r"Insufficient (memory|cpu)",
        "add nodes (a head needs no accelerator), or an administrator lowers kubeRay.headMemory or kubeRay.headCpu",
    ),
    (
        r"untolerated taint\(?s?\)? \{(?!node\.kubernetes\.io/)",
        "add nodes without the taint (a head needs no accelerator), or an administrator lists it in "
        "kubeRay.headTolerations",
    ),
    (
        r"didn't match Pod's node (affinity|selector)",
        "no node has the labels of kubeRay.headNodeSelector: an administrator corrects it or labels nodes",
    ),
)
"""Users choose nothing of heads, so advice that names what they choose is of no use there."""

_SCHEDULING = (
    (r"Insufficient (nvidia\.com|amd\.com)/", "free accelerators, add nodes, or lower spec.parallelism.tensor"),
    (r"Insufficient memory", "lower spec.pod.resources.memory or add nodes"),
    (r"Insufficient cpu", "lower spec.pod.resources.cpu or add nodes"),
    (r"Insufficient ephemeral-storage", "add nodes with more local storage"),
    (
        r"untolerated taint\(?s?\)? \{node\.kubernetes\.io/",
        "nodes are not well, as the taint says: wait for them, look at them, or add others",
    ),
    (r"untolerated taint \{", "tolerate the taint in spec.pod.tolerations, or use other nodes"),
    (  # from Kubernetes 1.36 on the scheduler names no taint
        r"untolerated taint",
        "see the nodes' taints (kubectl describe nodes): tolerate them in spec.pod.tolerations (of a head, an "
        "administrator in kubeRay.headTolerations), use other nodes, or look at nodes that are not well "
        "(node.kubernetes.io/…)",
    ),
    (
        r"didn't match Pod's node (affinity|selector)",
        "no node has the labels of spec.pod.nodeSelector and spec.accelerator.product: correct them or label nodes",
    ),
    (r"were unschedulable", "nodes are cordoned: uncordon them or add others"),
    (r"anti-affinity|affinity rules|topology spread", "add nodes: those there are hold such a pod already"),
    (r"Too many pods|no nodes available", "add nodes"),
    (
        r"ReadWriteOncePod",
        "the claim of spec.cache, or of spec.model.uri's folder, serves one pod: make it ReadWriteMany, or do without",
    ),
    (
        r"PersistentVolumeClaim|unbound|volume",
        "a volume is not there: see the namespace's claims and storage classes",
    ),
    (r"gated", "something holds the pod back with a scheduling gate: see who set it"),
)


def _pod_failed(pod: str, status: Mapping[str, Any]) -> Failure:
    reason, message = str(status["reason"]), str(status.get("message") or "")
    if reason == "Evicted":
        field = "kubeRay.weightsSizeLimit or kubeRay.cacheSizeLimit" if "storage" in message else "spec.pod.resources"
        return Failure(
            reason=Reason.POD_EVICTED,
            message=f"pod {pod} was evicted{_because(message)}: raise {field}, or free the node",
        )
    if reason == "Preempting":
        return Failure(
            reason=Reason.POD_EVICTED,
            message=f"pod {pod} made room for a more important one{_because(message)}: add nodes, or raise "
            "spec.pod.priorityClassName",
        )
    if reason in {"Terminated", "NodeShutdown"}:
        return Failure(
            reason=Reason.NODE_LOST,
            message=f"the node of pod {pod} shuts down{_because(message)}: another pod takes its place",
        )
    if reason == "NodeLost":
        return Failure(reason=Reason.NODE_LOST, message=f"the node of pod {pod} is gone: another pod takes its place")
    if reason in {"UnexpectedAdmissionError", "NodeAffinity"} or reason.startswith("OutOf"):
        return Failure(
            reason=Reason.UNSCHEDULABLE,
            message=f"the node refused pod {pod}{_because(message)}: check its device plugin and what else runs there",
        )
    return Failure(reason=Reason.POD_EVICTED, message=f"pod {pod} was ended ({reason}){_because(message)}: see why")


def _refused(message: str) -> Failure:
    return Failure(reason=Reason.PODS_REFUSED, message=f"no pod could be made{_because(message)}: {advice_on(message)}")


_REFUSALS = (
    (r"cannot \w+ resource", "an administrator grants the operator its role for KubeRay (docs/rbac.md)"),
    (
        r"error looking up service account",
        "an administrator makes this ServiceAccount, or corrects kubeRay.workloadIdentities",
    ),
    (r"exceeded quota", "lower spec.scaling.maxReplicas, or ask for a larger quota of the namespace"),
    (r"violates PodSecurity", "tell the project: its pods are meant to fit `restricted`"),
    (r"no PriorityClass", "correct spec.pod.priorityClassName"),
    (r"RuntimeClass", "correct spec.pod.runtimeClassName"),
    (r"LimitRange|maximum (cpu|memory)|minimum (cpu|memory)", "fit spec.pod.resources to the namespace's LimitRange"),
    (r"denied (the )?request", "an admission policy of the cluster is against it: ask its owner"),
)


def _container_advice(message: str) -> str:
    if re.search(r"secret|configmap", message, re.IGNORECASE):
        return "the operator makes it anew with the next start; see who deleted it"
    if "runAsNonRoot" in message or "non-root" in message:
        return "the image runs as root: an administrator corrects kubeRay.image or kubeRay.runAsUser"
    if re.search(r"nvidia|device|runtime", message, re.IGNORECASE):
        return "check the node's driver and spec.pod.runtimeClassName"
    return "see the pod's events"


def _because(message: str, before: str = " (") -> str:
    text = " ".join(message.split())[:LONGEST].rstrip(".")
    return f"{before}{text})" if text else ""


def _rank(pod: Mapping[str, Any]) -> tuple[bool, str]:
    return not is_worker(pod), pod["metadata"]["name"]
