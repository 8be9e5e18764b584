"""Who may, and how much: as clients of a running gateway see it."""

import asyncio

import openai
import pytest

from tests.contract.gateway.house import KEY, OTHER_KEY, House, client, eventually, hashed, model_object
from tests.contract.gateway.test_passing_through import MESSAGES, metrics


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
    assert 10 <= int(caught.value.response.headers["retry-after"]) <= 20
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
        await asyncio.wait_for(application.aborted.wait(), 60)
        third = asyncio.create_task(ask(api))
        await eventually(lambda: len(application.posts) == 3)
        application.paused.set()
        assert (await third).headers["x-ratelimit-remaining-concurrent"] == "0"
        await asyncio.gather(*running, return_exceptions=True)


async def test_refusals_and_places_are_counted_by_tenant(awake, house):
    server, application = awake
    house.write_keys(
        [
            tenant(limits={"requestsPerMinute": 2}),
            {"name": "other", "keys": [hashed(OTHER_KEY)], "namespaces": ["ml"], "limits": {"concurrent": 1}},
        ]
    )
    await server.refresh()
    house.apply(model_object("idle", name="asleep", uid="u-2"))
    application.paused.clear()
    value = server.gateway.metering.registry.get_sample_value

    def limited(name: str, limit: str) -> float | None:
        return value("gptoss_gateway_limited_requests_total", {"tenant": name, "limit": limit})

    def at(name: str, place: str) -> float | None:
        return value("gptoss_gateway_tenant_requests", {"tenant": name, "place": place})

    async with client(server) as api, client(server, key=OTHER_KEY) as other:
        running = [asyncio.create_task(ask(api)), asyncio.create_task(ask(other, "asleep"))]
        await eventually(lambda: len(application.posts) == 1 and at("other", "waiting") == 1)
        assert (at("ml", "in flight"), at("ml", "waiting")) == (1, None)
        with pytest.raises(openai.RateLimitError):
            await ask(other)
        application.paused.set()
        await ask(api)
        with pytest.raises(openai.RateLimitError):
            await ask(api)
        assert (limited("other", "concurrent"), limited("ml", "requests_per_minute")) == (1, 1)
        running[1].cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await eventually(lambda: server.gateway.ledger.tenants() == {})


async def test_who_makes_room_for_others_is_told_and_counted(house):
    house.write_keys(
        [
            {"name": "ml", "keys": [hashed(KEY)], "namespaces": ["ml"]},
            {"name": "other", "keys": [hashed(OTHER_KEY)], "namespaces": ["ml"]},
        ]
    )
    for number in range(3):
        house.apply(model_object("idle", name=f"asleep-{number}", uid=f"u-{number}"))
    server = await house.open_gateway(limits={"maxHeldTotal": 2})
    gateway = server.gateway
    async with client(server) as api, client(server, key=OTHER_KEY) as other:
        greedy = []
        for number in range(2):
            greedy.append(asyncio.create_task(ask(api, f"asleep-{number}")))
            await eventually(lambda uid=f"u-{number}": gateway.ledger.counts(uid) == (1, 0))
        modest = asyncio.create_task(ask(other, "asleep-2"))
        with pytest.raises(openai.RateLimitError) as caught:
            await asyncio.wait_for(greedy[1], 60)
        assert caught.value.code == "too_many_held_requests"
        assert (gateway.ledger.counts("u-0"), gateway.ledger.counts("u-2")) == ((1, 0), (1, 0))
        labels = {"tenant": "ml", "limit": "held_in_all"}
        assert gateway.metering.registry.get_sample_value("gptoss_gateway_limited_requests_total", labels) == 1
        for task in (greedy[0], modest):
            task.cancel()
        await asyncio.gather(greedy[0], modest, return_exceptions=True)


async def test_gateways_share_a_tenants_limits_and_one_that_ends_leaves_its_share_to_the_others(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    house.write_keys([tenant(limits={"requestsPerMinute": 600, "concurrent": 4})])
    first = await house.open_gateway()
    second = await house.open_gateway("gateway-1", shutdown={"graceSeconds": 600})
    for server in (first, second):
        await eventually(lambda server=server: server.gateway.census.processes == 2)
        assert "gptoss_gateway_processes 2.0" in await metrics(server)
    async with client(first) as api, client(second) as other:
        assert (await ask(api)).headers["x-ratelimit-limit-requests"] == "300"
        application.paused.clear()
        running = asyncio.create_task(ask(other))
        await eventually(lambda: len(application.posts) == 2)
        stopping = asyncio.create_task(second.stop())
        await eventually(lambda: first.gateway.census.processes == 1)
        assert not stopping.done()  # it lets its open request end, and takes no other
        running_too = [asyncio.create_task(ask(api)) for _ in range(4)]
        await eventually(lambda: len(application.posts) == 6)
        with pytest.raises(openai.RateLimitError):
            await ask(api)
        application.paused.set()
        for answer in await asyncio.gather(*running_too):
            assert answer.headers["x-ratelimit-limit-requests"] == "600"
        assert (await running).headers["x-ratelimit-limit-requests"] == "300"
        await stopping
        house.servers.remove(second)


async def test_limits_are_reloaded_with_the_keys(awake, house):
    server, _ = awake
    async with client(server) as api:
        for _ in range(3):
            await ask(api)
        with pytest.raises(openai.RateLimitError):
            await ask(api)
        house.write_keys([tenant()])
        await server.gateway.refresh()
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
