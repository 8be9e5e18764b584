"""Alerts as the chart renders them: whoever is woken by one finds its section of the page."""

import pytest

from tests.apiserver.chart.helm import Helm, HelmError, Raw, of_kind
from tests.controlplane import REPOSITORY
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
