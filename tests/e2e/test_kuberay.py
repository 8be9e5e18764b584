"""A user's deployments on a real KubeRay, with real pods and a real engine."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss_api.cache import CACHE_CLAIM
from gptoss_api.pull_report import REPORT_PORT
from gptoss_cli.local.tiny_model import QUESTION
from tests.e2e.house import (
    GONE_SECONDS,
    MODELS,
    MODELS_KEYS,
    NAME,
    OPERATORS_KEYS,
    SHARE,
    START_SECONDS,
    STORE_PORT,
    SUBJECT,
    SYSTEM,
    House,
    talking,
    upload,
)

SERVING = "serving"
AWAKE = 3600
"""Seconds without a request after which it would sleep: later than any test ends."""


@pytest.fixture
def name(house: House, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a deployment that is this test's own, and of which nothing is left afterwards."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    yield name
    house.delete(name)


@pytest.fixture
def serving(house: House) -> str:
    """The name of a deployment that answers. The tests share it, since a start takes minutes; uninstalling ends it."""
    if house.spec(SERVING) is None:
        house.deploy(SERVING)
    else:
        house.patch(SERVING, {"scaling": {"idleSeconds": AWAKE}})
        with house.gateway() as ask:
            assert ask(SERVING).status == 200
    house.wait(SERVING, "Ready", "True", "Serving")
    return SERVING


def test_answers_sleeps_and_wakes(house: House, serving: str):
    house.wait(serving, "WeightsVerified", "True", "Verified")
    with house.gateway() as ask:
        assert ask(serving, question=QUESTION).content == house.site.answer

        # A minute without a request, and everything goes but our own Service.
        house.patch(serving, {"scaling": {"idleSeconds": 60}})
        house.wait(serving, "ScaledToZero", "True", "Idle", seconds=START_SECONDS)
        house.wait(serving, "Ready", "True", "Idle")
        house.cluster.until(lambda: not house.pods(serving), seconds=GONE_SECONDS, what=lambda: house.describe(serving))
        rayservice = house.cluster.get("rayservice", serving, MODELS)
        assert rayservice is not None
        assert rayservice["spec"]["suspend"] is True
        house.patch(serving, {"scaling": {"idleSeconds": AWAKE}})

        # One request wakes it, is held meanwhile, and gets its answer.
        reply = ask(serving, question=QUESTION)
        assert (reply.status, reply.content) == (200, house.site.answer), reply.text
    house.wait(serving, "Ready", "True", "Serving")


def test_a_change_under_traffic_loses_no_request(house: House, serving: str):
    before = house.uids(serving)
    spec = house.spec(serving)
    assert spec is not None
    with house.gateway() as ask:
        with talking(lambda: ask(serving), clients=1, pause=1) as replies:
            house.patch(serving, {"engine": {"maxNumSeqs": spec["engine"]["maxNumSeqs"] - 1}})
            house.cluster.until(
                lambda: house.uids(serving) - before,
                seconds=START_SECONDS,
                what=lambda: f"the change made new pods, but {house.describe(serving)}",
            )
            house.wait(serving, "Ready", "True", "Serving")
        assert ask(serving).status == 200
    assert replies
    assert [reply for reply in replies if reply.status != 200] == []


def test_serves_on_while_no_operator_runs(house: House, serving: str):
    pods = house.uids(serving)
    selector = "app.kubernetes.io/component=operator"
    house.cluster.kubectl("scale", f"deployment/{NAME}", "-n", SYSTEM, "--replicas=0")
    try:
        house.cluster.until(
            lambda: not house.cluster.items("pods", SYSTEM, selector), seconds=GONE_SECONDS, what="the operator ended"
        )
        with house.gateway() as ask:
            assert ask(serving).status == 200
    finally:
        house.cluster.kubectl("scale", f"deployment/{NAME}", "-n", SYSTEM, "--replicas=1")
    # Another has taken over when it has seen what was asked for meanwhile.
    house.patch(serving, {"scaling": {"idleSeconds": AWAKE - 1}})
    house.wait(serving, "Ready", "True", "Serving")
    with house.gateway() as ask:
        assert ask(serving).status == 200
    assert house.uids(serving) == pods


def test_pods_are_reached_by_those_alone_who_should(house: House, serving: str):
    if not house.site.enforces_network_policies:
        pytest.skip("E2E_NETWORK_POLICIES does not say that the cluster's network enforces them")
    (head,), (worker,) = house.pods(serving, "head"), house.pods(serving, "worker")
    (operator,), (gateway,) = (
        house.cluster.items("pods", SYSTEM, f"app.kubernetes.io/component={kind}") for kind in ("operator", "gateway")
    )
    targets = {
        f"{pod} {port}": (raw["status"]["podIP"], port)
        for pod, raw, ports in (("head", head, (6379, 8000, 8265)), ("worker", worker, (8000, REPORT_PORT, 8080, 9101)))
        for port in ports
    }
    service = house.cluster.get("service", "kubernetes", "default")
    assert service is not None
    targets["API server"] = (service["spec"]["clusterIP"], 443)
    serves = {"head 8000", "worker 8000"}
    assert house.reached(gateway, targets) == {*serves, "API server"}
    assert house.reached(operator, targets) == {*serves, f"worker {REPORT_PORT}", "API server"}
    for pod in (head, worker):
        assert house.reached(pod, targets) == targets.keys() - {"API server"}, "of one Ray cluster, and no token to use"


def test_says_how_far_a_slow_pull_is(house: House, name: str):
    def far() -> dict[str, object] | None:
        pull = ((house.cluster.get("gptoss", name, MODELS) or {}).get("status") or {}).get("pull") or {}
        return pull if 0 < pull.get("bytesDone", 0) < pull.get("bytesTotal", 0) and "secondsLeft" in pull else None

    with house.slow_store():
        house.deploy(name, memory="2Gi")
        pull = house.cluster.until(far, seconds=START_SECONDS, what=lambda: house.describe(name))
        shown = house.cluster.kubectl("get", "gptoss", name, "-n", MODELS)
        receipt = house.receipt(name)
    assert (pull["bytesTotal"], pull["filesTotal"]) == (receipt["bytes"], 6)
    assert re.search(r"\d+% of 0\.1 GiB", shown), shown


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
    house.deploy(name, uri="s3://models/flipped", memory="2Gi")
    message = house.wait(name, "WeightsVerified", "False", "DigestMismatch")
    assert "model.safetensors" in message
    house.wait(name, "Ready", "False", "DigestMismatch")
    house.wait(name, "Stalled", "True")
    house.cluster.until(lambda: not house.pods(name), seconds=GONE_SECONDS, what=lambda: house.describe(name))
    with house.gateway() as ask:
        reply = ask(name)
    assert reply.status == 503
    assert "model.safetensors" in reply.text


_SPOIL = """
import os, pathlib
(weights,) = pathlib.Path("gptoss-weights/ready").glob("*/model.safetensors")
weights.parent.chmod(0o700)
weights.chmod(0o600)
with weights.open("r+b") as file:
    file.seek(-1000, os.SEEK_END)
    byte = file.read(1)
    file.seek(-1000, os.SEEK_END)
    file.write(bytes([byte[0] ^ 1]))
"""


def test_a_cache_spares_a_fetch_and_is_believed_nothing(house: House, name: str):
    if not house.has_volumes():
        pytest.skip("the cluster has no default StorageClass and no free PersistentVolume without a class")
    with house.claim(CACHE_CLAIM):
        house.deploy(name, memory="2Gi", cache={"type": "PersistentVolumeClaim"})
        first = house.receipt(name)
        assert (first["cacheUsed"], first["fetchedBytes"]) == (True, first["bytes"])

        house.patch(name, {"suspend": True})
        house.cluster.until(lambda: not house.pods(name), seconds=GONE_SECONDS, what=lambda: house.describe(name))
        house.run_beside(_SPOIL, claim=CACHE_CLAIM)
        house.patch(name, {"suspend": False})
        second = house.receipt(name)
        assert (second["cacheUsed"], second["cacheReplacedFiles"]) == (True, ["model.safetensors"])
        assert 0 < second["fetchedBytes"] < second["bytes"]
        house.wait(name, "Degraded", "True", "CacheDamaged")
        house.delete(name)


_COPY = f"""
import boto3, pathlib
store = boto3.client("s3", endpoint_url="http://store.{SYSTEM}.svc:{STORE_PORT}", region_name="us-east-1")
for each in store.list_objects_v2(Bucket="models", Prefix="{SUBJECT}/")["Contents"]:
    file = pathlib.Path(each["Key"])
    file.parent.mkdir(exist_ok=True)
    store.download_file("models", each["Key"], str(file))
"""


def test_weights_come_from_a_share_without_an_object_store(house: House, name: str):
    if not house.has_volumes(2):
        pytest.skip("the cluster has no default StorageClass and not two free PersistentVolumes without a class")
    claim = "models"
    with house.claim(claim, SYSTEM), house.claim(claim):
        for namespace, secret in ((SYSTEM, OPERATORS_KEYS), (MODELS, MODELS_KEYS)):
            house.run_beside(_COPY, claim=claim, namespace=namespace, secret=secret)
        house.upgrade(fileRoots=[{"path": SHARE, "claimName": claim}])
        try:
            house.deploy(name, uri=f"file://{SHARE}/{SUBJECT}", memory="2Gi")
            receipt = house.receipt(name)
            assert 0 < receipt["fetchedBytes"] == receipt["bytes"]
            house.wait(name, "WeightsVerified", "True")
        finally:
            house.delete(name)
            house.upgrade()


def test_says_that_no_node_has_room(house: House, name: str):
    house.deploy(name, memory="900Ti")
    message = house.wait(name, "EngineReady", "False", "Unschedulable")
    assert "memory" in message
    assert "spec.pod.resources.memory" in message


def test_says_that_the_image_is_not_there(house: House, name: str):
    image = f"{house.site.serving_image.rpartition(':')[0]}:nowhere"
    house.upgrade(image=image)
    try:
        house.deploy(name, memory="2Gi")
        message = house.wait(name, "EngineReady", "False", "ImagePullFailed")
        assert image in message
        # A registry that has no such image, or, where images were put on the nodes by hand, none at all.
        assert "kubeRay.image" in message or "how nodes reach the registry" in message
    finally:
        house.delete(name)
        house.upgrade()


def test_unsigned_weights_get_no_pod(house: House, name: str, signed: tuple[Path, str], tmp_path: Path):
    unsigned = Path(shutil.copytree(signed[0], tmp_path / SUBJECT, ignore=shutil.ignore_patterns("model.sig")))
    with house.store() as access:
        upload(access, unsigned, "unsigned")
    house.deploy(name, uri="s3://models/unsigned")
    house.wait(name, "WeightsVerified", "False", "Unsigned")
    house.wait(name, "Stalled", "True")
    assert house.cluster.get("rayservice", name, MODELS) is None
