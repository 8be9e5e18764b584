"""A Redis behind Ray's head: in what is rendered, and which settings are refused."""

import json
from typing import Any

import pytest

from gptoss_operator.plan.rayservice.render import Rendered, render
from tests.unit.operator import rayservices
from tests.unit.operator.rayservices import site, workload

ADDRESS = "redis://redis.{namespace}.svc:6380"


def rendered(*entries: dict[str, Any], **changes: Any) -> Rendered:
    settings = rayservices.settings(gcsFaultTolerance=list(entries)) if entries else rayservices.settings()
    return render(workload(**changes), site(settings=settings))


def options(there: Rendered) -> dict[str, Any] | None:
    return there.rayservice["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions")


def ports(there: Rendered, role: str) -> set[int]:
    (policy,) = (each for each in there.others if each["metadata"]["name"].endswith(f"-{role}"))
    return {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", ()) if port["port"] != 53}


def test_a_head_keeps_its_state_in_its_namespaces_redis() -> None:
    there = rendered({"namespaces": ["*"], "redisAddress": ADDRESS})
    assert options(there) == {"redisAddress": "redis://redis.ml.svc:6380"}
    assert 6380 in ports(there, "head")
    assert 6380 not in ports(there, "worker")
    assert {6380, 443} <= ports(rendered({"namespaces": ["*"], "redisAddress": ADDRESS}, max_replicas=3), "head")


def test_the_password_is_only_named() -> None:
    secret = {"name": "redis-auth", "key": "REDIS_PASSWORD"}
    there = rendered({"namespaces": ["ml"], "redisAddress": "rediss://10.0.0.7:6379", "passwordSecret": secret})
    assert options(there) == {
        "redisAddress": "rediss://10.0.0.7:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": secret}},
    }
    cluster = there.rayservice["spec"]["rayClusterConfig"]
    assert "redis" not in json.dumps([cluster["headGroupSpec"], cluster["workerGroupSpecs"]])


def test_the_first_entry_that_fits_counts_and_without_one_nothing_is_kept() -> None:
    entries = (
        {"namespaces": ["ml"], "redisAddress": "redis://first:6379"},
        {"namespaces": ["*"], "redisAddress": ADDRESS},
    )
    assert options(rendered(*entries)) == {"redisAddress": "redis://first:6379"}
    assert options(rendered(*entries, namespace="other")) == {"redisAddress": "redis://redis.other.svc:6380"}
    assert options(rendered(entries[0], namespace="other")) is None
    assert options(rendered()) is None


def test_another_place_for_it_takes_a_new_cluster() -> None:
    revisions = {
        rendered(*entries).revision
        for entries in (
            (),
            ({"namespaces": ["ml"], "redisAddress": "redis://first:6379"},),
            ({"namespaces": ["ml"], "redisAddress": "redis://second:6379"},),
        )
    }
    assert len(revisions) == 3


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"namespaces": []}, "name some"),
        ({"namespaces": ["*"], "redisAddress": "redis://redis.ml.svc:6379"}, "one Redis for several namespaces"),
        ({"namespaces": ["ml", "web"], "redisAddress": "redis://redis:6379"}, "one Redis for several namespaces"),
        ({"redisAddress": "redis://redis.ml.svc"}, "should match"),
        ({"redisAddress": "redis.ml.svc:6379"}, "should match"),
        ({"redisAddress": "redis://user:password@redis.ml.svc:6379"}, "should match"),
        ({"redisAddress": "redis://redis.{name}.svc:6379"}, "is no address"),
        ({"redisAddress": "redis://redis.ml.svc:0"}, "is no address"),
        ({"redisAddress": "redis://redis.ml.svc:65536"}, "is no address"),
        ({"passwordSecret": {"name": "x", "key": "a b"}}, "should match"),
        ({"password": "secret"}, "not permitted"),
    ],
)
def test_what_is_no_place_is_refused(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rendered({"namespaces": ["ml"], "redisAddress": ADDRESS, **entry})
