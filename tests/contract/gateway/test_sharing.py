"""Gateways that share one listening socket, as the workers of a pod do."""

import asyncio
import socket

import aiohttp
import pytest

from gptoss_gateway.server import Sockets
from tests.contract.gateway.house import eventually, model_object
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
