"""Requests to a model that is asleep, waking, draining, or can't start."""

import asyncio
import json
import re
import time
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise

import aiohttp
import openai
import pytest

from gptoss_gateway import prober
from gptoss_gateway.hold import WaitingRoom
from tests.contract.gateway.house import KEY, OTHER_KEY, UID, House, client, eventually, hashed, model_object
from tests.contract.gateway.test_passing_through import AUTHORIZED, MESSAGES, metrics

NOT_WAITED = {"model": "assistant", "namespace": "ml", "route": "/v1/chat/completions", "code": "503"}


def ask(api: openai.AsyncOpenAI, **more):
    return asyncio.create_task(api.chat.completions.create(model="assistant", messages=MESSAGES, **more))


async def test_first_request_for_a_sleeping_model_is_reported_at_once_and_answered_when_the_engine_is(
    house, monkeypatch
):
    monkeypatch.setattr("gptoss_gateway.report.HEARTBEAT_SECONDS", 3600.0)  # no beat would bring it
    house.apply(model_object("idle"))
    server = await house.open_gateway()
    async with client(server) as api:
        answer = ask(api)
        demand = await house.reports.until("gateway-0", waiting=1)
        assert (demand["namespace"], demand["name"], demand["inFlight"]) == ("ml", "assistant", 0)
        assert demand["lastRequest"]
        assert not answer.done()
        house.deploy()
        assert (await answer).choices[0].message.content == "Hello world"
    assert 'gptoss_gateway_hold_seconds_count{model="assistant",namespace="ml"} 1.0' in await metrics(server)


async def test_listing_models_is_no_demand(house):
    house.apply(model_object("idle"))
    server = await house.open_gateway()
    async with client(server) as api:
        assert [model.id async for model in api.models.list()] == ["assistant"]
        with pytest.raises(openai.AuthenticationError):
            await api.with_options(api_key="wrong").chat.completions.create(model="assistant", messages=MESSAGES)
    server.gateway.reporter.notify()
    await asyncio.sleep(0.2)
    assert house.reports.demand("gateway-0") == {}
    assert house.engines.requests == []


async def test_release_does_not_wait_for_hanging_probes(house, monkeypatch):
    monkeypatch.setattr(prober, "answers", partial(prober.answers, within=3600.0))
    house.apply(model_object("idle"))
    application = house.deploy()
    application.deploying = True
    server = await house.open_gateway()
    async with client(server) as api:
        answer = ask(api)
        await eventually(lambda: len(house.engines.requests) >= 3)
        application.deploying = False
        await answer


async def test_an_engine_of_an_older_object_does_not_release(house):
    house.apply(model_object("idle", scaling={"wakeTimeoutSeconds": 1}))
    house.deploy(uid="older-uid")
    server = await house.open_gateway()
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(api)
    assert caught.value.code == "model_waking"


async def test_waiting_stream_gets_heartbeats_that_the_client_library_takes(house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.admission.FIRST_HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr("gptoss_gateway.admission.HEARTBEAT_SECONDS", 0.05)
    pull = {"startedAt": "2026-11-01T00:00:00Z", "progress": "41% of 60.8 GiB"}
    house.apply(model_object("waking", wake={"stage": "deploying", "lastSeconds": 42.4}, pull=pull))
    server = await house.open_gateway()
    async with client(server) as api, aiohttp.ClientSession() as session:
        stream = await asyncio.wait_for(ask(api, stream=True), 30)  # headers came while it waits
        body = {"model": "assistant", "messages": MESSAGES, "stream": True}
        async with session.post(server.url + "/v1/chat/completions", json=body, headers=AUTHORIZED) as response:
            line = await response.content.readline()
            told = (
                rb": waking ml/assistant, waited \d s, stage deploying, weights 41% of 60\.8 GiB, "
                rb"the last wake took 42 s, about [34]\d s to go\n"
            )
            assert re.fullmatch(told, line)
            house.deploy()
            assert "".join([chunk.choices[0].delta.content async for chunk in stream]) == "Hello world"
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_wake_time_out_is_503_with_the_measured_wake_as_retry_after(house):
    house.apply(model_object("idle", scaling={"wakeTimeoutSeconds": 1}))
    server = await house.open_gateway()
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(api)
    assert caught.value.status_code == 503
    assert 30 <= int(caught.value.response.headers["retry-after"]) <= 42  # it took 42.2 s, and one has passed
    demand = await house.reports.until("gateway-0", inFlight=0)
    assert demand["waiting"] == 1  # kept for its retry


async def test_wake_time_out_of_a_held_stream_is_an_error_event(house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.admission.FIRST_HEARTBEAT_SECONDS", 0.05)
    house.apply(model_object("idle", scaling={"wakeTimeoutSeconds": 1}))
    server = await house.open_gateway()
    async with client(server) as api:
        stream = await ask(api, stream=True)
        with pytest.raises(openai.APIError, match="did not answer within 1 s"):
            async for _ in stream:
                pass
        stream = await api.responses.create(model="assistant", input="Hi", stream=True)
        with pytest.raises(openai.APIError, match="did not answer within 1 s"):
            async for _ in stream:
                pass


async def test_more_than_the_bound_is_429_with_retry_after(house):
    house.apply(model_object("idle", scaling={"maxHeldRequests": 2}))
    server = await house.open_gateway()
    async with client(server) as api:
        held = [ask(api), ask(api)]
        await house.reports.until("gateway-0", waiting=range(1, 3))
        await eventually(lambda: server.gateway.ledger.counts(UID) == (2, 0))
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(api)
        assert 30 <= int(caught.value.response.headers["retry-after"]) <= 43
        assert "gptoss_gateway_held_requests" in await metrics(server)
        house.deploy()
        await asyncio.gather(*held)


async def test_the_bound_over_all_models_holds_too(house):
    house.apply(model_object("idle"))
    house.apply(model_object("idle", name="second", uid="u-2"))
    server = await house.open_gateway(limits={"maxHeldTotal": 1})
    async with client(server) as api:
        held = ask(api)
        await house.reports.until("gateway-0", waiting=1)
        with pytest.raises(openai.RateLimitError):
            await api.chat.completions.create(model="second", messages=MESSAGES)
        house.deploy()
        await held


async def test_a_model_that_cannot_start_is_503_at_once_and_not_retried(house):
    house.apply(model_object("stalled"))
    server = await house.open_gateway()
    async with client(server, retries=2) as api:
        with pytest.raises(openai.InternalServerError, match="not among the policy's authorities") as caught:
            await ask(api)
        assert caught.value.code == "UntrustedSigner"
        assert 'code="503",model="assistant",namespace="ml",route="/v1/chat/completions"} 1.0' in await metrics(server)
        house.apply(model_object("suspended"))
        with pytest.raises(openai.InternalServerError, match="suspended"):
            await ask(api)


async def test_waiting_requests_learn_that_the_model_cannot_start(house):
    house.apply(model_object("idle"))
    server = await house.open_gateway()
    async with client(server) as api:
        waiting = [ask(api) for _ in range(3)]
        await house.reports.until("gateway-0", waiting=range(1, 4))
        house.apply(model_object("stalled"))
        for request in waiting:
            with pytest.raises(openai.InternalServerError, match="UntrustedSigner"):
                await request


async def test_waiting_requests_learn_that_the_model_was_deleted(house):
    house.apply(model_object("idle"))
    server = await house.open_gateway()
    async with client(server) as api:
        request = ask(api)
        await house.reports.until("gateway-0", waiting=1)
        house.delete()
        with pytest.raises(openai.NotFoundError):
            await request


async def test_client_that_leaves_keeps_its_demand_until_the_model_answers_somebody(house):
    house.apply(model_object("idle"))
    server = await house.open_gateway()
    async with client(server) as api:
        request = ask(api)
        await house.reports.until("gateway-0", waiting=1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (0, 0))
        (demand,) = server.gateway.ledger.demands()
        assert demand.waiting == 1
        house.deploy()
        await ask(api)
        (demand,) = server.gateway.ledger.demands()
        assert demand.waiting == 0


async def test_a_drain_is_acknowledged_at_once_with_what_is_in_flight(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway()
    async with client(server) as api:
        running = ask(api)
        await eventually(lambda: bool(application.posts))
        house.apply(model_object("draining", epoch=7))
        await house.reports.until("gateway-0", drainEpochSeen=7, inFlight=1, waiting=0)
        held = ask(api)  # the engine still answers, but this one must wait
        await house.reports.until("gateway-0", drainEpochSeen=7, inFlight=1, waiting=1)
        application.paused.set()
        await running
        await house.reports.until("gateway-0", drainEpochSeen=7, inFlight=0, waiting=1)
        assert len(application.posts) == 1
        assert not held.done()
        house.apply(model_object("serving", epoch=7))  # the operator saw the demand
        assert (await held).choices[0].message.content == "Hello world"


async def test_every_gateway_acknowledges_a_drain_also_those_nobody_asked(house):
    house.apply(model_object("serving"))
    first, second = await house.open_gateway("gateway-0"), await house.open_gateway("gateway-1")
    house.deploy()
    async with client(first) as api:
        await ask(api)
    house.apply(model_object("draining", epoch=3))
    await house.reports.until("gateway-0", drainEpochSeen=3, inFlight=0, waiting=0)
    await house.reports.until("gateway-1", drainEpochSeen=3, inFlight=0, waiting=0)
    house.remove()
    house.apply(model_object("idle", epoch=3))
    async with client(first) as one, client(second) as two:
        held = [ask(one), ask(two)]
        await house.reports.until("gateway-0", waiting=1)
        await house.reports.until("gateway-1", waiting=1)
        house.deploy()
        await asyncio.gather(*held)


async def test_a_gateway_that_cannot_report_admits_to_models_that_never_sleep_only(house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.report.FENCE_SECONDS", 0.3)
    monkeypatch.setattr("gptoss_gateway.report.HEARTBEAT_SECONDS", 0.1)
    house.apply(model_object("serving", scaling={"wakeTimeoutSeconds": 30}))
    house.apply(model_object("serving", name="always", uid="u-2", scaling={"minReplicas": 1}))
    house.deploy()
    house.deploy("always", uid="u-2")
    server = await house.open_gateway()
    async with client(server) as api:
        await ask(api)
        house.reports.refuse = True
        await eventually(lambda: not server.gateway.reporter.may_report)
        held = ask(api)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (1, 0))
        await api.chat.completions.create(model="always", messages=MESSAGES)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (1, 0))
        house.reports.refuse = False
        await asyncio.wait_for(held, 60)


async def test_many_held_requests_are_released_in_order_and_as_many_as_the_engine_takes_and_nobody_overtakes(house):
    house.apply(model_object("idle", engine={"maxNumSeqs": 2}))
    server = await house.open_gateway()
    async with client(server) as api:

        def say(word: str):
            messages = [{"role": "user", "content": word}]
            return asyncio.create_task(api.chat.completions.create(model="assistant", messages=messages))

        held = []
        for number in range(5):
            held.append(say(str(number)))
            await eventually(lambda count=number + 1: server.gateway.ledger.counts(UID) == (count, 0))
        application = house.deploy()
        application.paused.clear()
        await eventually(lambda: len(application.posts) == 2)
        held.append(say("late"))
        await eventually(lambda: server.gateway.ledger.counts(UID) == (4, 2))
        await asyncio.sleep(0.3)
        assert len(application.posts) == 2, "its two sequences are taken"
        application.paused.set()
        await asyncio.gather(*held)
    order = [json.loads(body)["messages"][0]["content"] for _, _, body in application.posts]
    assert [sorted(order[:2]), sorted(order[2:4]), sorted(order[4:])] == [["0", "1"], ["2", "3"], ["4", "late"]]


async def test_release_to_many_replicas_is_a_ramp_of_what_one_takes(house, monkeypatch):
    released: list[tuple[float, int]] = []
    call = WaitingRoom.call

    def noted(self: WaitingRoom, uid: str, count: int) -> int:
        released.append((asyncio.get_running_loop().time(), count))
        return call(self, uid, count)

    monkeypatch.setattr(WaitingRoom, "call", noted)
    monkeypatch.setattr("gptoss_gateway.admission.RAMP_SECONDS", 1.0)
    raw = model_object("idle", engine={"maxNumSeqs": 2})
    raw["status"]["replicas"] = {"ready": 3, "desired": 3}
    house.apply(raw)
    server = await house.open_gateway()
    async with client(server) as api:
        held = [ask(api) for _ in range(8)]
        await eventually(lambda: server.gateway.ledger.counts(UID) == (8, 0))
        application = house.deploy()
        application.paused.clear()
        await eventually(lambda: len(application.posts) == 6)
        assert server.gateway.ledger.counts(UID) == (2, 6)
        assert [count for _, count in released] == [2, 2, 2]
        moments = [moment for moment, _ in released]
        assert all(later - sooner > 0.5 for sooner, later in pairwise(moments))
        application.paused.set()
        await asyncio.gather(*held)


async def test_never_more_are_released_than_the_replicas_take(house):
    house.apply(model_object("idle", engine={"maxNumSeqs": 4}, scaling={"targetOngoingRequests": 5}))
    server = await house.open_gateway()
    async with client(server) as api:
        held = [ask(api) for _ in range(8)]
        await eventually(lambda: server.gateway.ledger.counts(UID) == (8, 0))
        application = house.deploy()
        application.paused.clear()
        await eventually(lambda: len(application.posts) >= 5)
        await asyncio.sleep(0.25)
        assert server.gateway.ledger.counts(UID) == (3, 5)
        application.paused.set()
        await asyncio.gather(*held)


async def test_three_gateways_send_no_more_than_two_would_and_one_that_ends_counts_until_it_is_gone(house):
    house.apply(model_object("serving", engine={"maxNumSeqs": 6}))
    application = house.deploy()
    application.paused.clear()
    servers = [await house.open_gateway(f"gateway-{number}") for number in range(3)]
    *staying, leaving = servers

    def counts() -> list[tuple[int, int]]:
        return [server.gateway.ledger.counts(UID) for server in servers]

    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(client(server)) for server in servers]
        asked = [[ask(api) for _ in range(7)] for api in apis]
        await eventually(lambda: counts() == [(3, 4)] * 3)
        leaving.gateway.close_door()
        await eventually(lambda: all(server.gateway.census.processes == 2 for server in staying))
        await asyncio.sleep(0.6)
        assert counts() == [(3, 4)] * 3, "its requests are at the engine still"
        await leaving.stop()
        house.servers.remove(leaving)
        await eventually(lambda: counts()[:2] == [(1, 6)] * 2)
        application.paused.set()
        await asyncio.gather(*asked[0], *asked[1])
        await asyncio.gather(*asked[2], return_exceptions=True)


async def test_a_saturated_model_takes_tenants_in_turn_by_priority_and_a_full_queue_is_shared(house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.report.HEARTBEAT_SECONDS", 3600.0)  # writes are counted
    house.write_keys(
        [
            {"name": "ml", "keys": [hashed(KEY)], "namespaces": ["ml"]},
            {"name": "other", "keys": [hashed(OTHER_KEY)], "namespaces": ["ml"], "priority": 2},
        ]
    )
    house.apply(model_object("serving", engine={"maxNumSeqs": 1}, scaling={"maxHeldRequests": 5}))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway()
    async with client(server) as greedy, client(server, key=OTHER_KEY) as late:

        async def say(api: openai.AsyncOpenAI, word: str):
            counts = server.gateway.ledger.counts(UID)
            messages = [{"role": "user", "content": word}]
            task = asyncio.create_task(api.chat.completions.create(model="assistant", messages=messages))
            await eventually(lambda: server.gateway.ledger.counts(UID) != counts or task.done())
            return task

        flying = await say(greedy, "first")
        held = [await say(greedy, f"greedy-{number}") for number in range(5)]
        with pytest.raises(openai.RateLimitError, match="maxHeldRequests"):
            await (await say(greedy, "too many"))
        served = []
        for number in range(3):
            counts = server.gateway.ledger.counts(UID)
            messages = [{"role": "user", "content": f"late-{number}"}]
            served.append(asyncio.create_task(late.chat.completions.create(model="assistant", messages=messages)))
            await eventually(lambda number=number: held[4 - number].done())
            assert server.gateway.ledger.counts(UID) == counts
        for displaced in held[2:]:
            with pytest.raises(openai.RateLimitError) as caught:
                await displaced
            assert caught.value.response.headers["retry-after"] == "5"
        writes = house.reports.writes
        application.paused.set()
        await asyncio.gather(flying, *held[:2], *served)
        assert house.reports.writes - writes <= 1, "waiting for a place is no news to the operator"
    order = [json.loads(body)["messages"][0]["content"] for _, _, body in application.posts]
    assert order == ["first", "greedy-0", "late-0", "late-1", "greedy-1", "late-2"]


async def test_a_waking_model_does_not_block_another(house):
    house.apply(model_object("waking"))
    house.apply(model_object("serving", name="second", uid="u-2"))
    house.deploy("second", uid="u-2")
    server = await house.open_gateway()
    async with client(server) as api:
        held = [ask(api) for _ in range(20)]
        await eventually(lambda: server.gateway.ledger.counts(UID) == (20, 0))
        await api.chat.completions.create(model="second", messages=MESSAGES)
        assert server.gateway.ledger.counts(UID) == (20, 0)
        house.deploy()
        await asyncio.gather(*held)


async def test_a_busy_model_that_has_no_place_in_time_says_so(house):
    house.apply(model_object("serving", engine={"maxNumSeqs": 1}, scaling={"wakeTimeoutSeconds": 1}))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway()
    async with client(server) as api:
        flying = ask(api)
        await eventually(lambda: bool(application.posts))
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(api)
        assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("model_busy", "5")
        application.paused.set()
        await flying


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_will_not_wait_is_answered_at_once_and_its_demand_is_kept(house, stream):
    house.apply(model_object("idle"))
    server = await house.open_gateway()
    async with client(server, retries=2) as api:
        with pytest.raises(openai.InternalServerError, match="Prefer: wait=0") as caught:
            await ask(api, stream=stream, extra_headers={"Prefer": "respond-async, wait=0"})
        refused = server.gateway.metering.registry.get_sample_value("gptoss_gateway_requests_total", NOT_WAITED)
        assert refused == 1, "its library tried again"
        assert (caught.value.status_code, caught.value.code) == (503, "model_waking")
        assert 30 <= int(caught.value.response.headers["retry-after"]) <= 43
        assert (await house.reports.until("gateway-0", waiting=1))["inFlight"] == 0
        house.deploy()
        house.apply(model_object("serving"))
        await ask(api, extra_headers={"Prefer": "wait=0"})


async def test_a_client_waits_as_long_as_it_says_and_never_longer_than_the_model_allows(house):
    house.apply(model_object("idle", scaling={"wakeTimeoutSeconds": 2}))
    server = await house.open_gateway()
    async with client(server) as api:
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError, match="Prefer: wait=1"):
            await ask(api, extra_headers={"Prefer": "wait=1"})
        assert time.monotonic() - began > 0.9
        with pytest.raises(openai.InternalServerError, match="wakeTimeoutSeconds"):
            await ask(api, extra_headers={"Prefer": "wait=100"})


async def test_the_report_goes_when_the_gateway_stops_and_its_open_requests_are_told(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway()
    async with client(server) as api:
        stream = await ask(api, stream=True)
        whole = ask(api)
        await eventually(lambda: len(application.posts) >= 2)
        stopping = asyncio.create_task(server.stop())
        house.servers.remove(server)
        with pytest.raises(openai.APIError, match="stopping"):
            async for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError) as caught:
            await whole
        assert caught.value.response.headers["retry-after"] == "1"
        await stopping
    assert house.reports.specs == {}


async def test_open_requests_finish_within_the_grace(house):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway(shutdown={"graceSeconds": 60})
    async with client(server) as api:
        running = ask(api)
        await eventually(lambda: bool(application.posts))
        house.servers.remove(server)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as session:
            async with session.get(server.admin_url + "/readyz") as response:
                assert response.status == 503
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(server.url + "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        application.paused.set()
        assert (await running).choices[0].message.content == "Hello world"
        await asyncio.wait_for(stopping, 60)


async def test_killed_gateways_do_not_disturb_the_others(house: House):
    house.apply(model_object("idle"))
    first, second = await house.open_gateway("gateway-0"), await house.open_gateway("gateway-1")
    async with client(first) as one, client(second) as two:
        lost, kept = ask(one), ask(two)
        await house.reports.until("gateway-0", waiting=1)
        await house.reports.until("gateway-1", waiting=1)
        await first.stop()
        house.servers.remove(first)
        with pytest.raises(openai.InternalServerError):
            await lost
        assert set(house.reports.specs) == {"gateway-1"}
        house.deploy()
        assert (await kept).choices[0].message.content == "Hello world"


async def test_held_requests_of_a_gateway_that_stops_are_answered_within_its_grace(house: House):
    house.apply(model_object("idle", scaling={"wakeTimeoutSeconds": 600}))
    server = await house.open_gateway(shutdown={"graceSeconds": 600})
    async with client(server) as api:
        held = [ask(api), ask(api, stream=True)]
        await eventually(lambda: server.gateway.ledger.counts(UID) == (2, 0))
        stopping = asyncio.create_task(server.stop())
        house.servers.remove(server)
        await house.reports.until("gateway-0", waiting=2)
        await eventually(lambda: house.reports.specs["gateway-0"]["closing"])
        house.deploy()
        house.apply(model_object("serving"))
        whole, stream = await asyncio.gather(*held)
        assert whole.choices[0].message.content == "Hello world"
        assert "".join([chunk.choices[0].delta.content async for chunk in stream]) == "Hello world"
        await stopping


async def test_two_gateways_are_fair_to_tenants_each_whatever_one_of_them_asks(house: House):
    """One tenant waits with many requests at both before another comes with a few, whose turns come all the same."""
    many, few = 8, 3
    house.write_keys(
        [
            {"name": "greedy", "keys": [hashed(KEY)], "namespaces": ["ml"]},
            {"name": "modest", "keys": [hashed(OTHER_KEY)], "namespaces": ["ml"]},
        ]
    )
    house.apply(model_object("serving", engine={"maxNumSeqs": 1}))
    application = house.deploy()
    application.paused.clear()
    servers = [await house.open_gateway(f"gateway-{number}") for number in range(2)]
    await eventually(lambda: all(server.gateway.census.senders == 2 for server in servers))

    async with AsyncExitStack() as stack:
        asked = []

        async def wait_in_line(tenant: str, key: str, count: int, *, before: int) -> None:
            for number, server in enumerate(servers):
                api = await stack.enter_async_context(client(server, key=key))
                messages = [{"role": "user", "content": f"{number} {tenant}"}]
                for waiting in range(1, count + 1):
                    request = api.chat.completions.create(model="assistant", messages=messages)
                    asked.append(asyncio.create_task(request))
                    places = (before + waiting - 1, 1) if before == 0 else (before + waiting, 1)
                    await eventually(lambda server=server, places=places: server.gateway.ledger.counts(UID) == places)

        await wait_in_line("greedy", KEY, many, before=0)
        await wait_in_line("modest", OTHER_KEY, few, before=many - 1)
        application.paused.set()
        await asyncio.gather(*asked)
    order = [json.loads(body)["messages"][0]["content"].split() for _, _, body in application.posts]
    for number in ("0", "1"):
        of_one = [tenant for gateway, tenant in order if gateway == number]
        turns = ["greedy", "modest"] * few
        assert of_one == ["greedy", *turns, *["greedy"] * (many - 1 - few)]
