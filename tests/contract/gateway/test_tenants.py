"""Who may, and how much: as clients of a running gateway see it."""

import asyncio

import openai
import pytest

from tests.contract.gateway.house import KEY, House, client, eventually, hashed, model_object
from tests.contract.gateway.test_passing_through import MESSAGES


def ask(api: openai.AsyncOpenAI, model: str = "assistant", **more):
    return api.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, **more)


def tenant(**more):
    return {"name": "ml", "keys": [hashed(KEY)], "namespaces": ["ml"], **more}


@pytest.fixture
async def awake(house: House):
    house.apply(model_object("serving"))
    application = house.deploy()
    house.write_keys([tenant(limits={"requestsPerMinute": 3, "concurrent": 2}, models=["assist*"])])
    return await house.open_gateway(), application


async def test_every_answer_tells_where_the_tenant_stands_and_the_one_too_many_is_429(awake):
    server, _ = awake
    async with client(server) as api:
        first = await ask(api)
        assert first.headers["x-ratelimit-limit-requests"] == "3"
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-concurrent"] == "1"
        stream = await ask(api, stream=True)
        assert stream.headers["x-ratelimit-remaining-requests"] == "1"
        assert [chunk.choices[0].delta.content async for chunk in stream.parse()] == ["Hello", " world"]
        with pytest.raises(openai.NotFoundError):  # it was a request: whoever guesses names pays for it
            await ask(api, "nothing")
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(api)
        assert [model.id async for model in api.models.list()] == ["assistant"], "looking is free"
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert 18 <= int(caught.value.response.headers["retry-after"]) <= 20
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_requests_at_once_are_bounded_and_the_place_of_one_that_left_is_free(awake):
    server, application = awake
    application.paused.clear()
    async with client(server) as api:
        running = [asyncio.create_task(ask(api)) for _ in range(2)]
        await eventually(lambda: len(application.posts) == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(api)
        assert caught.value.code == "concurrency_limit_exceeded"
        assert caught.value.response.headers["retry-after"] == "1"
        running[0].cancel()
        await asyncio.wait_for(application.aborted.wait(), 2)
        third = asyncio.create_task(ask(api))
        await eventually(lambda: len(application.posts) == 3)
        application.paused.set()
        assert (await third).headers["x-ratelimit-remaining-concurrent"] == "0"


async def test_limits_are_reloaded_with_the_keys(awake, house):
    server, _ = awake
    async with client(server) as api:
        for _ in range(3):
            await ask(api)
        with pytest.raises(openai.RateLimitError):
            await ask(api)
        house.write_keys([tenant()])
        server.gateway.refresh()
        assert "x-ratelimit-limit-requests" not in (await ask(api)).headers


async def test_a_model_that_the_key_may_not_use_is_403_and_an_unknown_key_401(awake, house):
    server, _ = awake
    house.apply(model_object("serving", name="second", uid="u-2"))
    async with client(server) as api:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await ask(api, "second")
        assert (caught.value.code, caught.value.type) == ("model_not_allowed", "permission_error")
    async with client(server, key="gptoss-" + "z" * 43) as api:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await ask(api)
        assert (unknown.value.code, unknown.value.type) == ("invalid_api_key", "authentication_error")
