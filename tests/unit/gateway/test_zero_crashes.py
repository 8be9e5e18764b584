"""Going to zero while everything dies: the operator's real plans and demand, and the gateways' real decisions.

Time is the test's own. Reports and statuses travel in order and late; the operator and gateways crash;
gateways are cut off from the API server; their time of day is wrong by up to five minutes.
"""

import asyncio
import random
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gptoss_api.report import GatewayReportSpec
from gptoss_gateway import admission, prober
from gptoss_gateway.admission import Admission, Visit
from gptoss_gateway.catalogue import Catalogue
from gptoss_gateway.demand import Claim, Ledger
from gptoss_gateway.hold import WaitingRoom
from gptoss_gateway.metering import Metering
from gptoss_gateway.report import FENCE_SECONDS, HEARTBEAT_SECONDS
from gptoss_operator.plan import demand
from gptoss_operator.plan.observation import Presence
from gptoss_operator.plan.verdict import Phase
from tests.builders import deployment_object
from tests.contract.gateway.house import UID
from tests.unit.operator.test_lifecycle import World as Life

STEP = 0.25
"""Seconds of the test's time between two moments at which anything may happen."""
SPEC = {"scaling": {"idleSeconds": 20, "startTimeoutSeconds": 3600, "wakeTimeoutSeconds": 3600}}


class Upstreams:
    def locate(self, _: Any) -> str:
        return "engine"


class Gateway:
    """One gateway process, without sockets."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.skew = world.random.uniform(-300, 300)
        self.heartbeat, self.written, self.urgent = 0, -1000.0, True
        self.cut_until = -1000.0
        self.inbox: deque[dict[str, Any]] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self.flights: set[Claim] = set()
        self.waiting: set[int] = set()
        self.asked = 0
        self.told: dict[int, int] = {}
        """How many requests had come, by the heartbeat of each report."""
        self.catalogue = Catalogue()
        self.ledger = Ledger(monotonic=lambda: world.now, timestamp=self.time_of_day, changed=self.hurry)
        self.admission = Admission(
            catalogue=self.catalogue,
            ledger=self.ledger,
            room=WaitingRoom(max_requests=10_000, max_bytes=10_000),
            upstreams=Upstreams(),
            session=None,
            metering=Metering(),
            may_report=lambda: world.now - self.written < FENCE_SECONDS,
            senders=lambda: 1,
        )
        self.report()
        self.catalogue.on_change(world.raw)  # listed after the first report got through, as the process does

    @property
    def cut(self) -> bool:
        return self.world.now < self.cut_until

    @property
    def just_back(self) -> bool:
        """It was cut off, may have been taken for dead, and may not have heard yet what went on without it."""
        return 0 <= self.world.now - self.cut_until < 60

    @property
    def believed(self) -> bool:
        """The operator can't have taken it for dead."""
        return not self.cut and not self.just_back

    def time_of_day(self) -> str:
        return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.world.now + self.skew)).isoformat()

    def hurry(self) -> None:
        self.urgent = True

    def report(self) -> None:
        if self.cut:
            return
        self.heartbeat, self.written, self.urgent = self.heartbeat + 1, self.world.now, False
        spec = GatewayReportSpec(
            gateway=self.name,
            heartbeat=self.heartbeat,
            renewed_at=self.time_of_day(),
            deployments=self.ledger.demands(),
        )
        self.told[self.heartbeat] = self.asked
        self.world.reports[self.name] = spec
        self.world.news.append((self.name, spec))

    def live(self) -> None:
        if self.urgent or self.world.now - self.written >= HEARTBEAT_SECONDS:
            self.report()
        while self.inbox and not self.cut and self.world.random.random() < 0.4:
            self.catalogue.on_change(self.inbox.popleft())

    def ask(self) -> None:
        task = asyncio.create_task(self._request())
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.failures.append(error)

    async def _request(self) -> None:
        world = self.world
        claim = self.ledger.open(self.catalogue.get(UID))
        visit = Visit(uid=UID, claim=claim, size=1, arrived=world.now, heartbeat=silent)
        returning = False
        number, self.asked = self.asked, self.asked + 1
        while True:
            self.waiting.add(number)
            await self.admission.admit(visit, returning=returning)
            self.waiting.remove(number)
            by_status = self.catalogue.get(UID).engine_ready
            if world.engine_up:
                break
            # A probe may have seen the engine's last moment; whoever goes by the status must be right.
            assert not by_status or self.just_back, "a request was let go to a stopped engine"
            self.admission.doubt(UID)  # Ray's proxy says that there is no such application
            claim.wait()
            returning = True
        if by_status or world.life.phase is not Phase.IDLE:  # else its engine is being removed, and Ray lets it end
            self.flights.add(claim)
        ends = world.now + world.random.uniform(0, 10)
        while world.now < ends:  # noqa: ASYNC110 - the test moves time
            await asyncio.sleep(0)
        self.flights.discard(claim)
        claim.close()
        world.answered += 1

    async def crash(self) -> int:
        lost = sum(not task.done() for task in self.tasks)
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.admission.close()
        return lost


class World:
    """The API server, the engine and the operator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.asked = self.answered = self.lost = self.slept = 0
        self.failures: list[BaseException] = []
        self.reports: dict[str, GatewayReportSpec] = {}
        self.news: deque[tuple[str, GatewayReportSpec]] = deque()
        self.followed: dict[str, demand.Gateway] = {}
        self.life = Life(**SPEC)
        self.life.now = 1e6
        self.life.live()
        self.born = 2
        self.gateways = [Gateway(self, "gateway-0"), Gateway(self, "gateway-1")]

    @property
    def engine_up(self) -> bool:
        return self.life.view.presence is Presence.PRESENT and bool(self.life.view.answering)

    @property
    def raw(self) -> dict[str, Any]:
        status = self.life.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {**deployment_object(uid=UID, **SPEC), "status": status}

    def operate(self) -> None:
        clock = 1e6 + self.now  # the operator's own, which nobody shares
        while self.news and self.random.random() < 0.5:
            name, spec = self.news.popleft()
            self.followed[name] = demand.follow(self.followed, name, spec, clock, first_look=False)
        before, phase = self.life.status, self.life.phase
        self.life.now = clock
        self.life.demand = demand.demand_for(UID, self.followed, clock)
        self.life.step()
        if phase is not Phase.IDLE and self.life.phase is Phase.IDLE:
            self.nobody_was_waiting()
        if self.life.status != before:
            for gateway in self.gateways:
                gateway.inbox.append(self.raw)

    def nobody_was_waiting(self) -> None:
        """Whoever waits now came after its gateway said that nobody did: then the model wakes at once."""
        for gateway in self.gateways:
            followed = self.followed.get(gateway.name)
            if gateway.believed and followed is not None:
                told = gateway.told[followed.heartbeat]
                assert all(number >= told for number in gateway.waiting), "a model sleeps that was waited for"

    def run_cluster(self) -> None:
        up = self.engine_up
        self.life.cluster()
        if up and not self.engine_up:
            self.slept += 1
            for gateway in self.gateways:
                assert not (gateway.believed and gateway.flights), "an engine was stopped under a request"
        if not self.engine_up and self.random.random() < 0.1:
            self.life.engine_answers()

    def restart_operator(self) -> None:
        self.life.memory, self.life.asked = None, None
        self.news.clear()
        self.followed = {}
        for name, spec in self.reports.items():
            self.followed[name] = demand.follow({}, name, spec, 1e6 + self.now, first_look=True)

    async def disturb(self) -> None:
        chance = self.random.random()
        if chance < 0.0015:
            self.restart_operator()
        elif chance < 0.0035:
            place = self.random.randrange(len(self.gateways))
            self.lost += await self.gateways[place].crash()
            self.gateways[place] = Gateway(self, f"gateway-{self.born}")
            self.born += 1
        elif chance < 0.007:
            gateway = self.random.choice(self.gateways)
            gateway.cut_until = self.now + self.random.uniform(5, 120)

    async def step(self, *, requests: bool) -> None:
        self.now += STEP
        was_draining = self.life.phase is Phase.DRAINING
        for gateway in self.gateways:
            gateway.live()
        if self.random.random() < 0.7:
            self.operate()
        if self.random.random() < 0.3:
            self.run_cluster()
        # Bursts and lulls: a lull is long enough to fall asleep in.
        burst = int(self.now / 10) % 8 == 0 and self.random.random() < 0.08
        # Often somebody comes just when a drain begins: then only the gateways' acknowledgement keeps the engine up.
        drains = self.life.phase is Phase.DRAINING and not was_draining
        if requests and (burst or (drains and self.random.random() < 0.5)):
            self.random.choice(self.gateways).ask()
            self.asked += 1
        # And somebody else once a gateway knows of it: only its report keeps the engine up then.
        for gateway in self.gateways if requests else ():
            if gateway.catalogue.get(UID).draining_epoch is not None and self.random.random() < 0.1:
                gateway.ask()
                self.asked += 1
        await asyncio.sleep(0)


async def silent(_: str) -> None:
    return None


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_dies_no_request_is_lost_to_scaling(seed, monkeypatch):
    world = World(seed)

    async def until_answer(_: Any, locate: Any) -> bool:
        while locate() is not None:
            if world.engine_up:
                return True
            await asyncio.sleep(0)
        return False

    monkeypatch.setattr(prober, "until_answer", until_answer)
    # Nothing goes by the clock on the wall: what a seed leads to is the same on every machine.
    monkeypatch.setattr(Admission, "_now", lambda _: world.now)
    monkeypatch.setattr(admission, "_FENCE_POLL_SECONDS", 0.0)
    monkeypatch.setattr(admission, "RAMP_SECONDS", 0.0)
    monkeypatch.setattr(admission, "UNATTENDED_SECONDS", 1e9)
    async with asyncio.timeout(240):
        for _ in range(2400):
            await world.step(requests=True)
            await world.disturb()
        while any(gateway.tasks for gateway in world.gateways):
            await world.step(requests=False)
    for gateway in world.gateways:
        await gateway.admission.close()
    assert world.failures == []
    assert world.answered + world.lost == world.asked
    assert world.answered > world.lost
    assert world.slept > 0
