"""The KubeRay substrate on a real API server, with a stand-in for KubeRay and the rights that we ask for."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gptoss_api.gateway_token import RETAIN_SECONDS
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.ports import free_ports
from gptoss_cli.report_port import reported_on
from gptoss_kube.client import Kube
from gptoss_kube.errors import Forbidden, Invalid, KubeError
from gptoss_kube.resources import (
    CONFIG_MAPS,
    GPT_OSS_DEPLOYMENTS,
    NETWORK_POLICIES,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    RAY_SERVICES,
    SECRETS,
    SERVICES,
)
from gptoss_kube.watch import Informer
from gptoss_operator import gateway_tokens
from gptoss_operator.adapter import KubernetesAdapter
from gptoss_operator.cache import Kind
from gptoss_operator.kuberay_settings import MOVE_SECONDS
from gptoss_operator.process import Operator
from gptoss_operator.settings import Settings
from gptoss_operator.substrates import pulls
from gptoss_operator.substrates.kuberay import reports, substrate
from gptoss_operator.workqueue import Priority
from gptoss_weights.errors import DeniedDigestError
from gptoss_weights.materialise import PullProgress
from tests.apiserver.operator.kuberay import GATEWAY_TOKEN, StandInKubeRay, standing_in
from tests.builders import DIGEST, deployment_object
from tests.contract.operator.house import AUTHORITY, ManualClock, TrustSays
from tests.controlplane import OPERATOR_USER, REPOSITORY
from tests.kuberay import install_rayservices, remove_rayservices

pytestmark = pytest.mark.usefixtures("crds")
SLEEPY = {"minReplicas": 0, "idleSeconds": 60}
IMAGE = "serving@sha256:" + "1" * 64
PATIENCE = 150.0


@pytest.fixture
def rayservices(control_plane: ControlPlane) -> Iterator[None]:
    install_rayservices(control_plane)
    yield
    remove_rayservices(control_plane)


@dataclass
class Home:
    """The operator between a real API server and the stand-in."""

    plane: ControlPlane
    admin: Kube
    kuberay: StandInKubeRay
    namespace: str
    folder: Path
    clock: ManualClock = field(default_factory=ManualClock)
    trust: TrustSays = field(default_factory=TrustSays)
    image: str = IMAGE
    file_roots: tuple[dict[str, str], ...] = ()
    deletion_delay: int | None = None
    beats: int = 0
    uid: str = ""
    running: Operator | None = None

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Operator]:
        """Run an operator, with nothing but the rights of its role."""
        settings = Settings.model_validate(
            {
                "installation": "test",
                "systemNamespace": "gptoss-system",
                "namespaces": [self.namespace],
                "kubeRay": {
                    "image": self.image,
                    "fileRoots": self.file_roots,
                    **({} if self.deletion_delay is None else {"rayClusterDeletionDelaySeconds": self.deletion_delay}),
                    "gatewayTokenFile": str(self.folder / "gateway-token"),
                    "serviceURL": f"http://127.0.0.1:{self.kuberay.port}/{{namespace}}/{{service}}",
                },
            }
        )
        async with (
            Kube(kubeconfig=self.plane.kubeconfig_for(OPERATOR_USER)) as kube,
            aiohttp.ClientSession() as session,
        ):
            operator = self.running = Operator(
                settings=settings,
                kubernetes=KubernetesAdapter(kube, settings=settings),
                session=session,
                clock=self.clock,
                check=self.trust,
                kube=kube,
            )
            watch = Informer(
                kube,
                GPT_OSS_DEPLOYMENTS,
                namespace=self.namespace,
                on_change=lambda raw: operator.intake.seen(Kind.DEPLOYMENT, raw),
                on_delete=lambda raw: operator.intake.gone(
                    Kind.DEPLOYMENT, self.namespace, raw["metadata"]["name"], raw["metadata"]["uid"]
                ),
            )
            task = asyncio.create_task(operator.forever())
            try:
                async with watch:
                    yield operator
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def apply(self, **spec: Any) -> None:
        raw = deployment_object("assistant", self.namespace, **spec)
        raw["metadata"] = {"name": "assistant", "namespace": self.namespace}
        applied = await self.admin.apply(raw, resource=GPT_OSS_DEPLOYMENTS, field_manager="team")
        self.uid = applied["metadata"]["uid"]

    async def get(self, resource: Any, name: str = "assistant") -> dict[str, Any]:
        return await self.admin.get(resource, name, namespace=self.namespace)

    async def condition(self, kind: str) -> tuple[str, str, str]:
        for each in ((await self.get(GPT_OSS_DEPLOYMENTS)).get("status") or {}).get("conditions", ()):
            if each["type"] == kind:
                return each["status"], each["reason"], each.get("message", "")
        return "", "", ""

    def report(self, **content: Any) -> None:
        """A gateway's heartbeat, with what it says of the deployment."""
        assert self.running is not None
        self.beats += 1
        entry = {"uid": self.uid, "namespace": self.namespace, "name": "assistant", **content}
        spec = {"gateway": "g", "heartbeat": self.beats, "renewedAt": "2026-01-01T00:00:00Z", "deployments": [entry]}
        metadata = {"name": "g", "namespace": "gptoss-system", "uid": "g", "resourceVersion": str(self.beats)}
        self.running.intake.seen(Kind.REPORT, {"metadata": metadata, "spec": spec})

    def pass_time(self, seconds: float) -> None:
        assert self.running is not None
        self.clock.time += seconds
        self.running.intake.everything(Priority.CHANGE)

    async def until(self, kind: str, status: str, reason: str) -> str:
        """Wait for a condition; return its message."""
        found = ("", "", "")

        async def has_it() -> bool:
            nonlocal found
            found = await self.condition(kind)
            return found[:2] == (status, reason)

        await self.true(has_it, f"{kind} is {status} {reason}")
        return found[2]

    async def true(self, what: Callable[[], Any], said: str = "what is waited for") -> None:
        """Wait until something holds; when it was in vain, all that can be seen is told."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not await what():  # noqa: ASYNC110 - it happens in another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE:.0f} s: {said}\n{await self.seen()}") from None

    async def seen(self) -> str:
        """All that can be seen, for people who read of a failure."""
        listed = {}
        for resource in (GPT_OSS_DEPLOYMENTS, RAY_SERVICES, SERVICES):
            try:
                items = (await self.admin.list(resource, namespace=self.namespace)).items
            except KubeError as error:
                listed[resource.kind] = repr(error)
            else:
                listed[resource.kind] = [{name: raw.get(name) for name in ("metadata", "status")} for raw in items]
        stand_in = f"made {self.kuberay.made}, has {self.kuberay.clusters}"
        return f"{json.dumps(listed, indent=1)}\nKubeRay {stand_in}"

    async def cluster(self) -> str:
        """The Ray cluster that the deployment's Service leads to."""
        return (await self.get(SERVICES, "assistant-gptoss"))["spec"]["selector"]["ray.io/cluster"]

    async def suspended(self) -> bool:
        raw = await self.get(RAY_SERVICES)
        conditions = {each["type"]: each["status"] for each in (raw.get("status") or {}).get("conditions", ())}
        return bool(raw["spec"]["suspend"]) and conditions.get("Suspended") == "True"

    async def sleep(self) -> None:
        """Serve, then go idle with one living gateway, and be gone."""
        await self.go_idle()
        await self.true(self.suspended)
        await self.until("ScaledToZero", "True", "Idle")

    async def go_idle(self) -> None:
        """Serve, then go idle with one living gateway."""
        await self.until("Ready", "True", "Serving")
        for _ in range(2):
            self.report()
        self.pass_time(61)
        self.report()
        await self.until("ScaledToZero", "False", "Draining")
        epoch = (await self.get(GPT_OSS_DEPLOYMENTS))["status"]["drainEpoch"]
        self.report(drainEpochSeen=epoch)
        await self.until("Ready", "True", "Idle")


@pytest.fixture
async def home(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Home]:
    # What matters is what follows a look, not how long one is waited for.
    monkeypatch.setattr(substrate, "MOVING_SECONDS", 0.1)
    monkeypatch.setattr(substrate, "SETTLED_SECONDS", 1.0)
    monkeypatch.setattr(substrate, "MISSING_SECONDS", 0.2)
    monkeypatch.setattr(substrate, "MENDING_SECONDS", 0.1)
    monkeypatch.setattr(substrate, "REFUSED_SECONDS", 0.2)
    monkeypatch.setattr(gateway_tokens, "LOOK_SECONDS", 0.1)
    (tmp_path / "gateway-token").write_text(GATEWAY_TOKEN)
    control_plane.kubectl("apply", "-f", str(REPOSITORY / "examples" / "local" / "rbac.yaml"))
    async with Kube(kubeconfig=control_plane.kubeconfig) as admin, standing_in(admin, namespace) as kuberay:
        yield Home(control_plane, admin, kuberay, namespace, tmp_path)


@pytest.mark.usefixtures("rayservices")
async def test_serves_sleeps_without_kuberays_services_and_wakes_as_another_cluster(home: Home) -> None:
    async with home.operator():
        await home.apply(scaling=SLEEPY)
        await home.until("Ready", "True", "Serving")
        assert (await home.condition("EngineReady"))[:2] == ("True", "Answering")
        assert (await home.condition("WeightsVerified"))[:2] == ("True", "Verified")
        first = await home.cluster()
        assert first == home.kuberay.made[-1]
        owner = (await home.get(GPT_OSS_DEPLOYMENTS))["metadata"]["uid"]
        token = await home.get(SECRETS, f"assistant-ray-{owner[:8]}")
        hashes = await home.get(CONFIG_MAPS, "assistant-gateway-tokens")
        for each in (token, hashes, await home.get(RAY_SERVICES), await home.get(SERVICES, "assistant-gptoss")):
            assert each["metadata"]["ownerReferences"][0]["uid"] == owner
        assert GATEWAY_TOKEN not in json.dumps(hashes)

        await home.sleep()
        assert await home.cluster() == "none"
        listed = await home.admin.list(SERVICES, namespace=home.namespace)
        assert [each["metadata"]["name"] for each in listed.items] == ["assistant-gptoss"]

        home.report(waiting=1, lastRequest="2026-01-01T00:00:01.000000Z")
        await home.until("Ready", "True", "Serving")
        assert await home.cluster() == home.kuberay.made[-1] != first
        assert len(home.kuberay.made) == 2
        assert await home.get(SECRETS, f"assistant-ray-{owner[:8]}") == token, "kept over the wake"


WAKE = {"waiting": 1, "lastRequest": "2026-01-01T00:00:01.000000Z"}


@pytest.mark.usefixtures("rayservices")
async def test_sleep_is_reached_once_the_pods_are_gone_and_hinders_no_wake(home: Home) -> None:
    async def terminating() -> int | None:
        return (await home.get(GPT_OSS_DEPLOYMENTS))["status"]["replicas"].get("terminating")

    home.kuberay.linger = True
    async with home.operator():
        await home.apply(scaling=SLEEPY)
        await home.go_idle()
        await home.true(home.suspended)
        message = await home.until("EngineReady", "False", "WaitingForPods")
        assert message.startswith("2 pods still hold what they were given")
        assert await home.condition("ScaledToZero") == ("False", "Idle", message)
        assert message in (await home.condition("Ready"))[2]
        assert await terminating() == 1, "of two pods one is the head"

        home.report(**WAKE)
        await home.until("Ready", "True", "Serving")
        assert len(home.kuberay.made) == 2
        assert await terminating() == 1, "told while it serves, too"

        # Of the Job by which KubeRay empties a head's Redis: it has that head's labels, and holds nothing of a model's.
        pods = (await home.admin.list(PODS, namespace=home.namespace)).items
        head = next(each for each in pods if each["metadata"]["labels"]["serving.gptoss.dev/role"] == "head")
        labels = {**head["metadata"]["labels"], "ray.io/node-type": "redis-cleanup"}
        metadata = {"name": "redis-cleanup", "namespace": home.namespace, "labels": labels}
        job = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": head["spec"]}
        await home.admin.create(job, resource=PODS, field_manager="test")
        await home.kuberay.let_go()

        async def none_left() -> bool:
            return await terminating() is None

        await home.true(none_left, "nothing is left of the cluster before")
        await home.sleep()
        assert (await home.condition("EngineReady"))[:2] == ("False", "Stopped")


@pytest.mark.usefixtures("rayservices")
@pytest.mark.parametrize("midway", [False, True])
async def test_a_kuberay_that_takes_no_pods_away_is_told_until_it_does(home: Home, midway: bool) -> None:
    async with home.operator():
        await home.apply(scaling=SLEEPY)
        await home.until("Ready", "True", "Serving")
        home.kuberay.down, home.kuberay.goes_down_suspending = not midway, midway
        await home.go_idle()
        await home.until("EngineReady", "False", "WaitingForPods")
        assert (await home.condition("ScaledToZero"))[:2] == ("False", "Idle")
        assert (await home.condition("Degraded"))[0] == "False"
        home.pass_time(61)
        message = await home.until("Degraded", "True", "WaitingForKubeRay")
        assert "2 pods still hold what they were given" in message
        assert "whether KubeRay's operator runs" in message
        assert await home.condition("EngineReady") == ("False", "WaitingForKubeRay", message)
    async with home.operator():  # another one waits no minute more
        home.report()
        home.pass_time(1)
        home.kuberay.down = home.kuberay.goes_down_suspending = False
        await home.until("Degraded", "False", "Healthy")
        await home.until("ScaledToZero", "True", "Idle")
        assert len(home.kuberay.made) == 1


@pytest.mark.usefixtures("rayservices")
async def test_a_wake_before_kuberay_has_noticed_the_sleep_goes_on_with_what_is_there(home: Home) -> None:
    async with home.operator():
        await home.apply(scaling=SLEEPY)
        await home.until("Ready", "True", "Serving")
        home.kuberay.down = True
        await home.go_idle()
        await home.until("EngineReady", "False", "WaitingForPods")
        assert (await home.get(RAY_SERVICES))["spec"]["suspend"] is True
        home.report(**WAKE)
        await home.until("Ready", "True", "Serving")
        assert (await home.get(RAY_SERVICES))["spec"]["suspend"] is False
        home.kuberay.down = False
        await home.sleep()
        assert len(home.kuberay.made) == 1, "the engine that was there all the time"


@pytest.mark.usefixtures("rayservices")
async def test_replicas_learn_of_another_gateway_token_and_go_on(home: Home) -> None:
    def listed(*tokens: str) -> str:
        return "".join(sorted(f"sha256:{hashlib.sha256(token.encode()).hexdigest()}\n" for token in tokens))

    async def known() -> str:
        return str((await home.get(CONFIG_MAPS, "assistant-gateway-tokens"))["data"]["gateway-tokens"])

    def write(*tokens: str) -> None:
        """At once, as a kubelet does."""
        new = home.folder / "new"
        new.write_text("\n".join(tokens))
        new.replace(home.folder / "gateway-token")

    async with home.operator():
        await home.apply(scaling={"minReplicas": 1})
        await home.until("Ready", "True", "Serving")
        assert await known() == listed(GATEWAY_TOKEN)
        before = await home.get(RAY_SERVICES)

        write("another", GATEWAY_TOKEN)
        await home.true(_async(lambda: "another" in home.kuberay.let_in))
        assert await known() == listed("another", GATEWAY_TOKEN)
        write("another")
        home.clock.time += RETAIN_SECONDS + 1

        async def only_the_new_one() -> bool:
            return await known() == listed("another")

        await home.true(only_the_new_one)
        home.kuberay.let_in.clear()
        await home.true(_async(lambda: "another" in home.kuberay.let_in))
        assert (await home.condition("Ready"))[:2] == ("True", "Serving")
        assert (await home.get(RAY_SERVICES))["metadata"]["generation"] == before["metadata"]["generation"]


@pytest.mark.usefixtures("rayservices")
async def test_an_engine_that_keeps_denied_weights_learns_of_another_gateway_token(home: Home) -> None:
    policy = {
        "default": True,
        "sources": [{"prefix": "s3://models"}],
        "authorities": [AUTHORITY],
        "onRevoked": "KeepRunning",
        "denied": {"manifestDigests": [DIGEST]},
    }
    async with home.operator() as operator:
        await home.apply(scaling={"minReplicas": 1})
        await home.until("Ready", "True", "Serving")
        home.trust.error = DeniedDigestError("the manifest is denied")
        operator.intake.seen(
            Kind.POLICY, {"metadata": {"name": "default", "uid": "p", "resourceVersion": "1"}, "spec": policy}
        )
        await home.until("Revoked", "True", "DeniedDigest")
        home.kuberay.let_in.clear()
        new = home.folder / "new"
        new.write_text("another")
        new.replace(home.folder / "gateway-token")
        await home.true(_async(lambda: "another" in home.kuberay.let_in))
        assert (await home.condition("Ready"))[:2] == ("True", "Serving")


@pytest.mark.usefixtures("rayservices")
async def test_gateway_tokens_that_can_not_be_read_are_told_and_stop_nothing_that_runs(home: Home) -> None:
    file, aside = home.folder / "gateway-token", home.folder / "aside"
    file.rename(aside)
    async with home.operator():
        await home.apply(scaling={"minReplicas": 1})
        assert "kubeRay.gatewayTokenFile" in await home.until("Degraded", "True", "GatewayTokenUnreadable")
        await home.until("Ready", "Unknown", "GatewayTokenUnreadable")
        assert home.kuberay.made == [], "nobody could be let in"
        aside.rename(file)
        await home.until("Ready", "True", "Serving")
        assert (await home.condition("Degraded"))[0] == "False"

        known = await home.get(CONFIG_MAPS, "assistant-gateway-tokens")
        file.rename(aside)
        await home.until("Degraded", "True", "GatewayTokenUnreadable")
        assert (await home.condition("Ready"))[:2] == ("True", "Serving")
    async with home.operator():  # one that has never seen them
        await home.apply(scaling={"minReplicas": 1, "idleSeconds": 1000})

        async def seen() -> bool:
            raw = await home.get(GPT_OSS_DEPLOYMENTS)
            return raw["status"]["observedGeneration"] == raw["metadata"]["generation"]

        await home.true(seen)
        assert (await home.condition("Degraded"))[:2] == ("True", "GatewayTokenUnreadable")
        aside.rename(file)
        await home.until("Degraded", "False", "Healthy")
        await home.until("Ready", "True", "Serving")
        assert await home.get(CONFIG_MAPS, "assistant-gateway-tokens") == known
        assert len(home.kuberay.made) == 1


@pytest.mark.usefixtures("rayservices")
async def test_rays_token_is_made_anew_after_it_was_deleted_while_nothing_ran(home: Home) -> None:
    async with home.operator():
        await home.apply(scaling={"minReplicas": 1})
        await home.until("Ready", "True", "Serving")
        name = f"assistant-ray-{home.uid[:8]}"
        before = await home.get(SECRETS, name)
        await home.apply(scaling={"minReplicas": 1}, suspend=True)
        await home.until("Ready", "True", "Suspended")
        await home.true(home.suspended)
        await home.admin.delete(SECRETS, name, namespace=home.namespace)

        await home.apply(scaling={"minReplicas": 1}, suspend=False)
        await home.until("Ready", "True", "Serving")
        after = await home.get(SECRETS, name)
        assert after["data"].keys() == before["data"].keys() == {"auth_token"}
        assert after["data"] != before["data"]
        assert after["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
        spec = (await home.get(RAY_SERVICES))["spec"]
        assert spec["rayClusterConfig"]["authOptions"]["secretName"] == name
        assert len(home.kuberay.made) == 2, "another Ray cluster, whose pods all have the new one"


@pytest.mark.usefixtures("rayservices")
async def test_a_restarted_operator_of_another_release_writes_nothing(home: Home) -> None:
    async with home.operator():
        await home.apply(scaling={"minReplicas": 1})
        await home.until("Ready", "True", "Serving")
    before = await home.get(RAY_SERVICES)
    for image in (IMAGE, "serving@sha256:" + "2" * 64):
        home.image = image
        async with home.operator() as operator:
            await home.true(_async(lambda: operator.reconciler.complete))
            home.report()
            await home.until("Ready", "True", "Serving")
            for _ in range(10):
                home.pass_time(1)
                await asyncio.sleep(0.1)
    after = await home.get(RAY_SERVICES)
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert len(home.kuberay.made) == 1


@pytest.mark.usefixtures("rayservices")
async def test_blue_green_leads_to_the_old_cluster_until_the_new_one_serves(home: Home) -> None:
    async with home.operator():
        await home.apply(scaling={"minReplicas": 1})
        await home.until("Ready", "True", "Serving")
        first = await home.cluster()
        home.kuberay.hold = True
        await home.apply(scaling={"minReplicas": 1}, parallelism={"tensor": 2})
        await home.true(_async(lambda: len(home.kuberay.made) == 2))
        await home.until("Ready", "Unknown", "Progressing")
        assert await home.cluster() == first
        assert (await home.condition("EngineReady"))[:2] == ("True", "Answering")
        home.kuberay.hold = False
        await home.until("Ready", "True", "Serving")
        assert await home.cluster() == home.kuberay.made[1]


@pytest.mark.usefixtures("rayservices")
async def test_a_replaced_cluster_stays_until_all_have_followed_or_as_long_as_an_administrator_says(home: Home) -> None:
    scaling = {"minReplicas": 1, "maxReplicas": 3}

    async def terminating() -> int | None:
        return (await home.get(GPT_OSS_DEPLOYMENTS))["status"]["replicas"].get("terminating")

    async def one() -> bool:
        return await terminating() == 1

    async def none() -> bool:
        return await terminating() is None

    async with home.operator():
        await home.apply(scaling=scaling)
        await home.until("Ready", "True", "Serving")
        await home.apply(scaling=scaling, parallelism={"tensor": 2})
        await home.true(_async(lambda: len(home.kuberay.made) == 2))
        await home.until("Ready", "True", "Serving")
        await home.true(one, "the cluster before is told of")
        before = home.kuberay.clusters["assistant"][home.kuberay.made[0]]
        await home.true(_async(lambda: before.goes_at is not None))
        home.kuberay.skipped_seconds += MOVE_SECONDS / 2
        await home.apply(scaling={**scaling, "maxReplicas": 4}, parallelism={"tensor": 2})
        await home.true(_async(lambda: home.kuberay.serve_puts), "KubeRay has looked at it once more")
        assert await terminating() == 1, "requests may still come to it"
        home.kuberay.skipped_seconds += MOVE_SECONDS
        await home.true(none, "it is gone")

    home.deletion_delay = 0
    async with home.operator():
        await home.apply(scaling=scaling, parallelism={"tensor": 4})
        await home.true(_async(lambda: len(home.kuberay.made) == 3))
        await home.until("Ready", "True", "Serving")
        await home.true(none, "its accelerators are free at once")
        assert list(home.kuberay.clusters["assistant"]) == home.kuberay.made[2:]


@pytest.mark.usefixtures("rayservices")
async def test_the_image_of_the_first_start_stays_recorded_and_a_tag_that_moved_is_told(home: Home) -> None:
    async def recorded() -> str | None:
        return (await home.get(GPT_OSS_DEPLOYMENTS))["status"]["engine"].get("image")

    first, second = home.kuberay.image_id, "registry.example.com/serving@sha256:" + "2" * 64
    async with home.operator():
        await home.apply(scaling=SLEEPY)
        await home.until("Ready", "True", "Serving")
        assert await recorded() == first
        await home.sleep()
        home.kuberay.image_id = second
        home.report(**WAKE)
        await home.until("Ready", "True", "Serving")
        message = await home.until("Degraded", "True", "ImageChanged")
        assert f"Replicas run {second}, and this generation was started with {first}" in message
        assert await recorded() == first

        await home.apply(scaling=SLEEPY, parallelism={"tensor": 2})
        await home.true(_async(lambda: len(home.kuberay.made) == 3))
        await home.until("Ready", "True", "Serving")
        assert await recorded() == second
        assert (await home.condition("Degraded"))[0] == "False"


@pytest.mark.usefixtures("rayservices")
async def test_recreate_gives_the_old_accelerators_back_first(home: Home) -> None:
    async with home.operator():
        await home.apply(scaling={"minReplicas": 1}, rolloutStrategy={"type": "Recreate"})
        await home.until("Ready", "True", "Serving")
        first = await home.cluster()
        home.kuberay.hold = True
        await home.apply(scaling={"minReplicas": 1}, rolloutStrategy={"type": "Recreate"}, parallelism={"tensor": 2})
        await home.true(_async(lambda: len(home.kuberay.made) == 2))
        assert list(home.kuberay.clusters["assistant"]) == [home.kuberay.made[1]] != [first]
        home.kuberay.hold = False
        await home.until("Ready", "True", "Serving")


@pytest.mark.usefixtures("rayservices")
async def test_bounds_and_delays_change_in_place(home: Home) -> None:
    async with home.operator():
        await home.apply(scaling={"minReplicas": 1, "maxReplicas": 3})
        await home.until("Ready", "True", "Serving")
        await home.apply(scaling={"minReplicas": 1, "maxReplicas": 4, "scaleDownDelaySeconds": 60})
        await home.true(_async(lambda: home.kuberay.serve_puts))
        changed = home.kuberay.serve_puts[0]["deployments"][0]["autoscaling_config"]
        assert (changed["max_replicas"], changed["downscale_delay_s"]) == (4, 60)
        await home.until("Ready", "True", "Serving")
        assert len(home.kuberay.made) == 1


@pytest.mark.usefixtures("rayservices")
async def test_weights_that_a_node_refuses_end_the_start_with_the_nodes_reason(home: Home) -> None:
    error = {"reason": "DigestMismatch", "message": "model.safetensors is not what was signed", "retryable": False}
    home.kuberay.init_message = json.dumps({"error": error})
    async with home.operator():
        await home.apply()
        message = await home.until("WeightsVerified", "False", "DigestMismatch")
        assert "model.safetensors is not what was signed" in message
        assert (await home.condition("Stalled"))[:2] == ("True", "UntrustedWeights")
        await home.true(home.suspended)
        home.kuberay.init_message = None
        home.trust.source = "mended"
        home.pass_time(700)
        await home.until("Ready", "True", "Serving")


@pytest.mark.usefixtures("rayservices")
async def test_says_how_far_a_pods_pull_is_and_nothing_once_it_is_done(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr(reports, "REPORT_PORT", port)
    monkeypatch.setattr(pulls, "PAUSE_SECONDS", 0.1)
    home.kuberay.fetching_at = "127.0.0.9"
    series = {"namespace": home.namespace, "name": "assistant", "part": "done"}

    async def pull() -> dict[str, Any] | None:
        return (await home.get(GPT_OSS_DEPLOYMENTS)).get("status", {}).get("pull")

    async with home.operator() as operator:
        await home.apply()
        begun = {"startedAt": "2026-01-01T00:00:00Z"}

        async def is_fetching() -> bool:
            return await pull() == begun

        await home.true(is_fetching, "a pull whose pod tells nothing yet")
        with reported_on(port, DIGEST) as progress:

            async def is_half() -> bool:
                progress(PullProgress(bytes_done=2**30, bytes_total=2**31, files_done=3, files_total=9))
                found = await pull() or {}
                known = {name: found.get(name) for name in ("startedAt", "progress", "bytesDone", "filesTotal")}
                return known == {**begun, "progress": "50% of 2.0 GiB", "bytesDone": 2**30, "filesTotal": 9}

            await home.true(is_half, "half of a pull")
            value = operator.metrics.registry.get_sample_value

            async def is_counted() -> bool:
                return value("gptoss_deployment_pull_bytes", series) == 2**30

            await home.true(is_counted, "its metric")
            assert (await home.condition("EngineReady"))[:2] == ("False", "FetchingWeights")
        home.kuberay.fetching_at = None
        await home.until("Ready", "True", "Serving")
        assert await pull() is None
        assert value("gptoss_deployment_pull_bytes", series) is None


@pytest.mark.usefixtures("rayservices")
async def test_says_what_a_pod_waits_for_and_goes_on_when_it_comes(home: Home) -> None:
    home.kuberay.unschedulable = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    async with home.operator():
        await home.apply()
        message = await home.until("EngineReady", "False", "Unschedulable")
        assert "for want of nvidia.com/gpu" in message
        assert (await home.condition("Ready"))[:2] == ("Unknown", "Unschedulable")
        home.kuberay.unschedulable = None
        await home.until("Ready", "True", "Serving")


@pytest.mark.usefixtures("rayservices")
async def test_weights_on_a_claim_wait_for_it_and_are_mounted_for_the_one_that_fetches(home: Home) -> None:
    home.file_roots = ({"path": "/models", "claimName": "models"},)
    home.kuberay.unschedulable = '0/1 nodes are available: persistentvolumeclaim "models" not found.'
    async with home.operator():
        await home.apply(model={"name": "gpt-oss-20b", "uri": "file:///models/gpt-oss-20b"})

        async def is_told() -> bool:
            status, reason, message = await home.condition("EngineReady")
            told = '"models" not found' in message and "the folder that spec.model.uri names" in message
            return (status, reason) == ("False", "Unschedulable") and told

        await home.true(is_told, "the claim that a worker lacks, and what it is for")
        for pod in (await home.admin.list(PODS, namespace=home.namespace)).items:
            containers = [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]
            mounted = [each["name"] for each in containers if "/models" in json.dumps(each["volumeMounts"])]
            assert mounted == (["weights"] if "worker" in pod["metadata"]["name"] else [])
        home.kuberay.unschedulable = None
        await home.until("Ready", "True", "Serving")


@pytest.mark.usefixtures("rayservices")
async def test_an_engine_that_dies_is_named_and_tried_again_as_another_cluster(home: Home) -> None:
    home.kuberay.fail_with = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    async with home.operator():
        await home.apply()
        message = await home.until("Ready", "False", "UnsupportedHardware")
        assert "spec.accelerator.product" in message
        await home.true(home.suspended)
        home.kuberay.fail_with = None
        home.pass_time(60)
        await home.until("Ready", "True", "Serving")
        assert len(home.kuberay.made) == 2


async def test_a_kuberay_that_comes_later_or_is_too_old_is_noticed_without_a_restart(
    home: Home, control_plane: ControlPlane
) -> None:
    async with home.operator():
        await home.apply()
        assert "installs KubeRay" in await home.until("Degraded", "True", "KubeRayMissing")
        try:
            install_rayservices(control_plane, suspend=False)
            assert "updates KubeRay" in await home.until("Degraded", "True", "KubeRayTooOld")
            install_rayservices(control_plane)
            await home.until("Ready", "True", "Serving")
            assert (await home.condition("Degraded"))[0] == "False"
        finally:
            remove_rayservices(control_plane)


@pytest.mark.usefixtures("rayservices")
async def test_an_operator_of_kuberay_that_is_older_than_its_crds_is_told_until_a_newer_one_works(home: Home) -> None:
    home.kuberay.version = "v1.6.2"
    async with home.operator():
        await home.apply(scaling={"minReplicas": 1})
        assert "KubeRay's operator is v1.6.2" in await home.until("Degraded", "True", "KubeRayTooOld")
        await home.until("Ready", "True", "Serving")
    async with home.operator():  # another one reads it off the same pod
        await home.apply(scaling={"minReplicas": 1, "idleSeconds": 1000})
        await home.until("Degraded", "True", "KubeRayTooOld")
        home.kuberay.version = "v1.7.1"
        await home.apply(scaling={"minReplicas": 1}, parallelism={"tensor": 2})
        await home.until("Degraded", "False", "Healthy")
        await home.until("Ready", "True", "Serving")


@pytest.mark.usefixtures("rayservices")
async def test_a_foreign_rayservice_is_left_alone(home: Home) -> None:
    theirs: Mapping[str, Any] = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "assistant", "namespace": home.namespace},
        "spec": {"suspend": True, "mine": 1},
    }
    await home.admin.create(theirs, resource=RAY_SERVICES, field_manager="stranger")
    async with home.operator():
        await home.apply()
        assert "did not make" in await home.until("Ready", "False", "RouteConflict")
        assert (await home.get(RAY_SERVICES))["spec"] == theirs["spec"]


@pytest.fixture
async def t4_node(home: Home) -> AsyncIterator[None]:
    """A node with an accelerator that has no kernels for the model."""
    name = f"t4-{home.namespace}"
    labels = {"nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.memory": "15360", "pool": home.namespace}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
    await home.admin.create(node, resource=NODES, field_manager="test")
    resources = {"allocatable": {"nvidia.com/gpu": "1"}, "capacity": {"nvidia.com/gpu": "1"}}
    await home.admin.merge_patch(NODES, name, {"status": resources}, field_manager="kubelet", subresource="status")
    yield
    await home.admin.delete(NODES, name)


@pytest.mark.usefixtures("rayservices", "t4_node")
async def test_nothing_is_made_for_what_no_node_can_hold(home: Home) -> None:
    pool = {"nodeSelector": {"pool": home.namespace}}
    async with home.operator():
        await home.apply(pod=pool)
        assert "compute capability 7.5" in await home.until("Ready", "False", "DoesNotFit")
        assert (await home.condition("Fit"))[:2] == ("False", "DoesNotFit")
        assert (await home.admin.list(RAY_SERVICES, namespace=home.namespace)).items == []
        # Its labels change: that alone, without a change of the deployment, lets it start.
        larger = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}
        await home.admin.merge_patch(
            NODES, f"t4-{home.namespace}", {"metadata": {"labels": larger}}, field_manager="labeller"
        )
        await home.until("Ready", "True", "Serving")
        assert (await home.condition("Fit"))[:2] == ("True", "Fits")
        assert "--max-num-batched-tokens 8192" in (await home.get(GPT_OSS_DEPLOYMENTS))["status"]["engine"]["line"]


@pytest.mark.usefixtures("rayservices")
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"pod": {"priorityClassName": "high"}}, "spec.pod.priorityClassName high is not allowed"),
        ({"model": {"name": "gpt-oss-20b", "uri": "file:///models/x"}}, "put the weights into an object store"),
        ({"accelerator": {"vendor": "cpu"}, "parallelism": {"tensor": 2}}, "set it to 1"),
    ],
)
async def test_what_is_not_allowed_is_said_before_anything_is_made(home: Home, spec: dict[str, Any], said: str) -> None:
    async with home.operator():
        await home.apply(**spec)
        assert said in await home.until("Ready", "False", "InvalidSpec")
    assert home.kuberay.made == []


def _async(what: Callable[[], Any]) -> Callable[[], Any]:
    async def answer() -> Any:
        return what()

    return answer


async def children(home: Home) -> dict[tuple[str, str], dict[str, Any]]:
    """What stands around the RayService, as far as it is ours."""
    found = {}
    for resource in (NETWORK_POLICIES, POD_DISRUPTION_BUDGETS, SERVICES):
        listed = await home.admin.list(resource, namespace=home.namespace)
        for raw in listed.items:
            owners = [each["uid"] for each in raw["metadata"].get("ownerReferences", ())]
            if owners == [home.uid]:
                found[resource.kind, raw["metadata"]["name"]] = raw
    return found


CHILDREN = {
    ("NetworkPolicy", "assistant-head"): {"spec": {"ingress": [{}]}},
    ("NetworkPolicy", "assistant-worker"): {"spec": {"egress": None, "policyTypes": ["Ingress"]}},
    ("PodDisruptionBudget", "assistant-engine"): {"spec": {"minAvailable": 7}},
    ("Service", "assistant-gptoss"): {"spec": {"selector": {"ray.io/cluster": "theirs"}}},
}


@pytest.mark.usefixtures("rayservices")
async def test_what_others_delete_or_change_comes_back_and_what_they_add_stays(home: Home) -> None:
    resources = {each.kind: each for each in (NETWORK_POLICIES, POD_DISRUPTION_BUDGETS, SERVICES)}
    async with home.operator():
        await home.apply(scaling={"minReplicas": 1})
        await home.until("Ready", "True", "Serving")
        made = await children(home)
        assert made.keys() == CHILDREN.keys()

        for kind, name in CHILDREN:
            await home.admin.delete(resources[kind], name, namespace=home.namespace)
        await home.true(
            lambda: _all(
                home,
                lambda now, name: (
                    now["metadata"]["uid"] != made[name]["metadata"]["uid"]
                    and now["spec"].get("selector") == made[name]["spec"].get("selector")
                ),
            ),
            "all are made anew",
        )

        made = await children(home)
        for (kind, name), change in CHILDREN.items():
            addition = {"metadata": {"annotations": {"theirs": "kept"}}}
            await home.admin.merge_patch(
                resources[kind], name, {**change, **addition}, namespace=home.namespace, field_manager="somebody"
            )
        await home.true(lambda: _all(home, lambda now, name: _same(now["spec"], made[name]["spec"])))
        mended = await children(home)
        assert all(raw["metadata"]["annotations"]["theirs"] == "kept" for raw in mended.values())
        assert await home.until("Ready", "True", "Serving") == "The engine answers."


async def _all(home: Home, holds: Callable[[dict[str, Any], tuple[str, str]], bool]) -> bool:
    found = await children(home)
    return found.keys() == CHILDREN.keys() and all(holds(raw, name) for name, raw in found.items())


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """The specification, but for addresses that a Service gets anew."""
    return {**found, "clusterIP": "", "clusterIPs": []} == {**wanted, "clusterIP": "", "clusterIPs": []}


@pytest.mark.usefixtures("rayservices")
async def test_what_the_api_server_does_not_take_is_told_and_tried_again(home: Home) -> None:
    rules = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": f"no-policies-{home.namespace}"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["networking.k8s.io"],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["networkpolicies"],
                    }
                ]
            },
            "validations": [{"expression": "false", "message": "the network team makes policies here"}],
        },
    }
    binding = {
        "apiVersion": rules["apiVersion"],
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": rules["metadata"]["name"]},
        "spec": {
            "policyName": rules["metadata"]["name"],
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": home.namespace}}},
        },
    }
    both = {"apiVersion": "v1", "kind": "List", "items": [rules, binding]}
    probe = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "probe", "namespace": home.namespace},
        "spec": {"podSelector": {}},
    }
    home.plane.kubectl("apply", "-f", "-", stdin=json.dumps(both))
    try:
        await home.true(lambda: _refused(home, probe))
        async with home.operator():
            await home.apply()
            message = await home.until("Degraded", "True", "ConfigurationRefused")
            assert "the network team makes policies here" in message
            assert (await home.condition("Ready"))[:2] == ("Unknown", "ConfigurationRefused")
            assert home.kuberay.made == [], "no pod without its policies"
            home.plane.kubectl("delete", "-f", "-", stdin=json.dumps(both))
            await home.until("Ready", "True", "Serving")
            assert (await home.condition("Degraded"))[0] == "False"
    finally:
        home.plane.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=json.dumps(both))


async def _refused(home: Home, document: dict[str, Any]) -> bool:
    """Whether the API server has taken the policy against it in."""
    try:
        await home.admin.apply(document, resource=NETWORK_POLICIES, field_manager="test")
    except (Invalid, Forbidden):
        return True
    await home.admin.delete(NETWORK_POLICIES, document["metadata"]["name"], namespace=home.namespace)
    return False
