"""The main job and its faults on a real API server and a real Ray; only the engine is a stand-in."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gptoss_api.application import ROUTER_DEPLOYMENT
from gptoss_api.names import application_name
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.ray_head import RayHead
from gptoss_gateway.report import HEARTBEAT_SECONDS
from gptoss_operator.plan.demand import FRESH_SECONDS
from gptoss_serving.node import Node
from gptoss_weights.sign import KeyPair, generate_key
from tests.controlplane import GATEWAY_USER
from tests.engine.conftest import SignedFolder
from tests.engine.ray import Applications, kill_ray
from tests.engine.standin import ANSWER
from tests.engine.whole import Whole
from tests.relay import Relay

pytestmark = pytest.mark.timeout(1200)
PATIENT = {"wakeTimeoutSeconds": 400}
"""Longer than a killed Ray takes to come back, on a busy machine too."""
SLEEPY = {"minReplicas": 0, "idleSeconds": 5, **PATIENT}
AWAKE = {"minReplicas": 1, **PATIENT}
ENDLESS = {"chunks": 100_000, "pace": 0.5}


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
        built.trust(weights_root, public_key=signing_key.public_key.read_text())
        built.start_operator()
        built.start_gateway()
        yield built
    finally:
        print(built.seen())
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
    applications.until(lambda: _application(whole, "first") not in applications.all(), what="the application is gone")
    assert _config_and_pids(applications.all()["theirs"]) == theirs
    assert _config_and_pids(applications.all()[_application(whole, "second")]) == second
    whole.until(lambda: "first" not in _models(whole), what="the gateway knows that it is gone")
    assert whole.chat("first").status == 404
    whole.until(lambda: '"first"' not in whole.metrics(), what="the operator's series are gone")
    whole.until(lambda: '"first"' not in whole.metrics("gateway-0"), what="the gateway's series are gone")
    assert whole.chat("second").content == ANSWER


def test_sleeps_when_idle_and_answers_the_request_that_wakes_it(
    whole: Whole, source: SignedFolder, applications: Applications
) -> None:
    whole.start_gateway(1)
    whole.apply("sleepy", source.folder.as_uri(), scaling=SLEEPY)
    whole.wait("sleepy", "Ready", "True", "Idle")
    whole.wait("sleepy", "ScaledToZero", "True", "Idle")
    # An engine on its way out still answers what reaches it, and then nobody has to wait for the next one.
    applications.until(lambda: _application(whole, "sleepy") not in applications.all(), what="the engine has ended")
    assert "sleepy" in _models(whole)

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda gateway: whole.chat("sleepy", gateway=gateway), (0, 1, 0, 1)))
    assert [reply.status for reply in replies] == [200] * 4
    assert {reply.content for reply in replies} == {ANSWER}
    whole.until(
        lambda: 'gptoss_operator_wake_seconds_count{stage="total"} 1.0' in whole.metrics(), what="the wake is counted"
    )
    whole.until(lambda: {"Waking", "Woke"} <= set(whole.events()), what="the wake is told")
    assert whole.status("sleepy")["wake"]["lastSeconds"] > 0


def test_a_tampered_source_never_starts_and_a_mended_one_does_by_itself(whole: Whole, source: SignedFolder) -> None:
    good = (source.folder / "model.safetensors").read_bytes()
    source.flip_a_byte("model.safetensors")
    whole.apply("tampered", source.folder.as_uri(), scaling=AWAKE)
    whole.wait("tampered", "WeightsVerified", "False", "DigestMismatch")
    assert "model.safetensors" in whole.condition("tampered", "WeightsVerified")[2]
    assert whole.condition("tampered", "Ready")[0] == "False"
    assert whole.condition("tampered", "Stalled")[0] == "True"
    refused = whole.chat("tampered")
    assert refused.status == 503
    assert refused.seconds < PATIENT["wakeTimeoutSeconds"] / 4, "it was held, though nothing can wake it"
    assert "DigestMismatch" in refused.text

    (source.folder / "model.safetensors").write_bytes(good)
    whole.wait("tampered", "Ready", "True", "Serving", seconds=300)
    assert whole.chat("tampered").content == ANSWER


def test_every_way_not_to_be_trusted_has_its_reason_and_ends_when_the_source_is_mended(
    whole: Whole,
    signed: Callable[..., SignedFolder],
    signing_key: KeyPair,
    weights_root: Path,
    ray_head: RayHead,
    applications: Applications,
    tmp_path: Path,
) -> None:
    stranger = generate_key(tmp_path / "stranger.key")
    unsigned, foreign, another = signed("unsigned"), signed("foreign"), signed("another")
    (unsigned.folder / "model.sig").unlink()
    (unsigned.folder / "extra.bin").write_bytes(b"beside what will be signed")
    foreign.sign(key=stranger)
    another.sign(key=signing_key, subject="gpt-oss-120b")
    whole.trust(unsigned.folder, foreign.folder, another.folder, public_key=signing_key.public_key.read_text())
    elsewhere = signed("elsewhere")
    # Under the policy of before it could sleep; what tells otherwise has seen the one of now.
    whole.apply("probe", elsewhere.folder.as_uri(), scaling={**SLEEPY, "initial": "Idle"})
    whole.wait("probe", "WeightsVerified", "False", "SourceNotAllowed")
    reasons = {
        "unsigned": (unsigned, "Unsigned"),
        "foreign": (foreign, "UntrustedSigner"),
        "another": (another, "SubjectMismatch"),
        "elsewhere": (elsewhere, "SourceNotAllowed"),
    }
    for name, (source, _) in reasons.items():
        whole.apply(name, source.folder.as_uri(), scaling=AWAKE)
    for name, (_, reason) in reasons.items():
        whole.wait(name, "WeightsVerified", "False", reason)
        assert whole.condition(name, "Ready")[0] == "False"
        assert whole.condition(name, "EngineReady")[0] != "True"
        assert _application(whole, name) not in applications.all(), "Ray was never asked"

    (unsigned.folder / "extra.bin").unlink()
    unsigned.sign(key=signing_key)
    (unsigned.folder / "extra.bin").write_bytes(b"beside what is signed")
    foreign.sign(key=signing_key)
    another.sign(key=signing_key)
    whole.trust(weights_root, public_key=signing_key.public_key.read_text())
    for name in reasons:
        whole.wait(name, "Ready", "True", "Serving", seconds=300)
        assert whole.chat(f"{whole.namespace}/{name}").content == ANSWER
    copies = Node.from_environment(ray_head.node_environment()).weights_dir
    assert any(copies.rglob("model.safetensors"))
    assert not any(copies.rglob("extra.bin")), "what nobody signed was fetched"


def test_an_operator_killed_in_a_wake_loses_no_request(
    whole: Whole, source: SignedFolder, applications: Applications
) -> None:
    whole.apply("sleepy", source.folder.as_uri(), scaling={**SLEEPY, "initial": "Idle"})
    whole.wait("sleepy", "ScaledToZero", "True", "Idle")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(whole.chat, "sleepy")
        whole.until(lambda: _application(whole, "sleepy") in applications.all(), what="Ray was asked")
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
    whole.until(lambda: _most(applications, whole, "steady") == 2, what="the new operator works")
    whole.wait("steady", "Ready", "True", "Serving")
    assert _config_and_pids(applications.all()[_application(whole, "steady")])[1] == before[1]

    # And once more in the middle of a roll-out.
    whole.apply("steady", source.folder.as_uri(), scaling=AWAKE, engine={"maxModelLen": 1024})
    whole.until(lambda: _deployed(applications, whole, "steady") == 1024, what="the roll-out began")
    whole.kill("operator")
    replies = [whole.chat("steady") for _ in range(3)]
    assert [reply.status for reply in replies] == [200] * 3
    whole.until(lambda: _pids_of(applications, whole, "steady") != before[1], what="another replica started")
    whole.wait("steady", "Ready", "True", "Serving")
    assert whole.status("steady")["observedGeneration"] == 3


def test_a_killed_ray_at_rest_breaks_open_streams_loudly_and_loses_nothing_else(
    whole: Whole, source: SignedFolder, ray_head: RayHead, applications: Applications
) -> None:
    whole.apply("steady", source.folder.as_uri(), scaling=AWAKE)
    whole.wait("steady", "Ready", "True", "Serving")
    with whole.stream("steady", chunks=600, pace=0.5) as lines:
        assert next(lines).startswith("data: {")
        killed = kill_ray(ray_head)
        with ThreadPoolExecutor(3) as pool:
            replies = pool.map(lambda _: whole.chat("steady"), range(3))
            rest = list(lines)
            assert [reply.status for reply in replies] == [200] * 3
    errors = [json.loads(line[6:])["error"] for line in rest if line.startswith("data: {") and '"error"' in line]
    assert len(errors) == 1, rest[-5:]
    assert "data: [DONE]" not in rest
    killed.wait_for_the_next()
    applications.wait(_application(whole, "steady"), "RUNNING")
    whole.wait("steady", "Ready", "True", "Serving")
    assert whole.chat("steady").content == ANSWER


def test_a_ray_killed_in_a_wake_and_in_a_roll_out_ends_where_it_should(
    whole: Whole, source: SignedFolder, ray_head: RayHead, applications: Applications
) -> None:
    scaling = {"minReplicas": 0, "idleSeconds": 3600, "initial": "Idle", **PATIENT}
    whole.apply("sleepy", source.folder.as_uri(), scaling=scaling)
    whole.wait("sleepy", "ScaledToZero", "True", "Idle")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(whole.chat, "sleepy")
        whole.until(lambda: _application(whole, "sleepy") in applications.all(), what="Ray was asked")
        killed = kill_ray(ray_head)
        assert held.result().status == 200
    killed.wait_for_the_next()
    applications.wait(_application(whole, "sleepy"), "RUNNING")
    whole.wait("sleepy", "Ready", "True", "Serving")

    whole.apply("sleepy", source.folder.as_uri(), scaling=scaling, engine={"maxModelLen": 1024})
    whole.until(lambda: _deployed(applications, whole, "sleepy") == 1024, what="the roll-out began")
    killed = kill_ray(ray_head)
    assert whole.chat("sleepy").status == 200
    killed.wait_for_the_next()
    applications.wait(_application(whole, "sleepy"), "RUNNING")
    whole.wait("sleepy", "Ready", "True", "Serving")
    assert _deployed(applications, whole, "sleepy") == 1024
    assert whole.status("sleepy")["observedGeneration"] == 2


def test_a_killed_gateway_costs_its_connections_only(whole: Whole, source: SignedFolder) -> None:
    whole.start_gateway(1)
    whole.apply("sleepy", source.folder.as_uri(), scaling=SLEEPY)
    for gateway in (0, 1):
        whole.until(lambda: "sleepy" in _models(whole, gateway), what="the gateways know the model")  # noqa: B023
    # Both wait from the first start on, so that it was never idle before the kill.
    with whole.stream("sleepy", gateway=1, **ENDLESS) as kept, whole.stream("sleepy", gateway=0, **ENDLESS) as dropped:
        assert _goes_on(dropped)
        assert _goes_on(kept)
        drains = whole.status("sleepy").get("drainEpoch", 0)
        whole.kill("gateway-0")
        assert "data: [DONE]" not in dropped
        whole.until(lambda: whole.chat("sleepy").status == 200, what="a retry is answered")
        # For longer than the model may be idle, by the engine's own pace.
        assert all(_goes_on(kept) for _ in range(int(2 * SLEEPY["idleSeconds"] / ENDLESS["pace"])))
        assert whole.status("sleepy").get("drainEpoch", 0) == drains, "it was put to sleep meanwhile"


def test_a_gateway_that_is_cut_off_holds_sleep_up_for_as_long_as_it_may_live_and_loses_no_stream(
    whole: Whole, source: SignedFolder, applications: Applications, tmp_path: Path
) -> None:
    """Nobody hears of its stream any more. Once it admits no requests, the model goes to sleep by what the others say,
    and the engine that is taken away ends what it has, as Ray lets it.
    """
    relay = Relay(whole.plane.kubeconfig_for(GATEWAY_USER), tmp_path / "relay.kubeconfig")
    whole.start_gateway(1, kubeconfig=relay.kubeconfig)
    whole.apply("sleepy", source.folder.as_uri(), scaling=SLEEPY)
    whole.until(lambda: "sleepy" in _models(whole, 1), what="the gateway knows the model")
    ends = tmp_path / "stream-ends"
    with whole.stream("sleepy", gateway=1, until=str(ends), pace=0.5) as lines:
        assert _goes_on(lines)
        relay.cut()
        cut = time.monotonic()
        whole.wait("sleepy", "ScaledToZero", "True", "Idle")
        # Its last heartbeat may have been seen as long before as it takes to the next.
        assert time.monotonic() - cut > FRESH_SECONDS - HEARTBEAT_SECONDS
        applications.until(
            lambda: applications.all().get(_application(whole, "sleepy"), {}).get("status") in (None, "DELETING"),
            what="the engine is taken away",
        )
        assert all(_goes_on(lines) for _ in range(20))
        ends.touch()
        assert _is_whole(list(lines))
    applications.until(lambda: _application(whole, "sleepy") not in applications.all(), what="the engine has ended")


def test_load_brings_a_replica_and_its_end_takes_one_away_and_every_stream_ends_whole(
    whole: Whole, source: SignedFolder, applications: Applications, tmp_path: Path
) -> None:
    """Ray decides by what the gateway sends to engines. Whichever replica it takes away then, a stream is there."""
    delays = {"scaleUpDelaySeconds": 1, "scaleDownDelaySeconds": 1}
    scaling = {**AWAKE, "maxReplicas": 2, "targetOngoingRequests": 4, **delays}
    whole.apply("busy", source.folder.as_uri(), scaling=scaling, engine={"maxNumSeqs": 4})
    whole.wait("busy", "Ready", "True", "Serving")

    def states() -> list[str]:
        return _states(applications, whole, "busy")

    load_ends, streams_end = tmp_path / "load-ends", tmp_path / "streams-end"
    with ThreadPoolExecutor(4) as pool, ExitStack() as streams:

        def opened(until: Path) -> Iterator[str]:
            return streams.enter_context(whole.stream("busy", until=str(until), pace=0.5))

        first = opened(streams_end)
        replica = _replica(first)
        load = [pool.submit(list, opened(load_ends)) for _ in range(4)]
        whole.until(lambda: states() == ["RUNNING", "RUNNING"], what="there is another replica")
        second = _stream_of_another(whole, "busy", than=replica, streams=streams, until=str(streams_end), pace=0.5)

        load_ends.touch()
        assert all(_is_whole(each.result()) for each in load)

        def one_goes() -> bool:
            assert _goes_on(first)
            assert _goes_on(second)
            return states() == ["RUNNING", "STOPPING"]

        whole.until(one_goes, what="a replica is on its way out")
        assert whole.chat("busy").status == 200
        assert states() == ["RUNNING", "STOPPING"], "it waits for its stream"
        streams_end.touch()
        assert _is_whole(list(first))
        assert _is_whole(list(second))
    whole.until(lambda: states() == ["RUNNING"], what="the replica has gone")


def test_a_name_claimed_twice_is_a_condition(whole: Whole, source: SignedFolder) -> None:
    shared = {"servedName": "shared"}
    for name in ("one", "two"):
        whole.apply(name, source.folder.as_uri(), model=shared, scaling={**SLEEPY, "initial": "Idle"})
    for name in ("one", "two"):
        whole.wait(name, "NameConflict", "True", "NameTaken")
    both = {f"{whole.namespace}/{name}" for name in ("one", "two")}
    whole.until(lambda: both <= _models(whole), what="the gateway knows both")
    assert whole.chat("shared").status == 404
    assert whole.chat(f"{whole.namespace}/one").content == ANSWER


def _application(whole: Whole, name: str) -> str:
    return application_name(whole.namespace, whole.namespace, name)


def _deployed(applications: Applications, whole: Whole, name: str) -> int | None:
    """The longest context that Ray was told to serve."""
    config = applications.all().get(_application(whole, name), {}).get("deployed_app_config") or {}
    return ((config.get("args") or {}).get("engine") or {}).get("max_model_len")


def _most(applications: Applications, whole: Whole, name: str) -> int | None:
    """The most replicas that Ray was told to run."""
    config = applications.all().get(_application(whole, name), {}).get("deployed_app_config") or {}
    return next((each["autoscaling_config"]["max_replicas"] for each in config.get("deployments") or ()), None)


def _pids_of(applications: Applications, whole: Whole, name: str) -> list[int]:
    return _config_and_pids(applications.all()[_application(whole, name)])[1]


def _states(applications: Applications, whole: Whole, name: str) -> list[str]:
    deployments = applications.all()[_application(whole, name)]["deployments"]
    (server,) = (each for deployment, each in deployments.items() if deployment != ROUTER_DEPLOYMENT)
    return sorted(replica["state"] for replica in server["replicas"])


def _stream_of_another(whole: Whole, name: str, *, than: str, streams: ExitStack, **more: Any) -> Iterator[str]:
    """Open streams until one comes from another replica; the others are left."""
    found: list[Iterator[str]] = []

    def came() -> bool:
        with ExitStack() as attempt:
            lines = attempt.enter_context(whole.stream(name, **more))
            if _replica(lines) != than:
                found.append(lines)
                streams.enter_context(attempt.pop_all())
        return bool(found)

    whole.until(came, what="a stream of the other replica")
    return found[0]


def _replica(lines: Iterator[str]) -> str:
    piece = next(line for line in lines if line.startswith("data: {"))
    return str(json.loads(piece[6:])["system_fingerprint"])


def _is_whole(lines: list[str]) -> bool:
    said = [line for line in lines if line.startswith("data: ")]
    return said[-1] == "data: [DONE]" and not any('"error"' in line for line in said)


def _models(whole: Whole, gateway: int = 0) -> set[str]:
    return {model["id"] for model in whole.ask("/v1/models", gateway=gateway).json()["data"]}


def _config_and_pids(details: dict[str, object]) -> tuple[str, list[int]]:
    pids = [
        replica["pid"]
        for name, deployment in details["deployments"].items()  # type: ignore[attr-defined]
        if name != ROUTER_DEPLOYMENT  # it may still be starting when the engine answers
        for replica in deployment["replicas"]
        if replica.get("pid")
    ]
    return json.dumps(details["deployed_app_config"], sort_keys=True), sorted(pids)


def _goes_on(lines: Iterator[str]) -> bool:
    """Take the next piece of a stream; False when it has ended or says that it can't go on."""
    piece = next((line for line in lines if line.startswith("data: ")), "")
    return piece.startswith("data: {") and '"error"' not in piece
