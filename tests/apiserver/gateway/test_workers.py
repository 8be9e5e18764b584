"""Several gateway processes behind one socket, against a real API server: killed, drained, and left alone."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.apiserver.gateway.test_process import (
    KEYED,
    MESSAGES,
    PATIENCE,
    Process,
    awake,
    engines,  # noqa: F401 - a fixture
    gateway_process,
    reports,
    rights,  # noqa: F401 - a fixture
    until,
)
from tests.contract.gateway.engine import Application


@pytest.fixture
def busy(rights, engines, namespace) -> Application:  # noqa: F811
    return awake(rights, engines, namespace, "busy")


def pids(process: Process) -> set[int]:
    return set(map(int, Path(f"/proc/{process.program.pid}/task/{process.program.pid}/children").read_text().split()))


async def text(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


def ask(session: aiohttp.ClientSession, process: Process, *, stream: bool = False):
    body = {"model": "busy", "messages": MESSAGES, "stream": stream}
    return session.post(process.url + "/v1/chat/completions", json=body, headers=KEYED)


async def test_a_worker_that_is_killed_is_replaced_and_the_others_serve_meanwhile(
    rights, engines, busy, namespace, tmp_path  # noqa: F811
):  # fmt: skip
    async with gateway_process(rights, tmp_path, engines, namespace, workers=2) as process:
        assert len(await reports(rights, namespace)) == 2

        async def know_each_other() -> bool:
            metrics = await text(process.admin + "/metrics")
            return all(f'gptoss_gateway_processes{{worker="{name}"}} 2.0' in metrics for name in "01")

        await until(know_each_other, process.log)
        before = pids(process)
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)

        async def noticed() -> bool:
            return "gptoss_gateway_worker_replacements_total 1.0" in await text(process.admin + "/metrics")

        await until(noticed, process.log)
        async with aiohttp.ClientSession() as session:
            for _ in range(5):
                async with ask(session, process) as answer:
                    assert answer.status == 200

        async def is_ready() -> bool:
            return len(pids(process) - before) == 1 and await text(process.admin + "/readyz") == "ok\n"

        await until(is_ready, process.log)
        assert len(pids(process)) == 2
        counts = re.findall(
            r'gptoss_gateway_requests_total\{[^}]*worker="\d"\} (\d+)', await text(process.admin + "/metrics")
        )
        assert sum(map(int, counts)) == 5
        assert len(await reports(rights, namespace)) == 3  # the dead one's is for the operator to judge


async def test_all_workers_drain_and_take_their_reports_along(
    rights, engines, busy, namespace, tmp_path  # noqa: F811
):  # fmt: skip
    busy.paused.clear()
    async with (
        gateway_process(rights, tmp_path, engines, namespace, workers=2) as process,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        streams = await asyncio.gather(*(ask(session, process, stream=True) for _ in range(8)))
        process.program.send_signal(signal.SIGTERM)

        async def stops() -> bool:
            return "stopping" in await text(process.admin + "/readyz")

        await until(stops, process.log)
        busy.paused.set()
        for stream in streams:
            assert (await stream.text()).endswith("data: [DONE]\n\n")
        assert await process.ended() == 0
    assert await reports(rights, namespace) == []


async def test_workers_whose_keeper_is_gone_drain_too(rights, engines, namespace, tmp_path):  # noqa: F811
    async with gateway_process(rights, tmp_path, engines, namespace, workers=2) as process:
        assert len(await reports(rights, namespace)) == 2
        process.program.kill()

        async def gone() -> bool:
            return not await reports(rights, namespace)

        await until(gone, process.log)


async def test_a_worker_that_cannot_start_is_the_gateways_failure(tmp_path):
    settings = {
        "systemNamespace": "gptoss-system",
        "listen": {"port": 0},
        "admin": {"port": 0},
        "keysFile": str(tmp_path / "keys.yaml"),
        "workers": 2,
    }
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(settings))
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gptoss_gateway", "--settings", str(tmp_path / "gateway.yaml"),
        "--kubeconfig", str(tmp_path / "none"), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE):
        _, errors = await program.communicate()
    assert program.returncode == 1
    assert "a worker can't start" in errors.decode()
