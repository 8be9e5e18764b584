"""How many gateway processes there are, by the reports that each of them writes: what all share is divided by it.

Nobody's clock is read but our own, and of that only what passed between two heartbeats of ours that we
saw come back: while the API server is away no time passes here, and nobody is taken for gone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_gateway.report import FENCE_SECONDS, HEARTBEAT_SECONDS

_LONGEST_STEP = 2 * HEARTBEAT_SECONDS
"""What passes between two heartbeats of ours at most: after a pause the others' have their time to come in, too."""


def pulse(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a census needs of a GatewayReport."""
    spec = report.get("spec") or {}
    pulse = {"heartbeat": spec.get("heartbeat"), "closing": spec.get("closing", False)}
    return {"metadata": report["metadata"], "spec": pulse}


@dataclass(frozen=True, kw_only=True)
class _Other:
    pulse: Mapping[str, Any]
    heard: float


class Census:
    """Follows the reports of all gateway processes; ``identity`` is the name of our own."""

    def __init__(self, *, identity: str, clock: Callable[[], float]) -> None:
        self._identity = identity
        self._clock = clock
        self._others: dict[str, _Other] = {}
        self._passed = 0.0
        self._seen: float | None = None

    @property
    def processes(self) -> int:
        """How many take requests, this one included."""
        return 1 + sum(not other.pulse["closing"] for other in self._alive())

    @property
    def senders(self) -> int:
        """How many may have requests at engines, this one included: also those that only finish what is open."""
        return 1 + len(self._alive())

    def on_change(self, report: Mapping[str, Any]) -> None:
        """Take over a report that was written."""
        name, heard = report["metadata"]["name"], pulse(report)["spec"]
        if name == self._identity:
            self._tick()
        elif (known := self._others.get(name)) is None or known.pulse != heard:
            self._others[name] = _Other(pulse=heard, heard=self._passed)

    def on_delete(self, report: Mapping[str, Any]) -> None:
        """Forget a process that ended."""
        self._others.pop(report["metadata"]["name"], None)

    def _alive(self) -> list[_Other]:
        return [other for other in self._others.values() if self._passed - other.heard < FENCE_SECONDS]

    def _tick(self) -> None:
        now = self._clock()
        if self._seen is not None:
            self._passed += min(max(0.0, now - self._seen), _LONGEST_STEP)
        self._seen = now
