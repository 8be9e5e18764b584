"""A wake is counted once, whatever happens to the operator and to its writes meanwhile."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.contract.operator.house import House, house
from tests.contract.operator.test_life import APP, SLEEPY, sleep

WAKING_SECONDS = 40


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as built:
        yield built


class Lost:
    """Loses the answer to the first write that says of zero what is named."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.times = 0

    def __call__(self, status: Mapping[str, Any]) -> bool:
        zero = {each["type"]: each["reason"] for each in status["conditions"]}["ScaledToZero"]
        hit = self.times == 0 and zero == self.reason
        self.times += hit
        return hit


async def call(home: House) -> None:
    """Ask for a sleeping model, and wait until its engine starts, mute as yet."""
    home.ray.mute.add(APP)
    home.report(assistant={"waiting": 1, "lastRequest": "2026-01-01T00:00:01.000000Z"})
    await home.until(lambda: home.ray.running(APP))
    await home.until(lambda: home.status()["wake"].get("stage") == "engineReady")
    await home.settled()


async def answer(home: House) -> None:
    """Let the engine answer after a while, and wait until that is written and told."""
    home.pass_time(WAKING_SECONDS)
    await home.settled()
    home.ray.mute.clear()
    await home.ready()
    await home.until(lambda: counted(home) > 0)
    await home.settled()


def counted(home: House, what: str = "count") -> float:
    value = home.operator.metrics.registry.get_sample_value(f"gptoss_operator_wake_seconds_{what}", {"stage": "total"})
    return value or 0.0


def woke(home: House) -> int:
    return sum(reason == "Woke" for _, reason, _ in home.kubernetes.events)


def is_counted_once(home: House) -> None:
    wake = home.status()["wake"]
    assert wake.get("stage") is None
    assert WAKING_SECONDS <= wake["lastSeconds"] <= WAKING_SECONDS + 2, "times of day are whole seconds"
    assert counted(home) == woke(home) == 1
    assert counted(home, "sum") == pytest.approx(wake["lastSeconds"], abs=1e-3)


@pytest.mark.parametrize("reason", ["Waking", "Serving"])
async def test_an_answer_that_is_lost_loses_no_wake(home: House, reason: str) -> None:
    await sleep(home)
    home.kubernetes.loses_answer_to = lost = Lost(reason)
    await call(home)
    await answer(home)
    assert lost.times == 1
    is_counted_once(home)


async def test_an_operator_that_starts_in_mid_wake_follows_it_to_its_end(home: House) -> None:
    await sleep(home)
    await call(home)
    await home.restart()
    await home.until(lambda: home.operator.reconciler.complete)
    await answer(home)
    is_counted_once(home)


async def test_an_operator_that_starts_after_a_wake_counts_none(home: House) -> None:
    await sleep(home)
    await call(home)
    await answer(home)
    before = home.status()["wake"]
    await home.restart()
    await home.until(lambda: home.operator.reconciler.complete)
    await home.settled()
    assert (home.status()["wake"], counted(home), woke(home)) == (before, 0, 1)


async def test_a_wake_that_fails_is_none_even_if_the_answer_to_that_write_is_lost(home: House) -> None:
    await sleep(home)
    home.kubernetes.loses_answer_to = lost = Lost("Idle")
    await call(home)
    home.apply(scaling={**SLEEPY, "startTimeoutSeconds": 60})
    await home.settled()
    home.pass_time(61)
    await home.until(lambda: home.condition("Stalled") == ("True", "StartTimeout"))
    await home.until(lambda: lost.times == 1)
    home.look()
    await home.settled()
    assert home.status()["wake"].get("stage") is None
    assert (counted(home), woke(home)) == (0, 0)
