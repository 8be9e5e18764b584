"""Gateways that share one listening socket, as the workers of a pod do."""

import asyncio
import socket
from contextlib import AsyncExitStack

import aiohttp
import openai
import pytest

from gptoss_gateway.server import Server, Sockets
from tests.contract.gateway.house import KEY, UID, eventually, model_object
from tests.contract.gateway.test_passing_through import AUTHORIZED, MESSAGES
from tests.contract.gateway.test_tls import authority, secret, tls  # noqa: F401 - two of them are fixtures


@pytest.mark.parametrize("secure", [False, True])
async def test_one_that_stops_leaves_every_connection_to_the_other(
    house, tmp_path, authority, secret, secure  # noqa: F811
):  # fmt: skip
    house.apply(model_object("serving"))
    house.deploy()
    more = {"tls": tls(secret)} if secure else {}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        servers = [
            await house.open_gateway(
                f"gateway-{name}",
                sockets=Sockets(clients=listening.dup(), admin=tmp_path / name, lifeline=-1),
                **more,
            )
            for name in "ab"
        ]
        url = f"http{'s' if secure else ''}://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"

        async def ask() -> int:
            connector = aiohttp.TCPConnector(ssl=authority.trusting() if secure else True)
            async with asyncio.timeout(60), aiohttp.ClientSession(connector=connector) as session:
                body = {"model": "assistant", "messages": MESSAGES}
                async with session.post(url, json=body, headers=AUTHORIZED) as answer:
                    return answer.status

        assert await asyncio.gather(*(ask() for _ in range(8))) == [200] * 8
        await servers[0].stop()
        house.servers.remove(servers[0])
        assert await asyncio.gather(*(ask() for _ in range(8))) == [200] * 8


async def test_one_that_cannot_take_connections_is_not_ready_and_does_not_stay(house, tmp_path):
    broken = socket.create_server(("127.0.0.1", 0))
    broken.close()
    server = await house.open_gateway(sockets=Sockets(clients=broken, admin=tmp_path / "admin", lifeline=-1))
    with pytest.raises(OSError, match="descriptor"):
        await asyncio.wait_for(server.serve(asyncio.Event()), 30)
    assert server.gateway.is_ready, "all that is missing is a socket"
    connector = aiohttp.UnixConnector(path=str(tmp_path / "admin"))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://worker/readyz") as answer:
        assert (answer.status, await answer.text()) == (503, "not ready: it takes no connections yet\n")


async def test_one_that_takes_connections_serves_until_it_is_told_to_stop(house, tmp_path):
    stop = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sockets = Sockets(clients=listening.dup(), admin=tmp_path / "admin", lifeline=-1)
        server = await house.open_gateway(sockets=sockets)
        serving = asyncio.create_task(server.serve(stop))
        await eventually(lambda: server.unready is None)
        assert not serving.done()
        stop.set()
        await asyncio.wait_for(serving, 30)


async def test_gateways_that_are_replaced_one_by_one_lose_no_held_request(house, tmp_path):
    """Whoever has no byte yet is told to ask again, at once, and OpenAI's client does: the next gateway holds it."""
    house.apply(model_object("idle", scaling={"wakeTimeoutSeconds": 600}))
    with socket.create_server(("127.0.0.1", 0)) as listening:

        async def started(name: str) -> Server:
            sockets = Sockets(clients=listening.dup(), admin=tmp_path / name, lifeline=-1)
            server = await house.open_gateway(name, sockets=sockets)
            await eventually(lambda: server.unready is None)
            return server

        async def replace(server: Server, name: str) -> None:
            await started(name)
            await server.stop()
            house.servers.remove(server)

        async def until_held(count: int) -> None:
            await eventually(lambda: sum(each.gateway.ledger.counts(UID)[0] for each in house.servers) == count)

        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        old = [await started(name) for name in ("gateway-a", "gateway-b")]
        async with AsyncExitStack() as stack:
            # A connection each, so that both gateways have some.
            apis = [
                await stack.enter_async_context(openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=2))
                for _ in range(12)
            ]
            asked = [
                asyncio.create_task(api.chat.completions.create(model="assistant", messages=MESSAGES)) for api in apis
            ]
            await until_held(12)
            assert all(server.gateway.ledger.counts(UID)[0] for server in old), "all went to one gateway"
            for server, name in zip(old, ("gateway-c", "gateway-d"), strict=True):
                await replace(server, name)
                await until_held(12)
            application = house.deploy()
            answers = await asyncio.gather(*asked)
    assert [answer.choices[0].message.content for answer in answers] == ["Hello world"] * 12
    assert len(application.posts) == 12, "an engine was asked twice"
