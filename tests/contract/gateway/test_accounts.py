"""What requests cost their tenant: in the metrics, and off its tokens a minute."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import aiohttp
import openai
import pytest

from gptoss_gateway import inference, proxy
from gptoss_gateway.server import Server
from tests.contract.gateway.engine import Application
from tests.contract.gateway.house import UID, House, client, eventually, model_object
from tests.contract.gateway.test_passing_through import AUTHORIZED, MESSAGES, metrics
from tests.contract.gateway.test_tenants import ask, tenant

LABELS = 'model="assistant",namespace="ml"'


def tokens(kind: str, count: int, source: str = "engine") -> str:
    return f'gptoss_gateway_tokens_total{{kind="{kind}",{LABELS},source="{source}",tenant="ml"}} {count}.0'


async def test_tokens_of_streams_are_counted_and_the_client_sees_no_difference(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    server = await house.open_gateway()
    body = {"model": "assistant", "messages": MESSAGES, "stream": True}
    async with aiohttp.ClientSession() as session:
        async with session.post(server.url + "/v1/chat/completions", json=body, headers=AUTHORIZED) as response:
            through = await response.read()
        assert json.loads(application.posts[0][2])["stream_options"] == {"include_usage": True}
        url = f"{house.engines.url}/gptoss/ml/assistant/v1/chat/completions"
        async with session.post(url, json=body, headers={"x-gptoss-gateway-token": "gateway-token"}) as response:
            direct = await response.read()
    assert through == direct
    text = await metrics(server)
    assert tokens("input", 7) in text
    assert tokens("output", 2) in text


async def test_a_stream_that_its_client_leaves_is_estimated(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway()
    async with client(server) as api:
        stream = await api.chat.completions.create(model="assistant", messages=MESSAGES, stream=True)
        assert (await anext(aiter(stream))).choices[0].delta.content == "Hello"
        await stream.close()
        await asyncio.wait_for(application.aborted.wait(), 60)
    await eventually(lambda: server.gateway.ledger.counts(UID) == (0, 0))
    text = await metrics(server)
    assert tokens("output", 1, "gateway") in text
    assert 'kind="input",model="assistant",namespace="ml",source="gateway"' in text


async def test_tokens_a_minute_are_taken_off_when_an_answer_ends(house):
    house.apply(model_object("serving"))
    house.deploy()
    house.write_keys([tenant(limits={"tokensPerMinute": 10})])
    server = await house.open_gateway()
    async with client(server) as api:
        first = await ask(api)
        assert first.headers["x-ratelimit-remaining-tokens"] == "10"
        stream = await ask(api, stream=True)  # one token is left: enough to begin
        assert stream.headers["x-ratelimit-remaining-tokens"] == "1"
        async for _ in stream.parse():
            pass
        await eventually(lambda: server.gateway.ledger.counts(UID) == (0, 0))
        with pytest.raises(openai.RateLimitError, match="tokensPerMinute") as caught:
            await ask(api)
        assert 30 <= int(caught.value.response.headers["retry-after"]) <= 54
        assert caught.value.response.headers["x-ratelimit-remaining-tokens"] == "0"


COST = re.compile(rf'^gptoss_gateway_tokens_total{{kind="(\w+)",{LABELS},source="(\w+)",tenant="ml"}} (\S+)$', re.M)
LIMIT = 1000
NOTHING: dict[tuple[str, str], float] = {}
TOLD = {("input", "engine"): 7.0, ("output", "engine"): 2.0}


class Till:
    """A gateway before one engine, and its tenant's account."""

    def __init__(self, application: Application, server: Server) -> None:
        self.application, self.server = application, server
        server.gateway._limiter._clock = lambda: 0.0  # nothing is refilled

    async def post(self, path: str = "/v1/chat/completions", **more: Any) -> int:
        body = {"model": "assistant", "messages": MESSAGES, **more}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.server.url + path, json=body, headers=AUTHORIZED) as response,
        ):
            await response.read()
            return response.status

    async def leave(self, when: Callable[[], bool], path: str = "/v1/chat/completions", **more: Any) -> None:
        asking = asyncio.create_task(self.post(path, **more))
        await eventually(when)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    def prompt(self) -> dict[tuple[str, str], float]:
        """What the last request is taken for by its size alone."""
        return {("input", "gateway"): -(-len(self.application.posts[-1][2]) // 4)}

    async def cost(self) -> dict[tuple[str, str], float]:
        """Return what is counted once nothing is open, by kind and source. The tenant's balance must say the same."""
        await eventually(lambda: self.server.gateway._open == set())
        found = {(kind, source): float(count) for kind, source, count in COST.findall(await metrics(self.server))}
        used = sum(count for (kind, _), count in found.items() if kind in ("input", "output"))
        assert self.server.gateway._limiter._accounts["ml"].tokens.level == LIMIT - used
        return found


@pytest.fixture
async def till(house: House) -> Till:
    house.write_keys([tenant(limits={"tokensPerMinute": LIMIT})])
    house.apply(model_object("serving"))
    return Till(house.deploy(), await house.open_gateway())


CACHED = {("cached", "engine"): 3.0}
COSTS = {
    "/v1/chat/completions": TOLD,
    "/v1/completions": TOLD,
    "/v1/responses": {**TOLD, **CACHED, ("reasoning", "engine"): 1.0},
    "/v1/messages": {**TOLD, **CACHED},  # though Anthropic's input is without what was cached
}


@pytest.mark.parametrize("path", COSTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_costs_what_the_engine_says(till, path, stream):
    assert await till.post(path, stream=stream) == 200
    assert await till.cost() == COSTS[path]


async def test_a_stream_of_messages_that_its_client_leaves_costs_what_came_of_it(till):
    """What the engine says at its beginning is the input; its output is none yet."""
    till.application.paused.clear()
    till.application.before_pause = 3  # with the first word
    watched = till.server.gateway._vigil._exchanges
    await till.leave(lambda: any(each.tally.events for each in watched), "/v1/messages", stream=True)
    assert await till.cost() == {("input", "gateway"): 7.0, ("output", "gateway"): 1.0}


async def test_an_answer_of_which_the_engine_says_nothing_costs_its_prompt(till):
    till.application.faults.append("no-usage")
    assert await till.post() == 200
    assert await till.cost() == till.prompt()


async def test_a_whole_answer_that_its_client_does_not_wait_for_costs_its_prompt(till):
    till.application.paused.clear()
    await till.leave(lambda: len(till.application.posts) == 1)
    assert await till.cost() == till.prompt()


async def test_a_whole_answer_that_takes_too_long_costs_its_prompt(till, monkeypatch):
    monkeypatch.setattr(inference, "MAX_REQUEST_SECONDS", 0.5)
    till.application.paused.clear()
    assert await till.post() == 504
    assert await till.cost() == till.prompt()


async def test_a_whole_answer_that_is_too_large_costs_its_prompt(till, monkeypatch):
    monkeypatch.setattr(proxy, "MAX_ANSWER_BYTES", 10)
    assert await till.post() == 502
    assert await till.cost() == till.prompt()


@pytest.mark.parametrize(("fault", "cost"), [("json-500", NOTHING), ("json-400", NOTHING), ("usage-500", TOLD)])
async def test_an_error_of_the_engine_costs_what_the_engine_says(till, fault, cost):
    till.application.faults.append(fault)
    assert await till.post() == (400 if fault == "json-400" else 500)
    assert await till.cost() == cost


@pytest.mark.parametrize("fault", ["reset", "text-500", "text-503", "half-json"])
async def test_an_attempt_that_failed_and_was_made_again_costs_nothing_more(till, fault):
    till.application.faults.append(fault)
    assert await till.post() == 200
    assert len(till.application.posts) == 2
    assert await till.cost() == TOLD


async def test_a_request_that_failed_for_good_costs_nothing(till, monkeypatch):
    monkeypatch.setattr(inference, "_BACKOFF_SECONDS", (0.0,))
    till.application.faults.extend(["half-json"] * 5)
    assert await till.post() == 502
    assert await till.cost() == NOTHING


async def test_who_leaves_while_the_engine_is_away_pays_nothing(till):
    till.application.faults.append("away")
    ledger = till.server.gateway.ledger
    await till.leave(lambda: till.application.deploying and ledger.counts(UID) == (1, 0))
    assert await till.cost() == NOTHING
