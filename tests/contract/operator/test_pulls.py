"""A deployment's status says how far a pull is, as Ray's dashboard hands it out."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gptoss_api.pull_report import report_name
from tests.builders import DIGEST
from tests.contract.operator.house import House, house

APP = "gptoss-test-ml-assistant"
GIB = 1024**3
FILE = ("node-1", report_name(DIGEST))


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as built:
        built.ray.deploy_seconds = 3600
        yield built


def tell(home: House, beat: int, **more: Any) -> None:
    report = {"schema": 1, "startedAt": "2026-11-21T18:00:00Z", "beat": beat, "filesDone": 1, "filesTotal": 4}
    home.ray.logs[FILE] = json.dumps({**report, "bytesDone": GIB, "bytesTotal": 4 * GIB, **more}) + "\n"


async def pulling(home: House) -> None:
    """A replica starts on a node that goes on telling of its pull."""
    home.apply()
    await home.ray.until(lambda: APP in home.ray.applications)
    home.ray.replicas_start(APP, "node-1")
    beats = iter(range(1, 1_000_000))

    def told() -> bool:
        tell(home, next(beats))
        return "pull" in home.status()

    await home.until(told)


async def test_says_how_far_it_is_and_nothing_once_it_is_done(home: House) -> None:
    await pulling(home)
    pull = home.status()["pull"]
    assert (pull["progress"], pull["bytesDone"], pull["bytesTotal"]) == ("25% of 4.0 GiB", GIB, 4 * GIB)
    assert "bytesPerSecond" not in pull, "nobody has told one"
    assert home.condition("Ready") == ("Unknown", "FetchingWeights")
    assert home.condition("EngineReady") == ("False", "FetchingWeights")
    series = {"namespace": "ml", "name": "assistant", "part": "done"}
    value = home.operator.metrics.registry.get_sample_value
    await home.until(lambda: value("gptoss_deployment_pull_bytes", series) == GIB)

    tell(home, 0, bytesDone=2 * GIB, bytesPerSecond=GIB)
    await home.until(lambda: home.status()["pull"].get("progress") == "50% of 4.0 GiB")
    assert home.status()["pull"]["secondsLeft"] == 2

    del home.ray.logs[FILE]
    await home.until(lambda: "pull" not in home.status())
    assert home.condition("EngineReady") == ("False", "Starting")
    await home.until(lambda: value("gptoss_deployment_pull_bytes", series) is None)
    looks = home.ray.gets + 5
    await home.ray.until(lambda: home.ray.gets > looks)
    assert home.ray.missed_logs <= 1, "what is not there is not asked for, but for the moment of its end"


async def test_a_node_that_tells_the_same_costs_no_write(home: House) -> None:
    await pulling(home)
    await home.settled()
    before = home.kubernetes.status_writes
    beat = 1_000_000
    looks = home.ray.gets
    while home.ray.gets < looks + 10:
        beat += 1
        tell(home, beat)
        await home.ray.until(lambda known=home.ray.gets: home.ray.gets > known)
    assert home.kubernetes.status_writes == before
    assert "pull" in home.status()


async def test_a_deleted_deployment_leaves_no_series(home: House) -> None:
    await pulling(home)
    home.delete()
    series = {"namespace": "ml", "name": "assistant", "part": "done"}
    await home.until(
        lambda: home.operator.metrics.registry.get_sample_value("gptoss_deployment_pull_bytes", series) is None
    )
