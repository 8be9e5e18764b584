"""The slow look at everything: a real LIST per kind, subtracted from the cache.

A watch that has to list again never tells of what was deleted meanwhile; a look at every key that the
cache knows would keep such ghosts for ever. A LIST doesn't.
"""

import asyncio
import logging

from gptoss_kube.errors import KubeError
from gptoss_operator.boundary import Kubernetes
from gptoss_operator.cache import Cache, Kind
from gptoss_operator.intake import Intake
from gptoss_operator.keys import ClusterKey, Key
from gptoss_operator.leadership import Leadership
from gptoss_operator.workqueue import Priority, WorkQueue

_LOG = logging.getLogger(__name__)
_AGAIN_SECONDS = 2.0


class Resync:
    """Lists everything, once at the start and then every so often."""

    def __init__(
        self,
        *,
        kubernetes: Kubernetes,
        cache: Cache,
        intake: Intake,
        queue: WorkQueue[Key],
        clusters: tuple[str, ...],
        seconds: float,
        leadership: Leadership,
    ) -> None:
        self._kubernetes = kubernetes
        self._cache = cache
        self._intake = intake
        self._queue = queue
        self._clusters = clusters
        self._seconds = seconds
        self._leadership = leadership

    async def first(self) -> None:
        """List until every kind was listed once: before that nothing may be decided."""
        while True:
            try:
                await self.once()
            except KubeError as error:
                _LOG.warning("the first LIST failed, trying again: %s", error)
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                self._intake.first_look = False
                return

    async def forever(self) -> None:
        """List again and again."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.once()
            except KubeError as error:
                _LOG.warning("the resync failed; the next one follows: %s", error)

    async def once(self) -> None:
        """List every kind once, and ask for a look at everything.

        Raises:
            KubeError: a LIST failed; what it would have told is unknown, and nothing was subtracted for it.
        """
        for kind in Kind:
            before = self._cache.identities(kind)
            listed = await self._kubernetes.list(kind)
            for raw in listed:
                self._intake.seen(kind, raw)
            there = {(raw["metadata"].get("namespace") or "", raw["metadata"]["name"]) for raw in listed}
            for namespace, name in sorted(before - there):
                self._intake.gone(kind, namespace, name)
        if self._leadership.may_write():
            for name in self._intake.dead_gateways():
                # A gateway that restarts under another name would leave its report for ever.
                await self._kubernetes.delete_report(name)
        self._intake.everything(Priority.RESYNC)
        for cluster in self._clusters:
            self._queue.add(ClusterKey(cluster), Priority.RESYNC)
