"""The main job and its faults on a real API server and a real Ray; only the engine is a stand-in."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gptoss_api.application import ROUTER_DEPLOYMENT
from gptoss_api.names import application_name
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.ray_head import RayHead
from gptoss_weights.sign import KeyPair
from tests.engine.conftest import SignedFolder
from tests.engine.ray import Applications
from tests.engine.standin import ANSWER
from tests.engine.test_standin import _pids
from tests.engine.whole import Whole

SLEEPY = {"minReplicas": 0, "idleSeconds": 5, "wakeTimeoutSeconds": 110}
AWAKE = {"minReplicas": 1}


@pytest.fixture
def source(signed: Callable[..., SignedFolder], namespace: str) -> SignedFolder:
    """The tiny model's weights, signed with this test's key."""
    return signed(f"weights-{namespace}")


@pytest.fixture
def whole(
    control_plane: ControlPlane,
    crds: list[str],
    namespace: str,
    ray_head: RayHead,
    applications: Applications,
    weights_root: Path,
    tmp_path: Path,
    signing_key: KeyPair,
) -> Iterator[Whole]:
    built = Whole(control_plane, ray_head, tmp_path, namespace)
    try:
        built.trust(weights_root, signing_key.public_key.read_text())
        built.start_operator()
        built.start_gateway()
        yield built
    finally:
        built.stop()
        control_plane.kubectl("delete", "weighttrustpolicy", f"policy-{namespace}", "--ignore-not-found")
        control_plane.kubectl("delete", "gatewayreports", "--all", "-n", "gptoss-system")


def test_two_models_and_a_stranger_share_one_ray(
    whole: Whole, source: SignedFolder, applications: Applications
) -> None:
    whole.head.request(
        "PUT",
        {"applications": [{"name": "theirs", "route_prefix": "/theirs", "import_path": "tests.engine.foreign:app"}]},
    )
    theirs = _config_and_pids(applications.wait("theirs", "RUNNING"))

    whole.apply("first", source.folder.as_uri(), scaling=AWAKE)
    whole.apply("second", source.folder.as_uri(), scaling=AWAKE)
    whole.wait("first", "Ready", "True", "Serving")
    whole.wait("second", "Ready", "True", "Serving")
    for name in ("first", f"{whole.namespace}/second"):
        assert whole.chat(name).content == ANSWER
    assert whole.chat("first", key="").status == 401
    assert whole.chat("first", key="gptoss-nobody").status == 401
    assert _models(whole) >= {"first", "second"}
    assert _config_and_pids(applications.all()["theirs"]) == theirs

    second = _config_and_pids(applications.all()[_application(whole, "second")])
    whole.delete("first")
    applications._until(
        lambda: _application(whole, "first") not in applications.all(), seconds=90, what="the application is gone"
    )
    assert _config_and_pids(applications.all()["theirs"]) == theirs
    assert _config_and_pids(applications.all()[_application(whole, "second")]) == second
    assert whole.chat("first").status == 404
    assert "first" not in _models(whole)
    whole.until(lambda: '"first"' not in whole.metrics(), seconds=15, what="the operator's series are gone")
    whole.until(lambda: '"first"' not in whole.metrics("gateway-0"), seconds=15, what="the gateway's series are gone")
    assert whole.chat("second").content == ANSWER


def test_sleeps_when_idle_and_answers_the_request_that_wakes_it(
    whole: Whole, source: SignedFolder, applications: Applications
) -> None:
    whole.start_gateway(1)
    whole.apply("sleepy", source.folder.as_uri(), scaling=SLEEPY)
    whole.wait("sleepy", "Ready", "True", "Idle")
    assert whole.condition("sleepy", "ScaledToZero")[:2] == ("True", "Idle")
    ended = applications.all().get(_application(whole, "sleepy"), {})
    assert ended.get("status", "DELETING") == "DELETING"
    assert "sleepy" in _models(whole)

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda gateway: whole.chat("sleepy", gateway=gateway), (0, 1, 0, 1)))
    assert [reply.status for reply in replies] == [200] * 4
    assert {reply.content for reply in replies} == {ANSWER}
    whole.until(
        lambda: 'gptoss_operator_wake_seconds_count{stage="total"} 1.0' in whole.metrics(),
        seconds=15,
        what="the wake is counted",
    )
    events = json.loads(whole.plane.kubectl("get", "events", "-n", whole.namespace, "-o", "json"))["items"]
    assert {"Waking", "Woke"} <= {event["reason"] for event in events}
    assert whole.status("sleepy")["wake"]["lastSeconds"] > 0


def test_a_tampered_source_never_starts_and_a_mended_one_does_by_itself(whole: Whole, source: SignedFolder) -> None:
    good = (source.folder / "model.safetensors").read_bytes()
    source.flip_a_byte("model.safetensors")
    whole.apply("tampered", source.folder.as_uri(), scaling=AWAKE)
    whole.wait("tampered", "WeightsVerified", "False", "DigestMismatch", seconds=120)
    assert "model.safetensors" in whole.condition("tampered", "WeightsVerified")[2]
    assert whole.condition("tampered", "Ready")[0] == "False"
    assert whole.condition("tampered", "Stalled")[0] == "True"
    refused = whole.chat("tampered")
    assert refused.status == 503
    assert refused.seconds < 10
    assert "DigestMismatch" in refused.text

    (source.folder / "model.safetensors").write_bytes(good)
    whole.wait("tampered", "Ready", "True", "Serving", seconds=150)
    assert whole.chat("tampered").content == ANSWER


def test_an_operator_killed_in_a_wake_loses_no_request(whole: Whole, source: SignedFolder) -> None:
    whole.apply("sleepy", source.folder.as_uri(), scaling={**SLEEPY, "initial": "Idle"})
    whole.wait("sleepy", "ScaledToZero", "True", "Idle")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(whole.chat, "sleepy")
        whole.until(lambda: "sleepy" in json.dumps(whole.head.request("GET")), seconds=30, what="Ray was asked")
        whole.kill("operator")
        reply = held.result()
    assert (reply.status, reply.content) == (200, ANSWER)
    whole.wait("sleepy", "EngineReady", "True", "Answering")


def test_an_operator_killed_at_rest_restarts_no_replica(
    whole: Whole, source: SignedFolder, applications: Applications
) -> None:
    whole.apply("steady", source.folder.as_uri(), scaling=AWAKE)
    whole.wait("steady", "Ready", "True", "Serving")
    before = _config_and_pids(applications.all()[_application(whole, "steady")])
    whole.kill("operator")
    whole.until_restarted("operator")
    whole.wait("steady", "Ready", "True", "Serving")
    whole.apply("steady", source.folder.as_uri(), scaling={**AWAKE, "maxReplicas": 2})
    whole.until(
        lambda: whole.status("steady").get("observedGeneration") == 2, seconds=60, what="the new operator works"
    )
    assert _config_and_pids(applications.all()[_application(whole, "steady")])[1] == before[1]


def test_a_killed_ray_gets_its_applications_again_and_held_requests_their_answers(
    whole: Whole, source: SignedFolder, ray_head: RayHead
) -> None:
    whole.apply("steady", source.folder.as_uri(), scaling={**AWAKE, "wakeTimeoutSeconds": 150})
    whole.wait("steady", "Ready", "True", "Serving")
    for pid in _pids(ray_head.temporary, ("gcs_server", "raylet")):
        os.kill(pid, signal.SIGKILL)
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda _: whole.chat("steady", seconds=160), range(3)))
    assert [reply.status for reply in replies] == [200] * 3, replies
    whole.wait("steady", "Ready", "True", "Serving", seconds=120)


def test_a_killed_gateway_costs_its_connections_only(whole: Whole, source: SignedFolder) -> None:
    whole.start_gateway(1)
    whole.apply("sleepy", source.folder.as_uri(), scaling=SLEEPY)
    whole.wait("sleepy", "EngineReady", "True", "Answering")
    with ThreadPoolExecutor(2) as pool:
        dropped = pool.submit(whole.chat, "sleepy", gateway=0, pace=8.0)
        kept = pool.submit(whole.chat, "sleepy", gateway=1, pace=8.0)
        whole.until(lambda: _in_flight(whole, "gateway-0"), seconds=15, what="the request is in flight")
        whole.kill("gateway-0")
        assert dropped.result().status == 0
        assert kept.result().status == 200
    whole.until(lambda: whole.chat("sleepy", seconds=60).status == 200, seconds=60, what="a retry is answered")


def test_a_name_claimed_twice_is_a_condition(whole: Whole, source: SignedFolder) -> None:
    shared = {"servedName": "shared"}
    for name in ("one", "two"):
        whole.apply(name, source.folder.as_uri(), model=shared, scaling={**SLEEPY, "initial": "Idle"})
    for name in ("one", "two"):
        whole.wait(name, "NameConflict", "True", "NameTaken")
    ambiguous = whole.chat("shared")
    assert ambiguous.status == 404
    assert whole.chat(f"{whole.namespace}/one").content == ANSWER


def _application(whole: Whole, name: str) -> str:
    return application_name(whole.namespace, whole.namespace, name)


def _models(whole: Whole) -> set[str]:
    return {model["id"] for model in whole.ask("/v1/models").json()["data"]}


def _config_and_pids(details: dict[str, object]) -> tuple[str, list[int]]:
    pids = [
        replica["pid"]
        for name, deployment in details["deployments"].items()  # type: ignore[attr-defined]
        if name != ROUTER_DEPLOYMENT  # it may still be starting when the engine answers
        for replica in deployment["replicas"]
        if replica.get("pid")
    ]
    return json.dumps(details["deployed_app_config"], sort_keys=True), sorted(pids)


def _in_flight(whole: Whole, gateway: str) -> bool:
    return any(
        line.startswith("gptoss_gateway_") and "in_flight" in line and not line.endswith(" 0.0")
        for line in whole.metrics(gateway).splitlines()
    )
