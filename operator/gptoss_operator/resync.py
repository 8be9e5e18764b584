"""The slow look at everything: a real LIST per kind, subtracted from the cache.

A watch that has to list again never tells of what was deleted meanwhile; a look at every key that the
cache knows would keep such ghosts for ever. A LIST doesn't.
"""

import asyncio
import logging

from gptoss_kube.errors import KubeError
from gptoss_operator.boundary import Kubernetes
from gptoss_operator.cache import Cache, Kind, identity_of
from gptoss_operator.intake import Intake
from gptoss_operator.keys import ClusterKey, Key
from gptoss_operator.leadership import Leadership
from gptoss_operator.workqueue import Priority, WorkQueue

_log = logging.getLogger(__name__)
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
                _log.warning("the first LIST failed, trying again: %s", error)
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
                _log.warning("the resync failed; the next one follows: %s", error)

    async def once(self) -> None:
        """List every kind once, and ask for a look at everything.

        Raises:
            KubeError: a LIST failed; what it would have told is unknown, and nothing was subtracted for it.
        """
        for kind in Kind:
            await self._take_in(kind)
        self._intake.everything(Priority.RESYNC)
        for cluster in self._clusters:
            self._queue.add(ClusterKey(cluster), Priority.RESYNC)
        await self._remove_dead_reports()

    async def _take_in(self, kind: Kind) -> None:
        before = self._cache.snapshot(kind)
        listed = {identity_of(raw): raw for raw in await self._kubernetes.list(kind)}
        for identity, raw in listed.items():
            # What was known before the LIST began can't be newer than it, but from a history that a restored backup
            # has undone. What was learnt meanwhile may be.
            untouched = self._cache.get(kind, *identity) is before.get(identity)
            self._intake.seen(kind, raw, unless_older=not untouched)
        for identity in sorted(before.keys() - listed.keys()):
            # Only that very one: another may have got its name meanwhile.
            self._intake.gone(kind, *identity, before[identity]["metadata"].get("uid"))

    async def _remove_dead_reports(self) -> None:
        """A gateway that restarts under another name would leave its report for ever."""
        if not self._leadership.may_write():
            return
        for name in self._intake.dead_gateways():
            try:
                await self._kubernetes.delete_report(name)
            except KubeError as error:
                _log.warning("the report of gateway %s, which is gone, was not deleted: %s", name, error)
