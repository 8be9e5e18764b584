"""A pull tells the operator on a port how far it is, and whoever is at that port hinders no pull."""

import asyncio
import json
import os
import socket
import sys

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner

from gptoss_api.pull_report import MAX_REPORT_BYTES, PullReport, report_name
from gptoss_cli.local.ports import free_ports
from gptoss_cli.report_port import reported_on
from gptoss_cli.weights import weights as command
from gptoss_operator.substrates.kuberay import reports
from gptoss_operator.substrates.kuberay.reports import report_at
from gptoss_weights.materialise import PullProgress
from tests.builders import DIGEST
from tests.contract.weights.conftest import SERVED, SHARD
from tests.contract.weights.proxy import Trickle, on
from tests.unit.weights.builders import MODEL

NAME = report_name(DIGEST)
HALF = PullProgress(bytes_done=500, bytes_total=1000, files_done=1, files_total=3)


@pytest.fixture
def port(monkeypatch):
    """A free port in the place of the one that pods have."""
    (free,) = free_ports(1)
    monkeypatch.setattr(reports, "REPORT_PORT", free)
    return free


@pytest.fixture
async def ask():
    """What the operator makes of one question."""
    async with aiohttp.ClientSession() as session:

        async def once(name=NAME, *, address="127.0.0.1"):
            return await report_at(session, address, name)

        yield once


async def test_a_slow_pull_is_told_while_it_runs(uploaded, object_store, proxy, weights, port, ask, tmp_path):
    proxy.fault = on(SHARD, Trickle(after=100_000))
    keys = {"AWS_ACCESS_KEY_ID": object_store.access_key, "AWS_SECRET_ACCESS_KEY": object_store.secret_key}
    pull = ["-m", "gptoss_cli.main", "weights", "pull", object_store.uri(uploaded), "--to", str(tmp_path / "to")]
    pull += ["--model", MODEL, "--manifest-digest", weights.digest, "--report-port", str(port)]
    environment = {**os.environ, **keys, "AWS_ENDPOINT_URL_S3": proxy.endpoint, "AWS_REGION": object_store.region}
    process = await asyncio.create_subprocess_exec(sys.executable, *pull, env=environment)
    seen: list[PullReport] = []
    try:
        async with asyncio.timeout(60):
            while len(seen) < 2 or seen[-1].bytes_done <= 100_000:
                said = await ask(report_name(weights.digest))
                report = PullReport.model_validate_json(said) if said is not None else None
                if report is not None and report not in seen:
                    seen.append(report)
                await asyncio.sleep(0.1)
    finally:
        process.terminate()
        await process.wait()
    assert seen[-1].beat > seen[0].beat
    assert seen[-1].bytes_total == sum(len(weights.files[name]) for name in SERVED)
    assert seen[-1].files_total == len(SERVED)


async def test_nothing_is_told_before_there_is_something_nor_of_other_weights(port, ask):
    with reported_on(port, DIGEST) as progress:
        assert await ask() is None
        progress(HALF)
        said = await ask()
        assert said is not None
        assert json.loads(said)["bytesDone"] == 500
        assert await ask(address="::1") == said, "a pod may have no other address"
        assert await ask(report_name("sha256:" + "0" * 64)) is None
    assert await ask() is None, "the port is given back with the pull's end"


async def test_who_asks_and_says_nothing_delays_neither_the_pull_nor_its_end(port, ask):
    with reported_on(port, DIGEST) as progress:
        progress(HALF)
        with socket.create_connection(("127.0.0.1", port)):
            async with asyncio.timeout(30):
                while await ask() is None:
                    pass  # until the silent one is given up, which came first
        silent = socket.create_connection(("127.0.0.1", port))
    silent.close()


def test_a_port_that_is_taken_is_told_and_stops_no_pull(weights, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        pull = ["pull", f"file://{weights.folder}", "--to", tmp_path / "to", "--model", MODEL]
        pull += ["--manifest-digest", weights.digest, "--report-port", port]
        found = CliRunner().invoke(command, [str(each) for each in pull])
    assert found.exit_code == 0
    assert f"--report-port {port} can't be had: Address already in use; the pull goes on" in found.stderr


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="x" * (MAX_REPORT_BYTES + 1)),
        web.Response(body=b"\xff\xfe"),
        web.Response(status=302, headers={"Location": f"/other/{NAME}"}),
        web.Response(status=500, text="{}"),
    ],
    ids=["too long", "no text", "a redirection", "an error"],
)
async def test_what_is_no_report_is_none(port, ask, answer):
    async def other(_: web.Request) -> web.Response:
        return web.Response(text="followed")

    async def given(_: web.Request) -> web.Response:
        return answer

    app = web.Application()
    app.router.add_get(f"/{NAME}", given)
    app.router.add_get(f"/other/{NAME}", other)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        assert await ask() is None
    finally:
        await runner.cleanup()


async def test_an_answer_without_a_length_or_an_end_is_none(port, ask, monkeypatch):
    monkeypatch.setattr(reports, "_SECONDS", 0.2)

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    async def unbounded(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n{}")
        writer.close()

    for answers in (endless, unbounded):
        async with await asyncio.start_server(answers, "127.0.0.1", port), asyncio.timeout(60):
            assert await ask() is None
