"""From a verdict to the status that people, gateways and GitOps tools read.

docs/troubleshooting.md tells people what each reason means. Messages are deterministic, so that a status
is written only when something changed, and a condition's transition time moves only when its status does.
"""

from datetime import datetime, timedelta

from gptoss_api.conditions import MAX_MESSAGE_LENGTH, ConditionType, Reason
from gptoss_api.deployment_status import (
    Condition,
    Endpoint,
    EngineStatus,
    FitStatus,
    GptOssDeploymentStatus,
    Replicas,
    ScheduleStatus,
    Wake,
    WeightsStatus,
)
from gptoss_operator.plan.applications import Absent, Present, covers
from gptoss_operator.plan.arguments import Wanted
from gptoss_operator.plan.observation import Distrusted, Observation, Presence, Site, Trusted
from gptoss_operator.plan.releasing import left_of
from gptoss_operator.plan.verdict import Phase, Verdict

_Claim = tuple[str, str, str]
"""Status, reason and message of a condition."""

_READY_AT_ZERO = {
    Phase.IDLE: (Reason.IDLE, "The model sleeps and wakes with the first request."),
    Phase.DRAINING: (Reason.DRAINING, "The model has been idle and goes to sleep."),
    Phase.SUSPENDED: (Reason.SUSPENDED, "spec.suspend is true: requests are refused."),
}


def status_for(observed: Observation, verdict: Verdict, site: Site) -> GptOssDeploymentStatus:
    """Return the status that says what was decided."""
    deployment, engine = observed.deployment, _engine(observed, verdict)
    claims = {
        ConditionType.READY: _ready(observed, verdict),
        ConditionType.RECONCILING: _reconciling(observed, verdict),
        ConditionType.STALLED: _stalled(verdict),
        ConditionType.FIT: _fit(observed, verdict),
        ConditionType.WEIGHTS_VERIFIED: _weights_verified(observed, verdict),
        ConditionType.ENGINE_READY: _engine_ready(observed, verdict),
        ConditionType.SCALED_TO_ZERO: _scaled_to_zero(observed, verdict),
        ConditionType.REVOKED: _revoked(observed, verdict),
        ConditionType.DEGRADED: _degraded(observed, verdict, engine),
        ConditionType.NAME_CONFLICT: _name_conflict(observed),
        ConditionType.UPDATE_AVAILABLE: _update_available(observed, verdict),
    }
    conditions = tuple(_condition(observed, name, claim) for name, claim in claims.items())
    return GptOssDeploymentStatus(
        observed_generation=deployment.generation,
        state=str(claims[ConditionType.READY][1]),
        replicas=_replicas(observed),
        endpoint=Endpoint(url=site.gateway_url, model=deployment.served_name) if site.gateway_url else None,
        engine=engine,
        weights=_weights(observed, verdict),
        fit=_estimate(observed, verdict),
        pull=observed.application.pull,
        wake=_wake(observed, verdict),
        schedule=_schedule(observed),
        drain_epoch=verdict.drain_epoch,
        proved_generation=verdict.proved_generation,
        last_retry=verdict.last_retry,
        last_wake=verdict.last_wake,
        failed_source=verdict.failed_source,
        conditions=conditions,
    )


def _ready(observed: Observation, verdict: Verdict) -> _Claim:
    if verdict.stall is not None:
        return "False", verdict.stall.detail, verdict.stall.message
    match verdict.phase:
        case Phase.DRAINING:
            return "True", *_READY_AT_ZERO[Phase.DRAINING]
        case Phase.SUSPENDED:
            return _ready_at_zero(observed, verdict)
        case Phase.IDLE:
            if observed.trust is None and not _settled_before(observed):
                return "Unknown", Reason.PROGRESSING, "The signature of the weights is being checked."
            return _ready_at_zero(observed, verdict)
        case Phase.STARTING if _settled_before(observed):
            return "True", Reason.WAKING, "The engine starts; requests are held until it answers."
        case Phase.SERVING if _proved(observed, verdict):
            if observed.application.answering is False:
                return "False", *_silent(observed)
            if observed.application.presence is Presence.UNKNOWN:
                return "True", Reason.SERVING, "The engine answered when it was last seen."
            return "True", Reason.SERVING, "The engine answers."
        case Phase.NEW if observed.trust is None:
            return "Unknown", Reason.PROGRESSING, "The signature of the weights is being checked."
        case Phase.STARTING | Phase.SERVING if observed.application.obstacle is not None:
            return "Unknown", observed.application.obstacle.reason, _sentence(observed.application.obstacle.message)
        case Phase.STARTING if observed.placement.on_kuberay and observed.application.trouble is not None:
            return "Unknown", *observed.application.trouble
        case _:
            return "Unknown", Reason.PROGRESSING, "This generation has not answered yet."


def _ready_at_zero(observed: Observation, verdict: Verdict) -> _Claim:
    reason, message = _READY_AT_ZERO[verdict.phase]
    left = left_of(verdict, observed)
    return "True", reason, message if left is None else f"{message} {_sentence(left.message)}"


def _reconciling(observed: Observation, verdict: Verdict) -> _Claim:
    if verdict.paused:
        return "False", Reason.PAUSED, "The annotation serving.gptoss.dev/paused stops all writes but this status."
    if verdict.queued:
        return "True", Reason.WAITING_FOR_START, "Other models are starting; this one waits its turn."
    if verdict.stall is None and (
        verdict.phase in {Phase.NEW, Phase.STARTING}
        or (verdict.phase is Phase.SERVING and not _proved(observed, verdict))
    ):
        return "True", Reason.PROGRESSING, "The specification is being brought about."
    return "False", Reason.RECONCILED, ""


def _stalled(verdict: Verdict) -> _Claim:
    if verdict.stall is not None:
        return "True", verdict.stall.reason, verdict.stall.message
    return "False", Reason.NOT_STALLED, ""


def _fit(observed: Observation, verdict: Verdict) -> _Claim:
    if verdict.fit is None:
        kept = _kept(observed, ConditionType.FIT)
        return kept or ("Unknown", Reason.NOT_CHECKED, "The accelerators that it would run on have not been looked at.")
    return verdict.fit.status, verdict.fit.reason, verdict.fit.message


def _estimate(observed: Observation, verdict: Verdict) -> FitStatus | None:
    """As the condition says, so of this generation: what an earlier one took is no answer for it."""
    if verdict.fit is not None:
        return verdict.fit.estimate
    return observed.status.fit if _kept(observed, ConditionType.FIT) is not None else None


def _weights_verified(observed: Observation, verdict: Verdict) -> _Claim:
    if verdict.stall is not None and verdict.stall.weights:
        unsure = verdict.stall.reason == Reason.ENGINE_FAILED
        return "Unknown" if unsure else "False", verdict.stall.detail, verdict.stall.message
    if verdict.revoked is not None:
        return "False", verdict.revoked.reason, verdict.revoked.message
    match observed.trust:
        case Distrusted(reason=reason, message=message, retryable=retryable):
            return "Unknown" if retryable else "False", reason, message
        case Trusted(doubt=Distrusted(reason=reason, message=message)):
            return "Unknown", reason, message
        case Trusted(manifest_digest=digest, waived=str(waived)):
            return (
                "False",
                Reason.SIGNER_WAIVED,
                f"Mode Audit waives the signer of manifest {digest}: {waived}; nodes verify the bytes against it.",
            )
        case Trusted(manifest_digest=digest, authority=authority, policy=policy):
            signed = f"Authority {authority} of WeightTrustPolicy {policy} signed manifest {digest}"
            if verdict.phase in {Phase.SERVING, Phase.DRAINING} and _runs(observed, digest):
                return "True", Reason.VERIFIED, f"{signed}; every node verified the bytes before the engine started."
            return "True", Reason.SIGNATURE_VERIFIED, f"{signed}; nodes verify the bytes before an engine starts."
        case _:
            kept = _kept(observed, ConditionType.WEIGHTS_VERIFIED)
            return kept or ("Unknown", Reason.NOT_CHECKED, "The signature of the weights is being checked.")


def _engine_ready(observed: Observation, verdict: Verdict) -> _Claim:
    application = observed.application
    if application.presence is Presence.UNKNOWN:
        kept = _kept(observed, ConditionType.ENGINE_READY)
        return kept or ("Unknown", Reason.NOT_PROVED, "The Ray cluster has not been seen yet.")
    present = application.presence is Presence.PRESENT
    if present and isinstance(verdict.wish, Absent):
        return "False", Reason.STOPPED, "The engine is being stopped."
    if present and application.answering and verdict.phase not in {Phase.IDLE, Phase.SUSPENDED}:
        return "True", Reason.ANSWERING, ""
    match verdict.phase:
        case Phase.STARTING | Phase.NEW if application.obstacle is not None:
            return "False", application.obstacle.reason, _sentence(application.obstacle.message)
        case Phase.STARTING | Phase.NEW:
            return "False", Reason.STARTING, "The engine has not answered yet."
        case Phase.SERVING | Phase.DRAINING:
            if application.answering is None:
                kept = _kept(observed, ConditionType.ENGINE_READY)
                return kept or ("Unknown", Reason.NOT_PROVED, "The engine has not been asked yet.")
            return "False", *_silent(observed)
        case Phase.IDLE if not _proved(observed, verdict):
            return "Unknown", Reason.NOT_PROVED, "This generation has not been started yet."
        case _:
            left = left_of(verdict, observed)
            if left is not None:
                return "False", left.reason, _sentence(left.message)
            return "False", Reason.STOPPED, "No engine runs."


def _silent(observed: Observation) -> tuple[str, str]:
    """Return reason and message of an engine that served and does not answer: what befell its pods, if that is told."""
    obstacle = observed.application.obstacle
    if obstacle is None:
        return Reason.NOT_ANSWERING, "The engine does not answer its API."
    return obstacle.reason, _sentence(obstacle.message)


def _scaled_to_zero(observed: Observation, verdict: Verdict) -> _Claim:
    match verdict.phase:
        case Phase.IDLE:
            return _at_zero(observed, verdict, Reason.IDLE, _scheduled_wake(observed))
        case Phase.SUSPENDED:
            return _at_zero(observed, verdict, Reason.SUSPENDED, "")
        case Phase.DRAINING:
            return "False", Reason.DRAINING, f"Gateways hold new requests for drain {verdict.drain_epoch}."
        case Phase.SERVING:
            return "False", Reason.SERVING, _why_awake(observed)
        case Phase.FAILED:
            stays = not isinstance(verdict.wish, Absent)
            if observed.application.presence is Presence.PRESENT and observed.application.answering and stays:
                return "False", Reason.SERVING, "What ran before still serves."
            return _at_zero(observed, verdict, Reason.IDLE, "No engine runs.")
        case Phase.STARTING:
            return "False", Reason.WAKING, ""
        case Phase.NEW:
            return "Unknown", Reason.PROGRESSING, "Nothing has been decided yet."


def _at_zero(observed: Observation, verdict: Verdict, reason: Reason, message: str) -> _Claim:
    """Zero is wanted; it is reached once nothing is left that holds accelerators."""
    left, presence = left_of(verdict, observed), observed.application.presence
    if left is not None:
        return "False", reason, _sentence(left.message)
    if presence is Presence.PRESENT:
        stays = not isinstance(verdict.wish, Absent)
        return "False", reason, "What ran before is still there." if stays else "The engine is being stopped."
    before = _kept(observed, ConditionType.SCALED_TO_ZERO)
    if presence is Presence.UNKNOWN and before is not None and before[:2] == ("False", reason):
        return before
    return "True", reason, message


def _why_awake(observed: Observation) -> str:
    floor, scaling = observed.floor, observed.deployment.spec.scaling
    if floor.replicas > scaling.min_replicas:
        until = f" until {_moment(floor.changes_at)}" if floor.changes_at is not None else ""
        return f"The schedule {', '.join(floor.schedules)} keeps {floor.replicas} up{until}."
    if scaling.min_replicas > 0:
        return f"spec.scaling.minReplicas keeps {scaling.min_replicas} up."
    if not observed.demand.known:
        return "No gateway reports: demand is unknown, and what is unknown is not put to sleep."
    return f"It sleeps after {scaling.idle_seconds} s without a request (spec.scaling.idleSeconds)."


def _scheduled_wake(observed: Observation) -> str:
    floor = observed.floor
    return f"A schedule wakes it at {_moment(floor.changes_at)}." if floor.changes_at is not None and floor.then else ""


def _schedule(observed: Observation) -> ScheduleStatus | None:
    floor = observed.floor
    if not observed.deployment.spec.scaling.schedules:
        return None
    return ScheduleStatus(
        min_replicas=floor.replicas,
        open=floor.schedules,
        next_change=_moment(floor.changes_at) if floor.changes_at is not None else None,
        next_min_replicas=floor.then,
    )


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _revoked(observed: Observation, verdict: Verdict) -> _Claim:
    revoked = verdict.revoked
    if revoked is None:
        return "False", Reason.NOT_REVOKED, ""
    if observed.application.presence is not Presence.PRESENT:
        effect = "nothing runs with it, and nothing starts with it"
    elif isinstance(verdict.wish, Absent):
        effect = "what runs is stopped as soon as its requests are finished"
    else:
        effect = "onRevoked is KeepRunning: what runs goes on, no replica is added, and asleep it will not wake"
    return "True", revoked.reason, f"{revoked.message}; {effect}."


def _degraded(observed: Observation, verdict: Verdict, engine: EngineStatus | None) -> _Claim:
    left = left_of(verdict, observed) if verdict.unheeded else None
    unheeded = (left.reason, _sentence(left.message)) if left is not None else None
    application = observed.application
    trouble = application.trouble or unheeded or application.flaw or _other_image(application.images, engine)
    return ("True", *trouble) if trouble is not None else ("False", Reason.HEALTHY, "")


def _other_image(images: tuple[str, ...], engine: EngineStatus | None) -> tuple[str, str] | None:
    others = [each for each in images if engine is not None and engine.image not in {None, each}]
    if not others or engine is None:
        return None
    return (
        Reason.IMAGE_CHANGED,
        f"Replicas run {others[0]}, and this generation was started with {engine.image}: kubeRay.image's tag means "
        "another image than it did. An administrator names it by digest; the next change of the specification makes "
        "all replicas alike.",
    )


def _name_conflict(observed: Observation) -> _Claim:
    if observed.rivals:
        name = observed.deployment.served_name
        return (
            "True",
            Reason.NAME_TAKEN,
            f"{', '.join(observed.rivals)} also claim the name {name}, so it resolves to none of them; change "
            f"spec.model.servedName, or ask for {observed.deployment.qualified_name}",
        )
    return "False", Reason.NAME_UNIQUE, ""


def _update_available(observed: Observation, verdict: Verdict) -> _Claim:
    if verdict.wanted is None:
        kept = _kept(observed, ConditionType.UPDATE_AVAILABLE)
        return kept or ("Unknown", Reason.NOT_CHECKED, "")
    if verdict.wanted.newer:
        message = f"The next change of the specification also brings {' and '.join(verdict.wanted.newer)}."
        return "True", Reason.NEWER_SETTINGS, message
    return "False", Reason.UP_TO_DATE, ""


def _condition(observed: Observation, name: ConditionType, claim: _Claim) -> Condition:
    status, reason, message = claim
    before = next((each for each in observed.status.conditions if each.type == name), None)
    moved = before is None or before.status != status
    return Condition(
        type=str(name),
        status=status,
        reason=str(reason),
        message=_cut(message),
        last_transition_time=observed.wall if moved or before is None else before.last_transition_time,
        observed_generation=observed.deployment.generation,
    )


def _kept(observed: Observation, name: ConditionType) -> _Claim | None:
    """What was said before about this very generation, while nothing newer is known."""
    for before in observed.status.conditions:
        if before.type == name and before.observed_generation == observed.deployment.generation:
            return before.status, before.reason, before.message
    return None


def _settled_before(observed: Observation) -> bool:
    """This generation was Ready before: it answered once, or was accepted asleep."""
    kept = _kept(observed, ConditionType.READY)
    return kept is not None and kept[0] == "True"


def _proved(observed: Observation, verdict: Verdict) -> bool:
    return verdict.proved_generation == observed.deployment.generation


def _runs(observed: Observation, digest: str) -> bool:
    arguments = (observed.application.deployed or {}).get("args") or {}
    weights = arguments.get("weights") or {}
    return bool(weights.get("manifestDigest") == digest)


def _replicas(observed: Observation) -> Replicas | None:
    application = observed.application
    if application.presence is Presence.UNKNOWN:
        return observed.status.replicas
    return Replicas(ready=application.ready, desired=application.wanted, terminating=application.terminating or None)


def _engine(observed: Observation, verdict: Verdict) -> EngineStatus | None:
    if isinstance(verdict.wish, Present) and verdict.wanted is not None:
        wanted = verdict.wanted
        return EngineStatus(
            line=wanted.line,
            profile_version=wanted.profile,
            image=_image(observed, wanted),
            max_num_seqs=wanted.max_num_seqs,
            customized=wanted.customized,
        )
    return observed.status.engine


def _image(observed: Observation, wanted: Wanted) -> str | None:
    """Return the image of the first start: it stays until the specification changes, whatever its tag comes to mean."""
    engine, images = observed.status.engine, observed.application.images
    recorded = engine.image if engine is not None else None
    if recorded is not None and observed.status.proved_generation == observed.deployment.generation:
        return recorded
    deployed = observed.application.deployed or {}
    if any(deployed.get(name) != wanted.config.get(name) for name in ("args", "import_path", "revision")):
        return None  # its own engines are yet to come
    return recorded if recorded in images or not images else images[0]


def _weights(observed: Observation, verdict: Verdict) -> WeightsStatus | None:
    trust, before = observed.trust, observed.status.weights
    if not isinstance(trust, Trusted):
        return before
    application = observed.application
    if application.presence is Presence.PRESENT and verdict.wanted is not None:
        # While an engine runs with what was signed before, that is what is told.
        if verdict.wanted.manifest_digest != trust.manifest_digest:
            return before
        if not covers(application.deployed, verdict.wanted.config) and before is not None:
            return before
    weights = WeightsStatus(
        manifest_digest=trust.manifest_digest,
        signer=trust.signer,
        authority=trust.authority,
        identity=trust.identity,
        policy=trust.policy,
        bytes=trust.weight_bytes if trust.weight_bytes is not None else _known_bytes(before, trust.manifest_digest),
        signer_waived=trust.waived,
        verified_at=trust.checked_at,
    )
    if before is not None and weights.model_copy(update={"verified_at": before.verified_at}) == before:
        return before
    return weights


def _known_bytes(before: WeightsStatus | None, manifest_digest: str) -> int | None:
    return before.bytes if before is not None and before.manifest_digest == manifest_digest else None


def _wake(observed: Observation, verdict: Verdict) -> Wake | None:
    before, memory = observed.status.wake, verdict.memory
    started = before.started_at if before is not None else None
    last = before.last_seconds if before is not None else None
    if verdict.woke_seconds is not None:
        last = round(verdict.woke_seconds, 3)
    if memory.stage is not None and memory.wake_began is not None:
        if before is None or before.stage is None:
            demand = datetime.fromisoformat(observed.wall) - timedelta(seconds=observed.now - memory.wake_began)
            started = _moment(demand)
        return Wake(started_at=started, stage=memory.stage, last_seconds=last)
    return Wake(started_at=started, last_seconds=last) if before is not None or last is not None else None


def _sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:].rstrip('.')}."


def _cut(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_LENGTH else message[: MAX_MESSAGE_LENGTH - 1] + "…"
