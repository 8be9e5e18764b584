"""What keeps operator and gateway up finds their pods: by labels between the objects that were rendered."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.apiserver.chart.helm import CHART, RELEASE, Helm, Raw, of_kind
from tests.controlplane import REPOSITORY

NAMES = {
    "as installed": {},
    "under other names": {"nameOverride": "llm", "fullnameOverride": "platform-llm"},
    "with more labels": {
        "global": {"commonLabels": {"team": "platform"}},
        "gateway": {"podLabels": {"mesh": "on"}, "service": {"labels": {"public": "yes"}}},
        "operator": {"podLabels": {"mesh": "off"}},
    },
}
SECRET = re.compile(r"kubectl create secret generic (\S+) -n (\S+) --from-(?:literal|file)=([^=\s]+)")
KUBERAY = {"enabled": True, "image": "images.test/gptoss-serving"}
FILE_ROOTS = {"fileRoots": [{"path": "/models", "claimName": "nfs"}]}


@pytest.fixture(params=NAMES.values(), ids=NAMES.keys())
def values(request: pytest.FixtureRequest) -> Raw:
    return dict(request.param)


def test_a_budget_covers_all_pods_of_one_deployment_and_of_no_other(helm: Helm, values: Raw) -> None:
    objects = helm.render("gpt", values=values)
    budgets = of_kind(objects, "PodDisruptionBudget")
    covered = [found for each in budgets for found in selected(objects, each["spec"]["selector"]["matchLabels"])]
    assert sorted(covered) == sorted(each["metadata"]["name"] for each in of_kind(objects, "Deployment"))
    assert len(budgets) == len(covered) == 2
    for each in budgets:
        assert each["spec"]["maxUnavailable"] == 1, "a node can be drained, one pod after the other"
        assert each["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_a_pod_that_is_alone_has_no_budget_that_would_keep_its_node_from_being_drained(
    helm: Helm, component: str
) -> None:
    objects = helm.render("gpt", values={component: {"replicas": 1}})
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    (covered,) = selected(objects, budget["spec"]["selector"]["matchLabels"])
    (alone,) = (each["metadata"]["name"] for each in of_kind(objects, "Deployment") if each["spec"]["replicas"] == 1)
    assert covered != alone


def test_the_autoscaler_scales_the_deployment_whose_pods_it_can_measure(helm: Helm, values: Raw) -> None:
    assert of_kind(helm.render("gpt", values=values), "HorizontalPodAutoscaler") == []
    gateway = {**values.get("gateway", {}), "replicas": 1, "autoscaling": {"enabled": True}}
    objects = helm.render("gpt", values={**values, "gateway": gateway})
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    (scaled,) = (
        each
        for each in objects
        if {"apiVersion": each["apiVersion"], "kind": each["kind"], "name": each["metadata"]["name"]} == target
    )
    assert "replicas" not in scaled["spec"], "or every upgrade would set them back"
    assert 2 <= scaler["spec"]["minReplicas"] <= scaler["spec"]["maxReplicas"]
    (metric,) = scaler["spec"]["metrics"]
    assert metric["resource"]["target"]["type"] == "Utilization"
    for container in scaled["spec"]["template"]["spec"]["containers"]:
        assert metric["resource"]["name"] in container["resources"]["requests"], "a share of nothing can't be measured"
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert scaled["metadata"]["name"] in [
        found for each in budgets for found in selected(objects, each["spec"]["selector"]["matchLabels"])
    ]


def test_pods_are_spread_among_their_own(helm: Helm, values: Raw) -> None:
    objects = helm.render("gpt", values=values)
    for each in of_kind(objects, "Deployment"):
        spread = each["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        for one in spread:
            assert selected(objects, one["labelSelector"]["matchLabels"]) == [each["metadata"]["name"]]
            assert one["whenUnsatisfiable"] == "ScheduleAnyway"


def test_what_is_given_of_spread_replaces_the_default(helm: Helm) -> None:
    given = [{"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]
    objects = helm.render("gpt", values={"gateway": {"topologySpreadConstraints": given}})
    spreads = [each["spec"]["template"]["spec"]["topologySpreadConstraints"] for each in of_kind(objects, "Deployment")]
    assert [spread for spread in spreads if spread == given] == [given]


def test_services_policies_and_monitors_find_the_pods_of_one_deployment(helm: Helm, values: Raw) -> None:
    monitoring = {"serviceMonitor": {"enabled": True}}
    objects = helm.render("gpt", values={**values, "monitoring": monitoring})
    for service in of_kind(objects, "Service"):
        (name,) = selected(objects, service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports(objects, name)
    for policy in of_kind(objects, "NetworkPolicy"):
        assert len(selected(objects, policy["spec"]["podSelector"]["matchLabels"])) == 1
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [each for each in of_kind(objects, "Service") if wanted <= each["metadata"]["labels"].items()]
        scraped = {port["port"] for port in monitor["spec"]["endpoints"]}
        assert any(scraped <= {port["name"] for port in each["spec"]["ports"]} for each in found)


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ({}, "Set kubeRay.enabled, or name a Ray cluster"),
        ({"kubeRay": KUBERAY}, "Install KubeRay 1.7 or later"),
        ({"kubeRay": {**KUBERAY, "settings": FILE_ROOTS}}, "Make the claims of kubeRay.fileRoots"),
        ({"kubeRay": KUBERAY, "gateway": {"enabled": False}}, "Say whose signatures count"),
        ({"kubeRay": {**KUBERAY, "gatewayTokenSecret": {"name": "own", "key": "t"}}}, "make the Secret with the token"),
    ],
    ids=["no place", "KubeRay", "claims", "no gateway", "names of their own"],
)
def test_the_notes_lead_to_what_the_pods_wait_for(helm: Helm, values: Raw, given: Raw, step: str) -> None:
    chosen = {**values, **given, "watchNamespaces": ["research"]}
    objects, told = helm.render("gpt", values=chosen), notes(helm, chosen)
    assert step in told
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", told, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert set(SECRET.findall(told)) == set(awaited_secrets(objects))
    for claim in awaited_claims(objects):
        assert f"{claim}, which is " in told
    for example in re.findall(r"examples/\S+\.yaml", told):
        assert (REPOSITORY / example).is_file()
    assert "-n research " in told
    gateways = [each for each in of_kind(objects, "Service") if each["metadata"]["name"].endswith("-gateway")]
    assert [
        f"http://{each['metadata']['name']}.gpt.svc:{each['spec']['ports'][0]['port']}/v1" for each in gateways
    ] == (re.findall(r"Talk to it: (\S+)", told))


def selected(objects: list[Raw], labels: Raw) -> list[str]:
    """The Deployments whose pods have all of these labels."""
    assert labels, "an empty selector takes every pod of the namespace"
    return [
        each["metadata"]["name"]
        for each in of_kind(objects, "Deployment")
        if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]


def ports(objects: list[Raw], name: str) -> set[str]:
    """The names of the ports of a Deployment's pods."""
    (found,) = (each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] == name)
    return {port["name"] for each in found["spec"]["template"]["spec"]["containers"] for port in each["ports"]}


def notes(helm: Helm, values: Raw) -> str:
    """What Helm prints after an installation."""
    printed = helm.run("install", RELEASE, str(CHART), "--namespace", "gpt", "--dry-run=client", values=values)
    return printed.partition("\nNOTES:\n")[2]


def awaited_secrets(objects: list[Raw]) -> Iterator[tuple[str, str, str]]:
    """Name, namespace and key of each Secret without which a pod does not start."""
    for each in of_kind(objects, "Deployment"):
        for volume in each["spec"]["template"]["spec"]["volumes"]:
            for source in [volume, *volume.get("projected", {}).get("sources", ())]:
                secret = source.get("secret")
                if secret is None:
                    continue
                keys = [item["key"] for item in secret.get("items", ())] or [keys_file(objects)]
                for key in keys:
                    yield secret.get("secretName") or secret["name"], each["metadata"]["namespace"], key


def keys_file(objects: list[Raw]) -> str:
    """The file of the Secret that is mounted whole, as the gateway looks for it."""
    texts = [each["data"]["gateway.yaml"] for each in of_kind(objects, "ConfigMap") if "gateway.yaml" in each["data"]]
    return Path(yaml.safe_load(texts[0])["keysFile"]).name


def awaited_claims(objects: list[Raw]) -> Iterator[str]:
    """The claims without which a pod does not start."""
    for each in of_kind(objects, "Deployment"):
        for volume in each["spec"]["template"]["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                yield volume["persistentVolumeClaim"]["claimName"]
