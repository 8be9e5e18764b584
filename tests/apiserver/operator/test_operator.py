"""The operator's process against a real API server: apply, ready, sleep, wake, kill, delete."""

import asyncio
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
    status, metrics = await home.get("/metrics")
    assert status == 200
    assert (
        f'gptoss_deployment_condition{{name="assistant",namespace="{home.namespace}",status="True",type="Ready"}} 1.0'
        in metrics
    )
    assert (await home.get("/readyz"))[0] == (await home.get("/healthz"))[0] == 200
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
    assert 'gptoss_operator_wake_seconds_count{stage="total"} 1.0' in (await home.get("/metrics"))[1]
    events = await home.kubectl("get", "events", "-n", home.namespace, "-o", "jsonpath={.items[*].reason}")
    assert {"Idle", "Waking", "Woke"} <= set(events.split())


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
    if when == "asleep":
        await _restarted(home)
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
    await asyncio.wait_for(_proved(home, 2), 30)
    await home.apply(engine={"maxNumSeqs": 8}, scaling={"maxReplicas": 3})
    await asyncio.wait_for(_proved(home, 3), 30)
    assert home.ray.starts[home.app("assistant")] == 2


async def _proved(home: Stack, generation: int) -> None:
    while True:
        status = (await home.deployment())["status"]
        ready = next(each for each in status["conditions"] if each["type"] == "Ready")
        if status.get("provedGeneration") == generation and ready["status"] == "True":
            return
        await asyncio.sleep(0.1)


async def _restarted(home: Stack) -> None:
    async def ready() -> None:
        while True:
            try:
                if (await home.get("/readyz"))[0] == 200:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)

    await asyncio.wait_for(ready(), 30)


async def _drain(home: Stack) -> int:
    """Beat until the operator drains; returns the epoch."""

    async def drain() -> int:
        while True:
            await home.report(assistant={})
            status = (await home.deployment())["status"]
            zero = next(each for each in status["conditions"] if each["type"] == "ScaledToZero")
            if zero["reason"] == "Draining":
                return status["drainEpoch"]
            await asyncio.sleep(0.5)

    return await asyncio.wait_for(drain(), 45)


async def _fall_asleep(home: Stack) -> None:
    epoch = await _drain(home)
    await home.report(assistant={"drainEpochSeen": epoch})
    await home.wait_for("ScaledToZero", "True", "Idle")
    await home.until(lambda: home.app("assistant") not in home.ray.applications)


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
