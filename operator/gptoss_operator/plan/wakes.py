"""A wake's stages, on our own clock: demand → put → deploying → engineReady.

A running wake is written into the status, so that one which this process does not remember is
followed to its end all the same: it began in a process that is gone, or with a write that the API
server took and whose answer was lost. It counts when its end is written, and so once.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from gptoss_operator.plan.applications import Present, covers
from gptoss_operator.plan.observation import Memory, Observation, Presence
from gptoss_operator.plan.verdict import Phase, Verdict

_RECENT_SECONDS = 10.0
"""Activity that is older is not what this wake is for."""
_AWAKE = frozenset({Phase.SERVING, Phase.DRAINING})


def read_back(verdict: Verdict, observed: Observation) -> Verdict:
    """Agree with the status, as last written, on whether a wake runs. The verdict's phase is still the status' own."""
    memory, wake = verdict.memory, observed.status.wake
    if verdict.phase is Phase.STARTING:
        if memory.wake_began is not None or wake is None or wake.stage is None:
            return verdict
        # How long the stage has run is not known, so it is not told.
        began = observed.now - _since(wake.started_at, observed.wall)
        return replace(verdict, memory=replace(memory, wake_began=began, stage=wake.stage, stage_began=None))
    if memory.wake_began is None or memory.stage is None:
        return verdict
    over = replace(verdict, memory=replace(memory, wake_began=None, stage=None, stage_began=None))
    if verdict.phase not in _AWAKE or wake is None or wake.last_seconds is None:
        return over
    ended = memory.wake_began + wake.last_seconds
    return replace(over, timings=tuple(_ended(memory, ended)), woke_seconds=wake.last_seconds)


def timed(verdict: Verdict, observed: Observation, before: Phase) -> Verdict:
    """Follow a wake through its stages: demand → put → deploying → engineReady."""
    memory, now = verdict.memory, observed.now
    if before in {Phase.IDLE, Phase.SUSPENDED} and verdict.phase is Phase.STARTING:
        seen = observed.demand.activity_at
        began = seen if seen is not None and now - seen < _RECENT_SECONDS else now
        memory = replace(memory, wake_began=began, stage="demand", stage_began=began)
    if memory.wake_began is None:
        return replace(verdict, memory=memory)
    stage = _stage(verdict, observed)
    if stage == memory.stage:
        return replace(verdict, memory=memory)
    timings = tuple(_ended(memory, now))
    if stage is None:
        seconds = now - memory.wake_began
        memory = replace(memory, wake_began=None, stage=None, stage_began=None)
        return replace(verdict, memory=memory, timings=timings, woke_seconds=seconds)
    memory = replace(memory, stage=stage, stage_began=now)
    return replace(verdict, memory=memory, timings=(*verdict.timings, *timings))


def _ended(memory: Memory, now: float) -> Iterable[tuple[str, float]]:
    if memory.stage is not None and memory.stage_began is not None:
        yield memory.stage, max(0.0, now - memory.stage_began)


def _since(moment: str | None, wall: str) -> float:
    """Return the seconds from one time of day to another; none if the clock was set back, or nobody knows."""
    if moment is None:
        return 0.0
    try:
        return max(0.0, (datetime.fromisoformat(wall) - datetime.fromisoformat(moment)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _stage(verdict: Verdict, observed: Observation) -> str | None:
    if verdict.phase is not Phase.STARTING:
        return None
    if not isinstance(verdict.wish, Present):
        return "demand"
    application = observed.application
    if application.presence is not Presence.PRESENT or not covers(application.deployed, verdict.wish.config):
        return "put"
    return "engineReady" if application.status == "RUNNING" else "deploying"
