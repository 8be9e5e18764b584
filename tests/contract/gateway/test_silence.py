"""Engines that fall silent and clients that stop reading."""

import asyncio
import json
import socket

import openai
import pytest

from tests.contract.gateway.house import KEY, UID, client, eventually, model_object
from tests.contract.gateway.test_holding import ask
from tests.contract.gateway.test_passing_through import MESSAGES


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr("gptoss_gateway.vigil.SWEEP_SECONDS", 0.02)
    monkeypatch.setattr("gptoss_gateway.vigil.QUIET_SECONDS", 0.05)
    monkeypatch.setattr("gptoss_gateway.vigil.ASK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr("gptoss_gateway.vigil.HANG_SECONDS", 1.0)


def posts(house) -> int:
    return sum(line.startswith("POST") for line in house.engines.requests)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_hangs_in_rays_fallback_proxy_waits_for_the_engine_instead(house, stream):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.deploying = True
    server = await house.open_gateway()
    async with client(server) as api:
        answer = ask(api, stream=stream)
        await house.reports.until("gateway-0", waiting=1)
        assert posts(house) == 1
        application.deploying = False
        answer = await answer
        if stream:
            assert "".join([chunk.choices[0].delta.content async for chunk in answer]) == "Hello world"
        else:
            assert answer.choices[0].message.content == "Hello world"


async def test_a_request_that_hangs_for_good_is_a_typed_error(house):
    house.apply(model_object("serving", scaling={"wakeTimeoutSeconds": 1}))
    house.deploy().deploying = True
    server = await house.open_gateway()
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(api)
    assert (caught.value.status_code, caught.value.code) == (503, "model_waking")


async def test_a_long_answer_is_waited_for_while_its_engine_answers(house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.vigil.HANG_SECONDS", 10.0)  # a busy machine is no silent engine
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway()
    async with client(server) as api:
        answer = ask(api)
        await eventually(lambda: house.engines.requests.count("GET /gptoss/ml/assistant/v1/models") > 8)
        application.paused.set()
        assert (await answer).choices[0].message.content == "Hello world"
    assert posts(house) == 1


async def test_an_engine_that_is_full_and_answers_nothing_is_given_up_too(house):
    house.apply(model_object("serving", engine={"maxNumSeqs": 2}))
    application = house.deploy()
    application.deploying = True
    server = await house.open_gateway()
    async with client(server) as api:
        answers = [ask(api), ask(api)]
        await eventually(lambda: posts(house) == 2)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (2, 0))
        application.deploying = False
        for answer in await asyncio.gather(*answers):
            assert answer.choices[0].message.content == "Hello world"


async def test_a_stream_whose_engine_dies_silently_ends_with_an_error_event(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway()
    async with client(server) as api:
        stream = await ask(api, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        application.deploying = True
        with pytest.raises(openai.APIError, match="cut short"):
            await anext(chunks)
    await asyncio.wait_for(application.aborted.wait(), 60)


async def test_a_stream_that_stays_idle_ends_with_an_error_event(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway(limits={"idleSeconds": 0.3})
    async with client(server) as api:
        stream = await ask(api, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        with pytest.raises(openai.APIError, match="silent for too long") as caught:
            await anext(chunks)
    assert caught.value.code == "upstream_stream_idle"


async def test_a_client_that_stops_reading_is_dropped_and_the_engine_freed(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.words = ["x" * 100_000] * 400
    server = await house.open_gateway(limits={"stallSeconds": 0.3, "idleSeconds": 0.1})
    body = json.dumps({"model": "assistant", "messages": MESSAGES, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(lazy, ("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        await loop.sock_sendall(lazy, head + body)
        await asyncio.wait_for(application.aborted.wait(), 60)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (0, 0))
