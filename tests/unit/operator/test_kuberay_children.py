"""What of an object is ours, and when it is written again."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from gptoss_kube.errors import Forbidden, KubeError, Unreachable
from gptoss_kube.resources import Resource
from gptoss_operator.keys import RayServiceKey
from gptoss_operator.plan.rayservice.render import leading_to, render
from gptoss_operator.substrates.kuberay import children
from gptoss_operator.substrates.kuberay.children import Children, lean_child
from tests.unit.operator.rayservices import site, workload

RENDERED = render(workload(), site())
WANTED = [*RENDERED.others, leading_to(RENDERED.service, "assistant-abcde")]


def stored(document: dict[str, Any]) -> dict[str, Any]:
    """As an API server keeps it: with more than was asked for."""
    raw = json.loads(json.dumps(document))
    raw["metadata"] |= {"uid": "u", "resourceVersion": "5", "annotations": {"theirs": "x"}, "managedFields": []}
    raw["metadata"]["labels"]["theirs"] = "x"
    if raw["kind"] == "Service":
        raw["spec"] |= {"clusterIP": "10.0.0.1", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}
    return {**raw, "status": {"anything": 1}}


def digest(document: dict[str, Any]) -> str:
    return str(lean_child(document["kind"], document)["digest"])


@pytest.mark.parametrize("document", WANTED, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_what_a_server_and_others_add_is_not_ours(document: dict[str, Any]) -> None:
    assert digest(stored(document)) == digest(document)


def relabelled(raw: dict[str, Any]) -> None:
    raw["metadata"]["labels"]["serving.gptoss.dev/uid"] = "other"


def disowned(raw: dict[str, Any]) -> None:
    raw["metadata"]["ownerReferences"] = []


def edited(raw: dict[str, Any]) -> None:
    match raw["kind"]:
        case "Service":
            raw["spec"]["selector"]["ray.io/cluster"] = "theirs"
        case "PodDisruptionBudget":
            raw["spec"]["minAvailable"] = 9
        case "NetworkPolicy":
            raw["spec"]["ingress"].append({})
        case "ConfigMap":
            raw["data"]["gateway-tokens"] = "sha256:00"


@pytest.mark.parametrize("change", [relabelled, disowned, edited])
@pytest.mark.parametrize("document", WANTED, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_every_change_of_what_is_ours_is_seen(
    document: dict[str, Any], change: Callable[[dict[str, Any]], None]
) -> None:
    raw = stored(document)
    change(raw)
    assert digest(raw) != digest(document)


class FakeKube:
    """Stores what is applied, as a server with a webhook of its own taste does."""

    def __init__(self) -> None:
        self.version = 10
        self.taste: dict[str, Any] = {}

    async def apply(self, document: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.version += 1
        raw = stored(document)
        raw["metadata"]["resourceVersion"] = str(self.version)
        if raw["kind"] == "NetworkPolicy":
            raw["spec"] |= self.taste
        return raw


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> tuple[Children, FakeKube, list[RayServiceKey]]:
    kube, news = FakeKube(), []

    class Still:
        """An informer that has listed, and hears nothing."""

        def __init__(self, _: object, resource: Resource, **__: Any) -> None:
            self.resource = resource
            self.last_error: KubeError | None = None
            self.synced = asyncio.Event()
            self.synced.set()

    monkeypatch.setattr(children, "Informer", Still)
    return Children(kube, namespaces=(), news=news.append), kube, news  # type: ignore[arg-type]


async def test_what_is_missing_is_amiss_until_it_was_applied(
    around: tuple[Children, FakeKube, list[RayServiceKey]],
) -> None:
    built, _, news = around
    assert built.amiss(WANTED) == WANTED
    for document in WANTED:
        await built.apply(document)
    assert built.amiss(WANTED) == []
    assert news == [], "our own writes are no news"
    elsewhere = leading_to(RENDERED.service, "assistant-other")
    assert built.amiss([elsewhere]) == [elsewhere]


async def test_a_server_that_answers_otherwise_is_not_asked_for_ever(
    around: tuple[Children, FakeKube, list[RayServiceKey]],
) -> None:
    built, kube, _ = around
    kube.taste = {"ingress": []}
    for document in WANTED:
        await built.apply(document)
    assert built.amiss(WANTED) == []


async def test_what_is_not_watched_is_applied_again_now_and_then(
    around: tuple[Children, FakeKube, list[RayServiceKey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _, _ = around
    for document in WANTED:
        await built.apply(document)
    monkeypatch.setattr(children, "AGAIN_SECONDS", -1.0)
    assert [each["kind"] for each in built.amiss(WANTED)] == ["ConfigMap"]


async def test_nothing_is_amiss_while_it_was_not_listed(around: tuple[Children, FakeKube, list[RayServiceKey]]) -> None:
    built, _, _ = around
    for informers in built._informers.values():
        for informer in informers:
            informer.synced.clear()
    assert [each["kind"] for each in built.amiss(WANTED)] == ["ConfigMap"]


async def test_a_right_that_is_missing_is_told_and_stops_nothing(
    around: tuple[Children, FakeKube, list[RayServiceKey]],
) -> None:
    built, _, _ = around
    assert built.flaw() is None
    for informer in built.informers:
        informer.last_error = Unreachable("for a moment")
    assert built.flaw() is None, "no right is missing"
    for informer in built.informers:
        if informer.resource.plural != "services":
            informer.last_error = Forbidden("list is forbidden")
    flaw = built.flaw()
    assert flaw is not None
    assert flaw[0] == "ConfigurationRefused"
    assert "may not watch networkpolicies, poddisruptionbudgets: " in flaw[1]
    assert built.amiss(WANTED) == WANTED, "what is known is still acted upon"
