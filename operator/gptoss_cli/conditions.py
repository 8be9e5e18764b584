"""Read conditions out of a raw deployment; a missing one is Unknown, never False."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_api.conditions import ConditionType


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenCondition:
    """One condition as people read it."""

    type: str
    status: str = "Unknown"
    reason: str = ""
    message: str = ""


def condition(deployment: Mapping[str, Any], kind: ConditionType) -> SeenCondition:
    """Return one condition of a raw GptOssDeployment."""
    return next((seen for seen in conditions(deployment) if seen.type == kind), SeenCondition(type=kind))


def conditions(deployment: Mapping[str, Any]) -> list[SeenCondition]:
    """Return all conditions of a raw GptOssDeployment, Ready first, as the API lists their types."""
    order = {str(kind): place for place, kind in enumerate(ConditionType)}
    found = [
        SeenCondition(
            type=raw["type"],
            status=raw.get("status", "Unknown"),
            reason=raw.get("reason", ""),
            message=raw.get("message", ""),
        )
        for raw in (deployment.get("status") or {}).get("conditions") or ()
    ]
    return sorted(found, key=lambda seen: order.get(seen.type, len(order)))
