"""A wake is counted once, and no other start is, whichever steps a restart or a lost answer comes between."""

import json
from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_api.deployment_status import GptOssDeploymentStatus, Wake
from gptoss_operator.plan.demand import Demand
from gptoss_operator.plan.observation import ApplicationView, Presence
from gptoss_operator.plan.planner import Plan
from gptoss_operator.plan.verdict import Phase
from tests.unit.operator.test_lifecycle import MONDAY, World

mishaps = st.lists(st.sampled_from(["none", "none", "lost answer", "lost write", "restart"]), max_size=12)


class Clumsy(World):
    """A world whose operator dies, and whose writes are lost, as told; counts as the operator does."""

    def __init__(self) -> None:
        super().__init__()
        self.mishaps: list[str] = []
        self.counted: list[float] = []

    def step(self) -> Plan:
        mishap = self.mishaps.pop() if self.mishaps else "none"
        if mishap == "restart":
            self.memory, self.asked = None, None
        if mishap in {"none", "restart"}:
            planned = super().step()
            self.counted += [planned.woke_seconds] if planned.woke_seconds is not None else []
            return planned
        planned = self.plan()
        if mishap == "lost answer" and planned.status is not None:
            wire = json.loads(planned.status.model_dump_json(by_alias=True, exclude_none=True))
            self.status = GptOssDeploymentStatus.model_validate(wire)
        return planned


def asked_for(mishaps: Sequence[str] = ()) -> Clumsy:
    """A model that sleeps and is asked for now."""
    world = Clumsy()
    world.live()
    world.fall_asleep()
    assert world.phase is Phase.IDLE
    world.now += 100
    world.demand = Demand(known=True, active=True, activity_at=world.now, acknowledged=0)
    world.mishaps = list(mishaps)
    return world


@settings(max_examples=200, deadline=None)
@given(mishaps)
def test_a_wake_is_counted_once(mishaps: list[str]) -> None:
    world = asked_for(mishaps)
    began = world.now
    while world.mishaps or world.phase is not Phase.SERVING:
        world.step()
        world.cluster()
        if world.now >= began + 20:
            world.engine_answers()
        world.now += 1.0
    world.settle()
    assert world.status.wake is not None
    assert world.status.wake.stage is None
    assert world.status.wake.last_seconds is not None
    took = world.status.wake.last_seconds
    assert 20 <= took <= world.now - began
    # A process that died right after the last write took its count with it: a series ends with its process.
    assert len(world.counted) <= 1
    if "restart" not in mishaps:
        assert world.counted == [took]


@settings(max_examples=100, deadline=None)
@given(mishaps)
def test_a_wake_that_fails_is_not_counted(mishaps: list[str]) -> None:
    world = asked_for(mishaps)
    while world.mishaps or world.phase is not Phase.FAILED:
        world.step()
        world.cluster()
        world.now += 20.0
    world.settle()
    assert world.counted == []
    assert world.status.wake is not None
    assert world.status.wake.stage is None
    assert world.status.wake.last_seconds is None


def test_a_first_proof_is_no_wake_though_the_operator_restarts_in_it() -> None:
    world = World()
    world.settle()
    world.cluster()
    world.memory, world.asked = None, None
    world.settle()
    world.engine_answers()
    assert world.step().woke_seconds is None
    assert world.status.wake is None


@pytest.mark.parametrize("started", [None, "2026-11-16T23:00:00Z"])
def test_a_wake_that_began_at_no_known_time_begins_now(started: str | None) -> None:
    world = asked_for()
    world.settle()
    world.cluster()
    world.status = world.status.model_copy(update={"wake": Wake(started_at=started, stage="put")})
    world.memory, world.asked = None, None
    world.step()
    world.engine_answers()
    world.now += 5.0
    assert world.step().woke_seconds == 5.0


def test_the_time_of_day_that_is_written_is_that_of_the_demand() -> None:
    world = asked_for()
    asked = (MONDAY + timedelta(seconds=world.now)).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.now += 5.0
    world.step()
    assert world.status.wake == Wake(started_at=asked, stage="put")


def test_a_wake_after_ray_lost_an_engine_survives_a_restart() -> None:
    world = asked_for()
    world.live()
    world.view = ApplicationView(presence=Presence.ABSENT)
    world.step()
    world.memory, world.asked = None, None
    world.now += 30.0
    world.settle()
    world.cluster()
    world.engine_answers()
    assert world.step().woke_seconds == 30.0
