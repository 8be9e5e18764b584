"""A deployment's life against a fake Ray cluster: proof, sleep, wake, failure, deletion."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.operator.house import House, house

APP = "gptoss-test-ml-assistant"
SLEEPY = {"minReplicas": 0, "idleSeconds": 60}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as built:
        yield built


async def sleep(home: House) -> None:
    """Serve, then go idle with one living gateway."""
    home.report(assistant={})
    home.apply(scaling=SLEEPY)
    await home.ready()
    home.report(assistant={})
    home.pass_time(61)
    home.report(assistant={})
    await home.until(lambda: home.condition("ScaledToZero")[1] == "Draining")
    home.report(assistant={"drainEpochSeen": home.status()["drainEpoch"]})
    await home.ready(reason="Idle")
    await home.until(lambda: APP not in home.ray.applications)


async def test_an_applied_deployment_becomes_ready_once_its_engine_answers(home: House) -> None:
    home.apply()
    await home.until(lambda: home.condition("Ready") == ("Unknown", "Progressing"))
    await home.ready()
    assert home.condition("EngineReady") == ("True", "Answering")
    assert home.condition("WeightsVerified") == ("True", "Verified")
    assert home.condition("Reconciling")[0] == home.condition("Stalled")[0] == "False"
    assert home.status()["provedGeneration"] == home.status()["observedGeneration"] == 1
    assert home.status()["endpoint"] == {"url": "http://127.0.0.1:8080/v1", "model": "assistant"}
    assert home.ray.bad_headers == []


async def test_running_is_not_answering(home: House) -> None:
    home.ray.mute.add(APP)
    home.apply()
    await home.until(lambda: home.ray.running(APP))
    await home.settled()
    assert home.condition("Ready") == ("Unknown", "Progressing")
    assert home.condition("ScaledToZero") == ("False", "Waking"), "gateways go on holding requests"
    home.ray.mute.clear()
    await home.ready()


async def test_nothing_is_written_once_all_is_as_wanted(home: House) -> None:
    home.apply()
    await home.ready()
    await home.settled()
    writes, puts = home.kubernetes.status_writes, len(home.ray.puts)
    await home.operator.resync.once()
    await home.settled()
    assert (home.kubernetes.status_writes, len(home.ray.puts)) == (writes, puts)


async def test_goes_to_sleep_and_wakes_on_the_first_request(home: House) -> None:
    await sleep(home)
    await home.until(lambda: home.condition("ScaledToZero") == ("True", "Idle"))
    assert home.condition("EngineReady") == ("False", "Stopped")
    home.report(assistant={"waiting": 1, "lastRequest": "2026-01-01T00:00:01.000000Z"})
    await home.ready()
    assert home.status()["wake"]["lastSeconds"] >= 0
    assert {"Waking", "Woke", "Idle"} <= {reason for _, reason, _ in home.kubernetes.events}
    stages = {
        sample.labels["stage"]
        for metric in home.operator.metrics.registry.collect()
        for sample in metric.samples
        if metric.name == "gptoss_operator_wake_seconds"
    }
    assert {"put", "total"} <= stages


async def test_an_engine_that_is_being_removed_serves_nobody_however_long_ray_takes(home: House) -> None:
    home.report(assistant={})
    home.apply(scaling=SLEEPY)
    await home.ready()
    home.report(assistant={})
    home.pass_time(61)
    home.report(assistant={})
    await home.until(lambda: home.condition("ScaledToZero")[1] == "Draining")
    home.ray.put_answers.clear()
    home.report(assistant={"drainEpochSeen": home.status()["drainEpoch"]})
    await home.until(lambda: APP not in home.ray.applications)
    home.report(assistant={"waiting": 1, "lastRequest": "2026-01-01T00:00:01.000000Z"})
    await home.until(lambda: home.condition("ScaledToZero")[1] != "Idle")
    assert home.condition("ScaledToZero")[1] == "Waking"
    assert home.condition("EngineReady")[0] == "False"
    home.ray.put_answers.set()
    await home.ready()
    assert {"Waking", "Woke"} <= {reason for _, reason, _ in home.kubernetes.events}


async def test_stays_awake_while_a_gateway_has_not_acknowledged(home: House) -> None:
    home.report(assistant={})
    home.report("gateway-1")
    home.apply(scaling=SLEEPY)
    await home.ready()
    home.report(assistant={})
    home.report("gateway-1")
    home.pass_time(61)
    home.report(assistant={})
    home.report("gateway-1")
    await home.until(lambda: home.condition("ScaledToZero")[1] == "Draining")
    home.report(assistant={"drainEpochSeen": 1})
    await home.settled()
    assert home.condition("ScaledToZero")[1] == "Draining"
    assert APP in home.ray.applications
    home.report("gateway-1", assistant={"drainEpochSeen": 1})
    await home.ready(reason="Idle")


async def test_a_request_during_a_drain_ends_it(home: House) -> None:
    home.report(assistant={})
    home.apply(scaling=SLEEPY)
    await home.ready()
    home.report(assistant={})
    home.pass_time(61)
    home.report(assistant={})
    await home.until(lambda: home.condition("ScaledToZero")[1] == "Draining")
    home.report(assistant={"drainEpochSeen": 1, "waiting": 1})
    await home.ready()
    assert home.ray.starts[APP] == 1


async def test_never_sleeps_while_no_gateway_is_known_to_live(home: House) -> None:
    home.apply(scaling=SLEEPY)
    await home.ready()
    home.pass_time(3600)
    await home.settled()
    assert home.condition("Ready") == ("True", "Serving")
    assert APP in home.ray.applications


async def test_suspend_takes_the_engine_away_and_resuming_leaves_it_asleep(home: House) -> None:
    home.apply()
    await home.ready()
    home.apply(suspend=True)
    await home.ready(reason="Suspended")
    await home.until(lambda: APP not in home.ray.applications)
    home.apply(suspend=False)
    await home.ready(reason="Idle")


async def test_an_initially_idle_deployment_starts_nothing(home: House) -> None:
    home.apply(scaling={"initial": "Idle"})
    await home.ready(reason="Idle")
    assert home.ray.puts == []
    assert home.condition("EngineReady") == ("Unknown", "NotProved")
    assert home.condition("WeightsVerified") == ("True", "SignatureVerified")


async def test_the_wake_annotation_counts_as_one_request(home: House) -> None:
    await sleep(home)
    home.apply(scaling=SLEEPY, annotations={"serving.gptoss.dev/wake": "now"})
    await home.ready()
    assert home.status()["lastWake"] == "now"


async def test_a_restart_changes_no_replica_count(home: House) -> None:
    await sleep(home)
    home.apply("other", scaling={"minReplicas": 1})
    await home.ready("other")
    puts, starts = len(home.ray.puts), dict(home.ray.starts)
    await home.restart()
    await home.until(lambda: home.operator.reconciler.complete)
    await home.settled()
    assert home.condition("Ready") == ("True", "Idle")
    assert home.condition("Ready", "other") == ("True", "Serving")
    assert (len(home.ray.puts), home.ray.starts) == (puts, starts)


async def test_a_lost_cluster_is_filled_again(home: House) -> None:
    home.apply()
    await home.ready()
    home.ray.lose_everything()
    await home.operator.resync.once()
    await home.until(lambda: home.ray.starts[APP] == 2)
    await home.ready()


async def test_deleting_removes_the_application_and_nothing_else(home: House) -> None:
    home.ray.add_foreign("theirs", "/theirs", args={"answer": 42})
    theirs = dict(home.ray.applications["theirs"]["deployed_app_config"])
    home.apply()
    home.apply("other")
    await home.ready()
    await home.ready("other")
    home.delete()
    await home.until(lambda: APP not in home.ray.applications)
    assert home.ray.applications["theirs"]["deployed_app_config"] == theirs
    assert home.ray.starts["gptoss-test-ml-other"] == 1
    assert all(theirs in document["applications"] for document in home.ray.puts)
    assert b'name="assistant"' not in _metrics(home)


async def test_events_that_are_not_recorded_are_counted_and_hinder_nothing(home: House) -> None:
    home.kubernetes.records_events = False
    home.report(assistant={})
    home.apply()
    await home.ready()
    assert home.kubernetes.events
    await home.until(
        lambda: f"gptoss_operator_events_lost_total {len(home.kubernetes.events)}.0".encode() in _metrics(home)
    )


def _metrics(home: House) -> bytes:
    from prometheus_client import generate_latest

    return generate_latest(home.operator.metrics.registry)
