"""An edit that says the same in other words gets another generation, and gives KubeRay the same bytes."""

import json
from typing import Any

import pytest

from gptoss_operator.plan.applications import Present
from gptoss_operator.substrates.kuberay.seen import lean, seen_rayservice
from gptoss_operator.substrates.kuberay.steps import Step, next_step
from tests.unit.operator.test_kuberay_kept import OnKubeRay, serving

NO_OPS: dict[str, dict[str, Any]] = {
    "nothing at all": {},
    "an empty block": {"pod": {}},
    "an empty block in a block": {"pod": {"resources": {}}},
    "what is so by default": {"accelerator": {"vendor": "nvidia"}, "rolloutStrategy": {"type": "BlueGreen"}},
    "what the profile says": {"engine": {"maxNumSeqs": 256}},
    "no further arguments": {"engine": {"extraArgs": {}}},
    "no cache": {"cache": {"type": "None"}},
}


@pytest.mark.parametrize("edit", NO_OPS.values(), ids=NO_OPS.keys())
def test_a_no_op_edit_renders_the_same_bytes_and_leaves_the_rayservice_alone(edit: dict[str, Any]) -> None:
    world = serving()
    before = given_to_kuberay(world)
    after = given_to_kuberay(edited(world, edit))
    assert world.status.proved_generation == 2, "the edit was taken in"
    assert bytes_of(after) == bytes_of(before)
    assert next_step(after, stored(before), applied_generation=3, pods_left=True) is Step.NOTHING


def test_an_edit_that_says_something_else_renders_other_bytes() -> None:
    world = serving()
    before = given_to_kuberay(world)
    after = given_to_kuberay(edited(world, {"engine": {"maxNumSeqs": 255}}))
    assert bytes_of(after) != bytes_of(before)
    assert next_step(after, stored(before), applied_generation=3, pods_left=True) is Step.APPLY


def edited(world: OnKubeRay, edit: dict[str, Any]) -> OnKubeRay:
    """Live on as the next generation."""
    world.spec = {**world.spec, **edit}
    world.generation += 1
    world.live()
    return world


def given_to_kuberay(world: OnKubeRay) -> Present:
    """What is rendered now, also where it was asked for already."""
    world.asked = None
    (action,) = world.plan().actions
    assert isinstance(action.wish, Present)
    world.asked = action.wish
    return action.wish


def bytes_of(wish: Present) -> str:
    assert wish.rendered is not None
    made = wish.rendered
    return json.dumps([wish.config, made.revision, made.rayservice, made.others, made.service, made.token_secret])


def stored(wish: Present) -> Any:
    """A RayService as an API server keeps it after our own write."""
    assert wish.rendered is not None
    document = json.loads(json.dumps(wish.rendered.rayservice))
    document["metadata"] |= {"uid": "rs", "generation": 3, "resourceVersion": "7"}
    return seen_rayservice(lean(document))
