"""Who a gateway meets in a day, all at once: clients of every kind, an administrator of keys, an operator's status."""

import asyncio
import random
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.load import Client, Reply, Seen, connect, request
from benchmarks.stage import NAMESPACE, SYSTEM_NAMESPACE, Stage, Way, new_key, post, status_of
from gptoss_kube.client import Kube, Object
from gptoss_kube.resources import GATEWAY_REPORTS, GPT_OSS_DEPLOYMENTS

EVENTS = 50
PACE_SECONDS = 0.01
FIRST_SECONDS = 0.05
ANSWER_SECONDS = 120.0
"""An answer that takes longer is lost."""
HELD = 24
"""Requests of one burst for the sleeping model, through each gateway; a third of them gives up."""
HOLD_SECONDS = 2.0
REST_SECONDS = 1.0
DRAIN_SECONDS = 120.0
KEYS_SECONDS = 5.0


@dataclass
class Tally:
    """What became of the requests; ``held`` were answered after they had waited. ``lost`` says how, each."""

    asked: int = 0
    answered: int = 0
    held: int = 0
    left: int = 0
    lost: list[str] = field(default_factory=list)


class Keys:
    """API keys that change all the time. A key is known before it is used, and for a while after."""

    def __init__(self, stage: Stage, ways: Sequence[Way]) -> None:
        self.changes = 0
        self.wrongs: list[str] = []
        self._stage = stage
        self._ways = ways
        self._keys = [new_key(), new_key(), new_key()]  # the last one, the one in use, the next

    @property
    def current(self) -> str:
        """The key to use now."""
        return self._keys[1]

    async def begin(self) -> None:
        """Let the first keys in."""
        await asyncio.to_thread(self._stage.write_keys, self._keys)
        await asyncio.sleep(KEYS_SECONDS)

    async def run(self, over: float) -> None:
        """Change them until the time is over; who comes with one that is gone must be refused."""
        loop = asyncio.get_running_loop()
        gone = new_key()
        while loop.time() < over:
            await asyncio.to_thread(self._use, gone)
            gone, *self._keys = *self._keys, new_key()
            await asyncio.to_thread(self._stage.write_keys, self._keys)
            self.changes += 1
            await asyncio.sleep(KEYS_SECONDS)

    def _use(self, key: str) -> None:
        for way in self._ways:
            asked = urllib.request.Request(f"{way.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            try:
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    self.wrongs.append(f"{way.name}: a key that is gone was answered {answer.status}")
            except urllib.error.HTTPError as error:
                if error.code != 401:
                    self.wrongs.append(f"{way.name}: a key that is gone was answered {error.code}")
            except OSError as error:
                self.wrongs.append(f"{way.name}: a key that is gone was not answered: {error}")


class Crowd:
    """The clients of one gateway."""

    def __init__(self, way: Way, keys: Keys, *, streams: int) -> None:
        self.tally = Tally()
        self._way = way
        self._keys = keys
        self._streams = streams
        self._seen = Seen()
        self._chance = random.Random(streams)
        self._began = 0.0

    @property
    def open(self) -> int:
        """How many wait for an answer."""
        return self.tally.asked - self.tally.answered - self.tally.left - len(self.tally.lost)

    async def meet(self) -> None:
        """Ask a few times, so that the gateway has what it has from its first request on."""
        for stream in (True, False, True):
            await self._once(stream=stream)

    async def run(self, over: float) -> None:
        """Ask until the time is over, and wait for what is open then."""
        self._began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number in range(self._streams):
                group.create_task(self._ask_on(over, stream=True, delay=number / self._streams))
            for number in range(self._streams // 2):
                group.create_task(self._ask_on(over, stream=False, delay=2 * number / self._streams))
            for _ in range(self._streams // 4):
                group.create_task(self._give_up_on(over))

    async def burst(self, *, patient: bool) -> None:
        """Ask the sleeping model, in streams and not; if not ``patient`` a third gives up."""
        async with asyncio.TaskGroup() as group:
            for number in range(HELD):
                if not patient and number % 3 == 0:
                    group.create_task(self._leave_after(self._chance.uniform(0, HOLD_SECONDS), model="asleep"))
                else:
                    group.create_task(self._once(stream=number % 2 == 0, model="asleep"))

    async def _ask_on(self, over: float, *, stream: bool, delay: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(delay)  # not in step
        client: Client | None = None
        while loop.time() < over:
            client = await self._ask(client, stream=stream, model="awake")
        if client is not None:
            client.close()

    async def _once(self, *, stream: bool, model: str = "awake") -> None:
        if (client := await self._ask(None, stream=stream, model=model)) is not None:
            client.close()

    async def _ask(self, client: Client | None, *, stream: bool, model: str) -> Client | None:
        """Ask once; return the connection if it can be used again."""
        self.tally.asked += 1
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                client = client or await connect(self._way.url, self._seen)
                reply = await client.ask(self._wire(stream=stream, model=model))
        except (OSError, TimeoutError) as error:
            self.tally.lost.append(self._loss(error, client, began, stream=stream, model=model))
            if client is not None:
                client.leave()
            return None
        if not _is_whole(reply, stream=stream):
            self.tally.lost.append(f"{model}: {reply}")
            client.leave()
            return None
        self.tally.answered += 1
        self.tally.held += model == "asleep"
        return client

    def _loss(self, error: Exception, client: Client | None, began: float, *, stream: bool, model: str) -> str:
        after = asyncio.get_running_loop().time() - began
        came = "no connection" if client is None else f"{client.so_far}"
        what = f"a {'stream' if stream else 'whole answer'} of {model}, asked at {began - self._began:.1f} s"
        return f"{what}: {error!r} after {after:.1f} s, {came}"

    async def _give_up_on(self, over: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < over:
            await self._leave_after(self._chance.uniform(0, FIRST_SECONDS + PACE_SECONDS * EVENTS), model="awake")

    async def _leave_after(self, seconds: float, *, model: str) -> None:
        self.tally.asked += 1
        stream = self._chance.random() < 0.7
        try:
            client = await connect(self._way.url, self._seen)
        except OSError as error:
            self.tally.lost.append(f"{model}: {error}")
            return
        try:
            async with asyncio.timeout(seconds):
                reply = await client.ask(self._wire(stream=stream, model=model))
        except TimeoutError:
            self.tally.left += 1
        except ConnectionError as error:
            self.tally.lost.append(f"{model}: {error}")
        else:
            if _is_whole(reply, stream=stream):
                self.tally.answered += 1
            else:
                self.tally.lost.append(f"{model}: {reply}")
        finally:
            client.leave()

    def _wire(self, *, stream: bool, model: str) -> bytes:
        at = (self._way.url, self._way.path, self._keys.current)
        return request(*at, model=model, events=EVENTS, stream=stream, pace=PACE_SECONDS, first=FIRST_SECONDS)


class Sleeper:
    """Puts the model to sleep and wakes it, as the operator does, with bursts of requests in every state."""

    def __init__(self, kube: Kube, engine: Way, crowds: Sequence[Crowd]) -> None:
        self.wakes = 0
        self.drains = 0
        self._kube = kube
        self._engine = engine
        self._crowds = crowds
        self._epoch = 0

    async def run(self, over: float) -> None:
        """Go round until the time is over; ends with the model asleep."""
        loop = asyncio.get_running_loop()
        while loop.time() < over:
            await self._wake()
            await self._burst(patient=True)
            if self._epoch % 2:
                await self._change_of_mind()
            await self._fall_asleep()
            await asyncio.sleep(REST_SECONDS)

    async def open_demand(self) -> list[str]:
        """Return what the gateways' reports say is waiting or in flight, in words."""
        return [
            f"{report['spec']['gateway']} reports {demand['waiting']} waiting, {demand['inFlight']} in flight"
            for report in await self._reports()
            for demand in report["spec"]["deployments"]
            if demand["waiting"] or demand["inFlight"]
        ]

    async def _wake(self) -> None:
        held = asyncio.create_task(self._burst(patient=False))
        await asyncio.sleep(HOLD_SECONDS / 2)
        await self._tell(ready=False, asleep="Waking")
        await asyncio.sleep(HOLD_SECONDS / 2)
        await asyncio.to_thread(post, f"{self._engine.url}/up")
        await held  # released by the engine's own answer: the status lags behind
        await self._tell(ready=True, asleep="Serving")
        self.wakes += 1

    async def _change_of_mind(self) -> None:
        """Drain, and stop it for those who ask meanwhile."""
        await self._drain()
        held = asyncio.create_task(self._burst(patient=False))
        await asyncio.sleep(HOLD_SECONDS)
        await self._tell(ready=True, asleep="Serving")
        await held

    async def _fall_asleep(self) -> None:
        await self._drain()
        await self._acknowledged()
        await self._tell(ready=False, asleep="Idle")
        await asyncio.to_thread(post, f"{self._engine.url}/down")

    async def _drain(self) -> None:
        self._epoch += 1
        self.drains += 1
        await self._tell(ready=True, asleep="Draining")

    async def _acknowledged(self) -> None:
        """Wait until every gateway process holds new requests and has none of the old ones."""
        async with asyncio.timeout(DRAIN_SECONDS):
            while not all(self._is_drained(report) for report in await self._reports()):  # noqa: ASYNC110
                await asyncio.sleep(0.25)

    def _is_drained(self, report: Object) -> bool:
        mine = [demand for demand in report["spec"]["deployments"] if demand["name"] == "asleep"]
        return bool(mine) and all(
            demand["drainEpochSeen"] >= self._epoch and not demand["waiting"] and not demand["inFlight"]
            for demand in mine
        )

    async def _burst(self, *, patient: bool) -> None:
        await asyncio.gather(*(crowd.burst(patient=patient) for crowd in self._crowds))

    async def _tell(self, *, ready: bool, asleep: str) -> None:
        await self._kube.merge_patch(
            GPT_OSS_DEPLOYMENTS,
            "asleep",
            status_of(ready=ready, asleep=asleep, epoch=self._epoch),
            namespace=NAMESPACE,
            field_manager="soak",
            subresource="status",
            timeout=60.0,
        )

    async def _reports(self) -> Sequence[Object]:
        return (await self._kube.list(GATEWAY_REPORTS, namespace=SYSTEM_NAMESPACE, timeout=60.0)).items


def _is_whole(reply: Reply, *, stream: bool) -> bool:
    return reply.status == 200 and reply.complete and reply.events == (EVENTS if stream else 0)
