"""What a RayService and its pods look like to a plan: the view that the Ray Serve substrate gives too."""

from collections.abc import Iterable, Sequence
from typing import Any

from gptoss_api.conditions import Reason
from gptoss_api.deployment_status import PullStatus
from gptoss_operator.plan.applications import DEPLOY_FAILED
from gptoss_operator.plan.observation import ApplicationView, Failure, Presence
from gptoss_operator.plan.rayservice.workload import Raw
from gptoss_operator.substrates.failures import failure_of
from gptoss_operator.substrates.kuberay.pods import cache_flaw_of, images_of, pull_of, trouble_of
from gptoss_operator.substrates.kuberay.remains import holding_of, remaining, remains_of
from gptoss_operator.substrates.kuberay.seen import SeenRayService
from gptoss_operator.substrates.kuberay.traits import cluster_of, is_ready, is_worker, revision_of, stays

_Trouble = tuple[str, str] | None


def asleep_view(
    seen: SeenRayService | None, pods: Sequence[Raw], *, trouble: _Trouble, waited_for: bool
) -> ApplicationView:
    """Return the view of a deployment that is not to run. Pods may be left, which the next start has ``waited_for``."""
    return ApplicationView(
        presence=Presence.ABSENT,
        # What it would run when it wakes is told too: it is to be kept if nothing else is wanted.
        deployed=seen.config if seen is not None else None,
        obstacle=remaining(pods) if seen is not None and waited_for else None,
        terminating=_replicas(holding_of(pods), seen),
        remains=remains_of(pods, cluster_left=seen is not None and seen.cluster_left),
        trouble=trouble,
    )


def awake_view(
    seen: SeenRayService,
    pods: Sequence[Raw],
    *,
    leads: str | None,
    given_up: frozenset[str],
    answering: bool | None,
    pull: PullStatus | None,
    trouble: _Trouble,
) -> ApplicationView:
    """Return the view of a deployment that is to run.

    Args:
        seen: its RayService.
        pods: all its pods.
        leads: the Ray cluster that its Service leads to.
        given_up: Ray clusters whose applications no longer count.
        answering: whether its engine answers, None if it was not asked yet.
        pull: how far its slowest pull is, None if no pod tells.
        trouble: why nothing can be done for it now.
    """
    cluster = seen.newest
    current = [pod for pod in pods if cluster_of(pod) == cluster] if cluster else []
    application = {} if cluster in given_up else _application(seen, cluster)
    status = str(application.get("status") or "DEPLOYING")
    told = any(cluster_of(pod) == leads and revision_of(pod) == seen.revision for pod in pods)
    if not told or (leads == cluster and status != "RUNNING" and not answering):
        status = status if status == DEPLOY_FAILED else "DEPLOYING"
    elif leads == cluster and answering:
        status = "RUNNING"  # The engine itself has said so; KubeRay says it some seconds later.
    elif leads != cluster:
        status = status if status == DEPLOY_FAILED else "DEPLOYING"
    failure, obstacle = _trouble(seen, current, application, given_up=cluster in given_up)
    workers = [pod for pod in pods if cluster_of(pod) == (leads or cluster) and is_worker(pod) and stays(pod)]
    # What served before a roll-out stays a while for the streams that it has.
    stand = {leads, seen.active, seen.pending}
    going = [pod for pod in holding_of(pods) if cluster_of(pod) not in stand or not stays(pod)]
    return ApplicationView(
        presence=Presence.PRESENT,
        status=status,
        deployed=seen.config,
        answering=answering,
        failure=failure,
        obstacle=obstacle,
        pull=pull_of(current, told=pull),
        ready=sum(is_ready(pod) for pod in workers) if answering else 0,
        wanted=_replicas(workers, seen),
        terminating=_replicas(going, seen),
        trouble=trouble,
        images=images_of([pod for pod in current if stays(pod) and revision_of(pod) == seen.revision]),
        flaw=cache_flaw_of(workers),
    )


def _trouble(
    seen: SeenRayService, pods: Sequence[Raw], application: Raw, *, given_up: bool
) -> tuple[Failure | None, Failure | None]:
    """Return why the start has failed, and what hinders it now."""
    if application.get("status") == DEPLOY_FAILED and not given_up:
        deployments = application.get("serveDeploymentStatuses") or {}
        return failure_of({"deployments": deployments, "message": application.get("message")}), None
    found = trouble_of([pod for pod in pods if stays(pod)], refused=seen.cluster_trouble)
    if found is not None and found.final and not given_up:
        return found.failure, None
    if found is not None:
        return None, found.failure
    if seen.refused is not None:
        text = f"KubeRay refuses the RayService: {seen.refused}; tell an administrator, for the operator made it"
        return None, Failure(reason=Reason.CONFIGURATION_REFUSED, message=text)
    if not seen.noticed:
        return None, _UNNOTICED
    deaf = not application and not given_up and any(is_ready(pod) for pod in pods if not is_worker(pod))
    return None, _UNTOLD if deaf else None


_UNNOTICED = Failure(
    reason=Reason.WAITING_FOR_KUBERAY,
    message="KubeRay has not taken note of the RayService yet: if that lasts, an administrator looks whether KubeRay's "
    "operator runs and watches this namespace",
)

_UNTOLD = Failure(
    reason=Reason.WAITING_FOR_KUBERAY,
    message="Ray's head is ready, and KubeRay tells nothing of what Ray Serve runs there: if that lasts, an "
    "administrator looks whether KubeRay's operator reaches port 8265 of heads. Where NetworkPolicies are enforced, "
    "kubeRay.network.kuberay says in which namespace and with which labels it runs",
)


def _application(seen: SeenRayService, cluster: str | None) -> dict[str, Any]:
    return dict(next(iter(seen.applications.get(cluster or "", {}).values()), {}))


def _replicas(pods: Iterable[Raw], seen: SeenRayService | None) -> int:
    """Count replicas. The pods of one are one pipeline; of those only the first, with Serve's proxy, is ever ready."""
    arguments = ((seen.config if seen is not None else None) or {}).get("args") or {}
    return -(-sum(map(is_worker, pods)) // int(arguments.get("pipeline") or 1))
