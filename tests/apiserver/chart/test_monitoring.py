"""Monitoring as the chart renders it: alerts lead to their sections of the page, and engines' pods are found."""

import pytest

from gptoss_operator.plan.rayservice.render import render
from gptoss_operator.plan.rayservice.workload import DEPLOYMENT_LABEL
from tests.apiserver.chart.helm import Helm, HelmError, Raw, of_kind
from tests.controlplane import REPOSITORY
from tests.unit.operator.rayservices import site, workload
from tests.unit.packaging.test_documents import anchors_of

PAGE = "https://git.test/platform/gptoss-operator/blob/main/docs/monitoring.md"


def rules(helm: Helm, values: Raw) -> list[Raw]:
    objects = helm.render("gpt", values={"monitoring": {"prometheusRule": {"enabled": True, **values}}})
    (rule,) = of_kind(objects, "PrometheusRule")
    (group,) = rule["spec"]["groups"]
    assert len(group["rules"]) > 8
    return group["rules"]


def test_every_alert_leads_to_its_own_section_of_the_page(helm: Helm):
    headings = anchors_of(REPOSITORY / "docs" / "monitoring.md")
    anchors = []
    for rule in rules(helm, {"runbookURL": PAGE}):
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (page, anchor) == (PAGE, rule["alert"].lower())
        anchors.append(anchor)
    assert set(anchors) <= headings
    assert len(set(anchors)) == len(anchors)


def test_nobody_is_sent_to_a_page_that_was_not_named(helm: Helm):
    for rule in rules(helm, {}):
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "{{" not in rule["expr"]


def test_an_address_that_is_none_is_refused(helm: Helm):
    with pytest.raises(HelmError, match="runbookURL"):
        rules(helm, {"runbookURL": "docs/monitoring.md"})


@pytest.mark.parametrize("watched", [[], ["ml", "research"]])
def test_engines_pods_are_scraped_where_they_are_served(helm: Helm, watched: list[str]):
    values = {
        "watchNamespaces": watched,
        "monitoring": {"labels": {"release": "prometheus"}, "enginePodMonitor": {"enabled": True, "interval": "15s"}},
    }
    (monitor,) = of_kind(helm.render("gpt", values=values), "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    spec = monitor["spec"]
    assert spec["namespaceSelector"] == ({"matchNames": watched} if watched else {"any": True})
    cluster = render(workload(), site()).rayservice["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    assert len(pods) == 2
    for pod in pods:
        labels = pod["metadata"]["labels"]
        assert set(spec["selector"]) == {"matchExpressions"}
        for each in spec["selector"]["matchExpressions"]:
            assert each["operator"] == "In"
            assert labels[each["key"]] in each["values"]
        # KubeRay names port 8080 so where Ray's container names no port of its own so.
        assert "metrics" not in {port["name"] for each in pod["spec"]["containers"] for port in each["ports"]}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["interval"]) == ("metrics", "15s")
    (told,) = endpoint["relabelings"]
    label = DEPLOYMENT_LABEL.replace(".", "_").replace("/", "_")
    assert told == {"sourceLabels": [f"__meta_kubernetes_pod_label_{label}"], "targetLabel": "gptoss_deployment"}
