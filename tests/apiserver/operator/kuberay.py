"""A stand-in for KubeRay 1.7, with the habits that its source and a real one showed, and for kubelets where none is.

Services go when a RayService is suspended and come back as others; each resume makes a cluster with a
new name from the specification of then; ``observedGeneration`` is not moved by a suspended RayService;
an active cluster's applications are empty while another is made; the status lags; a change of the
template with upgrade strategy None is ignored for ever; a cluster that was replaced stays for its delay. Pods that
can't be made are tried again, and told of as ReplicaFailure; pods that are gone are made anew. There is no RayCluster:
pods belong to the RayService itself.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gptoss_api.names import GATEWAY_TOKEN_HEADER
from gptoss_kube.client import Kube
from gptoss_kube.errors import Forbidden, Invalid, KubeError, NotFound
from gptoss_kube.resources import CONFIG_MAPS, PODS, RAY_SERVICES, SERVICES

GATEWAY_TOKEN = "the-secret-of-gateways"
_PASS_SECONDS = 0.05
_ORIGIN = "ray.io/originated-from-cr-name"
_STAYS = "tests.gptoss.dev/stays"
_suffixes = (f"x{number:04d}" for number in itertools.count(1))

Raw = dict[str, Any]


@dataclass
class Cluster:
    """One RayCluster, as KubeRay and its pods know it."""

    name: str
    template: str
    config: Raw
    application: Raw
    started: bool = False
    """All its pods are there and ready."""
    served: bool = False
    goes_at: float | None = None
    """When it goes, once it is neither active nor pending: the delay counts that was asked for at that moment."""


@dataclass
class StandInKubeRay:
    """Works on the RayServices of one namespace."""

    kube: Kube
    namespace: str
    port: int = 0
    kubelet: bool = True
    """Nobody else says how pods are."""
    worker_annotations: dict[str, str] = field(default_factory=dict)
    down: bool = False
    goes_down_suspending: bool = False
    """It ends once it has said that it suspends, before it takes anything away."""
    linger: bool = False
    """Pods that are told to go stay until `let_go`."""
    hold: bool = False
    """New clusters don't start."""
    skipped_seconds: float = 0.0
    """Its clock is so far ahead of the loop's."""
    init_message: str | None = None
    """What the container that fetches weights ends with."""
    fetching_at: str | None = None
    """The address of pods whose weights are being fetched."""
    unschedulable: str | None = None
    version: str = "v1.7.0"
    """What it tells each head."""
    image_id: str = "registry.example.com/serving@sha256:" + "1" * 64
    """What nodes say that they pulled, of pods that are looked at from now on for the first time."""
    fail_with: str | None = None
    clusters: dict[str, dict[str, Cluster]] = field(default_factory=dict)
    serve_puts: list[Raw] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    let_in: set[str] = field(default_factory=set)
    """Tokens with which an engine has been asked and that its ConfigMap lists."""

    async def forever(self) -> None:
        while True:
            if not self.down:
                with contextlib.suppress(KubeError):
                    listing = await self.kube.list(RAY_SERVICES, namespace=self.namespace)
                    for raw in listing.items:
                        await self._pass(raw)
            await asyncio.sleep(_PASS_SECONDS)

    async def let_go(self) -> None:
        """Pods that are told to go are gone, as those are that will be."""
        self.linger = False
        for pod in (await self.kube.list(PODS, namespace=self.namespace)).items:
            with contextlib.suppress(NotFound):
                await self.kube.merge_patch(
                    PODS,
                    pod["metadata"]["name"],
                    {"metadata": {"finalizers": None}},
                    namespace=self.namespace,
                    field_manager="kubelet",
                )

    async def _pass(self, raw: Raw) -> None:
        name, status = raw["metadata"]["name"], raw.get("status") or {}
        conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
        clusters = self.clusters.setdefault(name, {})
        if conditions.get("Suspended") == "True":
            if not raw["spec"].get("suspend"):
                await self._status(raw, Suspended="False", Ready="False", observed=True)
            return
        if conditions.get("Suspending") == "True":  # to the end, whatever is asked for meanwhile
            if clusters:
                await self._remove(name, list(clusters.values()))
                await self._remove_service(name)
            else:
                await self._status(raw, Suspending="False", Suspended="True", Ready="False")
            return
        if raw["spec"].get("suspend"):
            await self._status(raw, Suspending="True", Ready="False", observed=True, active={}, pending={})
            self.down = self.goes_down_suspending
            return
        await self._serve(raw, clusters, status)

    async def _serve(self, raw: Raw, clusters: dict[str, Cluster], status: Raw) -> None:
        name = raw["metadata"]["name"]
        config = raw["spec"]["rayClusterConfig"]
        template = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        (application,) = json.loads(raw["spec"]["serveConfigV2"])["applications"]
        active = clusters.get((status.get("activeServiceStatus") or {}).get("rayClusterName", ""))
        pending = clusters.get((status.get("pendingServiceStatus") or {}).get("rayClusterName", ""))
        strategy = raw["spec"]["upgradeStrategy"]["type"]
        await self._remove(name, self._over(raw, [each for each in clusters.values() if each not in (active, pending)]))
        newest = pending or active
        if newest is None or (newest.template != template and strategy == "NewCluster"):
            pending = Cluster(
                name=f"{name}-{next(_suffixes)}", template=template, config=config, application=application
            )
            clusters[pending.name] = pending
            self.made.append(pending.name)
            await self._status(raw, pending={"rayClusterName": pending.name}, observed=True)
            return
        if newest.application != application:
            self.serve_puts.append(application)
            newest.application = application
        made = await self._make_pods(raw, newest)
        await self._look(newest)
        told = {"applicationStatuses": {application["name"]: self._application(newest)}, **made}
        if newest is pending and newest.started and self.fail_with is None:
            await self._make_service(raw, newest.name)
            newest.served = True
            await self._status(raw, Ready="True", active={"rayClusterName": newest.name, **told}, pending={})
        elif newest is pending:
            kept = {"rayClusterName": active.name} if active is not None else {}
            await self._status(raw, active=kept, pending={"rayClusterName": newest.name, **told})
        else:
            await self._status(raw, active={"rayClusterName": newest.name, **told})

    def _over(self, raw: Raw, replaced: list[Cluster]) -> list[Cluster]:
        """Of clusters that others took the place of, those whose time is over; where nothing is asked for, a minute."""
        now, over = asyncio.get_running_loop().time() + self.skipped_seconds, []
        for each in replaced:
            if each.goes_at is None:
                each.goes_at = now + raw["spec"].get("rayClusterDeletionDelaySeconds", 60)
            elif now >= each.goes_at:
                over.append(each)
        return over

    def _application(self, cluster: Cluster) -> Raw:
        if self.fail_with is not None:
            message = "Failed to update the deployments ['GptOssServer']."
            server = {"status": "UNHEALTHY", "message": self.fail_with}
            return {"status": "DEPLOY_FAILED", "message": message, "serveDeploymentStatuses": {"GptOssServer": server}}
        if cluster.started:
            return {"status": "RUNNING", "message": ""}
        return {"status": "UNHEALTHY" if cluster.served else "DEPLOYING", "message": ""}

    async def _make_pods(self, raw: Raw, cluster: Cluster) -> Raw:
        """Make the pods that are not there; return what of the cluster's status tells why one could not be made."""
        group = cluster.config["workerGroupSpecs"][0]
        pods = {"head": (cluster.config["headGroupSpec"]["template"], {})}
        pods |= {
            f"worker-{number}": (group["template"], self.worker_annotations) for number in range(group["replicas"])
        }
        there = {pod["metadata"]["name"] for pod in await self._pods(cluster)}
        for role, (template, annotations) in pods.items():
            name = f"{cluster.name}-{role}"
            if name in there:
                continue
            metadata = {
                "name": name,
                "namespace": self.namespace,
                "labels": {**template["metadata"]["labels"], "ray.io/cluster": cluster.name, "ray.io/serve": "true"},
                "annotations": annotations,
                "finalizers": [_STAYS] if self.linger else [],
                "ownerReferences": [_owned_by(raw)],
            }
            spec = json.loads(json.dumps({**template["spec"], "serviceAccountName": "made-by-kuberay"}))
            if role == "head":
                tags = f"kuberay_version={self.version};kuberay_crd=RayService"
                spec["containers"][0]["env"].append({"name": "RAY_USAGE_STATS_EXTRA_TAGS", "value": tags})
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            try:
                await self.kube.create(pod, resource=PODS, field_manager="kuberay")
            except (Forbidden, Invalid) as refused:
                failure = {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreate",
                    "message": str(refused),
                }
                return {"rayClusterStatus": {"conditions": [failure]}}
        return {}

    async def _look(self, cluster: Cluster) -> None:
        if self.kubelet and not cluster.started:
            await self._play_kubelet(cluster)
        pods = await self._pods(cluster)
        wanted = 1 + cluster.config["workerGroupSpecs"][0]["replicas"]
        cluster.started = len(pods) >= wanted and all(_is_ready(pod) for pod in pods)

    async def _play_kubelet(self, cluster: Cluster) -> None:
        ready = not (self.hold or self.init_message or self.unschedulable or self.fetching_at)
        for pod in await self._pods(cluster):
            status: Raw = {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
            if ready:
                status["containerStatuses"] = [self._runs(each) for each in pod["spec"]["containers"]]
            if self.unschedulable is not None:
                status["conditions"].append(
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": self.unschedulable,
                    }
                )
            if "initContainers" in pod["spec"]:
                status |= self._fetches(ready=ready)
            if _differs(pod.get("status") or {}, status):
                await self.kube.merge_patch(
                    PODS,
                    pod["metadata"]["name"],
                    {"status": status},
                    namespace=self.namespace,
                    field_manager="kubelet",
                    subresource="status",
                )

    def _fetches(self, *, ready: bool) -> Raw:
        """What a status says of the container that fetches weights."""
        told: Raw = {"name": "weights", "image": "serving", "imageID": "", "ready": ready, "restartCount": 0}
        if self.init_message is not None:
            ended = {"exitCode": 3, "reason": "Error", "message": self.init_message}
            state = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ended}}
            return {"initContainerStatuses": [{**told, "restartCount": 1, **state}]}
        if self.fetching_at is not None:
            state = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
            addresses = {"podIP": self.fetching_at, "podIPs": [{"ip": self.fetching_at}]}
            return {**addresses, "initContainerStatuses": [{**told, **state}]}
        done = {"exitCode": 0, "reason": "Completed"}
        return {"initContainerStatuses": [{**told, "state": {"terminated": done}}]} if ready else {}

    def _runs(self, container: Raw) -> Raw:
        running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        told = {"image": container["image"], "imageID": self.image_id, "ready": True, "restartCount": 0}
        return {"name": container["name"], **told, "state": running}

    async def _pods(self, cluster: Cluster) -> list[Raw]:
        selector = f"ray.io/cluster={cluster.name}"
        return list((await self.kube.list(PODS, namespace=self.namespace, label_selector=selector)).items)

    async def _remove(self, name: str, clusters: list[Cluster]) -> None:
        """Clusters and their pods."""
        for cluster in clusters:
            for pod in await self._pods(cluster):
                with contextlib.suppress(NotFound):
                    await self.kube.delete(PODS, pod["metadata"]["name"], namespace=self.namespace)
            del self.clusters[name][cluster.name]

    async def _remove_service(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await self.kube.delete(SERVICES, f"{name}-serve-svc", namespace=self.namespace)

    async def _make_service(self, raw: Raw, cluster: str) -> None:
        name = raw["metadata"]["name"]
        document = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": f"{name}-serve-svc",
                "namespace": self.namespace,
                "labels": {_ORIGIN: name},
                "ownerReferences": [_owned_by(raw)],
            },
            "spec": {"selector": {"ray.io/cluster": cluster}, "ports": [{"name": "serve", "port": 8000}]},
        }
        await self.kube.apply(document, resource=SERVICES, field_manager="kuberay")

    async def _status(
        self,
        raw: Raw,
        *,
        active: Raw | None = None,
        pending: Raw | None = None,
        observed: bool = False,
        **conditions: str,
    ) -> None:
        before = raw.get("status") or {}
        known = {each["type"]: each for each in before.get("conditions") or ()}
        known |= {name: {"type": name, "status": status, "reason": "StandIn"} for name, status in conditions.items()}
        status = {
            "conditions": list(known.values()),
            "activeServiceStatus": active if active is not None else before.get("activeServiceStatus") or {},
            "pendingServiceStatus": pending if pending is not None else before.get("pendingServiceStatus") or {},
            "observedGeneration": raw["metadata"]["generation"] if observed else before.get("observedGeneration", 0),
        }
        if status != before:
            document = {**raw, "status": status}
            document["metadata"].pop("managedFields", None)
            await self.kube.replace(document, resource=RAY_SERVICES, field_manager="kuberay", subresource="status")

    async def engine(self, request: web.Request) -> web.Response:
        """The engine behind a deployment's own Service: what its selector finds, and nothing else."""
        given = request.headers.get(GATEWAY_TOKEN_HEADER, "")
        deployment = request.match_info["service"].removesuffix("-gptoss")
        try:
            accepted = await self.kube.get(CONFIG_MAPS, f"{deployment}-gateway-tokens", namespace=self.namespace)
            if f"sha256:{hashlib.sha256(given.encode()).hexdigest()}" not in accepted["data"]["gateway-tokens"].split():
                return web.Response(status=401)
            self.let_in.add(given)
            service = await self.kube.get(SERVICES, request.match_info["service"], namespace=self.namespace)
        except KubeError:
            return web.Response(status=503)
        name = service["spec"]["selector"]["ray.io/cluster"]
        serving = {each.name for clusters in self.clusters.values() for each in clusters.values() if each.started}
        if name not in serving or self.fail_with is not None:
            return web.Response(status=503)
        return web.json_response({"object": "list", "data": [], "cluster": name})


def _owned_by(raw: Raw) -> Raw:
    owner = {"apiVersion": raw["apiVersion"], "kind": raw["kind"], "controller": True, "blockOwnerDeletion": True}
    return {**owner, "name": raw["metadata"]["name"], "uid": raw["metadata"]["uid"]}


def _is_ready(pod: Raw) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _differs(found: Raw, wanted: Raw) -> bool:
    """Whether a pod's status lacks something, times aside (the server adds none to what we write)."""
    return any(found.get(name) != value for name, value in wanted.items())


@asynccontextmanager
async def standing_in(kube: Kube, namespace: str, *, kubelet: bool = True) -> AsyncIterator[StandInKubeRay]:
    """``kubelet``: it says how pods are, too."""
    built = StandInKubeRay(kube, namespace, kubelet=kubelet)
    app = web.Application()
    app.router.add_get("/{namespace}/{service}/{path:.*}", built.engine)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    built.port = runner.addresses[0][1]
    task = asyncio.create_task(built.forever())
    try:
        yield built
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()
