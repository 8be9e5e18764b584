"""A wake's stages, on our own clock: demand → put → deploying → engineReady."""

from collections.abc import Iterable
from dataclasses import replace

from gptoss_operator.plan.applications import Present, covers
from gptoss_operator.plan.observation import Memory, Observation, Presence
from gptoss_operator.plan.verdict import Phase, Verdict

_RECENT_SECONDS = 10.0
"""Activity that is older is not what this wake is for."""


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
    return replace(verdict, memory=memory, timings=timings)


def _ended(memory: Memory, now: float) -> Iterable[tuple[str, float]]:
    if memory.stage is not None and memory.stage_began is not None:
        yield memory.stage, now - memory.stage_began


def _stage(verdict: Verdict, observed: Observation) -> str | None:
    if verdict.phase is not Phase.STARTING:
        return None
    if not isinstance(verdict.wish, Present):
        return "demand"
    application = observed.application
    if application.presence is not Presence.PRESENT or not covers(application.deployed, verdict.wish.config):
        return "put"
    return "engineReady" if application.status == "RUNNING" else "deploying"
