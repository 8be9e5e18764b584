"""What was decided on a deployment, and how the last decision is read back from its status."""

from dataclasses import dataclass
from enum import StrEnum

from gptoss_api.conditions import ConditionType, Reason, TrustReason
from gptoss_api.deployment_status import GptOssDeploymentStatus
from gptoss_operator.plan.applications import Wish
from gptoss_operator.plan.arguments import Wanted
from gptoss_operator.plan.fit import Finding
from gptoss_operator.plan.observation import Memory, Revocation

OF_WEIGHTS = frozenset(TrustReason)
"""Reasons that speak of weights; a node may give others."""


class Phase(StrEnum):
    """Where a deployment stands."""

    NEW = "New"
    STARTING = "Starting"
    SERVING = "Serving"
    DRAINING = "Draining"
    IDLE = "Idle"
    SUSPENDED = "Suspended"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class Stall:
    """Why it can't go on. ``reason`` is Stalled's, ``detail`` Ready's; ``weights`` if a node refused them."""

    reason: str
    detail: str
    message: str
    weights: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided.

    Attributes:
        phase: the new phase.
        wish: what is asked of the Ray cluster.
        wanted: the application behind the wish, where it is known.
        memory: what to remember.
        proved_generation: last generation that has answered.
        drain_epoch: number of the last drain.
        stall: why it can't go on.
        revoked: why the weights that run, or ran last, are denied.
        fit: whether it fits the cluster's accelerators, None while they were not looked at.
        failed_source: fingerprint of the source that a start failed with.
        last_retry: retry annotation that was acted on.
        last_wake: wake annotation that was acted on.
        paused: nothing but the status is written.
        queued: it waits for other starts to finish.
        unheeded: what is left of it was not told to go, for too long.
        timings: wake stages that ended now, with their seconds.
        woke_seconds: seconds of a wake that ended now.
        look_again: seconds until time alone may change the decision.
    """

    phase: Phase
    wish: Wish
    memory: Memory
    wanted: Wanted | None = None
    proved_generation: int | None = None
    drain_epoch: int | None = None
    stall: Stall | None = None
    revoked: Revocation | None = None
    fit: Finding | None = None
    failed_source: str | None = None
    last_retry: str | None = None
    last_wake: str | None = None
    paused: bool = False
    queued: bool = False
    unheeded: bool = False
    timings: tuple[tuple[str, float], ...] = ()
    woke_seconds: float | None = None
    look_again: float | None = None


def phase_of(status: GptOssDeploymentStatus) -> Phase:
    """Read the phase back from the conditions."""
    conditions = {condition.type: condition for condition in status.conditions}
    stalled = conditions.get(ConditionType.STALLED)
    if stalled is not None and stalled.status == "True":
        # A conflict on the Ray cluster may resolve itself any moment: the wish stands.
        return Phase.STARTING if stalled.reason == Reason.ROUTE_CONFLICT else Phase.FAILED
    zero = conditions.get(ConditionType.SCALED_TO_ZERO)
    return _PHASES.get(zero.reason, Phase.NEW) if zero is not None else Phase.NEW


_PHASES: dict[str, Phase] = {
    Reason.SERVING: Phase.SERVING,
    Reason.DRAINING: Phase.DRAINING,
    Reason.WAKING: Phase.STARTING,
    Reason.IDLE: Phase.IDLE,
    Reason.SUSPENDED: Phase.SUSPENDED,
}


def written_stall(status: GptOssDeploymentStatus) -> Stall | None:
    """Read back why it could not go on."""
    conditions = {condition.type: condition for condition in status.conditions}
    stalled = conditions.get(ConditionType.STALLED)
    if stalled is None or stalled.status != "True":
        return None
    ready = conditions.get(ConditionType.READY)
    return Stall(
        reason=stalled.reason,
        detail=ready.reason if ready is not None else stalled.reason,
        message=stalled.message,
        weights=status.failed_source is not None
        or (stalled.reason == Reason.ENGINE_FAILED and ready is not None and ready.reason in OF_WEIGHTS),
    )
