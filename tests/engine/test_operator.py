"""The operator against a real Ray Serve: what a fake can only assume of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gptoss_api.clusters import RayCluster
from gptoss_cli.local.ray_head import RayHead
from gptoss_operator.process import Operator
from gptoss_operator.settings import Settings
from gptoss_operator.substrates.dashboard import RayDashboard
from gptoss_operator.substrates.nodes import hardware_of
from tests.contract.operator.house import FakeKubernetes, House, ManualClock, TrustSays
from tests.engine.conftest import SignedFolder
from tests.engine.ray import GATEWAY_TOKEN, STANDIN, Applications
from tests.engine.store import Store
from tests.unit.weights.builders import MODEL, model

APP = "gptoss-operator-ml-assistant"
SLEEPY = {"minReplicas": 0, "idleSeconds": 60}
SECONDS = 180

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
async def home(ray_head: RayHead, applications: Applications, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "gateway-token").write_text(GATEWAY_TOKEN)
    settings = Settings(
        installation="operator",
        system_namespace="gptoss-system",
        default_ray_cluster="local",
        serving_import_path=STANDIN,
        ray_clusters=(
            RayCluster(
                name="local",
                dashboard_url=ray_head.dashboard_url,
                serve_url=ray_head.serve_url,
                token_file=ray_head.token_file,
                gateway_token_file=tmp_path / "gateway-token",
            ),
        ),
    )
    kubernetes, trust, clock = FakeKubernetes(), TrustSays(), ManualClock()
    async with aiohttp.ClientSession() as session:
        operator = Operator(settings=settings, kubernetes=kubernetes, session=session, clock=clock, check=trust)
        built = House(kubernetes, None, trust, clock, settings, session, operator)  # type: ignore[arg-type]
        built.start()
        yield built
        await built.stop()


def use(home: House, source: SignedFolder) -> dict[str, Any]:
    """Trust a signed folder, and return the spec that serves it."""
    home.trust.digest = source.weights.manifest_digest
    return {"model": {"name": "custom", "uri": source.weights.uri}, "verification": {"subject": source.weights.subject}}


async def gone(applications: Applications, name: str) -> None:
    what = f"{name} is gone"
    await asyncio.to_thread(applications.until, lambda: name not in applications.all(), seconds=SECONDS, what=what)


async def ready(home: House, reason: str = "Serving") -> None:
    await home.until(lambda: home.condition("Ready") == ("True", reason), SECONDS)


def replicas(application: dict[str, Any]) -> set[str]:
    return {
        replica["replica_id"]
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
    }


async def test_serves_sleeps_wakes_and_goes_while_a_strangers_application_stays_as_it_is(
    home: House, applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    source = signed("shared")
    stranger = await asyncio.to_thread(applications.put, "stranger", weights=source.weights)
    theirs = await asyncio.to_thread(applications.wait, stranger, "RUNNING", seconds=SECONDS)
    spec = use(home, source)

    home.report(assistant={})
    home.apply(**spec, scaling=SLEEPY)
    await ready(home)
    written = (await asyncio.to_thread(applications.all))[APP]["last_deployed_time_s"]
    await home.operator.resync.once()
    await home.settled()
    assert (await asyncio.to_thread(applications.all))[APP]["last_deployed_time_s"] == written, (
        "what Ray says is no drift"
    )

    home.report(assistant={})
    home.pass_time(61)
    home.report(assistant={})
    await home.until(lambda: home.condition("ScaledToZero")[1] == "Draining")
    home.report(assistant={"drainEpochSeen": 1})
    await ready(home, "Idle")
    # Whatever is left of the old replicas must not keep a new request waiting.
    home.report(assistant={"waiting": 1, "lastRequest": "now"})
    await ready(home)

    home.delete()
    await gone(applications, APP)
    after = (await asyncio.to_thread(applications.all))[stranger]
    assert after["deployed_app_config"] == theirs["deployed_app_config"]
    assert replicas(after) == replicas(theirs)


async def test_other_bounds_other_delays_and_a_restarted_operator_restart_no_engine(
    home: House, applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    spec = use(home, signed("bounds"))
    home.apply(**spec)
    await ready(home)
    before = replicas((await asyncio.to_thread(applications.all))[APP])
    home.apply(**spec, scaling={"maxReplicas": 3, "scaleUpDelaySeconds": 5, "scaleDownDelaySeconds": 60})
    await home.until(lambda: home.status()["observedGeneration"] == 2)
    await ready(home)
    await home.restart()
    await home.until(lambda: home.operator.reconciler.complete)
    await home.settled()
    await ready(home)
    application = (await asyncio.to_thread(applications.all))[APP]
    (server,) = application["deployed_app_config"]["deployments"]
    in_place = {"max_replicas": 3, "upscale_delay_s": 5, "downscale_delay_s": 60}
    assert server["autoscaling_config"].items() >= in_place.items()
    assert replicas(application) == before
    home.delete()
    await gone(applications, APP)


async def test_a_flipped_byte_is_named_and_a_mended_source_serves(
    home: House, applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    source = signed("flipped")
    (file,) = source.folder.glob("*.safetensors")
    source.flip_a_byte(file.name)
    home.apply(**use(home, source))
    await home.until(lambda: home.condition("WeightsVerified") == ("False", "DigestMismatch"), SECONDS)
    assert file.name in home.message("WeightsVerified")
    assert home.condition("Stalled") == ("True", "UntrustedWeights")
    await gone(applications, APP)

    source.flip_a_byte(file.name)
    home.trust.source = "mended"
    home.pass_time(31)
    await ready(home)
    home.delete()
    await gone(applications, APP)


async def test_the_status_says_how_far_a_pull_is_while_it_runs(
    home: House, applications: Applications, store: Store
) -> None:
    weights = model(store.folder / "slow")
    shard = next(weights.folder.glob("model-00001-*"))
    home.trust.digest = weights.sign().manifest.digest
    released = store.hold(f"slow/{shard.name}")
    home.apply(model={"name": "custom", "uri": "s3://models/slow"}, verification={"subject": MODEL})

    def held() -> bool:
        pull = home.status().get("pull", {})
        return pull.get("bytesDone", 0) == pull.get("bytesTotal", 0) - shard.stat().st_size

    await home.until(held, SECONDS)
    assert home.condition("Ready") == ("Unknown", "FetchingWeights")
    released.set()
    await ready(home)
    await home.until(lambda: "pull" not in home.status())
    home.delete()
    await gone(applications, APP)


async def test_ray_tells_its_nodes_as_they_are_read(home: House, ray_head: RayHead) -> None:
    cluster = home.settings.ray_clusters[0]
    async with aiohttp.ClientSession() as session:
        nodes = await RayDashboard(cluster, session).nodes()
    assert nodes is not None
    (node,) = nodes
    assert node["state"] == "ALIVE"
    assert node["resources_total"]["CPU"] >= 1
    assert hardware_of(cluster, nodes).kinds == ()
    # Its own resources with a GPU among them, as Ray writes accelerators.
    resources = {**node["resources_total"], "GPU": 2.0, "accelerator_type:H100": 1.0}
    (kind,) = hardware_of(cluster, [{**node, "resources_total": resources}]).kinds
    assert ([card.name for card in kind.candidates], kind.count) == (["H100-80GB", "H100-NVL"], 2)
