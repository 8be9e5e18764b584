"""What people see of signatures, keys and policies while deployments live."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from gptoss_api.deployment import GptOssDeployment
from gptoss_operator.keys import DeploymentKey
from gptoss_operator.plan.observation import Trusted
from gptoss_weights.errors import UntrustedSignerError
from tests.contract.operator.house import House, house


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as built:
        yield built


def vouching(home: House) -> list[str]:
    """The series that say who vouches for which deployment."""
    metrics = generate_latest(home.engine.metrics.registry).decode()
    return [line for line in metrics.splitlines() if line.startswith("gptoss_deployment_weights{")]


async def test_status_and_metric_say_which_authority_matched(home: House) -> None:
    home.apply()
    await home.ready()
    assert home.status()["weights"]["authority"] == "release"
    (series,) = vouching(home)
    assert 'authority="release"' in series
    assert 'policy="default"' in series
    home.trust.authority = "next-release"
    home.pass_time(601)
    await home.until(lambda: home.status()["weights"]["authority"] == "next-release")
    await home.settled()
    (series,) = vouching(home)
    assert 'authority="next-release"' in series
    home.delete()
    await home.until(lambda: vouching(home) == [])


async def test_nothing_starts_by_the_word_of_an_authority_whose_time_is_over(home: House) -> None:
    home.trust.valid_until = datetime.fromisoformat(home.clock.wall()) + timedelta(seconds=90)
    home.apply(scaling={"initial": "Idle"})
    await home.ready(reason="Idle")
    home.trust.error = UntrustedSignerError("authority release signed, but its notAfter has passed")
    home.trust.may_answer.clear()
    home.clock.time += 91
    home.apply(scaling={"initial": "Idle"}, annotations={"serving.gptoss.dev/wake": "now"})
    await home.settled()
    assert home.condition("ScaledToZero") == ("True", "Idle")
    home.trust.may_answer.set()
    await home.until(lambda: home.condition("Ready") == ("False", "UntrustedSigner"))
    await home.settled()
    assert home.ray.puts == []


async def test_a_look_is_due_when_an_authority_ends(home: House) -> None:
    home.trust.valid_until = datetime.fromisoformat(home.clock.wall()) + timedelta(seconds=90)
    raw = home.apply()
    await home.ready()
    await home.settled()
    trust, look_in = home.engine.trust.answer(
        DeploymentKey("ml", "assistant"), GptOssDeployment.parse(raw), eager=False
    )
    assert isinstance(trust, Trusted)
    assert look_in <= 90


async def test_the_end_of_an_authority_stops_nothing_that_runs(home: House) -> None:
    home.trust.valid_until = datetime.fromisoformat(home.clock.wall()) + timedelta(seconds=90)
    home.apply()
    await home.ready()
    home.trust.error = UntrustedSignerError("authority release signed, but its notAfter has passed")
    home.pass_time(91)
    await home.until(lambda: home.condition("WeightsVerified") == ("False", "UntrustedSigner"))
    await home.settled()
    assert home.condition("Ready") == ("True", "Serving")
    assert home.ray.starts["gptoss-test-ml-assistant"] == 1
