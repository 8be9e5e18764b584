"""Alerts, dashboards and docs/monitoring.md: what they ask for and explain is what operator and gateway export."""

import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import promql_parser as promql
import pytest
import yaml
from prometheus_client import CollectorRegistry

from gptoss_api.conditions import ConditionType
from gptoss_api.deployment_status import Condition, PullStatus, WeightsStatus
from gptoss_gateway.certificate import Certificate
from gptoss_gateway.demand import Place
from gptoss_gateway.errors import Limit, LimitedError
from gptoss_gateway.metering import Metering
from gptoss_gateway.roll_call import RollCall, _Told
from gptoss_gateway.settings import TLS
from gptoss_gateway.usage import Usage
from gptoss_operator.keys import DeploymentKey
from gptoss_operator.metrics import Metrics
from tests.builders import DIGEST
from tests.contract.gateway.certificates import Authority, Mounted
from tests.unit.gateway.models import model
from tests.unit.packaging.test_tree import REPOSITORY

FILES = REPOSITORY / "charts" / "gptoss-operator" / "files"
RULES = yaml.safe_load((FILES / "rules.yaml").read_text())
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted((FILES / "dashboards").glob("*.json"))}
TARGETS = {
    f"{name}: {panel['title']}": target
    for name, board in BOARDS.items()
    for panel in board["panels"]
    for target in panel["targets"]
}
PAGE = (REPOSITORY / "docs" / "monitoring.md").read_text()
QUERIES = dict(re.findall(r"^\| ([^|`]+\?) \| `([^|]+)` \|$", PAGE, re.MULTILINE))
EXPRESSIONS = (
    {rule["alert"]: rule["expr"] for rule in RULES}
    | {name: each["expr"] for name, each in TARGETS.items()}
    | {f"docs/monitoring.md: {question}": query for question, query in QUERIES.items()}
)
SCRAPED = {"namespace", "pod", "job", "instance", "service", "container", "endpoint"}
"""Labels that Prometheus puts on every series; one of ours by such a name is kept as `exported_…`."""
OVER_TIME = {"rate", "increase", "irate"}
NOON = "2026-01-01T12:00:00Z"


@dataclass(frozen=True)
class Series:
    """What is exported under one name: the kind of metric, and each label with the values seen."""

    kind: str
    labels: dict[str, set[str]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Series]:
    """Every series that Prometheus would have of an operator and a gateway that have seen a bit of everything."""
    exported: dict[str, Series] = {}
    for registry in (_operator(), *_gateway(tmp_path_factory.mktemp("tls"))):
        for family in registry.collect():
            for sample in family.samples:
                labels = exported.setdefault(sample.name, Series(family.type, {})).labels
                for name, value in sample.labels.items():
                    labels.setdefault(f"exported_{name}" if name in SCRAPED else name, set()).add(value)
    return exported


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_an_expression_is_promql_about_series_and_labels_that_there_are(
    expression: str, exported: dict[str, Series]
) -> None:
    selectors = list(_selectors(promql.parse(expression)))
    assert selectors
    for selector, groupings, function in selectors:
        assert selector.name in exported, f"nothing exports {selector.name}"
        series = exported[selector.name]
        counts = series.kind in {"counter", "histogram"}
        assert counts == (function in OVER_TIME), f"{selector.name} is a {series.kind}, under {function}"
        assert groupings - SCRAPED <= series.labels.keys()
        for matcher in selector.matchers.matchers:
            if matcher.name not in SCRAPED:
                seen = series.labels[matcher.name]
                assert any(re.fullmatch(matcher.value, each) for each in seen), f"{matcher.name}: never {matcher.value}"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_a_legend_names_labels_that_are_left(target: dict[str, str], exported: dict[str, Series]) -> None:
    named = {part.split("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
    for selector, groupings, _ in _selectors(promql.parse(target["expr"])):
        assert named <= (groupings or exported[selector.name].labels.keys() | SCRAPED)


def test_alerts_say_what_is_wrong_how_bad_it_is_and_for_how_long_they_wait() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) > 8
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert promql.parse_duration(rule["for"]).total_seconds() >= 60
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_page_explains_every_metric_once_with_its_labels_and_no_other(exported: dict[str, Series]) -> None:
    explained = re.findall(r"^\| `(gptoss_\w+)` \|([^|]*)\| [^|]{10,} \|$", PAGE, re.MULTILINE)
    ours = {_family(name): each for name, each in exported.items() if not re.match(r"process_|.*_created$", name)}

    assert Counter(name for name, _ in explained) == Counter(ours.keys())
    for name, labels in explained:
        told = {f"exported_{each}" if each in SCRAPED else each for each in labels.replace(" ", "").split(",") if each}
        assert told == ours[name].labels.keys() - {"le"}, name


def test_the_page_says_what_to_do_about_every_alert() -> None:
    assert len(QUERIES) > 4
    assert re.findall(r"^### (\w+)$", PAGE, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_dashboards_draw_everything_from_the_chosen_source() -> None:
    for board in BOARDS.values():
        assert [each["name"] for each in board["templating"]["list"] if each["type"] == "datasource"] == ["datasource"]
        for panel in board["panels"]:
            assert panel["datasource"]["uid"] == "${datasource}"


def _selectors(
    node: promql.Expr, groupings: frozenset[str] = frozenset(), function: str = ""
) -> Iterator[tuple[promql.VectorSelector, frozenset[str], str]]:
    """Yield each selector with the labels it is grouped by and the function right around it."""
    match node:
        case promql.VectorSelector():
            yield node, groupings, function
        case promql.MatrixSelector():
            yield node.vector_selector, groupings, function
        case promql.AggregateExpr():
            assert node.modifier is None or node.modifier.type == promql.AggModifierType.By
            labels = frozenset(node.modifier.labels if node.modifier else ())
            yield from _selectors(node.expr, groupings | labels)
        case promql.Call():
            for argument in node.args:
                yield from _selectors(argument, groupings, node.func.name)
        case promql.BinaryExpr():
            yield from _selectors(node.lhs, groupings)
            yield from _selectors(node.rhs, groupings)
        case promql.ParenExpr() | promql.UnaryExpr():
            yield from _selectors(node.expr, groupings, function)
        case promql.NumberLiteral() | promql.StringLiteral():
            return
        case _:
            raise NotImplementedError(type(node))


def _family(sample: str) -> str:
    """Return a metric's name as the page has it: a counter's with `_total`, a histogram's without its parts."""
    return re.sub(r"_(bucket|count|sum)$", "", sample)


def _operator() -> CollectorRegistry:
    metrics = Metrics()
    for result in ("done", "retry", "error"):
        metrics.reconciles.labels("deployment", result)
    metrics.wake_seconds.labels("total")
    metrics.trust_checks.labels("Trusted")
    metrics.cluster_reachable.labels("shared")
    metrics.cluster_writes.labels("shared")
    metrics.follow(lambda: {"pods": True})
    told = [
        Condition(type=kind, status="True", reason="Any", last_transition_time="2026-01-01T00:00:00Z")
        for kind in ConditionType
    ]
    metrics.tell_conditions(DeploymentKey("ml", "assistant"), told)
    metrics.tell_weights(
        DeploymentKey("ml", "assistant"),
        WeightsStatus(manifest_digest=DIGEST, signer=DIGEST, authority="release", policy="platform", verified_at=NOON),
    )
    metrics.tell_pull(DeploymentKey("ml", "assistant"), PullStatus(started_at=NOON, bytes_done=1, bytes_total=2))
    return metrics.registry


def _gateway(folder: Path) -> tuple[CollectorRegistry, CollectorRegistry]:
    """Return what one process exports, and what a pod of several adds."""
    metering, seen = Metering(), model()
    metering.meet(seen)
    metering.watch_places(lambda: [(seen, 1, 1)])
    metering.watch_tenants(lambda: {("team-a", Place.WAITING): 1})
    metering.watch_tasks(lambda: 1)
    metering.watch_processes(lambda: 1)
    metering.request_ended(seen, route="chat", status=200)
    metering.request_ended(seen, route="chat", status=502)
    metering.request_refused(401)
    metering.note_limit(
        LimitedError("Ask again later.", limit=Limit.CONCURRENT, tenant="team-a", retry_after=1, code="limited")
    )
    metering.held(seen, 1.0)
    metering.broke(seen)
    metering.retried(seen)
    metering.tokens(seen, "team-a", Usage(input=1))
    secret = Mounted(folder / "secret")
    secret.pair(Authority().issue())
    certificate = TLS(cert_file=secret.folder / "tls.crt", key_file=secret.folder / "tls.key")
    metering.watch_certificate(Certificate(certificate))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pod = RollCall({}, clients=listening, stopping=lambda: False)
        metering.watch_queues(lambda: (listening,))
        return _snapshot(metering.registry), _snapshot(pod._registry)


def _snapshot(registry: CollectorRegistry) -> CollectorRegistry:
    """Return a registry that goes on telling what this one tells now, when what it asks is there no more."""
    families = tuple(registry.collect())
    snapshot = CollectorRegistry()
    snapshot.register(_Told(families))
    return snapshot
