"""A user's deployments on a real KubeRay, with real pods and a real engine."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss_cli.local.tiny_model import QUESTION
from tests.e2e.house import GONE_SECONDS, MODELS, NAME, START_SECONDS, SUBJECT, SYSTEM, House, Reply, upload


@pytest.fixture
def name(house: House, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a deployment that is this test's own, and of which nothing is left afterwards."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    yield name
    house.delete(name)


def test_answers_sleeps_and_wakes(house: House, name: str):
    house.deploy(name)
    house.wait(name, "Ready", "True", "Serving")
    house.wait(name, "WeightsVerified", "True", "Verified")
    with house.gateway() as ask:
        assert ask(name, question=QUESTION).content == house.site.answer

        # Two minutes without a request, and everything goes but our own Service.
        house.patch(name, {"scaling": {"idleSeconds": 60}})
        house.wait(name, "ScaledToZero", "True", "Idle", seconds=START_SECONDS)
        house.wait(name, "Ready", "True", "Idle")
        house.cluster.until(lambda: not house.pods(name), seconds=GONE_SECONDS, what=lambda: house.describe(name))
        rayservice = house.cluster.get("rayservice", name, MODELS)
        assert rayservice is not None
        assert rayservice["spec"]["suspend"] is True

        # One request wakes it, is held meanwhile, and gets its answer.
        reply = ask(name, question=QUESTION)
        assert (reply.status, reply.content) == (200, house.site.answer), reply.text
    house.wait(name, "Ready", "True", "Serving")


def test_a_change_under_traffic_loses_no_request(house: House, name: str):
    house.deploy(name)
    house.wait(name, "Ready", "True", "Serving")
    before = {pod["metadata"]["uid"] for pod in house.pods(name)}
    replies: list[Reply] = []
    enough = threading.Event()
    with house.gateway() as ask:

        def talk() -> None:
            while not enough.is_set():
                replies.append(ask(name))
                enough.wait(1)

        client = threading.Thread(target=talk)
        client.start()
        try:
            house.patch(name, {"engine": {"maxNumSeqs": 4}})
            house.wait(name, "Ready", "True", "Serving")
            house.cluster.until(
                lambda: {pod["metadata"]["uid"] for pod in house.pods(name)} - before,
                seconds=START_SECONDS,
                what="the change made new pods",
            )
            house.wait(name, "Ready", "True", "Serving")
            replies.append(ask(name))
        finally:
            enough.set()
            client.join(timeout=START_SECONDS)
    assert replies[-1].status == 200
    assert [reply for reply in replies if reply.status != 200] == []


def test_a_flipped_byte_never_reaches_an_engine(house: House, name: str, signed: tuple[Path, str], tmp_path: Path):
    tampered = Path(shutil.copytree(signed[0], tmp_path / SUBJECT))
    weights = tampered / "model.safetensors"
    weights.chmod(0o600)
    with weights.open("r+b") as file:
        file.seek(-1000, 2)
        byte = file.read(1)
        file.seek(-1000, 2)
        file.write(bytes([byte[0] ^ 1]))
    with house.store() as access:
        upload(access, tampered, "flipped")
    house.deploy(name, uri="s3://models/flipped")
    message = house.wait(name, "WeightsVerified", "False", "DigestMismatch")
    assert "model.safetensors" in message
    house.wait(name, "Ready", "False", "DigestMismatch")
    house.wait(name, "Stalled", "True")
    house.cluster.until(lambda: not house.pods(name), seconds=GONE_SECONDS, what=lambda: house.describe(name))


def test_says_that_no_node_has_room(house: House, name: str):
    house.deploy(name, memory="900Ti")
    message = house.wait(name, "EngineReady", "False", "Unschedulable")
    assert "memory" in message
    assert "spec.pod.resources.memory" in message


def test_says_that_the_image_is_not_there(house: House, name: str):
    house.upgrade(image="localhost/gptoss-serving:nowhere")
    try:
        house.deploy(name)
        message = house.wait(name, "EngineReady", "False", "ImagePullFailed")
        assert "localhost/gptoss-serving:nowhere" in message
        assert "kubeRay.image" in message
    finally:
        house.delete(name)
        house.upgrade()


def test_serves_on_while_no_operator_runs(house: House, name: str):
    house.deploy(name)
    house.wait(name, "Ready", "True", "Serving")
    pods = {pod["metadata"]["uid"] for pod in house.pods(name)}
    selector = "app.kubernetes.io/component=operator"
    (killed,) = house.cluster.items("pods", SYSTEM, selector)
    house.cluster.kubectl("delete", "pod", killed["metadata"]["name"], "-n", SYSTEM, "--grace-period=0", "--force")
    with house.gateway() as ask:
        assert ask(name).status == 200
        house.cluster.kubectl("rollout", "status", f"deployment/{NAME}", "-n", SYSTEM, "--timeout=300s", seconds=330)
        # The new one has taken over when it has done something that it was asked for meanwhile.
        house.patch(name, {"scaling": {"idleSeconds": 3000}})
        house.wait(name, "Ready", "True", "Serving")
        assert ask(name).status == 200
    assert {pod["metadata"]["uid"] for pod in house.pods(name)} == pods
