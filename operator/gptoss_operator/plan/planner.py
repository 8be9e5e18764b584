"""The one entrance: an observation goes in, a frozen plan comes out."""

from dataclasses import dataclass, replace

from gptoss_api.conditions import ConditionType, Reason
from gptoss_api.deployment_status import GptOssDeploymentStatus
from gptoss_operator.plan.applications import Keep, Present, Wish
from gptoss_operator.plan.lifecycle import decide
from gptoss_operator.plan.observation import Memory, Observation, Site, Trusted
from gptoss_operator.plan.rayservice.render import gateway_tokens
from gptoss_operator.plan.status import status_for
from gptoss_operator.plan.verdict import Phase, Verdict, phase_of


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Tell the cluster's key what this deployment wants."""

    cluster: str
    wish: Wish


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened, for `kubectl describe`."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do for one deployment.

    Attributes:
        actions: in this order, after the status was written.
        status: the new status, None if it is as it should be.
        events: to be told.
        requeue_after: seconds after which time alone may ask for another look.
        memory: to be handed in next time.
        starting: it holds one of the permitted starts.
        queued: it waits for one.
        timings: wake stages that ended, with their seconds.
        woke_seconds: seconds of a wake that ended.
    """

    actions: tuple[Ask, ...]
    status: GptOssDeploymentStatus | None
    events: tuple[Event, ...]
    requeue_after: float | None
    memory: Memory
    starting: bool
    queued: bool
    timings: tuple[tuple[str, float], ...] = ()
    woke_seconds: float | None = None


def plan(observed: Observation, memory: Memory | None, site: Site, *, asked: Wish | None = None) -> Plan:
    """Plan for one deployment. ``asked`` is the wish that the cluster's key knows already."""
    verdict = decide(observed, memory, site)
    status = None if observed.deployment.deleting else status_for(observed, verdict, site)
    wish = _known_to_gateways(verdict, observed, site)
    asks = (Ask(cluster=observed.placement.cluster, wish=wish),) if observed.placement.cluster else ()
    return Plan(
        actions=tuple(ask for ask in asks if ask.wish != asked),
        status=status if status != observed.status else None,
        events=_events(observed, verdict),
        requeue_after=verdict.look_again,
        memory=verdict.memory,
        starting=verdict.phase is Phase.STARTING and isinstance(verdict.wish, Present) and verdict.stall is None,
        queued=verdict.queued,
        timings=verdict.timings,
        woke_seconds=verdict.woke_seconds,
    )


def _known_to_gateways(verdict: Verdict, observed: Observation, site: Site) -> Wish:
    """Return the wish, with gateways' tokens of now for what runs on by itself.

    Gateways' tokens change whatever becomes of a deployment: an engine that is only kept must know them too.
    """
    wish, deployment = verdict.wish, observed.deployment
    if site.kube_ray is None or verdict.paused:
        return wish
    if isinstance(wish, Keep) or (isinstance(wish, Present) and wish.rendered is None):
        tokens = gateway_tokens(
            site.kube_ray, namespace=deployment.namespace, deployment=deployment.name, uid=deployment.uid
        )
        return replace(wish, gateway_tokens=tokens)
    return wish


def _why_it_starts(observed: Observation, before: Phase) -> str:
    if before is not Phase.IDLE:
        return "The engine starts."
    if observed.floor.replicas > observed.deployment.spec.scaling.min_replicas:
        return f"The schedule {', '.join(observed.floor.schedules)} is open; the engine starts."
    return "Demand was seen; the engine starts."


def _trust_news(observed: Observation, verdict: Verdict) -> Event | None:
    """Tell once that what runs was revoked, and that a signer is waived."""
    told = {(each.type, each.status, each.reason) for each in observed.status.conditions}
    revoked = verdict.revoked
    if revoked is not None:
        known = (ConditionType.REVOKED, "True", revoked.reason) in told
        return None if known else Event(type="Warning", reason=revoked.reason, message=revoked.message)
    if isinstance(observed.trust, Trusted) and observed.trust.waived is not None:
        known = (ConditionType.WEIGHTS_VERIFIED, "False", Reason.SIGNER_WAIVED) in told
        message = f"Mode Audit waives the signer: {observed.trust.waived}"
        return None if known else Event(type="Warning", reason=Reason.SIGNER_WAIVED, message=message)
    return None


def _events(observed: Observation, verdict: Verdict) -> tuple[Event, ...]:
    before = phase_of(observed.status)
    if verdict.paused or observed.deployment.deleting:
        return ()
    if verdict.woke_seconds is not None:
        return (
            Event(type="Normal", reason="Woke", message=f"The engine answered after {verdict.woke_seconds:.1f} s."),
        )
    if verdict.stall is not None:
        told = {(each.type, each.reason) for each in observed.status.conditions if each.status == "True"}
        known = ("Stalled", verdict.stall.reason) in told and before in {Phase.FAILED, Phase.STARTING}
        return () if known else (Event(type="Warning", reason=verdict.stall.detail, message=verdict.stall.message),)
    news = _trust_news(observed, verdict)
    if news is not None:
        return (news,)
    if verdict.phase is before:
        return ()
    match verdict.phase:
        case Phase.STARTING:
            message = _why_it_starts(observed, before)
            return (Event(type="Normal", reason="Waking" if before is Phase.IDLE else "Starting", message=message),)
        case Phase.SERVING if before is not Phase.DRAINING:
            return (Event(type="Normal", reason="Serving", message="The engine answers."),)
        case Phase.IDLE:
            return (Event(type="Normal", reason="Idle", message="The model went to sleep."),)
        case Phase.SUSPENDED:
            return (Event(type="Normal", reason="Suspended", message="spec.suspend is true."),)
        case _:
            return ()
