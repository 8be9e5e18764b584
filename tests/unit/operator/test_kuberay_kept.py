"""What runs on KubeRay and is only kept goes on to know gateways: their tokens change whatever becomes of it."""

from dataclasses import replace
from typing import Any

import pytest

from gptoss_operator.plan.applications import Absent, Keep, Present, Wish
from gptoss_operator.plan.observation import KUBERAY, Observation, Placement, Presence
from gptoss_operator.plan.planner import plan
from gptoss_operator.plan.rayservice.render import gateway_tokens, render
from gptoss_operator.substrates.kuberay.seen import lean
from gptoss_operator.substrates.kuberay.substrate import KubeRay
from tests.unit.operator.rayservices import APPLICATION, UID, site, workload
from tests.unit.operator.test_kuberay_refusals import DEPLOYMENT, KEY, Cluster, kuberay
from tests.unit.operator.test_lifecycle import DENIED, KEEP, SITE, UNSIGNED, World

__all__ = ["kuberay"]

OLD, NEW = "ab" * 32, "cd" * 32


class Recording(Cluster):
    """One that lacks everything, and remembers what is applied around RayServices."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[dict[str, Any]] = []

    async def apply(self, document: dict[str, Any]) -> None:
        self.applied.append(document)

    def amiss(self, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return wanted


@pytest.fixture
def cluster() -> Recording:
    return Recording()


class OnKubeRay(World):
    """A deployment whose replicas KubeRay runs, and the hashes of the tokens that count."""

    hashes: tuple[str, ...] = (OLD,)

    def observed(self) -> Observation:
        return replace(super().observed(), placement=Placement(cluster=KUBERAY))

    def plan(self) -> Any:
        at = replace(SITE, kube_ray=site(gateway_token_hashes=self.hashes))
        return plan(self.observed(), self.memory, at, asked=self.asked)


def serving() -> OnKubeRay:
    world = OnKubeRay()
    world.live()
    assert world.condition("Ready") == ("True", "Serving")
    assert isinstance(world.asked, Present)
    assert world.asked.rendered is not None
    return world


def known(wish: Wish | None) -> tuple[str, ...]:
    """The hashes that a wish brings to what runs."""
    assert isinstance(wish, Present | Keep)
    document: Any = wish.gateway_tokens
    if isinstance(wish, Present) and wish.rendered is not None:
        (document,) = [each for each in wish.rendered.others if each["kind"] == "ConfigMap"]
    assert document is not None, wish
    assert document["metadata"]["name"] == "assistant-gateway-tokens"
    return tuple(line.removeprefix("sha256:") for line in document["data"]["gateway-tokens"].split())


def revoked(world: OnKubeRay) -> None:
    world.view = replace(world.view, ready=1, wanted=1)
    world.revocation, world.trust = KEEP, DENIED


def not_signed_any_more(world: OnKubeRay) -> None:
    world.trust = UNSIGNED


def a_change_that_is_not_trusted(world: OnKubeRay) -> None:
    world.trust = UNSIGNED
    world.spec = {**world.spec, "parallelism": {"tensor": 2}}
    world.generation += 1


def a_change_that_makes_no_sense(world: OnKubeRay) -> None:
    world.spec = {**world.spec, "accelerator": {"vendor": "cpu"}, "parallelism": {"tensor": 2}}
    world.generation += 1


@pytest.mark.parametrize(
    "happens", [revoked, not_signed_any_more, a_change_that_is_not_trusted, a_change_that_makes_no_sense]
)
def test_another_token_reaches_what_runs_whatever_became_of_it(happens: Any) -> None:
    world = serving()
    happens(world)
    world.settle()
    world.hashes = (OLD, NEW)
    planned = world.step()
    assert len(planned.actions) == 1
    assert known(world.asked) == (OLD, NEW)
    assert world.view.presence is Presence.PRESENT
    assert not world.plan().actions


def test_nothing_at_all_is_written_to_what_is_paused() -> None:
    world = serving()
    world.annotations = {"serving.gptoss.dev/paused": "true"}
    world.settle()
    assert world.asked == Keep()


def test_what_sleeps_is_told_when_it_wakes() -> None:
    world = serving()
    world.fall_asleep()
    assert world.asked == Absent()
    world.hashes = (NEW,)
    assert not world.plan().actions


def kept(*hashes: str, uid: str = UID) -> Keep:
    tokens = gateway_tokens(site(gateway_token_hashes=hashes), namespace="ml", deployment="assistant", uid=uid)
    return Keep(gateway_tokens=tokens)


async def written(kuberay: KubeRay, cluster: Recording, wish: Wish, *, suspend: bool = False) -> list[Any]:
    """Ask for it, and return what is written around a RayService."""
    raw = render(workload(), site()).rayservice
    raw["metadata"] |= {"uid": "rs", "generation": 1, "resourceVersion": "1"}
    raw["spec"]["suspend"] = suspend
    cluster.raw = lean(raw)
    kuberay.ask(DEPLOYMENT, wish)
    await kuberay.reconcile(KEY, complete=lambda: True)
    return cluster.applied


async def test_tokens_are_written_for_what_is_only_kept(kuberay: KubeRay, cluster: Recording) -> None:
    wish = kept(OLD, NEW)
    assert await written(kuberay, cluster, wish) == [wish.gateway_tokens]


async def test_tokens_are_written_for_what_is_kept_with_other_bounds(kuberay: KubeRay, cluster: Recording) -> None:
    tokens = kept(OLD, NEW).gateway_tokens
    wish = Present(config={**APPLICATION, "revision": "r"}, create=False, gateway_tokens=tokens)
    assert await written(kuberay, cluster, wish) == [tokens]


@pytest.mark.parametrize(
    ("wish", "suspend"),
    [(kept(NEW), True), (kept(NEW, uid="99999999-0000-0000-0000-000000000000"), False), (Keep(), False)],
    ids=["asleep", "of an earlier deployment", "paused"],
)
async def test_tokens_are_written_for_nothing_else(
    kuberay: KubeRay, cluster: Recording, wish: Wish, suspend: bool
) -> None:
    assert await written(kuberay, cluster, wish, suspend=suspend) == []
