"""The Fit condition between a fake API server and a fake Ray cluster with accelerators."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gptoss_operator.substrates import dashboard, rayserve
from tests.contract.operator.fake_ray import gpu_node
from tests.contract.operator.house import House, house


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as built:
        yield built


async def test_nothing_is_put_on_a_cluster_that_can_not_hold_it(home: House) -> None:
    home.ray.nodes = [gpu_node("T4", 4)]
    home.apply()
    await home.until(lambda: home.condition("Fit") == ("False", "DoesNotFit"))
    await home.until(lambda: home.condition("Ready") == ("False", "DoesNotFit"))
    await home.settled()
    assert home.ray.puts == []
    assert "compute capability 7.5" in home.message("Ready")
    assert [reason for _, reason, _ in home.kubernetes.events].count("DoesNotFit") == 1


async def test_a_node_that_is_large_enough_lets_it_start(home: House) -> None:
    home.ray.nodes = [gpu_node("T4", 4)]
    home.apply()
    await home.until(lambda: home.condition("Stalled") == ("True", "DoesNotFit"))
    home.ray.nodes = [gpu_node("H100", 8)]
    await home.ready()
    assert home.condition("Fit") == ("True", "Fits")
    (config,) = home.ray.puts[0]["applications"]
    assert config["args"]["engine"]["max_num_batched_tokens"] == 8192


async def test_a_ray_that_does_not_tell_stops_nothing(home: House) -> None:
    home.apply()
    await home.ready()
    assert home.condition("Fit") == ("Unknown", "HardwareUnknown")


async def test_a_list_of_nodes_that_hangs_stops_nothing(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "_NODES_SECONDS", 0.05)
    home.ray.nodes = [gpu_node("T4", 4)]
    home.ray.nodes_hang.clear()
    home.apply()
    await home.ready()
    home.ray.nodes_hang.set()
    await home.until(lambda: home.condition("Fit") == ("False", "DoesNotFit"))
    await home.settled()
    assert home.condition("Ready") == ("True", "Serving")


async def test_a_list_of_nodes_that_hangs_delays_no_other_start(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    home.ray.nodes = [gpu_node("H100", 8)]
    home.apply()
    await home.ready()
    monkeypatch.setattr(rayserve, "NODES_SECONDS", 0.0)
    home.ray.nodes_hang.clear()
    home.apply("second")
    async with asyncio.timeout(3):  # less than one look at the nodes may take
        await home.ready("second")
    home.ray.nodes_hang.set()


async def test_what_was_known_stays_known_while_ray_does_not_tell(home: House) -> None:
    home.ray.nodes = [gpu_node("H100", 8)]
    home.apply()
    await home.until(lambda: home.condition("Fit") == ("True", "Fits"))
    home.ray.nodes = None
    await home.operator.resync.once()
    await home.settled()
    assert home.condition("Fit") == ("True", "Fits")
