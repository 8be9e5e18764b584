"""Keeps this process' GatewayReport: at once where the operator should act, sparsely otherwise.

A gateway whose reports do not get through is taken for dead after a while, and models could be put
to sleep under it. So it stops admitting to such models itself, earlier (``may_report``).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gptoss_api.report import DeploymentDemand, GatewayReportSpec

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
COALESCE_SECONDS = 0.05
"""Least time between two writes, so a burst of first requests becomes one or two."""
FENCE_SECONDS = 30.0
"""Without a successful write for so long, models that may sleep get no new requests from here.

The operator waits longer than this before it believes a gateway gone.
"""
WRITE_TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0)


class ReportStore(Protocol):
    """Where the report lies."""

    async def apply(self, name: str, spec: Mapping[str, Any], *, deadline: float) -> None:
        """Write the report within ``deadline`` seconds; any exception means that it did not get through."""
        ...

    async def delete(self, name: str, *, deadline: float) -> None:
        """Delete the report; one that is not there is no error."""
        ...


class Reporter:
    """Writes one report until it is stopped."""

    def __init__(
        self,
        *,
        identity: str,
        store: ReportStore,
        demands: Callable[[], tuple[DeploymentDemand, ...]],
        timestamp: Callable[[], str],
        closing: Callable[[], bool],
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self.identity = identity
        self._store = store
        self._demands = demands
        self._timestamp = timestamp
        self._closing = closing
        self._clock = clock  # one that counts a machine's sleep
        self.known = asyncio.Event()
        """Set once the operator can know of this gateway."""
        self._urgent = asyncio.Event()
        self._heartbeat = 0
        self._confirmed: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def may_report(self) -> bool:
        """Whether the operator still hears from this gateway."""
        return self._confirmed is not None and self._clock() - self._confirmed < FENCE_SECONDS

    def notify(self) -> None:
        """Have the report written at once."""
        self._urgent.set()

    def start(self) -> None:
        """Begin to write; harmless when it has begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="report")

    async def stop(self) -> None:
        """Stop writing and delete the report, so nobody waits for this gateway."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        try:
            await self._store.delete(self.identity, deadline=WRITE_TIMEOUT_SECONDS)
        except Exception as error:  # noqa: BLE001 - the operator outlives a report that stays behind
            _log.warning("report not deleted", extra={"report": self.identity, "error": str(error)})

    async def _run(self) -> None:
        failures = 0
        while True:
            self._urgent.clear()
            if await self._write():
                failures = 0
                await asyncio.sleep(COALESCE_SECONDS)
                await self._until_due(HEARTBEAT_SECONDS - COALESCE_SECONDS)
            else:
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1

    async def _until_due(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._urgent.wait()

    async def _write(self) -> bool:
        began = self._clock()
        self._heartbeat += 1
        try:
            spec = GatewayReportSpec(
                gateway=self.identity,
                heartbeat=self._heartbeat,
                renewed_at=self._timestamp(),
                closing=self._closing(),
                deployments=self._demands(),
            )
            await self._store.apply(
                self.identity,
                spec.model_dump(mode="json", by_alias=True),
                deadline=WRITE_TIMEOUT_SECONDS,
            )
        except Exception as error:  # noqa: BLE001 - whatever it was, it did not get through
            _log.warning("report not written", extra={"report": self.identity, "error": str(error)})
            return False
        self._confirmed = began
        self.known.set()
        return True
