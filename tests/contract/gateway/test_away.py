"""Without an operator, and without an API server."""

import asyncio

import openai
import pytest

from tests.contract.gateway.house import UID, client, condition, eventually, model_object
from tests.contract.gateway.test_holding import ask


async def test_without_an_operator_ready_models_serve_and_cold_ones_say_so(house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.admission.UNATTENDED_SECONDS", 0.3)
    house.apply(model_object("serving", name="awake", uid="u-2"))
    house.deploy("awake", uid="u-2")
    house.apply(model_object("idle", scaling={"wakeTimeoutSeconds": 600}))
    server = await house.open_gateway()
    async with client(server) as api:
        with pytest.raises(openai.InternalServerError, match="the operator is away") as caught:
            await ask(api)
        assert caught.value.code == "operator_away"
        assert caught.value.response.headers["retry-after"] == "30"
        monkeypatch.setattr("gptoss_gateway.admission.UNATTENDED_SECONDS", 3600.0)
        with pytest.raises(openai.InternalServerError):  # and the next at once
            await ask(api)
        monkeypatch.setattr("gptoss_gateway.admission.UNATTENDED_SECONDS", 0.3)
        await api.chat.completions.create(model="awake", messages=[])
        assert house.reports.demand("gateway-0")["waiting"] >= 1  # an operator that comes back sees the demand

        house.apply(model_object("waking", scaling={"wakeTimeoutSeconds": 600}))
        answer = ask(api)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (1, 0))
        await asyncio.sleep(0.5)
        house.deploy()
        assert (await answer).choices[0].message.content == "Hello world"


async def test_a_model_that_waits_its_turn_to_start_is_not_unattended(house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.admission.UNATTENDED_SECONDS", 0.1)
    queued = model_object("idle")
    queued["status"]["conditions"].append(condition("Reconciling", "True", "WaitingForStart"))
    house.apply(queued)
    server = await house.open_gateway()
    async with client(server) as api:
        answer = ask(api)
        await house.reports.until("gateway-0", waiting=1)
        await asyncio.sleep(0.4)
        house.deploy()
        assert (await answer).choices[0].message.content == "Hello world"


async def test_without_an_api_server_what_may_not_sleep_serves_and_the_rest_waits_for_it(house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.report.FENCE_SECONDS", 0.3)
    monkeypatch.setattr("gptoss_gateway.report.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("gptoss_gateway.admission.UNATTENDED_SECONDS", 0.1)
    house.apply(model_object("serving"))
    application = house.deploy()
    house.apply(model_object("serving", name="steady", uid="u-2", scaling={"minReplicas": 1}))
    house.deploy("steady", uid="u-2")
    server = await house.open_gateway()
    application.paused.clear()
    async with client(server) as api:
        stream = await ask(api, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        house.reports.refuse = True
        await eventually(lambda: not server.gateway.reporter.may_report)
        assert server.gateway.is_ready  # a whole fleet may be cut off: nobody else would do better

        await api.chat.completions.create(model="steady", messages=[])
        held = ask(api)
        await eventually(lambda: server.gateway.ledger.counts(UID) == (1, 1))
        await asyncio.sleep(0.3)
        assert not held.done()
        application.paused.set()
        assert [chunk.choices[0].delta.content async for chunk in chunks] == [" world"]
        assert not held.done()

        house.reports.refuse = False
        assert (await held).choices[0].message.content == "Hello world"
