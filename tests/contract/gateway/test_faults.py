"""What the engine's side gets wrong, and what a client sees of it."""

import asyncio
import os

import aiohttp
import openai
import pytest

from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_gateway import inference
from gptoss_gateway.admission import Admission
from tests.contract.gateway.dialects import ERRORS, STREAMS
from tests.contract.gateway.house import UID, client, eventually, model_object
from tests.contract.gateway.test_holding import ask
from tests.contract.gateway.test_passing_through import AUTHORIZED, MESSAGES, metrics


@pytest.fixture
async def awake(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    return await house.open_gateway(), application


BEFORE_THE_FIRST_BYTE = ["reset", "text-500", "text-503", "text-404", "json-503", "scaling-503"]


@pytest.mark.parametrize(
    ("fault", "stream"),
    [
        *((fault, stream) for fault in BEFORE_THE_FIRST_BYTE for stream in (False, True)),
        ("half-json", False),
        ("cut-before-first", True),
    ],
)
async def test_failures_before_the_first_byte_are_tried_again(awake, fault, stream):
    server, application = awake
    application.faults.extend([fault, fault])
    async with client(server) as api:
        answer = await ask(api, stream=stream)
        if stream:
            assert "".join([chunk.choices[0].delta.content async for chunk in answer]) == "Hello world"
        else:
            assert answer.choices[0].message.content == "Hello world"
    assert len(application.posts) == 3


async def test_an_engine_that_fails_on_one_request_again_and_again_is_spared(awake):
    server, application = awake
    application.faults.extend(["text-500"] * 20)
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(api)
        assert caught.value.status_code == 502
        assert caught.value.code == "upstream_failed"
        assert len(application.posts) == 5
        application.faults.clear()
        application.faults.extend(["json-503"] * 20)
        with pytest.raises(openai.InternalServerError, match="vLLM says 503"):
            await ask(api)
    assert len(application.posts) == 10


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [500, 501, 502, 504])
async def test_an_error_of_the_engines_own_is_passed_on_once_and_nobody_else_waits_for_it(awake, house, status, stream):
    server, application = awake
    application.faults.append(f"json-{status}")
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError, match=f"vLLM says {status}") as caught:
            await ask(api, stream=stream)
        assert (caught.value.status_code, caught.value.type) == (status, "InternalServerError")
        assert len(application.posts) == 1
        await ask(api)
    assert len(application.posts) == 2
    assert not [line for line in house.engines.requests if line.startswith("GET")], "nobody doubted the engine"


async def test_a_refused_connection_waits_for_the_engine(awake, house):
    server, _application = awake
    await house.engines.stop()
    async with client(server) as api:
        answer = ask(api)
        await house.reports.until("gateway-0", waiting=1)
        await house.engines.start()  # on the port it had
        assert (await answer).choices[0].message.content == "Hello world"


async def test_an_application_that_is_gone_though_status_says_ready_waits(awake, house):
    server, _ = awake
    house.remove()
    async with client(server) as api:
        answer = ask(api)
        await house.reports.until("gateway-0", waiting=1)
        house.deploy()
        assert (await answer).choices[0].message.content == "Hello world"


async def read(stream, *, into: list) -> None:
    async for event in stream:
        into.append(event)  # noqa: PERF401 - what came before an error counts


async def test_an_engine_that_failed_gets_no_request_before_it_was_seen_to_answer(awake, house):
    server, _ = awake
    house.remove()
    async with client(server) as api:
        gone = ask(api)
        await house.reports.until("gateway-0", waiting=1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (0, 0))
        posts = [line for line in house.engines.requests if line.startswith("POST")]
        kept = ask(api)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (1, 0))
        assert [line for line in house.engines.requests if line.startswith("POST")] == posts
        house.deploy()
        assert (await kept).choices[0].message.content == "Hello world"


@pytest.mark.parametrize("fault", ["cut-clean", "cut-inside"])
@pytest.mark.parametrize("dialect", STREAMS)
async def test_a_stream_cut_short_ends_with_an_error_event(awake, fault, dialect):
    server, application = awake
    application.faults.append(fault)
    seen = []
    with pytest.raises(ERRORS, match="cut short") as caught:
        await read(STREAMS[dialect](server), into=seen)
    assert seen == ([] if dialect == "messages" else ["Hello"]), "of messages, the first event has no word"
    assert "upstream_stream_broken" in str(caught.value.body)
    assert len(application.posts) == 1
    assert 'gptoss_gateway_upstream_breaks_total{model="assistant",namespace="ml"} 1.0' in await metrics(server)


async def test_no_plain_text_of_the_engines_side_reaches_a_client(awake, house):
    server, application = awake
    house.apply(model_object("serving", scaling={"wakeTimeoutSeconds": 1}))
    application.faults.extend(["text-503"] * 100)
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            server.url + "/v1/chat/completions",
            json={"model": "assistant", "messages": MESSAGES},
            headers=AUTHORIZED,
        ) as response,
    ):
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "model_waking"


@pytest.mark.parametrize("state", ["serving", "waking"])
async def test_a_refused_gateway_token_is_not_the_clients_401(awake, house, state):
    server, _ = awake
    house.apply(model_object(state))
    token = house.folder / "token"
    token.write_text("another")
    os.utime(token, (0, 0))  # long enough ago that every replica should know it
    await server.gateway.refresh()
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(api)
    assert caught.value.code == "upstream_refused_gateway"


async def test_the_longest_request_is_ended(awake, monkeypatch):
    server, application = awake
    monkeypatch.setattr("gptoss_gateway.inference.MAX_REQUEST_SECONDS", 0.2)
    application.paused.clear()
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(api)
        assert caught.value.status_code == 504
        stream = await ask(api, stream=True)
        with pytest.raises(openai.APIError, match="longer than"):
            async for _ in stream:
                pass
    await asyncio.wait_for(application.aborted.wait(), 60)


class Clock:
    """The event loop's, put forward by ``ahead`` seconds for those who tell how long a request has taken."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self, *_: object) -> float:
        return asyncio.get_running_loop().time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(inference, "_now", clock)
    monkeypatch.setattr(Admission, "_now", clock)
    return clock


@pytest.mark.parametrize("prefer", [{}, {"Prefer": "wait=60"}])
async def test_the_time_that_an_engine_took_in_vain_is_none_that_the_client_has_waited(awake, clock, prefer):
    server, application = awake
    application.faults.append("late-reset")
    application.paused.clear()
    async with client(server) as api:
        answer = ask(api, extra_headers=prefer)
        await eventually(lambda: bool(application.posts))
        clock.ahead = 1800.0  # much longer than anybody may wait
        application.paused.set()
        assert (await answer).choices[0].message.content == "Hello world"
    assert len(application.posts) == 2


async def test_all_attempts_at_a_request_share_the_time_that_one_may_take(awake, clock, monkeypatch):
    server, application = awake
    application.faults.append("late-reset")
    application.paused.clear()
    budgets = []
    relay = inference.relay

    async def noted(*parts, within, **more):
        budgets.append(within)
        return await relay(*parts, within=within, **more)

    monkeypatch.setattr(inference, "relay", noted)
    async with client(server) as api:
        answer = ask(api)
        await eventually(lambda: bool(application.posts))
        clock.ahead = MAX_REQUEST_SECONDS - 1000.0
        application.paused.set()
        await answer
    first, second = budgets
    assert first == MAX_REQUEST_SECONDS
    assert 0 < second <= 1000.0


async def test_a_request_that_has_used_up_its_time_is_not_tried_again(awake, clock):
    server, application = awake
    application.faults.append("late-reset")
    application.paused.clear()
    async with client(server) as api:
        answer = ask(api)
        await eventually(lambda: bool(application.posts))
        clock.ahead = float(MAX_REQUEST_SECONDS)
        application.paused.set()
        with pytest.raises(openai.InternalServerError, match="with all attempts") as caught:
            await answer
    assert (caught.value.status_code, caught.value.code) == (504, "request_too_long")


async def test_a_model_on_an_unknown_or_foreign_cluster_is_refused_with_the_reason(house):
    house.apply(model_object("idle", substrate={"rayServe": {"clusterName": "elsewhere"}}))
    server = await house.open_gateway()
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError, match="rayClusters"):
            await ask(api)


async def test_anthropic_errors_have_their_own_shape(house):
    house.apply(model_object("suspended"))
    server = await house.open_gateway()
    async with aiohttp.ClientSession() as session:
        key = {"x-api-key": AUTHORIZED["Authorization"].removeprefix("Bearer ")}
        body = {"model": "assistant", "max_tokens": 1, "messages": MESSAGES}
        async with session.post(server.url + "/v1/messages", json=body, headers=key) as response:
            assert response.status == 503
            document = await response.json()
    assert document["type"] == "error"
    assert document["error"]["type"] == "overloaded_error"
