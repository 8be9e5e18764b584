"""The operator's process against a real API server: apply, ready, sleep, wake, kill, delete."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gptoss_cli.local.control_plane import ControlPlane
from tests.apiserver.operator.house import Stack, signed_weights, stack
from tests.contract.operator.fake_ray import gpu_node

SLEEPY = {"minReplicas": 0, "idleSeconds": 5}


@pytest.fixture
async def home(
    control_plane: ControlPlane, crds: list[str], namespace: str, tmp_path: Path, free_port: int
) -> AsyncIterator[Stack]:
    async with stack(control_plane, namespace, tmp_path, free_port) as built:
        yield built


async def test_apply_becomes_ready_and_delete_leaves_nothing_of_ours(home: Stack) -> None:
    home.ray.add_foreign("theirs", "/theirs", args={"answer": 42})
    await home.apply()
    found = await home.wait_for("Ready", "True", "Serving")
    assert found["status"]["weights"]["authority"] == "release"
    assert "finalizers" not in found["metadata"]
    assert not any(name.startswith("kopf") for name in found["metadata"].get("annotations") or {})
    assert (await home.get("/metrics"))[0] == 200
    await home.wait_for_metric(_is_told_ready(home))
    await home.wait_until_ready()
    assert (await home.get("/healthz"))[0] == 200
    await home.kubectl("delete", "gptoss", "assistant", "-n", home.namespace)
    await home.until(lambda: list(home.ray.applications) == ["theirs"])
    assert f'namespace="{home.namespace}"' not in (await home.get("/metrics"))[1]
    assert await home.stop_operator() == 0


async def test_unsigned_weights_stall_until_they_are_signed(home: Stack) -> None:
    (home.weights / "model.sig").unlink()
    await home.apply()
    await home.wait_for("WeightsVerified", "False", "Unsigned")
    await home.wait_for("Stalled", "True", "UntrustedWeights")
    assert home.ray.puts == []
    signed_weights(home.weights, home.key)
    await home.apply(annotations={"serving.gptoss.dev/retry": "1"})
    await home.wait_for("Ready", "True", "Serving")


async def test_sleeps_and_wakes_with_what_gateways_report(home: Stack) -> None:
    await home.apply(scaling=SLEEPY)
    await home.wait_for("Ready", "True", "Serving")
    await _fall_asleep(home)
    await home.report(assistant={"waiting": 1, "lastRequest": "2026-01-01T00:00:01.000000Z"})
    await home.wait_for("Ready", "True", "Serving")
    assert home.ray.starts[home.app("assistant")] == 2
    await home.wait_for_metric('gptoss_operator_wake_seconds_count{stage="total"} 1.0')
    await home.wait_for_events("Idle", "Waking", "Woke")


@pytest.mark.parametrize("when", ["before the first write", "while it starts", "at rest", "while it drains", "asleep"])
async def test_killed_at_any_moment_ends_in_the_same_state(home: Stack, when: str) -> None:
    home.ray.deploy_seconds = 1.0
    app = home.app("assistant")
    if when == "before the first write":
        home.ray.hang.clear()
    await home.apply(scaling=SLEEPY)
    match when:
        case "before the first write":
            await home.until(lambda: home.ray.gets > 0)
        case "while it starts":
            await home.until(lambda: app in home.ray.applications)
        case "at rest":
            await home.wait_for("Ready", "True", "Serving")
        case "while it drains":
            await home.wait_for("Ready", "True", "Serving")
            await _drain(home)
        case "asleep":
            await home.wait_for("Ready", "True", "Serving")
            await _fall_asleep(home)
    await home.kill_operator()
    home.ray.hang.set()
    await home.start_operator()
    await home.wait_until_ready()
    await home.wait_for_metric(_is_told_ready(home))  # by the new process: only its own looks are told there
    if when == "asleep":
        await home.wait_for("ScaledToZero", "True", "Idle")
        assert home.ray.starts[app] == 1
        await home.report(assistant={"waiting": 1, "lastRequest": "2026-01-01T00:00:01.000000Z"})
    await home.wait_for("ScaledToZero", "False", "Serving")
    await home.wait_for("Ready", "True", "Serving")
    assert list(home.ray.applications) == [app]
    assert home.ray.starts[app] == (2 if when == "asleep" else 1)


async def test_what_was_deleted_while_no_operator_ran_is_removed(home: Stack) -> None:
    home.ray.add_foreign("theirs", "/theirs")
    await home.apply()
    await home.wait_for("Ready", "True", "Serving")
    await home.kill_operator()
    await home.kubectl("delete", "gptoss", "assistant", "-n", home.namespace)
    await home.start_operator()
    await home.until(lambda: list(home.ray.applications) == ["theirs"])


async def test_two_deployments_share_a_cluster_and_a_name_claimed_twice_is_a_condition(home: Stack) -> None:
    spec = {"model": {"name": "gpt-oss-20b", "uri": f"file://{home.weights}", "servedName": "chat"}}
    await home.apply("one", **spec)
    await home.wait_for("Ready", "True", "Serving", "one")
    await home.wait_for("NameConflict", "False", "NameUnique", "one")
    await home.apply("two", **spec)
    await home.wait_for("NameConflict", "True", "NameTaken", "one")
    await home.wait_for("NameConflict", "True", "NameTaken", "two")
    await home.wait_for("Ready", "True", "Serving", "two")
    assert set(home.ray.applications) == {home.app("one"), home.app("two")}
    assert home.ray.starts[home.app("one")] == 1
    await home.kubectl("delete", "gptoss", "two", "-n", home.namespace)
    await home.wait_for("NameConflict", "False", "NameUnique", "one")


async def test_a_changed_engine_is_rolled_out_and_proved_anew(home: Stack) -> None:
    await home.apply()
    await home.wait_for("Ready", "True", "Serving")
    await home.apply(engine={"maxNumSeqs": 8})
    await home.until(lambda: home.ray.starts[home.app("assistant")] == 2)
    await home.eventually(lambda: _proved(home, 2), "generation 2 is proved")
    await home.apply(engine={"maxNumSeqs": 8}, scaling={"maxReplicas": 3})
    await home.eventually(lambda: _proved(home, 3), "generation 3 is proved")
    assert home.ray.starts[home.app("assistant")] == 2


async def _proved(home: Stack, generation: int) -> bool:
    status = (await home.deployment())["status"]
    ready = next(each for each in status["conditions"] if each["type"] == "Ready")
    return status.get("provedGeneration") == generation and ready["status"] == "True"


def _is_told_ready(home: Stack) -> str:
    return (
        f'gptoss_deployment_condition{{name="assistant",namespace="{home.namespace}",status="True",type="Ready"}} 1.0'
    )


async def _drain(home: Stack) -> None:
    """Beat until the operator drains."""

    async def drains() -> bool:
        await home.report(assistant={})
        return await _zero(home) == "Draining"

    await home.eventually(drains, "it drains")


async def _fall_asleep(home: Stack) -> None:
    """Beat, and acknowledge whatever drain there is, until the operator has put it to sleep."""

    async def asleep() -> bool:
        reason, epoch = await _zero(home), (await home.deployment())["status"].get("drainEpoch")
        await home.report(assistant={"drainEpochSeen": epoch} if reason == "Draining" else {})
        return reason == "Idle"

    await home.eventually(asleep, "it sleeps")
    await home.until(lambda: home.app("assistant") not in home.ray.applications)


async def _zero(home: Stack) -> str:
    status = (await home.deployment())["status"]
    return str(next(each["reason"] for each in status["conditions"] if each["type"] == "ScaledToZero"))


async def test_what_does_not_fit_is_told_before_anything_starts_and_starts_once_it_does(home: Stack) -> None:
    home.ray.nodes = [gpu_node("H100", 4)]
    await home.apply(parallelism={"tensor": 8})
    found = await home.wait_for("Fit", "False", "DoesNotFit")
    messages = {condition["type"]: condition["message"] for condition in found["status"]["conditions"]}
    assert "spec.parallelism.tensor is 8" in messages["Fit"]
    assert messages["Ready"] == messages["Fit"]
    await home.wait_for("Stalled", "True", "DoesNotFit")
    assert home.ray.puts == []
    await home.apply(parallelism={"tensor": 4})
    await home.wait_for("Ready", "True", "Serving")
    found = await home.wait_for("Fit", "True", "Fits")
    assert found["status"]["engine"]["profileVersion"] == "gpt-oss-20b/2"
    assert "customized" not in found["status"]["engine"] or found["status"]["engine"]["customized"] == []
