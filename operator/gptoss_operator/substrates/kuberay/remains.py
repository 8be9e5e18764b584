"""What is left of pods that are not wanted any more, and what they wait for. Pure: raw pods go in."""

from collections.abc import Sequence

from gptoss_api.conditions import Reason
from gptoss_operator.plan.observation import Failure, Remains
from gptoss_operator.plan.rayservice.pods import GRACE_SECONDS
from gptoss_operator.plan.rayservice.workload import Raw
from gptoss_operator.substrates.kuberay.traits import is_lost, stays

_OVER = {"Succeeded", "Failed"}


def remaining(pods: Sequence[Raw]) -> Failure | None:
    """Return which pod of a Ray cluster that was taken away still holds what it was given, None if none does."""
    names = sorted((not is_lost(pod), pod["metadata"]["name"]) for pod in pods)
    if not names:
        return None
    answers, name = names[0]
    why = (
        f"it may finish its requests first, for at most {GRACE_SECONDS} s"
        if answers
        else "its node does not answer: wait for the node; where it is gone for good, an administrator deletes it"
    )
    return Failure(
        reason=Reason.WAITING_FOR_PODS,
        message=f"pod {name} of the Ray cluster before still holds what it was given, and {why}",
    )


def remains_of(pods: Sequence[Raw], *, cluster_left: bool) -> Remains | None:
    """Return what is left of a deployment that is to have no pods, None if nothing is.

    Args:
        pods: of the deployment, of whichever Ray cluster.
        cluster_left: KubeRay has not taken its Ray cluster away: it has told nobody to go, and may make pods anew.
    """
    holding = holding_of(pods)
    untold = [pod for pod in holding if stays(pod)]
    if not cluster_left and not holding:
        return None
    unheeded = None
    if untold or not holding:
        unheeded = _of_kuberay(len(holding)) if cluster_left else _of_the_collector(untold)
    return Remains(waiting=_waiting(holding), unheeded=unheeded)


def holding_of(pods: Sequence[Raw]) -> list[Raw]:
    """Return the pods that hold what they were given, which those that are over do not."""
    return [pod for pod in pods if (pod.get("status") or {}).get("phase") not in _OVER]


def _waiting(pods: Sequence[Raw]) -> Failure:
    if not pods:
        return Failure(reason=Reason.WAITING_FOR_PODS, message="KubeRay has yet to take the Ray cluster away")
    lost = sorted(str(pod["metadata"]["name"]) for pod in pods if is_lost(pod))
    why = (
        f"the node of pod {lost[0]} does not answer: wait for the node; where it is gone for good, an administrator "
        "deletes it"
        if lost
        else f"requests may be finished first, for at most {GRACE_SECONDS} s"
    )
    return Failure(reason=Reason.WAITING_FOR_PODS, message=f"{_still_holds(len(pods))}: {why}")


def _of_kuberay(pods: int) -> Failure:
    held = f", and {_still_holds(pods)}" if pods else ""
    return Failure(
        reason=Reason.WAITING_FOR_KUBERAY,
        message=f"KubeRay has not taken the Ray cluster away, as it was asked to{held}: an administrator looks whether "
        "KubeRay's operator runs and watches this namespace",
    )


def _of_the_collector(untold: Sequence[Raw]) -> Failure:
    name = min(str(pod["metadata"]["name"]) for pod in untold)
    return Failure(
        reason=Reason.WAITING_FOR_PODS,
        message=f"the Ray cluster of pod {name} is gone and nobody has told the pod to go: an administrator looks "
        "whether Kubernetes' garbage collector (kube-controller-manager) works, or deletes the pod",
    )


def _still_holds(pods: int) -> str:
    return "1 pod still holds what it was given" if pods == 1 else f"{pods} pods still hold what they were given"
