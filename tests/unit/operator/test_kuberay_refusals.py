"""What the API server refuses is told for as long as it is asked for, and no longer."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_api.conditions import Reason
from gptoss_kube.errors import Forbidden, Invalid, StatusError
from gptoss_operator.gateway_tokens import AcceptedTokens
from gptoss_operator.keys import DeploymentKey, RayServiceKey
from gptoss_operator.leadership import AlwaysLeader
from gptoss_operator.plan.applications import Absent, Present
from gptoss_operator.plan.rayservice.render import render
from gptoss_operator.substrates.kuberay.seen import lean
from gptoss_operator.substrates.kuberay.substrate import KubeRay
from tests.contract.operator.house import ManualClock
from tests.unit.operator.rayservices import APPLICATION, settings, site, workload
from tests.unit.operator.test_kuberay_truth import _never, _silent

Raw = dict[str, Any]
DEPLOYMENT = DeploymentKey("ml", "assistant")
KEY = RayServiceKey("ml", "assistant")


class Cluster:
    """The substrate's copies of a cluster, and a server that may refuse writes. It is its own ``children``."""

    synced = True

    def __init__(self) -> None:
        self.children = self
        self.refuses: StatusError | None = None
        self.missing: list[Raw] = []
        self.raw: Raw | None = None

    def trouble(self) -> None:
        return None

    def flaw(self) -> None:
        return None

    def rayservice(self, _: object) -> Raw | None:
        return self.raw

    def pods(self, _: object) -> list[Raw]:
        return []

    async def look_at_version(self) -> None:
        pass

    async def make_token(self, _: Raw) -> None:
        pass

    async def lead_nowhere(self, *_: object) -> None:
        pass

    async def apply_rayservice(self, document: Raw) -> None:
        if self.refuses is not None:
            raise self.refuses
        generation = 1 + (self.raw["metadata"]["generation"] if self.raw is not None else 0)
        raw = json.loads(json.dumps(document))
        raw["metadata"] |= {"uid": "rs", "generation": generation, "resourceVersion": str(generation)}
        self.raw = lean(raw)

    async def patch(self, _: RayServiceKey, spec: Raw, *, uid: str) -> None:
        assert self.raw is not None
        assert uid == "rs"
        self.raw["spec"] |= spec

    async def apply(self, document: Raw) -> None:
        if document in self.missing and self.refuses is not None:
            raise self.refuses

    def amiss(self, wanted: list[Raw]) -> list[Raw]:
        return [each for each in wanted if each in self.missing]

    def forget(self, _: object) -> None:
        pass


def wish(**changes: Any) -> Present:
    rendered = render(workload(**changes), site())
    return Present(config={**APPLICATION, "revision": rendered.revision}, rendered=rendered)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def kuberay(cluster: Cluster) -> KubeRay:
    return KubeRay(
        settings(),
        cluster,  # type: ignore[arg-type]
        tokens=AcceptedTokens(Path("/nowhere"), clock=ManualClock()),
        ask_engine=_never,
        read_report=_silent,
        leadership=AlwaysLeader(),
        news=lambda _: None,
    )


async def brought_about(kuberay: KubeRay, wanted: Present | Absent) -> tuple[str, str] | None:
    """Ask for it, work on it, and return what is amiss."""
    kuberay.ask(DEPLOYMENT, wanted)
    await kuberay.reconcile(KEY, complete=lambda: True)
    return kuberay.view(DEPLOYMENT).trouble


async def test_a_change_that_is_taken_back_is_trouble_no_longer(kuberay: KubeRay, cluster: Cluster) -> None:
    assert await brought_about(kuberay, wish()) is None
    cluster.refuses = Forbidden("exceeded quota: gpus")
    told = await brought_about(kuberay, wish(tensor=8))
    assert told is not None
    assert told[0] == Reason.CONFIGURATION_REFUSED
    assert await brought_about(kuberay, wish()) is None


async def test_what_somebody_else_puts_right_is_trouble_no_longer(kuberay: KubeRay, cluster: Cluster) -> None:
    wanted = wish()
    assert wanted.rendered is not None
    await brought_about(kuberay, wanted)
    cluster.missing, cluster.refuses = [wanted.rendered.others[0]], Invalid("a webhook says no")
    told = await brought_about(kuberay, wanted)
    assert told is not None
    assert "a webhook says no" in told[1]
    cluster.missing = []
    assert await brought_about(kuberay, wanted) is None


async def test_a_model_that_sleeps_needs_nothing_around_it(kuberay: KubeRay, cluster: Cluster) -> None:
    wanted = wish()
    assert wanted.rendered is not None
    await brought_about(kuberay, wanted)
    cluster.missing, cluster.refuses = [wanted.rendered.others[0]], Invalid("a webhook says no")
    assert await brought_about(kuberay, wanted) is not None
    assert await brought_about(kuberay, Absent()) is None
