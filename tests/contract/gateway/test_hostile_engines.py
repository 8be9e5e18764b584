"""Engines that send what no engine should: their own requests fail, and nobody else's notice."""

import asyncio

import aiohttp
import openai
import pytest
from aiohttp import web

from gptoss_gateway.prober import answers
from gptoss_gateway.upstream import Upstream
from tests.contract.gateway.house import client, model_object
from tests.contract.gateway.test_holding import ask
from tests.contract.gateway.test_passing_through import AUTHORIZED, MESSAGES, metrics


@pytest.fixture
async def awake(house):
    house.apply(model_object("serving"))
    return house.deploy()


async def test_json_that_nests_without_end_is_a_failed_attempt(awake, house):
    server = await house.open_gateway()
    awake.faults.extend(["deep-json"])
    async with client(server) as api:
        answer = await ask(api)
    assert answer.choices[0].message.content == "Hello world"
    assert len(awake.posts) == 2


async def test_answers_take_of_the_memory_for_bodies_and_give_it_back(awake, house):
    server = await house.open_gateway(limits={"maxBodyBytes": 65536, "maxBodiesBytes": 2**20})
    awake.faults.extend(["much-json"])
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError, match="in memory") as caught:
            await ask(api)
        assert caught.value.status_code == 503
        assert server.gateway.intake.taken == 0
        await ask(api)


async def test_an_answer_of_many_parts_passes_as_it_is(awake, house):
    server = await house.open_gateway()
    awake.faults.extend(["much-json"])
    body = {"model": "assistant", "messages": MESSAGES}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + "/v1/chat/completions", json=body, headers=AUTHORIZED) as response,
    ):
        assert await response.read() == b'{"a":[' + b"[],\n" * 500_000 + b"[]]}"


async def test_a_usage_that_nobody_can_have_is_not_believed(awake, house):
    server = await house.open_gateway()
    awake.faults.extend(["endless-usage"])
    async with client(server) as api:
        await ask(api)
        await ask(api)  # the connection is still good
    told = await metrics(server)
    kinds = {
        kind: f'kind="{kind}",model="assistant",namespace="ml",source="engine",tenant="ml"'
        for kind in ("input", "output")
    }
    assert f"gptoss_gateway_tokens_total{{{kinds['input']}}} 7.0" in told
    assert f"gptoss_gateway_tokens_total{{{kinds['output']}}} 4.0" in told


async def test_a_list_of_models_without_end_is_no_answer():
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while sent < 2**26:
            await response.write(b" " * 65536)
            sent += 65536
        await asyncio.Event().wait()
        return response

    application = web.Application()
    application.router.add_get("/v1/models", flood)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            upstream = Upstream(url=f"http://{host}:{port}", token="x")
            assert not await answers(session, upstream, "gpt-oss", within=3600)
    finally:
        await runner.cleanup()
    assert sent < 2**26
