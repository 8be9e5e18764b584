"""A gateway whose real API server can't be reached for a minute, and comes back."""

import asyncio
import time

import aiohttp
import pytest

from tests.apiserver.gateway.test_process import (
    KEYED,
    MESSAGES,
    awake,
    engines,  # noqa: F401 - a fixture
    gateway_process,
    rights,  # noqa: F401 - a fixture
    until,
)
from tests.controlplane import GATEWAY_USER
from tests.relay import Relay

AWAY_SECONDS = 60.0

pytestmark = pytest.mark.timeout(600)


async def test_streams_and_models_that_never_sleep_do_not_notice_and_the_others_requests_are_kept(
    rights, engines, namespace, tmp_path  # noqa: F811
):  # fmt: skip
    streaming = awake(rights, engines, namespace, "streaming")
    streaming.paused.clear()
    awake(rights, engines, namespace, "sleepy")
    awake(rights, engines, namespace, "steady", scaling={"minReplicas": 1})
    relay = Relay(rights.kubeconfig_for(GATEWAY_USER), tmp_path / "relay.kubeconfig")
    async with (
        gateway_process(rights, tmp_path, engines, namespace, kubeconfig=relay.kubeconfig) as process,
        aiohttp.ClientSession() as session,
    ):

        async def ask(model: str) -> int:
            body = {"model": model, "messages": MESSAGES}
            async with session.post(process.url + "/v1/chat/completions", json=body, headers=KEYED) as answer:
                return answer.status

        async def told(line: str) -> bool:
            async with session.get(process.admin + "/metrics") as answer:
                return line in await answer.text()

        body = {"model": "streaming", "messages": MESSAGES, "stream": True}
        stream = await session.post(process.url + "/v1/chat/completions", json=body, headers=KEYED)
        assert (await stream.content.readline()).startswith(b"data: {")
        relay.cut()
        cut = time.monotonic()

        asking = asyncio.create_task(ask("sleepy"))
        line = f'gptoss_gateway_held_requests{{model="sleepy",namespace="{namespace}"}} 1.0'

        async def is_held() -> bool:
            nonlocal asking
            if asking.done():
                assert asking.result() == 200, "what is known lasts for a while"
                asking = asyncio.create_task(ask("sleepy"))
            return await told(line)

        await until(is_held, process.log)
        while time.monotonic() - cut < AWAY_SECONDS:
            async with asyncio.timeout(60):
                assert await ask("steady") == 200
            await asyncio.sleep(1)
        assert not asking.done()
        streaming.paused.set()
        assert (await stream.text()).endswith("data: [DONE]\n\n")
        assert not asking.done()

        relay.mend()
        async with asyncio.timeout(120):
            assert await asking == 200
            assert await ask("sleepy") == 200
