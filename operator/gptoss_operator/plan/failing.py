"""How what was wanted ends badly: what is given up, what is said of it, and when it is tried again."""

from dataclasses import replace

from gptoss_api.conditions import Reason, TrustReason
from gptoss_operator.plan.applications import Absent, Keep, Wish
from gptoss_operator.plan.observation import Distrusted, Observation, Trusted
from gptoss_operator.plan.sources import UNKNOWN
from gptoss_operator.plan.verdict import OF_WEIGHTS, Phase, Stall, Verdict

_FIRST_RETRY_SECONDS = 30.0
_LAST_RETRY_SECONDS = 600.0
_MAY_PASS = frozenset(
    {
        TrustReason.SOURCE_UNAVAILABLE,
        TrustReason.ACCESS_DENIED,
        TrustReason.NO_SPACE,
        TrustReason.STORAGE_FAILED,
        TrustReason.STALLED_TRANSFER,
    }
)
"""A node's trouble that may pass while the source stays as it is: tried again with back-off."""


def fail(verdict: Verdict, stall: Stall) -> Verdict:
    """Stop on the way, and leave what runs as it is."""
    memory = replace(verdict.memory, start_began=None, draining=None, wake_began=None, stage=None)
    return replace(verdict, phase=Phase.FAILED, stall=stall, wish=Keep(), memory=memory)


def broken(observed: Observation, verdict: Verdict) -> Verdict:
    """Fail for what Ray gave the application up for."""
    failure, memory = observed.application.failure, verdict.memory
    if failure is None:
        return verdict
    if failure.reason == Reason.SERVING_VERSION_MISMATCH:
        stall = Stall(reason=failure.reason, detail=failure.reason, message=failure.message)
    elif failure.reason in OF_WEIGHTS and failure.reason not in _MAY_PASS:
        source = observed.trust.source if isinstance(observed.trust, Trusted) else UNKNOWN
        stall = Stall(reason=Reason.UNTRUSTED_WEIGHTS, detail=failure.reason, message=failure.message, weights=True)
        verdict = replace(verdict, failed_source=source)
    else:
        detail = failure.reason or Reason.ENGINE_FAILED
        stall = Stall(reason=Reason.ENGINE_FAILED, detail=detail, message=failure.message, weights=detail in OF_WEIGHTS)
        delay = retry_delay(memory.failures)
        memory = replace(memory, failures=memory.failures + 1, retry_at=observed.now + delay)
        verdict = replace(verdict, memory=memory, look_again=delay)
    return _give_up(observed, verdict, stall)


def within_time(observed: Observation, verdict: Verdict) -> Verdict:
    """Wait for a start, and fail once it has taken too long."""
    limit = observed.deployment.spec.scaling.start_timeout_seconds
    began = verdict.memory.start_began
    if began is None:
        return verdict
    remaining = began + limit - observed.now
    if remaining > 0:
        return replace(verdict, look_again=remaining)
    obstacle = observed.application.obstacle
    cause = (
        f"{obstacle.message}. Then" if obstacle is not None else "Look at the Ray cluster's logs, free accelerators,"
    )
    stall = Stall(
        reason=Reason.START_TIMEOUT,
        detail=obstacle.reason if obstacle is not None else Reason.START_TIMEOUT,
        message=f"The engine did not answer within spec.scaling.startTimeoutSeconds ({limit}). {cause} raise the "
        "limit, or change the retry annotation to try again",
    )
    return _give_up(observed, verdict, stall)


def untrusted(trust: Distrusted) -> Stall:
    """Say that signature or policy forbid the weights."""
    return Stall(reason=Reason.UNTRUSTED_WEIGHTS, detail=trust.reason, message=trust.message)


def timed_out(stall: Stall | None) -> bool:
    """Tell whether a start was given up for its time."""
    return stall is not None and stall.reason == Reason.START_TIMEOUT


def retry_delay(failures: int) -> float:
    """Return the seconds until another try, after so many that failed in a row."""
    return min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(failures, 10))


def _give_up(observed: Observation, verdict: Verdict, stall: Stall) -> Verdict:
    """Fail, and take the application away unless an older replica of it still serves."""
    wish: Wish = Keep() if observed.application.answering else Absent()
    return replace(fail(verdict, stall), wish=wish)
