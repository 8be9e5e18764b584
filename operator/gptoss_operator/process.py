"""The process: puts the parts together, runs them, and ends them in order."""

import asyncio
import logging
import secrets
import signal
import socket
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from gptoss_kube.client import Kube
from gptoss_kube.errors import Transient
from gptoss_operator.adapter import KubernetesAdapter
from gptoss_operator.boundary import Kubernetes
from gptoss_operator.cache import Cache
from gptoss_operator.clock import Clock, SystemClock
from gptoss_operator.gateway_tokens import AcceptedTokens
from gptoss_operator.handlers import Watches
from gptoss_operator.health import HealthServer
from gptoss_operator.intake import Intake
from gptoss_operator.keys import ClusterKey, Key
from gptoss_operator.leadership import AlwaysLeader, Elector, Leadership, ReadOnly
from gptoss_operator.metrics import Metrics
from gptoss_operator.plan.observation import KUBERAY
from gptoss_operator.plan.rayservice.workload import KubeRaySite
from gptoss_operator.reconcile import Reconciler
from gptoss_operator.releases import ReleaseLedger
from gptoss_operator.resync import Resync
from gptoss_operator.settings import Settings
from gptoss_operator.signature_check import Check, SignatureCheck
from gptoss_operator.starts import Starts
from gptoss_operator.substrates.dashboard import RayDashboard, engine_answers
from gptoss_operator.substrates.kuberay.follow import KubeRayObjects
from gptoss_operator.substrates.kuberay.reports import report_at
from gptoss_operator.substrates.kuberay.substrate import KubeRay
from gptoss_operator.substrates.rayserve import RayServe
from gptoss_operator.token_file import TokenFile
from gptoss_operator.trust import TrustDesk
from gptoss_operator.workqueue import Priority, QueueClosedError, WorkQueue

_log = logging.getLogger(__name__)
_LONGEST_RECONCILE = 180.0


class Operator:
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
        kube: Kube | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.intake = Intake(cache=self.cache, queue=self.queue, clock=self.clock)
        self.leadership = leadership = leadership or AlwaysLeader()
        self.trust = TrustDesk(
            check=check
            or SignatureCheck(
                cache=self.cache, sources=settings.sources(), trusted_roots=settings.sigstore_trusted_roots
            ),
            cache=self.cache,
            clock=self.clock,
            metrics=self.metrics,
            changed=self.queue.add,
            ledger=ReleaseLedger(cache=self.cache, kubernetes=kubernetes, leadership=leadership, seen=self.intake.seen),
            credentials=kubernetes.credentials,
        )
        self._tokens = (
            AcceptedTokens(settings.kube_ray.gateway_token_file, clock=self.clock)
            if settings.kube_ray is not None
            else None
        )
        self.kube_ray = self._kube_ray(kube, session, leadership)
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
            }
            | ({KUBERAY: self.kube_ray} if self.kube_ray is not None else {}),
            kube_ray_site=self._kube_ray_site,
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
        self.listed = False
        """Everything was listed once: the caches are warm, whether this process leads or stands by."""
        self._began: dict[Key, float] = {}

    async def forever(self) -> None:
        """List everything, then work until cancelled; a standby keeps its caches warm and waits before it works."""
        try:
            if self._tokens is not None:
                await self._tokens.look()
            if self.kube_ray is not None:
                await self.kube_ray.start()
            await self.resync.first()
            self.listed = True
            async with asyncio.TaskGroup() as group:
                group.create_task(self.resync.forever())
                if self._tokens is not None:
                    group.create_task(self._tokens.follow(partial(self.intake.everything, Priority.CHANGE)))
                await self._take_office()
                for _ in range(self.settings.workers):
                    group.create_task(self._work())
        finally:
            self.queue.close()
            await self.trust.close()
            for substrate in self.reconciler.substrates.values():
                await substrate.close()

    def _kube_ray(self, kube: Kube | None, session: aiohttp.ClientSession, leadership: Leadership) -> KubeRay | None:
        if kube is None or (kube_ray := self.settings.kube_ray) is None or (tokens := self._tokens) is None:
            return None
        objects = KubeRayObjects(
            kube,
            namespaces=self.settings.namespaces,
            read_nodes=kube_ray.read_nodes,
            news=self.queue.add,
            everything=partial(self.intake.everything, Priority.CHANGE),
        )
        self.metrics.follow(objects.follows)
        gateway_token = TokenFile(kube_ray.gateway_token_file)
        return KubeRay(
            kube_ray,
            objects,
            tokens=tokens,
            ask_engine=lambda url: engine_answers(session, url, gateway_token),
            read_report=partial(report_at, session),
            leadership=leadership,
            news=self.queue.add,
        )

    def _kube_ray_site(self) -> KubeRaySite | None:
        hashes = self._tokens.hashes() if self._tokens is not None else ()
        return self.settings.kube_ray_site(hashes) if hashes else None

    def sick(self) -> str | None:
        """Say why the process should be restarted: a reconcile that never ends."""
        now = self.clock.now()
        stuck = sorted(str(key) for key, began in self._began.items() if now - began > _LONGEST_RECONCILE)
        return f"stuck in {', '.join(stuck)}" if stuck else None

    async def _take_office(self) -> None:
        """Wait to lead. What the leader before wrote last may not have reached the cache: list once more."""
        if not self.leadership.may_write():
            await self.leadership.in_office()
            await self.resync.first()
        self.reconciler.complete = True

    async def _work(self) -> None:
        while True:
            await self.leadership.in_office()
            try:
                key = await self.queue.get()
            except QueueClosedError:
                return
            await self.leadership.in_office()
            led = self.leadership.may_write()
            self.metrics.queue_depth.set(len(self.queue))
            self._began[key] = self.clock.now()
            try:
                again_after = await self.reconciler.reconcile(key)
            except asyncio.CancelledError:
                raise
            except Transient as error:
                delay = self.queue.failed(key, again_after=error.retry_after)
                self.metrics.reconciles.labels(key.kind, "retry").inc()
                _log.info("%s: %s; again in %.1f s", key, error, delay)
            except Exception:  # noqa: BLE001 - one key's fault must not end the worker
                delay = self.queue.failed(key)
                self.metrics.reconciles.labels(key.kind, "error").inc()
                _log.exception("%s failed; again in %.1f s", key, delay)
            else:
                if led and not self.leadership.may_write():  # what was planned may not have been done
                    self.queue.failed(key)
                    continue
                self.queue.done(key, again_after=again_after)
                self.metrics.reconciles.labels(key.kind, "done").inc()
            finally:
                self._began.pop(key, None)


async def run(settings: Settings, *, kubeconfig: Path | None, read_only: bool, identity: str | None = None) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        KubeError: there is no way to log in.
        DeposedError: another replica took the lead.
    """
    stop = asyncio.Event()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    take_signals()
    clock = SystemClock()
    async with (
        Kube(kubeconfig=kubeconfig, user_agent="gptoss-operator-election") as election,
        aiohttp.ClientSession(trust_env=False) as session,
        AsyncExitStack() as stack,
    ):
        elector: Elector | None = None
        if settings.leader_election is not None and not read_only:
            elector = Elector(
                election,
                namespace=settings.system_namespace,
                name=settings.leader_election.lease_name,
                identity=identity or f"{socket.gethostname()}_{secrets.token_hex(4)}",
                terms=settings.leader_election,
                clock=clock,
            )
        leadership: Leadership = elector or (ReadOnly() if read_only else AlwaysLeader())
        kube = await stack.enter_async_context(
            Kube(kubeconfig=kubeconfig, user_agent="gptoss-operator", write_seconds=leadership.write_seconds)
        )
        operator = Operator(
            settings=settings,
            kubernetes=KubernetesAdapter(kube, settings=settings),
            session=session,
            clock=clock,
            leadership=leadership,
            kube=kube,
        )
        operator.metrics.leads.set_function(leadership.may_write)
        watches = Watches(
            intake=operator.intake,
            login=kube.connection,
            clock=operator.clock,
            namespaces=settings.namespaces,
            system_namespace=settings.system_namespace,
            after_start=take_signals,
        )

        def not_ready() -> str | None:
            if not operator.listed:
                return "the first LIST is not complete"
            return None if watches.running else "the watches do not run"

        health = HealthServer(
            host=settings.metrics.host,
            port=settings.metrics.port,
            registry=operator.metrics.registry,
            sick=operator.sick,
            not_ready=not_ready,
        )
        await health.start()
        _log.info("metrics and health listen on %s:%d", settings.metrics.host, health.port)
        tasks = [
            asyncio.create_task(operator.forever(), name="operator"),
            asyncio.create_task(watches.forever(), name="watches"),
        ]
        standing = [asyncio.create_task(elector.forever(), name="elector")] if elector is not None else []
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([*tasks, *standing, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            results = await _ended(*tasks, stopped)
            # Only now nothing of ours writes any more, and the next leader may begin.
            results += await _ended(*standing)
            if elector is not None:
                await elector.release()
            await health.stop()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result


async def _ended(*tasks: "asyncio.Task[Any]") -> list[Any]:
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
