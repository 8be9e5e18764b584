"""Which cluster a deployment runs on, or what its author or an administrator has to change."""

from typing import Any

import pytest

from gptoss_operator.placement import cluster_of, placement_of
from gptoss_operator.plan.observation import KUBERAY
from gptoss_operator.settings import Settings
from tests.builders import deployment, deployment_object

KUBE_RAY = {"image": "registry.example.com/serving:1", "gatewayTokenFile": "/token"}
SHARED = {
    "name": "shared",
    "dashboardURL": "http://ray:8265",
    "serveURL": "http://ray:8000",
    "gatewayTokenFile": "/token",
    "allowedNamespaces": ["ml"],
}
NAMED = {"rayServe": {"clusterName": "shared"}}


def settings(**more: Any) -> Settings:
    return Settings.model_validate({"installation": "test", "systemNamespace": "system"} | more)


@pytest.mark.parametrize(
    ("substrate", "site", "cluster"),
    [
        (None, {"rayClusters": [SHARED], "defaultRayCluster": "shared"}, "shared"),
        (None, {"rayClusters": [SHARED], "defaultRayCluster": "shared", "kubeRay": KUBE_RAY}, "shared"),
        (None, {"rayClusters": [SHARED], "kubeRay": KUBE_RAY}, KUBERAY),
        (NAMED, {"rayClusters": [SHARED], "kubeRay": KUBE_RAY}, "shared"),
        ({"kubeRay": {}}, {"rayClusters": [SHARED], "defaultRayCluster": "shared", "kubeRay": KUBE_RAY}, KUBERAY),
    ],
)
def test_a_deployment_runs_where_it_says_or_else_where_the_settings_say(
    substrate: Any, site: dict[str, Any], cluster: str
) -> None:
    spec = {} if substrate is None else {"substrate": substrate}

    assert placement_of(deployment(**spec), settings(**site)).cluster == cluster
    assert cluster_of(deployment_object(**spec), settings(**site)) == cluster


@pytest.mark.parametrize(
    ("namespace", "substrate", "site", "reason", "advice"),
    [
        ("ml", None, {}, "UnknownCluster", "defaultRayCluster"),
        ("ml", NAMED, {}, "UnknownCluster", "correct spec.substrate.rayServe.clusterName"),
        ("ml", {"kubeRay": {}}, {}, "UnknownCluster", "kubeRay in the operator's settings"),
        ("web", NAMED, {"rayClusters": [SHARED]}, "NamespaceNotAllowed", "ask an administrator to allow it"),
        ("web", None, {"kubeRay": KUBE_RAY | {"limits": [{"namespaces": ["ml"]}]}}, "NamespaceNotAllowed", "limits"),
    ],
)
def test_one_that_can_run_nowhere_is_told_what_to_change(
    namespace: str, substrate: Any, site: dict[str, Any], reason: str, advice: str
) -> None:
    spec = {} if substrate is None else {"substrate": substrate}
    placement = placement_of(deployment(namespace=namespace, **spec), settings(**site))

    assert (placement.cluster, placement.reason) == ("", reason)
    assert advice in placement.message
