"""Clocks that are wrong: what gateways and operators decide is the same, whatever time of day each believes it is.

The gateways' own accounts become reports, the operator follows them and plans, and its status comes back to
the gateways. Everybody's time of day is wrong by up to five minutes, and is set anew in between; a second
telling of the same story, with clocks that are right, must come to the same decisions at the same moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptoss_api.report import GatewayReportSpec
from gptoss_gateway.catalogue import ServedModel
from gptoss_gateway.demand import Claim, Ledger
from gptoss_operator.plan import demand
from gptoss_operator.plan.verdict import Phase
from tests.builders import deployment_object
from tests.contract.gateway.house import UID
from tests.unit.operator.test_lifecycle import MONDAY, World, serving

FIVE_MINUTES = 300.0
SPEC = {"scaling": {"idleSeconds": 60, "startTimeoutSeconds": 3600, "wakeTimeoutSeconds": 3600}}
EVENTS = (
    "ask 0", "ask 1", "end 0", "end 1", "brief 0", "brief 1", "beat", "beat", "beat", "mute 0", "restart", "long",
    "cluster", "answers",
)  # fmt: skip
RIGHT = (0.0, 0.0, 0.0)


class Gateway:
    """One gateway's account, stamped by its own clock."""

    def __init__(self, life: World, name: str) -> None:
        self.life, self.name = life, name
        self.skew = 0.0
        self.heartbeat = 0
        self.muted = False
        self.claims: list[Claim] = []
        self.ledger = Ledger(monotonic=lambda: life.now, timestamp=self.time_of_day, changed=lambda: None)

    def time_of_day(self) -> str:
        return (MONDAY + timedelta(seconds=self.life.now + self.skew)).isoformat()

    def model(self) -> ServedModel:
        status = self.life.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        return ServedModel.parse({**deployment_object(uid=UID, **SPEC), "status": status})

    def ask(self) -> None:
        self.claims.append(self.ledger.open(self.model()))
        self.claims[-1].fly() if self.model().engine_ready else self.claims[-1].wait()

    def end(self) -> None:
        for claim in self.claims:
            claim.close()
        self.claims.clear()

    def report(self) -> GatewayReportSpec:
        self.ledger.follow(UID, self.model())
        self.heartbeat += 1
        return GatewayReportSpec(
            gateway=self.name,
            heartbeat=self.heartbeat,
            renewed_at=self.time_of_day(),
            deployments=self.ledger.demands(),
        )


@dataclass(frozen=True)
class Decision:
    """What the operator did at one moment."""

    phase: Phase
    epoch: int | None
    asked: str
    requeue_after: float | None


class Story:
    """Two gateways and an operator; ``clocks`` are their errors in seconds, one tuple for each event."""

    def __init__(self) -> None:
        self.life = World(**SPEC)
        self.life.live()
        self.gateways = [Gateway(self.life, f"gateway-{number}") for number in range(2)]
        self.followed: dict[str, demand.Gateway] = {}
        self.decisions: list[Decision] = []

    def tell(self, events: Sequence[str], clocks: Sequence[tuple[float, float, float]]) -> list[Decision]:
        for event, (*skews, operators) in zip(events, clocks, strict=True):
            for gateway, skew in zip(self.gateways, skews, strict=True):
                gateway.skew = skew
            self.life.skew = operators
            self.happen(event)
            self.operate()
        return self.decisions

    def happen(self, event: str) -> None:
        self.life.now += 700.0 if event == "long" else 7.0
        match event.split():
            case ["ask", number]:
                self.gateways[int(number)].ask()
            case ["end", number]:
                self.gateways[int(number)].end()
            case ["brief", number]:  # no report shows it under way
                self.gateways[int(number)].ask()
                self.gateways[int(number)].end()
            case ["mute", number]:
                self.gateways[int(number)].muted ^= True
            case ["restart"]:
                self.life.memory, self.life.asked, self.followed = None, None, {}
            case ["cluster"]:
                self.life.cluster()
            case ["answers"]:
                self.life.engine_answers()

    def operate(self) -> None:
        first_look = not self.followed
        for gateway in self.gateways:
            if not gateway.muted:
                self.followed[gateway.name] = demand.follow(
                    self.followed, gateway.name, gateway.report(), self.life.now, first_look=first_look
                )
        self.life.demand = demand.demand_for(UID, self.followed, self.life.now)
        planned = self.life.step()
        asked = type(self.life.asked).__name__
        self.decisions.append(Decision(self.life.phase, self.life.status.drain_epoch, asked, planned.requeue_after))


def steps(events: Sequence[str], clocks: Sequence[tuple[float, float, float]]) -> list[Decision]:
    return Story().tell(events, clocks)


skews = st.tuples(*(st.floats(-FIVE_MINUTES, FIVE_MINUTES) for _ in range(3)))
stories = st.lists(st.tuples(st.sampled_from(EVENTS), skews), min_size=1, max_size=40)
TO_SLEEP = ["ask 0", "end 0", *["beat"] * 14, "cluster", "beat"]
TO_SLEEP_AND_BACK = [*TO_SLEEP, "ask 1", "cluster", "answers", "beat", "end 1"]


@settings(max_examples=50, deadline=None)
@given(stories)
@example([(event, (FIVE_MINUTES, -FIVE_MINUTES, FIVE_MINUTES)) for event in TO_SLEEP_AND_BACK])
@example([(event, (-FIVE_MINUTES, FIVE_MINUTES, -FIVE_MINUTES)) for event in TO_SLEEP_AND_BACK])
def test_no_decision_depends_on_anyones_time_of_day(story: list[tuple[str, tuple[float, float, float]]]) -> None:
    events, clocks = [event for event, _ in story], [clock for _, clock in story]
    assert steps(events, clocks) == steps(events, [RIGHT] * len(events))


def test_the_story_that_clocks_change_nothing_about_is_one_of_sleep_and_wake() -> None:
    phases = [each.phase for each in steps(TO_SLEEP_AND_BACK, [RIGHT] * len(TO_SLEEP_AND_BACK))]
    assert list(dict.fromkeys(phases)) == [Phase.SERVING, Phase.DRAINING, Phase.IDLE, Phase.STARTING]
    assert phases[-1] is Phase.SERVING


@pytest.mark.parametrize("back", [0.0, FIVE_MINUTES, 2 * FIVE_MINUTES])
def test_a_request_is_news_though_the_gateways_clock_was_set_back(back: float) -> None:
    story = Story()
    story.tell(["brief 0", "brief 0", "beat"], [(FIVE_MINUTES, 0.0, 0.0)] * 3)
    seen = story.life.demand.activity_at
    assert seen is not None
    story.tell(["brief 0"], [(FIVE_MINUTES - back, 0.0, 0.0)])
    assert story.life.demand.activity_at == story.life.now > seen


@pytest.mark.parametrize("skew", [-FIVE_MINUTES, FIVE_MINUTES])
def test_a_window_opens_and_closes_by_the_operators_clock_and_no_further_off_than_that_is(skew: float) -> None:
    hours = {"name": "x", "timeZone": "UTC", "days": ["Mon"], "start": "01:00", "end": "02:00"}
    life = serving(scaling={"idleSeconds": 60, "schedules": [hours]})
    life.skew = skew
    open_at = [moment for moment in range(0, 3 * 3600, 30) if _floor(life, moment) == 1]
    assert (min(open_at), max(open_at) + 30) == (3600 - skew, 7200 - skew)


def test_a_successor_whose_clock_is_ten_minutes_behind_puts_nothing_to_sleep_that_it_finds_awake() -> None:
    hours = {"name": "x", "timeZone": "UTC", "days": ["Mon"], "start": "01:00", "end": "02:00"}
    life = serving(scaling={"idleSeconds": 900, "startTimeoutSeconds": 100, "schedules": [hours]})
    life.skew = FIVE_MINUTES
    life.now = 3600.0 - FIVE_MINUTES
    life.settle()
    assert life.status.schedule is not None
    life.skew, life.memory, life.asked = -FIVE_MINUTES, None, None
    while life.now < 3600 + FIVE_MINUTES + 60:  # until its own window is open
        life.settle()
        assert life.phase is Phase.SERVING
        life.now += 30
    assert life.observed().floor.replicas == 1


@pytest.mark.parametrize("before", [-FIVE_MINUTES, 0.0, FIVE_MINUTES])
@pytest.mark.parametrize("after", [-FIVE_MINUTES, 0.0, FIVE_MINUTES])
def test_a_wake_that_a_successor_ends_is_measured_as_well_as_their_clocks_agree(before: float, after: float) -> None:
    story = Story()
    story.tell(TO_SLEEP, [(0.0, 0.0, before)] * len(TO_SLEEP))
    assert story.life.phase is Phase.IDLE
    story.tell(["ask 0", "cluster"], [(0.0, 0.0, before)] * 2)
    began = story.life.now - 7.0
    story.tell(["restart", "answers"], [(0.0, 0.0, after)] * 2)
    assert story.life.phase is Phase.SERVING
    assert story.life.status.wake is not None
    assert story.life.status.wake.last_seconds is not None
    error = story.life.status.wake.last_seconds - (story.life.now - began)
    assert story.life.status.wake.last_seconds > 0
    assert min(after - before, 0.0) - 1 <= error <= max(after - before, 0.0) + 1


def _floor(life: World, moment: float) -> int:
    life.now = moment
    return life.observed().floor.replicas
