"""The process: puts the parts together, runs them, and ends them in order."""

import asyncio
import logging
import signal
from functools import partial
from pathlib import Path

import aiohttp

from gptoss_kube.client import Kube
from gptoss_kube.errors import Transient
from gptoss_operator.adapter import KubernetesAdapter
from gptoss_operator.boundary import Kubernetes
from gptoss_operator.cache import Cache
from gptoss_operator.clock import Clock, SystemClock
from gptoss_operator.handlers import Watches
from gptoss_operator.health import HealthServer
from gptoss_operator.intake import Intake
from gptoss_operator.keys import ClusterKey, Key
from gptoss_operator.leadership import AlwaysLeader, Leadership, ReadOnly
from gptoss_operator.metrics import Metrics
from gptoss_operator.reconcile import Reconciler
from gptoss_operator.resync import Resync
from gptoss_operator.settings import Settings
from gptoss_operator.starts import Starts
from gptoss_operator.substrates.dashboard import RayDashboard
from gptoss_operator.substrates.rayserve import RayServe
from gptoss_operator.trust import Check, SignatureCheck, TrustDesk
from gptoss_operator.workqueue import QueueClosedError, WorkQueue

_LOG = logging.getLogger(__name__)
_LONGEST_RECONCILE = 180.0


class Engine:
    """Everything between the watches and the API server: cache, queue, workers, substrates.

    Tests drive it with another boundary, clock or check; the process with the real ones.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        kubernetes: Kubernetes,
        session: aiohttp.ClientSession,
        clock: Clock | None = None,
        check: Check | None = None,
        leadership: Leadership | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.intake = Intake(cache=self.cache, queue=self.queue, clock=self.clock)
        leadership = leadership or AlwaysLeader()
        self.trust = TrustDesk(
            check=check or SignatureCheck(cache=self.cache, sources=settings.sources()),
            cache=self.cache,
            clock=self.clock,
            metrics=self.metrics,
            changed=self.queue.add,
        )
        self.reconciler = Reconciler(
            settings=settings,
            cache=self.cache,
            queue=self.queue,
            intake=self.intake,
            kubernetes=kubernetes,
            substrates={
                cluster.name: RayServe(
                    cluster,
                    installation=settings.installation,
                    dashboard=RayDashboard(cluster, session),
                    leadership=leadership,
                    news=partial(self.queue.add, ClusterKey(cluster.name)),
                )
                for cluster in settings.ray_clusters
            },
            trust=self.trust,
            starts=Starts(settings.max_concurrent_starts),
            metrics=self.metrics,
            clock=self.clock,
            leadership=leadership,
        )
        self.resync = Resync(
            kubernetes=kubernetes,
            cache=self.cache,
            intake=self.intake,
            queue=self.queue,
            clusters=tuple(cluster.name for cluster in settings.ray_clusters),
            seconds=settings.resync_seconds,
            leadership=leadership,
        )
        self._began: dict[Key, float] = {}

    async def forever(self) -> None:
        """List everything, then work until cancelled."""
        try:
            await self.resync.first()
            self.reconciler.complete = True
            async with asyncio.TaskGroup() as group:
                group.create_task(self.resync.forever())
                for _ in range(self.settings.workers):
                    group.create_task(self._work())
        finally:
            self.queue.close()
            await self.trust.close()
            for substrate in self.reconciler.substrates.values():
                await substrate.close()

    def sick(self) -> str | None:
        """Say why the process should be restarted: a reconcile that never ends."""
        now = self.clock.now()
        stuck = sorted(str(key) for key, began in self._began.items() if now - began > _LONGEST_RECONCILE)
        return f"stuck in {', '.join(stuck)}" if stuck else None

    async def _work(self) -> None:
        while True:
            try:
                key = await self.queue.get()
            except QueueClosedError:
                return
            self.metrics.queue_depth.set(len(self.queue))
            self._began[key] = self.clock.now()
            try:
                again_after = await self.reconciler.reconcile(key)
            except asyncio.CancelledError:
                raise
            except Transient as error:
                delay = self.queue.failed(key, again_after=error.retry_after)
                self.metrics.reconciles.labels(key.kind, "retry").inc()
                _LOG.info("%s: %s; again in %.1f s", key, error, delay)
            except Exception:  # noqa: BLE001 - one key's fault must not end the worker
                delay = self.queue.failed(key)
                self.metrics.reconciles.labels(key.kind, "error").inc()
                _LOG.exception("%s failed; again in %.1f s", key, delay)
            else:
                self.queue.done(key, again_after=again_after)
                self.metrics.reconciles.labels(key.kind, "done").inc()
            finally:
                self._began.pop(key, None)


async def run(settings: Settings, *, kubeconfig: Path | None, read_only: bool) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        KubeError: there is no way to log in.
    """
    stop = asyncio.Event()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    take_signals()
    async with (
        Kube(kubeconfig=kubeconfig, user_agent="gptoss-operator") as kube,
        aiohttp.ClientSession(trust_env=False) as session,
    ):
        engine = Engine(
            settings=settings,
            kubernetes=KubernetesAdapter(kube, settings=settings),
            session=session,
            leadership=ReadOnly() if read_only else AlwaysLeader(),
        )
        watches = Watches(
            intake=engine.intake,
            login=kube.connection,
            clock=engine.clock,
            namespaces=settings.namespaces,
            system_namespace=settings.system_namespace,
            after_start=take_signals,
        )

        def not_ready() -> str | None:
            if not engine.reconciler.complete:
                return "the first LIST is not complete"
            return None if watches.running else "the watches do not run"

        health = HealthServer(
            host=settings.metrics.host,
            port=settings.metrics.port,
            registry=engine.metrics.registry,
            sick=engine.sick,
            not_ready=not_ready,
        )
        await health.start()
        _LOG.info("metrics and health listen on %s:%d", settings.metrics.host, health.port)
        tasks = [
            asyncio.create_task(engine.forever(), name="engine"),
            asyncio.create_task(watches.forever(), name="watches"),
        ]
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, stopped):
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await health.stop()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
