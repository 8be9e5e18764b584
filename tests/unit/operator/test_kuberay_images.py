"""Which image replicas run: what nodes tell of it, what of it is recorded, and when another is told of."""

from dataclasses import replace
from typing import Any

from gptoss_operator.plan.observation import ApplicationView, Presence
from gptoss_operator.substrates.kuberay.pods import images_of
from tests.unit.operator.test_kuberay_troubles import pod
from tests.unit.operator.test_lifecycle import World, happen, idle, message, serving

ONE, TWO = (f"registry.example.com/serving@sha256:{digit * 64}" for digit in "12")


def running(image: str, container: str = "ray-worker") -> dict[str, Any]:
    return pod(containerStatuses=[{"name": container, "imageID": image}])


def recorded(world: World) -> str | None:
    assert world.status.engine is not None
    return world.status.engine.image


def runs(world: World, *images: str) -> None:
    world.view = replace(world.view, images=images)
    world.settle()


def test_nodes_tell_each_image_of_engines_once_and_by_its_digest() -> None:
    assert images_of([running(TWO), running(ONE), running(f"docker-pullable://{ONE}")]) == (ONE, TWO)
    assert images_of([running(""), running(ONE, "ray-head"), pod()]) == ()


def test_the_image_of_the_first_start_is_recorded_and_stays() -> None:
    world = serving()
    assert recorded(world) is None, "no node has told it"
    runs(world, ONE)
    assert recorded(world) == ONE
    assert world.condition("Degraded")[0] == "False"
    runs(world, ONE, TWO)
    assert recorded(world) == ONE
    assert world.condition("Degraded") == ("True", "ImageChanged")
    assert TWO in message(world, "Degraded")
    world.memory = None
    runs(world, TWO)
    assert recorded(world) == ONE, "another process knows what was recorded"
    assert world.condition("Degraded") == ("True", "ImageChanged")
    runs(world)
    assert recorded(world) == ONE
    assert world.condition("Degraded")[0] == "False"


def test_a_changed_specification_records_what_its_own_replicas_run() -> None:
    world = serving()
    runs(world, ONE)
    happen(world, "spec")
    world.settle()
    assert recorded(world) is None, "its replicas are not there yet"
    world.cluster()
    runs(world, TWO)
    assert recorded(world) == TWO
    world.engine_answers()
    world.settle()
    assert recorded(world) == TWO
    assert world.condition("Degraded")[0] == "False"


def test_bounds_alone_leave_the_record_as_it_is() -> None:
    world = serving()
    runs(world, TWO)
    happen(world, "bounds")
    world.settle()
    assert recorded(world) == TWO
    runs(world, ONE, TWO)
    assert recorded(world) == TWO
    world.cluster()
    runs(world)
    assert recorded(world) == TWO


def test_asleep_the_record_is_kept() -> None:
    world = idle()
    assert world.status.engine is not None
    engine = world.status.engine.model_copy(update={"image": ONE})
    world.status = world.status.model_copy(update={"engine": engine})
    world.view = ApplicationView(presence=Presence.ABSENT)
    world.settle()
    assert recorded(world) == ONE
