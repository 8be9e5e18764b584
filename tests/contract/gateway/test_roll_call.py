"""Several gateway processes answer as one about their health and their counts."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gptoss_gateway import roll_call
from gptoss_gateway.metering import Metering
from gptoss_gateway.roll_call import RollCall


@contextlib.asynccontextmanager
async def asked(places: dict[str, Path], *, stopping: bool = False) -> AsyncIterator[tuple[RollCall, str]]:
    with socket.create_server(("127.0.0.1", 0), backlog=7) as clients:
        call = RollCall(places, clients=clients, stopping=lambda: stopping)
        async with serving(call.application(), None) as url:
            yield call, url
        await call.close()


@contextlib.asynccontextmanager
async def serving(application: web.Application, place: Path | None) -> AsyncIterator[str]:
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0) if place is None else web.UnixSite(runner, place)
    await site.start()
    yield "" if place is not None else f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def worker(*, ready: int = 200, hangs: bool = False, refused: int = 0) -> web.Application:
    metering = Metering()
    for _ in range(refused):
        metering.request_refused(401)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=ready, text="not ready: the catalogue is not complete yet\n")

    async def healthz(_: web.Request) -> web.Response:
        if hangs:
            await asyncio.Event().wait()
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=metering.expose())

    application = web.Application()
    application.add_routes([web.get("/readyz", readyz), web.get("/healthz", healthz), web.get("/metrics", metrics)])
    return application


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_ready_means_all_and_counts_are_told_apart(tmp_path):
    places = {"0": tmp_path / "0", "1": tmp_path / "1"}
    async with serving(worker(refused=2), places["0"]), asked(places) as (call, url):
        assert await get(url + "/readyz") == (503, "worker 1: it is starting\n")
        assert await get(url + "/healthz") == (200, "ok\n")
        async with serving(worker(ready=503, refused=3), places["1"]):
            assert (await get(url + "/readyz"))[0] == 503
        async with serving(worker(refused=3), places["1"]):
            assert await get(url + "/readyz") == (200, "ok\n")
            call.replaced()
            _, metrics = await get(url + "/metrics")
    lines = metrics.splitlines()
    assert 'gptoss_gateway_refused_requests_total{code="401",worker="0"} 2.0' in lines
    assert 'gptoss_gateway_refused_requests_total{code="401",worker="1"} 3.0' in lines
    assert lines.count("# TYPE gptoss_gateway_refused_requests_total counter") == 1
    assert "gptoss_gateway_worker_replacements_total 1.0" in lines
    assert "gptoss_gateway_untaken_connections_limit 7.0" in lines, "of the socket that they share, once"


async def test_a_worker_that_hangs_is_not_healthy(tmp_path, monkeypatch):
    monkeypatch.setattr(roll_call, "ASK_SECONDS", 0.5)
    place = tmp_path / "0"
    async with serving(worker(hangs=True), place), asked({"0": place}) as (_, url):
        assert await get(url + "/healthz") == (503, "worker 0 does not answer\n")


async def test_a_gateway_that_stops_is_not_ready_whatever_its_workers_say(tmp_path):
    place = tmp_path / "0"
    async with serving(worker(), place), asked({"0": place}, stopping=True) as (_, url):
        assert await get(url + "/readyz") == (503, "not ready: stopping\n")


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/healthz"])
async def test_nobody_there_is_no_failure_of_the_roll_call(tmp_path, path):
    async with asked({"0": tmp_path / "0"}) as (_, url):
        assert (await get(url + path))[0] in (200, 503)
