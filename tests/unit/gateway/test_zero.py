"""Going to zero under requests: gateways and a small operator, each hearing of the other late.

Reports and statuses travel with random delays. Whatever their order, no engine is stopped while a
request is in flight, or was waiting when its gateway last said that none was; no request is let go to a
stopped engine, and every request is answered.
"""

import asyncio
import random
from collections import deque
from typing import Any

import pytest

from gptoss_api.report import DeploymentDemand
from gptoss_gateway import prober
from gptoss_gateway.admission import Admission, Visit
from gptoss_gateway.catalogue import Catalogue
from gptoss_gateway.demand import Ledger
from gptoss_gateway.hold import WaitingRoom
from gptoss_gateway.metering import Metering
from tests.contract.gateway.house import UID, model_object


class Upstreams:
    """Somewhere is an engine."""

    def locate(self, _: Any) -> str:
        return "engine"


class Gateway:
    """The parts that decide, without sockets."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.inbox: deque[dict[str, Any]] = deque()
        self.outbox: deque[tuple[int, tuple[DeploymentDemand, ...]]] = deque()
        self.asked = 0
        self.waiting: set[int] = set()
        self.ledger = Ledger(
            monotonic=lambda: asyncio.get_running_loop().time(), timestamp=lambda: "now", changed=self.report
        )
        self.admission = Admission(
            catalogue=self.catalogue,
            ledger=self.ledger,
            room=WaitingRoom(max_requests=1000, max_bytes=1000),
            upstreams=Upstreams(),
            session=None,
            metering=Metering(),
            may_report=lambda: True,
            senders=lambda: 1,
        )

    def report(self) -> None:
        self.outbox.append((self.asked, self.ledger.demands()))


class World:
    """The engine, the operator, and what is on its way between them and the gateways."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.engine_up = True
        self.flying = 0
        self.slept = 0
        self.state, self.epoch = "serving", 1
        self.gateways = [Gateway(), Gateway()]
        self.heard: list[DeploymentDemand | None] = [None, None]
        self.told = [0, 0]
        """How many requests had come to each gateway when it said what was heard of it last."""
        for gateway in self.gateways:
            gateway.catalogue.on_change(model_object("serving"))

    def deliver(self) -> None:
        for number, gateway in enumerate(self.gateways):
            if gateway.inbox and self.random.random() < 0.3:
                gateway.catalogue.on_change(gateway.inbox.popleft())
            if self.random.random() < 0.05:
                gateway.report()  # a heartbeat
            if gateway.outbox and self.random.random() < 0.3:
                self.told[number], demands = gateway.outbox.popleft()
                self.heard[number] = next(iter(demands), None)

    def operate(self) -> None:
        wanted = any(demand and demand.waiting + demand.in_flight for demand in self.heard)
        if self.state == "serving" and not wanted and self.random.random() < 0.2:
            self.epoch += 1
            self.tell("draining")
        elif self.state == "draining" and wanted:
            self.tell("serving")
        elif self.state == "draining" and all(
            demand and demand.drain_epoch_seen == self.epoch for demand in self.heard
        ):
            assert self.flying == 0, "an engine was stopped under a request"
            for gateway, told in zip(self.gateways, self.told, strict=True):
                assert all(number >= told for number in gateway.waiting), "an engine was stopped that was waited for"
            self.engine_up = False
            self.slept += 1
            self.tell("idle")
        elif self.state == "idle" and wanted:
            self.tell("waking")
        elif self.state == "waking" and self.random.random() < 0.1:
            self.engine_up = True
            self.tell("serving")

    def tell(self, state: str) -> None:
        self.state = state
        for gateway in self.gateways:
            gateway.inbox.append(model_object(state, epoch=self.epoch, scaling={"wakeTimeoutSeconds": 60}))

    async def request(self) -> None:
        gateway = self.random.choice(self.gateways)
        claim = gateway.ledger.open(gateway.catalogue.get(UID))
        visit = Visit(uid=UID, claim=claim, size=1, arrived=asyncio.get_running_loop().time(), heartbeat=silent)
        number, gateway.asked = gateway.asked, gateway.asked + 1
        gateway.waiting.add(number)
        await gateway.admission.admit(visit)
        gateway.waiting.remove(number)
        assert self.engine_up, "a request was let go to a stopped engine"
        self.flying += 1
        for _ in range(self.random.randrange(20)):
            await asyncio.sleep(0)
        self.flying -= 1
        claim.close()


async def silent(_: str) -> None:
    return None


@pytest.mark.parametrize("seed", range(12))
async def test_no_request_is_lost_and_no_engine_is_stopped_under_one(seed, monkeypatch):
    world = World(seed)

    async def until_answer(_: Any, locate: Any) -> bool:
        while locate() is not None:
            if world.engine_up:
                return True
            await asyncio.sleep(0)
        return False

    monkeypatch.setattr(prober, "until_answer", until_answer)
    requests = []
    async with asyncio.timeout(20):
        for _ in range(1500):
            if world.random.random() < 0.02:
                requests.append(asyncio.create_task(world.request()))
            world.deliver()
            world.operate()
            await asyncio.sleep(0)
        while not all(request.done() for request in requests):
            world.deliver()
            world.operate()
            await asyncio.sleep(0)
        await asyncio.gather(*requests)
    for gateway in world.gateways:
        await gateway.admission.close()
    assert world.slept > 0
