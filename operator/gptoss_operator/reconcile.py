"""One look at one key: observe → plan → write the status → act. The same path for every cause."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from gptoss_api.conditions import ConditionType, Reason
from gptoss_api.deployment import GptOssDeployment
from gptoss_api.deployment_status import Condition, GptOssDeploymentStatus
from gptoss_api.names import PAUSED_ANNOTATION
from gptoss_kube.errors import NotFound
from gptoss_operator.boundary import Kubernetes
from gptoss_operator.cache import Cache, Kind, Raw
from gptoss_operator.clock import Clock
from gptoss_operator.intake import Intake
from gptoss_operator.keys import ClusterKey, DeploymentKey, Key, RayServiceKey
from gptoss_operator.leadership import Leadership
from gptoss_operator.metrics import Metrics
from gptoss_operator.placement import cluster_of, placement_of
from gptoss_operator.plan.applications import Keep
from gptoss_operator.plan.observation import KUBERAY, ApplicationView, Memory, Observation, Site
from gptoss_operator.plan.planner import Plan, plan
from gptoss_operator.plan.rayservice.render import gateway_tokens
from gptoss_operator.plan.rayservice.workload import KubeRaySite
from gptoss_operator.settings import Settings
from gptoss_operator.starts import Starts
from gptoss_operator.substrates.protocol import Substrate
from gptoss_operator.trust import TrustDesk
from gptoss_operator.workqueue import WorkQueue

_UNREACHABLE = frozenset({Reason.CLUSTER_UNREACHABLE, Reason.KUBERAY_MISSING})
_log = logging.getLogger(__name__)


@dataclass
class Reconciler:
    """Looks at keys. Holds nothing that a restart may not lose."""

    settings: Settings
    cache: Cache
    queue: WorkQueue[Key]
    intake: Intake
    kubernetes: Kubernetes
    substrates: Mapping[str, Substrate]
    trust: TrustDesk
    starts: Starts
    metrics: Metrics
    clock: Clock
    leadership: Leadership
    kube_ray_site: Callable[[], KubeRaySite | None] = lambda: None
    complete: bool = False
    """A complete LIST of deployments is in the cache."""
    _memory: dict[str, Memory] = field(default_factory=dict)
    _uids: dict[DeploymentKey, str] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> float | None:
        """Look at a key; return seconds until it must be looked at again without news.

        Raises:
            KubeError: Kubernetes did not take a write; the queue tries again.
        """
        match key:
            case ClusterKey(name=name):
                return await self._substrate(key, name)
            case RayServiceKey():
                return await self._substrate(key, KUBERAY)
            case DeploymentKey():
                return await self._deployment(key)

    async def _substrate(self, key: Key, name: str) -> float | None:
        substrate = self.substrates[name]
        outcome = await substrate.reconcile(key, complete=lambda: self.complete and self._all_asked(name, substrate))
        unreachable = outcome.trouble is not None and outcome.trouble[0] in _UNREACHABLE
        self.metrics.cluster_reachable.labels(name).set(not unreachable)
        if outcome.wrote:
            self.metrics.cluster_writes.labels(name).inc()
        for changed in sorted(outcome.changed):
            self.queue.add(changed)
        return outcome.look_again

    def _all_asked(self, cluster: str, substrate: Substrate) -> bool:
        for raw in self.cache.all(Kind.DEPLOYMENT):
            if cluster_of(raw, self.settings) == cluster:
                key = DeploymentKey(raw["metadata"]["namespace"], raw["metadata"]["name"])
                if substrate.asked(key) is None:
                    return False
        return True

    async def _deployment(self, key: DeploymentKey) -> float | None:
        raw = self.cache.get(Kind.DEPLOYMENT, key.namespace, key.name)
        if raw is None:
            self._forget(key)
            return None
        uid = raw["metadata"]["uid"]
        if self._uids.get(key, uid) != uid:
            self._forget(key)
        self._uids[key] = uid
        try:
            deployment = GptOssDeployment.parse(raw)
        except ValidationError as error:
            return await self._unreadable(key, raw, error)
        return await self._readable(key, raw, deployment)

    async def _readable(self, key: DeploymentKey, raw: Raw, deployment: GptOssDeployment) -> float | None:
        status = _status_of(raw)
        placement = placement_of(deployment, self.settings)
        if not placement.cluster:
            self._keep(key, raw)
        substrate = self.substrates.get(placement.cluster)
        trust, look_in = self.trust.answer(key, deployment, eager=status.failed_source is not None)
        observed = Observation(
            deployment=deployment,
            status=status,
            placement=placement,
            application=substrate.view(key) if substrate is not None else ApplicationView(),
            hardware=substrate.hardware(deployment) if substrate is not None else None,
            trust=trust,
            revocation=self.trust.revocation(key, deployment, status.weights),
            demand=self.intake.demand(deployment.uid),
            rivals=self._rivals(key, deployment),
            may_start=self.starts.may(key),
            now=self.clock.now(),
            wall=self.clock.wall(),
        )
        site = Site(
            installation=self.settings.installation,
            import_path=self.settings.serving_import_path,
            gateway_url=self.settings.gateway_url,
            kube_ray=self.kube_ray_site() if placement.on_kuberay else None,
        )
        asked = substrate.asked(key) if substrate is not None else None
        planned = plan(observed, self._memory.get(deployment.uid), site, asked=asked)
        # Before the first await, so that no other look sees the same permit.
        self._settle(key, starting=planned.starting, queued=planned.queued)
        try:
            await self._execute(key, raw, planned)
        except NotFound:
            self._vanished(key, raw)
            return None
        self._tell(key, planned.status or status)
        pauses = [pause for pause in (planned.requeue_after, look_in) if pause is not None]
        return min(pauses, default=None)

    async def _execute(self, key: DeploymentKey, raw: Raw, planned: Plan) -> None:
        """Write down, then act: whoever dies in between leaves what the next process does again."""
        if not self.leadership.may_write():
            if planned.actions or planned.status is not None:
                _log.info("%s: would do %s, status %s", key, planned.actions, planned.status)
            return
        if planned.status is not None:
            self.intake.seen(Kind.DEPLOYMENT, await self.kubernetes.write_status(raw, _wire(planned.status)))
        self._memory[raw["metadata"]["uid"]] = planned.memory
        # At once, so that nothing that fails below has a wake counted twice, or never.
        self.metrics.count_wake(planned.timings, planned.woke_seconds)
        for action in planned.actions:
            substrate = self.substrates[action.cluster]
            substrate.ask(key, action.wish)
            self.queue.add(substrate.key(key))
        for event in planned.events:
            if not await self.kubernetes.tell(raw, type_=event.type, reason=event.reason, message=event.message):
                self.metrics.events_lost.inc()

    def _tell(self, key: DeploymentKey, status: GptOssDeploymentStatus) -> None:
        self.metrics.tell_conditions(key, status.conditions)
        self.metrics.tell_weights(key, status.weights)
        self.metrics.tell_pull(key, status.pull)

    async def _unreadable(self, key: DeploymentKey, raw: Raw, error: ValidationError) -> float | None:
        """The API server let something through that we can't read: say so, and touch nothing."""
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"spec.{where}: {first['msg']}; correct the field"[:1024]
        before = _status_of(raw)
        conditions = {condition.type: condition for condition in before.conditions}
        for type_, value in ((ConditionType.READY, "False"), (ConditionType.STALLED, "True")):
            known = conditions.get(type_)
            conditions[type_] = Condition(
                type=type_,
                status=value,
                reason=Reason.INVALID_SPEC,
                message=message,
                last_transition_time=known.last_transition_time
                if known is not None and known.status == value
                else self.clock.wall(),
                observed_generation=raw["metadata"].get("generation"),
            )
        status = before.model_copy(
            update={"conditions": tuple(conditions.values()), "state": Reason.INVALID_SPEC.value}
        )
        self._keep(key, raw)
        self._settle(key, starting=False, queued=False)
        if status != before and self.leadership.may_write():
            try:
                self.intake.seen(Kind.DEPLOYMENT, await self.kubernetes.write_status(raw, _wire(status)))
            except NotFound:
                self._vanished(key, raw)
        return None

    def _keep(self, key: DeploymentKey, raw: Raw) -> None:
        """What can't be planned keeps what it has, and keeps nobody else's cluster from being tidied up."""
        cluster = cluster_of(raw, self.settings)
        if cluster is not None and cluster in self.substrates:
            substrate, wish = self.substrates[cluster], self._kept(key, raw, cluster)
            if substrate.asked(key) != wish:
                substrate.ask(key, wish)
                self.queue.add(substrate.key(key))

    def _kept(self, key: DeploymentKey, raw: Raw, cluster: str) -> Keep:
        site = self.kube_ray_site() if cluster == KUBERAY else None
        if site is None or (raw["metadata"].get("annotations") or {}).get(PAUSED_ANNOTATION) == "true":
            return Keep()
        uid = raw["metadata"]["uid"]
        return Keep(gateway_tokens(site, namespace=key.namespace, deployment=key.name, uid=uid))

    def _settle(self, key: DeploymentKey, *, starting: bool, queued: bool) -> None:
        for other in self.starts.settle(key, starting=starting, queued=queued):
            self.queue.add(other)

    def _rivals(self, key: DeploymentKey, deployment: GptOssDeployment) -> tuple[str, ...]:
        claimants = self.cache.claimants(key.namespace, deployment.served_name)
        return tuple(str(other) for other in claimants if other != key)

    def _vanished(self, key: DeploymentKey, raw: Raw) -> None:
        """It is gone, or another took its name: what the cache holds is a ghost."""
        self.intake.gone(Kind.DEPLOYMENT, key.namespace, key.name, raw["metadata"]["uid"])
        self._forget(key)

    def _forget(self, key: DeploymentKey) -> None:
        uid = self._uids.pop(key, None)
        if uid is not None:
            self._memory.pop(uid, None)
        self.trust.forget(key)
        self.metrics.forget(key)
        self.queue.forget(key)
        self._settle(key, starting=False, queued=False)
        for substrate in self.substrates.values():
            if substrate.forget(key):
                self.queue.add(substrate.key(key))


def _status_of(raw: Raw) -> GptOssDeploymentStatus:
    """Read the status back; one that another version wrote counts as far as it can be read."""
    written = raw.get("status") or {}
    try:
        return GptOssDeploymentStatus.model_validate(written)
    except ValidationError:
        known: dict[str, Any] = {}
        for name, value in written.items():
            try:
                GptOssDeploymentStatus.model_validate({name: value})
            except ValidationError:
                continue
            known[name] = value
        return GptOssDeploymentStatus.model_validate(known)


def _wire(status: GptOssDeploymentStatus) -> dict[str, Any]:
    return status.model_dump(by_alias=True, exclude_none=True, mode="json")
