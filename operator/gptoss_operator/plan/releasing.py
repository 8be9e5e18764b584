"""Zero is reached once nothing is left: what is not wanted any more holds its accelerators until it is gone.

Whoever is to tell it to go may be away, and then nobody would ever say so. So that it stays is told
after a while. It hinders nothing: what is wanted again meanwhile starts as it always does.
"""

from dataclasses import replace

from gptoss_api.conditions import ConditionType
from gptoss_operator.plan.applications import Absent
from gptoss_operator.plan.observation import Failure, Observation
from gptoss_operator.plan.verdict import Verdict

UNHEEDED_SECONDS = 60.0
"""What works takes a few seconds; an operator of KubeRay that is restarted may take some more."""


def heeded(verdict: Verdict, observed: Observation) -> Verdict:
    """Watch over how long nobody tells what is left to go."""
    remains, memory, now = observed.application.remains, verdict.memory, observed.now
    if remains is None or remains.unheeded is None or not isinstance(verdict.wish, Absent):
        return replace(verdict, memory=replace(memory, unheeded_since=None))
    since = memory.unheeded_since
    if since is None:
        told = any(
            each.type == ConditionType.DEGRADED and each.status == "True" and each.reason == remains.unheeded.reason
            for each in observed.status.conditions
        )
        since = now - UNHEEDED_SECONDS if told else now  # another process has waited before
    remaining = since + UNHEEDED_SECONDS - now
    verdict = replace(verdict, memory=replace(memory, unheeded_since=since), unheeded=remaining <= 0)
    if remaining <= 0:
        return verdict
    return replace(verdict, look_again=min(remaining, verdict.look_again or remaining))


def left_of(verdict: Verdict, observed: Observation) -> Failure | None:
    """Return what is left where nothing is wanted, and what it waits for; None if nothing is."""
    remains = observed.application.remains
    if remains is None:
        return None
    return remains.unheeded if verdict.unheeded and remains.unheeded is not None else remains.waiting
