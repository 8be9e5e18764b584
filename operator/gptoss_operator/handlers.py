"""Glue to kopf: its watches feed the intake, and nothing else of it is used.

Only ``kopf.on.event`` handlers are registered, so kopf writes nothing into anybody's objects. kopf
ends as a whole when one kind is forbidden or discovery fails; it is then started anew with back-off,
while the resync's LISTs keep the cache true.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from gptoss_api.names import GROUP, VERSION
from gptoss_kube.credentials import Connection
from gptoss_operator.cache import Kind
from gptoss_operator.clock import Clock
from gptoss_operator.intake import Intake

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0
_LAST_PAUSE = 60.0
_STEADY_SECONDS = 120.0
_STOP_SECONDS = 10.0
_NAME: Any = "gptoss-operator"
"""kopf's own type of it is not public."""

_RESOURCES: dict[Kind, tuple[str, str, str]] = {
    Kind.DEPLOYMENT: (GROUP, VERSION, "gptossdeployments"),
    Kind.POLICY: (GROUP, VERSION, "weighttrustpolicies"),
    Kind.REPORT: (GROUP, VERSION, "gatewayreports"),
    Kind.NAMESPACE: ("", "v1", "namespaces"),
}


class Watches:
    """kopf, embedded and supervised."""

    def __init__(
        self,
        *,
        intake: Intake,
        login: Callable[[], Awaitable[Connection]],
        clock: Clock,
        namespaces: tuple[str, ...],
        system_namespace: str,
        after_start: Callable[[], None],
    ) -> None:
        self._intake = intake
        self._login = login
        self._clock = clock
        self._namespaces = namespaces
        self._system_namespace = system_namespace
        self._after_start = after_start
        self.running = False
        """Whether kopf runs now."""

    async def forever(self) -> None:
        """Run kopf, and start it anew whenever it ends. Ends when cancelled."""
        pause = _FIRST_PAUSE
        while True:
            began = self._clock.now()
            try:
                await self._run()
                _log.warning("the watches ended; they are started anew in %.0f s", pause)
            except Exception as error:  # noqa: BLE001 - kopf ends with whatever a watch ended with
                _log.warning("the watches ended (%s); they are started anew in %.0f s", error, pause)
            pause = _FIRST_PAUSE if self._clock.now() - began > _STEADY_SECONDS else min(_LAST_PAUSE, pause * 2)
            await asyncio.sleep(pause)

    async def _run(self) -> None:
        stop = asyncio.Event()
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.persistence.diffbase_storage = _NoDifferences()
        # Otherwise a timer kills the whole living process some minutes after kopf was cancelled.
        settings.process.ultimate_exiting_timeout = None
        # The list must stay referenced: dropped, the tasks are collected while they run.
        tasks = list(
            await kopf.spawn_tasks(
                registry=self._registry(),
                settings=settings,
                clusterwide=not self._namespaces,
                namespaces=tuple({*self._namespaces, self._system_namespace}) if self._namespaces else (),
                standalone=True,
                # Without peers it means nothing; but unless told, kopf asks for the user's name, and not every
                # user of a container has one.
                identity=_NAME,
                stop_flag=stop,
            )
        )
        # kopf takes over the process' signal handlers; ours are put back.
        self._after_start()
        self.running = True
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.running = False
            stop.set()
            await _end(tasks)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        async def login(**_: Any) -> kopf.ConnectionInfo:
            return kopf.ConnectionInfo(**dataclasses.asdict(await self._login()))

        kopf.on.login(registry=registry, id="login")(login)
        for kind, (group, version, plural) in _RESOURCES.items():
            kopf.on.event(group, version, plural, registry=registry, id=f"{plural}")(self._handler(kind))
        return registry

    def _handler(self, kind: Kind) -> Callable[..., Awaitable[None]]:
        async def handle(event: kopf.RawEvent, **_: Any) -> None:
            raw: Any = event["object"]
            metadata = raw["metadata"]
            namespace = metadata.get("namespace") or ""
            if not self._concerns(kind, namespace):
                return
            if event["type"] == "DELETED":
                self._intake.gone(kind, namespace, metadata["name"], metadata.get("uid"))
            else:
                self._intake.seen(kind, raw)

        return handle

    def _concerns(self, kind: Kind, namespace: str) -> bool:
        """kopf watches every kind in every namespace that it watches at all."""
        if kind is Kind.REPORT:
            return namespace == self._system_namespace
        return kind is not Kind.DEPLOYMENT or not self._namespaces or namespace in self._namespaces


class _NoDifferences(kopf.DiffBaseStorage):
    """Spares kopf the copies and comparisons of every object that only its other kinds of handlers need."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        return


async def _end(tasks: list["asyncio.Task[None]"]) -> None:
    _, pending = await asyncio.wait(tasks, timeout=_STOP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=_STOP_SECONDS)
