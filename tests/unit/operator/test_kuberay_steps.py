"""What is written to a RayService next, where its Service leads, and how KubeRay's status is read."""

import json
from dataclasses import replace
from typing import Any

import pytest

from gptoss_operator.plan.applications import Absent, Keep, Present, Wish
from gptoss_operator.plan.rayservice.render import render
from gptoss_operator.substrates.kuberay.seen import SeenRayService, lean, seen_rayservice
from gptoss_operator.substrates.kuberay.steps import Step, leads_to, next_step
from tests.unit.operator.rayservices import site, workload

BLUE_GREEN = render(workload(), site())
RECREATE = render(workload(blue_green=False), site())


def raw(rendered: Any = BLUE_GREEN, *, status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(rendered.rayservice))
    document["metadata"] |= {"uid": "rs", "generation": 3, "resourceVersion": "7"}
    document["spec"] |= spec
    return {**document, "status": status or {}}


def seen(rendered: Any = BLUE_GREEN, **changes: Any) -> SeenRayService:
    return replace(seen_rayservice(raw(rendered)), **changes)


def wish(rendered: Any = BLUE_GREEN, revision: str | None = None) -> Present:
    (application,) = json.loads(rendered.rayservice["spec"]["serveConfigV2"])["applications"]
    return Present(config={**application, "revision": revision or rendered.revision}, rendered=rendered)


def capped() -> Present:
    return Present(config={**wish().config, "deployments": [{"name": "GptOssServer:x", "max": 1}]}, create=False)


CHANGED = render(workload(tensor=4), site())
CHANGED_RECREATE = render(workload(tensor=4, blue_green=False), site())
NEWER_OPERATOR = render(workload(accelerator=workload().accelerator.model_copy(update={"product": "H100"})), site())


@pytest.mark.parametrize(
    ("wanted", "there", "applied", "pods_left", "step"),
    [
        (None, None, None, False, Step.NOTHING),
        (Keep(), seen(), 3, False, Step.NOTHING),
        (Absent(), None, None, False, Step.NOTHING),
        (Absent(), seen(), 3, True, Step.SUSPEND),
        (Absent(), seen(suspend=True), 3, False, Step.NOTHING),
        (Absent(), seen(deleting=True), 3, False, Step.NOTHING),
        (wish(), None, None, False, Step.APPLY),
        (wish(), seen(), 3, True, Step.NOTHING),
        (wish(), seen(), None, True, Step.APPLY),  # after a restart once, which writes nothing
        (wish(), seen(generation=4), 3, True, Step.APPLY),  # somebody else changed it
        (wish(), seen(deleting=True), 3, True, Step.WAIT),
        (wish(), seen(suspend=True, suspended=True), 3, False, Step.RESUME),
        (wish(), seen(suspend=True, suspending=True), 3, True, Step.RESUME),
        (wish(CHANGED), seen(suspend=True, suspended=True), 3, False, Step.APPLY),
        (wish(CHANGED), seen(), 3, True, Step.APPLY),
        (wish(CHANGED_RECREATE), seen(RECREATE), 3, True, Step.APPLY_SUSPENDED),
        (wish(CHANGED_RECREATE), seen(CHANGED_RECREATE, suspend=True), 4, True, Step.WAIT),
        (wish(CHANGED_RECREATE), seen(CHANGED_RECREATE, suspend=True, suspended=True), 3, True, Step.WAIT),
        (wish(CHANGED_RECREATE), seen(CHANGED_RECREATE, suspend=True, suspended=True), 3, False, Step.RESUME),
        # Denied weights that may run on: fewer replicas at most, and never a start.
        (capped(), seen(), 3, True, Step.RECONFIGURE),
        (capped(), seen(suspend=True, suspended=True), 3, False, Step.NOTHING),
        (capped(), None, None, False, Step.NOTHING),
        # What was proved is kept by an operator that would render it otherwise, asleep or awake.
        (wish(NEWER_OPERATOR, BLUE_GREEN.revision), seen(), None, True, Step.NOTHING),
        (wish(NEWER_OPERATOR, BLUE_GREEN.revision), seen(suspend=True, suspended=True), None, False, Step.RESUME),
    ],
)
def test_the_next_step(
    wanted: Wish | None, there: SeenRayService | None, applied: int | None, pods_left: bool, step: Step
) -> None:
    assert next_step(wanted, there, applied_generation=applied, pods_left=pods_left) is step


@pytest.mark.parametrize("rendered", [BLUE_GREEN, RECREATE])
def test_nothing_is_left_to_do_after_it_was_done(rendered: Any) -> None:
    after = seen_rayservice(lean(raw(rendered)))
    assert next_step(wish(rendered), after, applied_generation=after.generation, pods_left=True) is Step.NOTHING


@pytest.mark.parametrize(
    ("there", "before", "ready", "to"),
    [
        (None, "a", {"a"}, None),
        (seen(suspend=True, active="a"), "a", {"a"}, None),
        (seen(pending="a"), None, set(), "a"),
        (seen(active="a"), "a", {"a"}, "a"),
        (seen(active="a", pending="b"), "a", {"a", "b"}, "a"),  # KubeRay has not moved over yet
        (seen(active="b"), "a", {"a"}, "a"),  # the new one takes no requests yet
        (seen(active="b"), "a", {"a", "b"}, "b"),
        (seen(active="b"), "a", set(), "b"),  # nothing left to serve with
        (seen(), "a", {"a"}, "a"),
    ],
)
def test_the_service_leads_to_what_serves(
    there: SeenRayService | None, before: str | None, ready: set[str], to: str | None
) -> None:
    assert leads_to(there, before, frozenset(ready)) == to


def test_a_status_of_before_a_suspension_is_of_the_past() -> None:
    status = {
        "conditions": [{"type": "Suspending", "status": "True"}],
        "activeServiceStatus": {"rayClusterName": "a", "applicationStatuses": {"x": {"status": "RUNNING"}}},
    }
    found = seen_rayservice(raw(status=status))
    assert (found.active, found.pending, dict(found.applications)) == (None, None, {})
    assert seen_rayservice(raw(status={**status, "conditions": []})).active == "a"


def test_a_foreign_rayservice_is_known_as_such() -> None:
    foreign = {"metadata": {"name": "x", "namespace": "ml", "uid": "u"}, "spec": {"serveConfigV2": ": ["}}
    assert seen_rayservice(foreign).owner_uid is None
    assert seen_rayservice(foreign).config is None
