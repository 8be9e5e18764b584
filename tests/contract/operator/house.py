"""The real operator between a fake API server and a fake Ray cluster."""

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from gptoss_api.clusters import RayCluster
from gptoss_kube.errors import Conflict, NotFound, ServerFailed
from gptoss_operator.cache import Kind
from gptoss_operator.plan.observation import Trusted
from gptoss_operator.process import Operator
from gptoss_operator.settings import Settings
from gptoss_operator.substrates import pulls, rayserve
from gptoss_operator.workqueue import Priority
from tests.builders import DIGEST, deployment_object
from tests.contract.operator.fake_ray import GATEWAY_TOKEN, TOKEN, FakeRay

Raw = dict[str, Any]


AUTHORITY = {"name": "release", "models": ["*"], "key": {"publicKeyPEM": "-----BEGIN PUBLIC KEY-----" + "A" * 64}}


class ManualClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wall(self) -> str:
        return f"2026-01-01T00:{int(self.time) // 60 % 60:02}:{int(self.time) % 60:02}Z"


class FakeKubernetes:
    """Objects in memory, behind the operator's boundary. Watches are `operator.intake`."""

    def __init__(self) -> None:
        self.objects: dict[Kind, dict[tuple[str, str], Raw]] = {kind: {} for kind in Kind}
        self.events: list[tuple[str, str, str]] = []
        self.status_writes = 0
        self.failing_writes = 0
        self.loses_answer_to: Callable[[Mapping[str, Any]], bool] = lambda status: False
        """Whether the answer to a write of this status, which is taken, gets lost; asked once a write."""
        self.watch: Callable[[Kind, Raw], None] = lambda kind, raw: None
        """Who hears of a write whose answer was lost."""
        self.failing_lists = 0
        self.records_events = True
        self.secrets: dict[str, Mapping[str, str] | Exception] = {}
        self._version = 10

    def put(self, kind: Kind, raw: Raw) -> Raw:
        self._version += 1
        stored = copy.deepcopy(raw)
        stored["metadata"]["resourceVersion"] = str(self._version)
        self.objects[kind][(stored["metadata"].get("namespace") or "", stored["metadata"]["name"])] = stored
        return copy.deepcopy(stored)

    async def list(self, kind: Kind) -> list[Raw]:
        if self.failing_lists:
            self.failing_lists -= 1
            raise ServerFailed("injected")
        return copy.deepcopy(list(self.objects[kind].values()))

    async def write_status(self, deployment: Raw, status: Mapping[str, Any]) -> Raw:
        if self.failing_writes:
            self.failing_writes -= 1
            raise ServerFailed("injected")
        metadata = deployment["metadata"]
        stored = self.objects[Kind.DEPLOYMENT].get((metadata["namespace"], metadata["name"]))
        if stored is None or stored["metadata"]["uid"] != metadata["uid"]:
            raise NotFound("gone", status=404)
        self.status_writes += 1
        written = self.put(Kind.DEPLOYMENT, {**stored, "status": copy.deepcopy(dict(status))})
        if self.loses_answer_to(status):
            self.watch(Kind.DEPLOYMENT, written)
            raise ServerFailed("injected")
        return written

    async def write_policy_status(self, policy: Raw, status: Mapping[str, Any]) -> Raw:
        if self.failing_writes:
            self.failing_writes -= 1
            raise ServerFailed("injected")
        stored = self.objects[Kind.POLICY][("", policy["metadata"]["name"])]
        if stored["metadata"]["resourceVersion"] != policy["metadata"]["resourceVersion"]:
            raise Conflict("changed", status=409)
        return self.put(Kind.POLICY, {**stored, "status": copy.deepcopy(dict(status))})

    async def credentials(self, namespace: str) -> Mapping[str, str]:
        found = self.secrets.get(namespace, {})
        if isinstance(found, Exception):
            raise found
        return found

    async def delete_report(self, name: str) -> None:
        self.objects[Kind.REPORT].pop(("gptoss-system", name), None)

    async def tell(self, deployment: Raw, *, type_: str, reason: str, message: str) -> bool:
        self.events.append((deployment["metadata"]["name"], reason, message))
        return self.records_events


@dataclass
class TrustSays:
    """What the check of signature and policy finds."""

    error: Exception | None = None
    digest: str = DIGEST
    source: str = "source-1"
    authority: str = "release"
    signer: str = "sha256:" + "ab" * 32
    identity: str | None = None
    waived: str | None = None
    raises_release: bool = False
    valid_until: datetime | None = None
    asked: int = 0
    credentials: Mapping[str, str] | None = None
    """What the last check was given."""
    may_answer: threading.Event = field(default_factory=threading.Event)
    """Cleared, checks hang until it is set again."""
    silent: str | None = None
    """The namespace whose checks hang then; None is every one."""

    def __post_init__(self) -> None:
        self.may_answer.set()

    def __call__(self, deployment: Any, policies: Any, wall: str, credentials: Mapping[str, str]) -> Trusted:
        self.asked += 1
        self.credentials = credentials
        if self.silent in {None, deployment.namespace}:
            self.may_answer.wait(300)
        if self.error is not None:
            raise self.error
        return Trusted(
            manifest_digest=self.digest,
            signer=self.signer,
            authority=self.authority,
            policy="default",
            source=self.source,
            checked_at=wall,
            identity=self.identity,
            valid_until=self.valid_until,
            waived=self.waived,
            raises_release=self.raises_release,
        )


@dataclass
class House:
    """One running operator and what surrounds it."""

    kubernetes: FakeKubernetes
    ray: FakeRay
    trust: TrustSays
    clock: ManualClock
    settings: Settings
    session: aiohttp.ClientSession
    operator: Operator
    task: "asyncio.Task[None] | None" = None
    beats: dict[str, int] = field(default_factory=dict)

    def apply(self, name: str = "assistant", namespace: str = "ml", **more: Any) -> Raw:
        known = self.kubernetes.objects[Kind.DEPLOYMENT].get((namespace, name))
        raw = deployment_object(name, namespace, **{"uid": f"uid-{namespace}-{name}", **more})
        if known is not None:
            raw["metadata"]["uid"] = known["metadata"]["uid"]
            changed = raw["spec"] != known["spec"]
            raw["metadata"]["generation"] = known["metadata"]["generation"] + changed
            raw["status"] = known.get("status")
        stored = self.kubernetes.put(Kind.DEPLOYMENT, raw)
        self.operator.intake.seen(Kind.DEPLOYMENT, stored)
        return stored

    def policy(self, name: str = "default", **spec: Any) -> None:
        """Change a policy that selects every namespace."""
        whole = {"default": True, "sources": [{"prefix": "s3://models"}], "authorities": [AUTHORITY], **spec}
        before = self.kubernetes.objects[Kind.POLICY].get(("", name), {})
        raw = {"metadata": {"name": name, "uid": name}, "spec": whole, "status": before.get("status", {})}
        stored = self.kubernetes.put(Kind.POLICY, raw)
        self.operator.intake.seen(Kind.POLICY, stored)

    def delete(self, name: str = "assistant", namespace: str = "ml", *, told: bool = True) -> None:
        raw = self.kubernetes.objects[Kind.DEPLOYMENT].pop((namespace, name))
        if told:
            self.operator.intake.gone(Kind.DEPLOYMENT, namespace, name, raw["metadata"]["uid"])

    def report(self, gateway: str = "gateway-0", **deployments: Mapping[str, Any]) -> None:
        """A heartbeat of a gateway, with what it says of deployments in namespace ml."""
        self.beats[gateway] = self.beats.get(gateway, 0) + 1
        spec = {
            "gateway": gateway,
            "heartbeat": self.beats[gateway],
            "renewedAt": "2026-01-01T00:00:00Z",
            "deployments": [
                {"uid": f"uid-ml-{name}", "namespace": "ml", "name": name, **content}
                for name, content in deployments.items()
            ],
        }
        raw = {"metadata": {"name": gateway, "namespace": "gptoss-system", "uid": gateway}, "spec": spec}
        self.operator.intake.seen(Kind.REPORT, self.kubernetes.put(Kind.REPORT, raw))

    def status(self, name: str = "assistant", namespace: str = "ml") -> Raw:
        return self.kubernetes.objects[Kind.DEPLOYMENT][(namespace, name)].get("status") or {}

    def condition(self, kind: str, name: str = "assistant", namespace: str = "ml") -> tuple[str, str]:
        for condition in self.status(name, namespace).get("conditions", ()):
            if condition["type"] == kind:
                return condition["status"], condition["reason"]
        return "", ""

    def message(self, kind: str, name: str = "assistant") -> str:
        return next(each["message"] for each in self.status(name)["conditions"] if each["type"] == kind)

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and let everything that waits for time look again."""
        self.clock.time += seconds
        self.look()

    def look(self) -> None:
        self.operator.intake.everything(Priority.CHANGE)

    async def until(self, what: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until a predicate holds."""

        async def wait() -> None:
            while not what():  # noqa: ASYNC110 - the predicate reads the state of several tasks
                await asyncio.sleep(0.01)

        try:
            await asyncio.wait_for(wait(), seconds)
        except TimeoutError:
            applications = self.apps() if self.ray is not None else "on a real Ray"
            raise AssertionError(f"never came true; statuses {self.statuses()}, applications {applications}") from None

    async def ready(self, name: str = "assistant", reason: str = "Serving") -> None:
        await self.until(lambda: self.condition("Ready", name) == ("True", reason))

    async def settled(self) -> None:
        """Wait until nothing is waiting or running any more."""
        quiet = 0
        while quiet < 5:
            await asyncio.sleep(0.02)
            quiet = quiet + 1 if not len(self.operator.queue) and not self.operator.queue.running else 0

    def statuses(self) -> Any:
        return {
            identity: {
                each["type"]: (each["status"], each["reason"])
                for each in (raw.get("status") or {}).get("conditions", ())
            }
            for identity, raw in self.kubernetes.objects[Kind.DEPLOYMENT].items()
        }

    def apps(self) -> dict[str, str]:
        return {name: application["status"] for name, application in self.ray.applications.items()}

    async def restart(self) -> None:
        """Kill the operator and start another: only the API server and Ray remember."""
        await self.stop()
        self.operator = Operator(
            settings=self.settings,
            kubernetes=self.kubernetes,
            session=self.session,
            clock=self.clock,
            check=self.trust,
        )
        self.start()

    def start(self) -> None:
        self.task = asyncio.create_task(self.operator.forever())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def house(
    folder: Path, *, start: bool = True, allowed_namespaces: tuple[str, ...] = ("*",), **settings: Any
) -> AsyncIterator[House]:
    # What matters is what follows a look, not how long one is waited for.
    rayserve.MOVING_SECONDS = 0.1
    rayserve.SETTLED_SECONDS = 1.0
    rayserve.NODES_SECONDS = 0.1
    pulls.PAUSE_SECONDS = 0.05
    ray = FakeRay()
    await ray.start()
    (folder / "ray-token").write_text(TOKEN)
    (folder / "gateway-token").write_text(GATEWAY_TOKEN)
    values: dict[str, Any] = {
        "installation": "test",
        "system_namespace": "gptoss-system",
        "default_ray_cluster": "local",
        "gateway_url": "http://127.0.0.1:8080/v1",
        "ray_clusters": (
            RayCluster(
                name="local",
                dashboard_url=ray.url,
                serve_url=ray.url,
                token_file=folder / "ray-token",
                gateway_token_file=folder / "gateway-token",
                allowed_namespaces=allowed_namespaces,
            ),
        ),
        **settings,
    }
    kubernetes, trust, clock = FakeKubernetes(), TrustSays(), ManualClock()
    async with aiohttp.ClientSession() as session:
        parsed = Settings(**values)
        operator = Operator(settings=parsed, kubernetes=kubernetes, session=session, clock=clock, check=trust)
        built = House(kubernetes, ray, trust, clock, parsed, session, operator)
        kubernetes.watch = lambda kind, raw: built.operator.intake.seen(kind, raw)
        if start:
            built.start()
        try:
            yield built
        finally:
            trust.may_answer.set()
            await built.stop()
            await ray.stop()
