"""The life of a deployment: prove → serve → drain → sleep → wake, and what may stop it.

::

    New ──► Starting ──► Serving ◄──► Draining ──► Idle ──► Starting …
     │          │           │                        ▲
     └──────────┴───────────┴──► Failed              └── New, with scaling.initial Idle
    any ◄──► Suspended

The phase is read back from the conditions, so a new process goes on where the last one stopped.
A decision is written into the status before it is acted on: whoever dies in between leaves either
nothing done, or something that the next process does again to the same effect.
"""

from dataclasses import replace
from datetime import datetime

from gptoss_api.conditions import Reason
from gptoss_api.names import PAUSED_ANNOTATION, RETRY_ANNOTATION, WAKE_ANNOTATION
from gptoss_api.profiles import profile_for
from gptoss_operator.plan.applications import Absent, Keep, Present, Wish, covers
from gptoss_operator.plan.arguments import wanted_application
from gptoss_operator.plan.failing import broken, fail, retry_delay, timed_out, untrusted, within_time
from gptoss_operator.plan.fit import engine_for, fit_of
from gptoss_operator.plan.observation import Distrusted, Memory, Observation, Presence, Revocation, Site, Trusted
from gptoss_operator.plan.releasing import heeded
from gptoss_operator.plan.revoked import acting_revocation, capped, must_stop
from gptoss_operator.plan.sources import has_changed, to_compare_with
from gptoss_operator.plan.verdict import Phase, Stall, Verdict, phase_of, written_stall
from gptoss_operator.plan.wakes import read_back, timed

_CLOCK_CHECK_SECONDS = 900.0
"""Longest pause before a schedule is looked at again: the time of day may be corrected meanwhile."""


def decide(observed: Observation, memory: Memory | None, site: Site) -> Verdict:
    """Decide on one deployment."""
    memory = _refresh(observed, memory or Memory(awake_since=observed.now))
    status = observed.status
    annotations = observed.deployment.annotations
    before = phase_of(status)
    verdict = Verdict(
        phase=before,
        wish=Keep(),
        memory=memory,
        proved_generation=status.proved_generation,
        drain_epoch=status.drain_epoch,
        stall=written_stall(status),
        revoked=acting_revocation(observed),
        failed_source=status.failed_source,
        last_retry=annotations.get(RETRY_ANNOTATION, status.last_retry),
        last_wake=annotations.get(WAKE_ANNOTATION, status.last_wake),
    )
    verdict = read_back(verdict, observed)
    if observed.deployment.deleting:
        return replace(verdict, wish=Absent())
    if not observed.placement.cluster:
        return fail(
            verdict,
            Stall(
                reason=observed.placement.reason, detail=observed.placement.reason, message=observed.placement.message
            ),
        )
    if observed.floor.problem:
        return fail(
            verdict, Stall(reason=Reason.INVALID_SPEC, detail=Reason.INVALID_SPEC, message=observed.floor.problem)
        )
    try:
        profile = profile_for(observed.deployment.spec.model.name)
        wanted = wanted_application(observed, site)
    except ValueError as error:
        return fail(verdict, Stall(reason=Reason.INVALID_SPEC, detail=Reason.INVALID_SPEC, message=str(error)))
    fit = fit_of(observed, engine_for(observed.deployment.spec, profile, observed.hardware))
    verdict = replace(verdict, wanted=wanted, fit=fit)
    if annotations.get(PAUSED_ANNOTATION) == "true":
        return replace(verdict, paused=True, last_retry=status.last_retry, last_wake=status.last_wake)
    return heeded(_until_schedule(timed(_next(observed, verdict), observed, before), observed), observed)


def _next(observed: Observation, verdict: Verdict) -> Verdict:
    deployment = observed.deployment
    if deployment.spec.suspend:
        return _asleep(replace(verdict, stall=None, failed_source=None), Phase.SUSPENDED, observed)
    if verdict.revoked is not None and observed.application.presence is Presence.PRESENT:
        return _revoked(observed, verdict, verdict.revoked)
    misfit = _misfit(observed, verdict)
    if misfit is not None:
        over = observed.application.presence is Presence.ABSENT
        return replace(fail(verdict, misfit), wish=Absent() if over else Keep())
    match verdict.phase:
        case Phase.SUSPENDED:
            slept = observed.status.proved_generation is not None or deployment.spec.scaling.initial == "Idle"
            return _idle(observed, verdict) if slept else _new(observed, verdict, fresh=False)
        case Phase.NEW:
            return _new(observed, verdict, fresh=False)
        case Phase.FAILED:
            return _failed(observed, verdict)
        case Phase.IDLE:
            return _idle(observed, verdict)
        case Phase.STARTING:
            return _starting(observed, verdict)
        case Phase.SERVING | Phase.DRAINING:
            return _serving(observed, verdict)


def _misfit(observed: Observation, verdict: Verdict) -> Stall | None:
    """Say why nothing may be started that can't fit; what runs or has answered may go on."""
    deployment, application, wanted = observed.deployment, observed.application, verdict.wanted
    if observed.status.proved_generation == deployment.generation:
        return None
    if application.presence is Presence.PRESENT and wanted is not None and covers(application.deployed, wanted.config):
        return None
    if verdict.fit is None:
        known, same = verdict.stall, observed.status.observed_generation == deployment.generation
        return known if known is not None and known.reason == Reason.DOES_NOT_FIT and same else None
    if not verdict.fit.blocks:
        return None
    return Stall(reason=verdict.fit.reason, detail=verdict.fit.reason, message=verdict.fit.message)


def _revoked(observed: Observation, verdict: Verdict, revocation: Revocation) -> Verdict:
    """What runs is denied now."""
    stall = Stall(reason=Reason.UNTRUSTED_WEIGHTS, detail=revocation.reason, message=revocation.message)
    if verdict.phase is Phase.IDLE:
        return _asleep(replace(verdict, stall=None), Phase.IDLE, observed)
    if must_stop(observed, revocation):
        return replace(fail(verdict, stall), wish=Absent())
    wanted = verdict.wanted.config if verdict.wanted is not None else None
    if wanted is not None and wanted["args"] == (observed.application.deployed or {}).get("args"):
        # Only bounds were changed, if anything: the same engine goes on.
        verdict = replace(verdict, proved_generation=observed.deployment.generation)
    config = capped(observed, wanted)
    wish: Wish = Keep() if config is None else Present(config=config, attempt=verdict.memory.attempt, create=False)
    if verdict.proved_generation != observed.deployment.generation:
        # What the specification asks for anew can't be brought about with these weights.
        return replace(fail(verdict, stall), wish=wish)
    phase = Phase.DRAINING if verdict.phase is Phase.DRAINING else Phase.SERVING
    memory = replace(verdict.memory, start_began=None)
    return _draining(observed, replace(verdict, phase=phase, wish=wish, stall=None, memory=memory))


def _new(observed: Observation, verdict: Verdict, *, fresh: bool) -> Verdict:
    """Nothing is decided yet. ``fresh``: a start is asked for, whatever was before."""
    verdict = replace(verdict, phase=Phase.NEW, stall=None)
    if observed.application.presence is Presence.PRESENT and verdict.wanted is not None:
        return _start(observed, verdict)
    if observed.trust is None:
        # Not decided yet, but a start that was asked for must not be forgotten meanwhile.
        return _start(observed, verdict) if fresh else verdict
    if isinstance(observed.trust, Distrusted):
        return fail(verdict, untrusted(observed.trust))
    scaling = observed.deployment.spec.scaling
    slept = observed.status.proved_generation is not None or scaling.initial == "Idle"
    if slept and not fresh and observed.floor.replicas == 0:
        return _idle(observed, verdict)
    return _start(observed, verdict)


def _failed(observed: Observation, verdict: Verdict) -> Verdict:
    status, stall, now = observed.status, verdict.stall, observed.now
    memory = verdict.memory
    if status.observed_generation != observed.deployment.generation or verdict.last_retry != status.last_retry:
        return _new(observed, replace(verdict, failed_source=None, memory=replace(memory, failures=0)), fresh=True)
    if verdict.failed_source is not None:
        # A node found the bytes wrong: another start is worth it only once the source has changed.
        if isinstance(observed.trust, Trusted):
            if has_changed(verdict.failed_source, observed.trust.source):
                return _new(observed, replace(verdict, failed_source=None), fresh=True)
            verdict = replace(verdict, failed_source=to_compare_with(verdict.failed_source, observed.trust.source))
    elif stall is None or stall.reason == Reason.ENGINE_FAILED:
        retry_at = memory.retry_at if memory.retry_at is not None else now + retry_delay(memory.failures)
        if now >= retry_at:
            return _new(observed, replace(verdict, memory=replace(memory, retry_at=None)), fresh=True)
        verdict = replace(verdict, memory=replace(memory, retry_at=retry_at), look_again=retry_at - now)
    elif stall.reason not in {Reason.START_TIMEOUT, Reason.SERVING_VERSION_MISMATCH}:
        # Trust, or a place that was missing: look whether it holds still.
        if isinstance(observed.trust, Distrusted):
            verdict = fail(verdict, untrusted(observed.trust))
        elif observed.trust is not None:
            return _new(observed, verdict, fresh=False)
    application = observed.application
    over = application.presence is Presence.ABSENT or (
        application.answering is False
        and (application.failure is not None or application.status == "DEPLOY_FAILED" or timed_out(stall))
    )
    return replace(verdict, wish=Absent() if over else Keep())


def _idle(observed: Observation, verdict: Verdict) -> Verdict:
    verdict = replace(verdict, stall=None)
    if isinstance(observed.trust, Distrusted):
        known = observed.status.weights is not None
        same = observed.status.observed_generation == observed.deployment.generation
        if not (observed.trust.retryable and known and same and not _is_wanted(observed, verdict)):
            return replace(fail(verdict, untrusted(observed.trust)), wish=Absent())
    if isinstance(observed.trust, Trusted) and _is_wanted(observed, verdict):
        return _start(observed, verdict)
    # Demand that came before the signature was checked is not forgotten: it is looked at again then.
    waits = observed.trust is None and verdict.last_wake != observed.status.last_wake
    asleep = _asleep(verdict, Phase.IDLE, observed)
    return replace(asleep, last_wake=observed.status.last_wake) if waits else asleep


def _is_wanted(observed: Observation, verdict: Verdict) -> bool:
    demand, slept_at = observed.demand, verdict.memory.slept_at
    return (
        observed.floor.replicas > 0
        or demand.active
        or (demand.activity_at is not None and slept_at is not None and demand.activity_at > slept_at)
        or verdict.last_wake != observed.status.last_wake
    )


def _start(observed: Observation, verdict: Verdict) -> Verdict:
    """Begin a start: a proof or a wake."""
    memory = replace(
        verdict.memory, attempt=verdict.memory.attempt + 1, start_began=observed.now, slept_at=None, retry_at=None
    )
    return _starting(observed, replace(verdict, phase=Phase.STARTING, stall=None, memory=memory))


def _starting(observed: Observation, verdict: Verdict) -> Verdict:
    """An engine is wanted and does not answer yet."""
    application, memory, now = observed.application, verdict.memory, observed.now
    began = memory.start_began if memory.start_began is not None else now
    verdict = replace(verdict, phase=Phase.STARTING, stall=None, memory=replace(memory, start_began=began))
    wanted = verdict.wanted
    if wanted is None:
        if isinstance(observed.trust, Distrusted):
            return fail(verdict, untrusted(observed.trust))
        return _hold_start(verdict, now)
    if application.presence is Presence.UNKNOWN:
        # The time that a cluster can't be reached doesn't count against the start.
        return _hold_start(verdict, now)
    present = application.presence is Presence.PRESENT
    if not observed.may_start and not present:
        return replace(_hold_start(verdict, now), queued=True)
    verdict = replace(verdict, wish=Present(config=wanted.config, attempt=memory.attempt, rendered=wanted.rendered))
    if application.conflict is not None:
        stall = Stall(reason=Reason.ROUTE_CONFLICT, detail=Reason.ROUTE_CONFLICT, message=application.conflict)
        return replace(verdict, stall=stall, memory=replace(verdict.memory, start_began=now))
    if present and covers(application.deployed, wanted.config):
        if application.failure is not None:
            return broken(observed, verdict)
        if application.answering:
            return _serving(observed, replace(verdict, phase=Phase.SERVING, memory=_served(verdict.memory, now)))
    return within_time(observed, verdict)


def _serving(observed: Observation, verdict: Verdict) -> Verdict:
    """An engine serves, or is being replaced by another."""
    application, memory, now = observed.application, verdict.memory, observed.now
    verdict = replace(verdict, stall=None)
    if application.presence is Presence.ABSENT:
        # Ray lost it: waking again is all there is to do.
        return _start(observed, replace(verdict, memory=replace(memory, wake_began=now)))
    wanted = verdict.wanted
    if wanted is None:
        if isinstance(observed.trust, Distrusted):
            return fail(replace(verdict, phase=Phase.SERVING), untrusted(observed.trust))
        return replace(verdict, phase=Phase.SERVING)
    if application.presence is Presence.UNKNOWN:
        # What runs there may differ from what would be started now, and must not be restarted for it.
        return replace(verdict, phase=Phase.SERVING)
    wish = Present(config=wanted.config, attempt=memory.attempt, rendered=wanted.rendered)
    if application.conflict is not None:
        return replace(verdict, phase=Phase.SERVING, wish=wish)
    generation = observed.deployment.generation
    if covers(application.deployed, wanted.config):
        if application.failure is not None:
            return broken(observed, verdict)
        if application.answering and application.status in {"RUNNING", "UNHEALTHY", ""}:
            verdict = replace(verdict, proved_generation=generation, memory=replace(memory, start_began=None))
    verdict = replace(verdict, wish=wish)
    if verdict.proved_generation != generation:
        began = memory.start_began if memory.start_began is not None else now
        verdict = replace(verdict, phase=Phase.SERVING, memory=replace(memory, start_began=began))
        return within_time(observed, verdict)
    return _draining(observed, verdict)


def _draining(observed: Observation, verdict: Verdict) -> Verdict:
    """Decide between serving, draining and sleep. Unknown demand is demand."""
    demand, memory, now = observed.demand, verdict.memory, observed.now
    scaling = observed.deployment.spec.scaling
    serving = replace(verdict, phase=Phase.SERVING, memory=replace(memory, draining=None, drain_began=None, failures=0))
    if verdict.last_wake != observed.status.last_wake:
        serving = replace(serving, memory=replace(serving.memory, awake_since=now))
    if observed.floor.replicas > 0 or not demand.known or demand.active:
        return replace(serving, look_again=_until(demand.until, now))
    idle_since = max(serving.memory.awake_since, demand.activity_at or serving.memory.awake_since)
    remaining = idle_since + scaling.idle_seconds - now
    if remaining > 0:
        return replace(serving, look_again=remaining)
    if verdict.phase is not Phase.DRAINING or memory.draining is None or memory.draining != verdict.drain_epoch:
        epoch = (verdict.drain_epoch or 0) + 1
        drain = replace(memory, draining=epoch, drain_began=now)
        return replace(
            verdict, phase=Phase.DRAINING, drain_epoch=epoch, memory=drain, look_again=_until(demand.until, now)
        )
    if demand.acknowledged >= memory.draining:
        return _asleep(verdict, Phase.IDLE, observed)
    return replace(verdict, look_again=_until(demand.until, now))


def _asleep(verdict: Verdict, phase: Phase, observed: Observation) -> Verdict:
    memory = verdict.memory
    slept_at = memory.slept_at if memory.slept_at is not None else observed.now
    memory = replace(
        memory, slept_at=slept_at, start_began=None, draining=None, drain_began=None, wake_began=None, stage=None
    )
    return replace(verdict, phase=phase, wish=Absent(), memory=memory)


def _hold_start(verdict: Verdict, now: float) -> Verdict:
    return replace(verdict, wish=Keep(), memory=replace(verdict.memory, start_began=now))


def _refresh(observed: Observation, memory: Memory) -> Memory:
    demand = observed.demand
    awake = [memory.awake_since, demand.activity_at or memory.awake_since]
    if not demand.known:
        awake.append(observed.now)
    return replace(memory, awake_since=max(awake))


def _served(memory: Memory, now: float) -> Memory:
    return replace(memory, start_began=None, awake_since=max(memory.awake_since, now))


def _until_schedule(verdict: Verdict, observed: Observation) -> Verdict:
    """Have another look when the schedules change their mind."""
    changes_at = observed.floor.changes_at
    if changes_at is None:
        return verdict
    remaining = (changes_at - datetime.fromisoformat(observed.wall)).total_seconds()
    pauses = [min(max(1.0, remaining), _CLOCK_CHECK_SECONDS), verdict.look_again]
    return replace(verdict, look_again=min(pause for pause in pauses if pause is not None))


def _until(moment: float | None, now: float) -> float | None:
    return max(0.1, moment - now) if moment is not None else None
