"""`python -m gptoss_gateway` against a real API server, with the rights that it asks for and no more."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import yaml

from gptoss_api.names import engine_model_id, route_prefix
from tests.builders import deployment_object
from tests.contract.gateway.engine import TOKEN, Application, Engines
from tests.contract.gateway.house import KEY, condition
from tests.controlplane import GATEWAY_USER

MESSAGES = [{"role": "user", "content": "Hi"}]
KEYED = {"Authorization": f"Bearer {KEY}"}
RIGHTS = [
    {"apiGroups": ["serving.gptoss.dev"], "resources": ["gptossdeployments"], "verbs": ["list", "watch"]},
    {"apiGroups": ["serving.gptoss.dev"], "resources": ["gatewayreports"], "verbs": ["create", "patch", "delete"]},
]


@pytest.fixture
def rights(control_plane, crds):
    """What a gateway's ClusterRole and Role hold; the reports' verbs are granted in one namespace by the chart."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "test-gateway"},
        "rules": RIGHTS,
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "test-gateway"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "test-gateway"},
        "subjects": [{"kind": "User", "name": GATEWAY_USER}],
    }
    for obj in (role, binding):
        control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(obj))
    yield control_plane
    control_plane.kubectl("delete", "clusterrolebinding,clusterrole", "test-gateway")


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    engines = Engines()
    await engines.start()
    yield engines
    await engines.stop()


class Process:
    """One gateway process and the addresses that its log tells."""

    def __init__(self, program: asyncio.subprocess.Process, url: str, admin: str) -> None:
        self.program, self.url, self.admin = program, url, admin

    async def ready(self) -> None:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while (await session.get(self.admin + "/readyz")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def gateway_process(plane, folder: Path, engines: Engines, namespace: str, **more: Any) -> AsyncIterator[Process]:
    (folder / "token").write_text(TOKEN)
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = {"tenants": [{"name": "test", "keys": [f"sha256:{digest}"], "namespaces": [namespace]}]}
    (folder / "keys.yaml").write_text(yaml.safe_dump(keys))
    settings = {
        "systemNamespace": namespace,
        "listen": {"port": 0},
        "admin": {"port": 0},
        "keysFile": str(folder / "keys.yaml"),
        "rayClusters": [
            {
                "name": "local",
                "dashboardURL": "http://127.0.0.1:1",
                "serveURL": engines.url,
                "gatewayTokenFile": str(folder / "token"),
            }
        ],
        "defaultRayCluster": "local",
        **more,
    }
    (folder / "gateway.yaml").write_text(yaml.safe_dump(settings))
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gptoss_gateway", "--settings", str(folder / "gateway.yaml"),
        "--kubeconfig", str(plane.kubeconfig_for(GATEWAY_USER)),
        stderr=asyncio.subprocess.PIPE, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            while found := await program.stderr.readline():
                line = json.loads(found)
                if line["message"] == "listening":
                    break
        process = Process(program, line["url"], line["admin"])
        await process.ready()
        yield process
    finally:
        if program.returncode is None:
            program.kill()
        await program.communicate()


def reports(plane, namespace: str) -> list[dict]:
    return json.loads(plane.kubectl("get", "gatewayreports", "-n", namespace, "-o", "json"))["items"]


async def test_a_sleeping_model_is_reported_woken_and_answered_and_the_report_leaves_with_the_process(
    rights, engines, namespace, tmp_path
):
    plane = rights
    plane.kubectl("create", "-f", "-", stdin=json.dumps(without_uid(deployment_object("assistant", namespace))))
    async with gateway_process(plane, tmp_path, engines, namespace) as process:
        async with openai.AsyncOpenAI(base_url=process.url + "/v1", api_key=KEY, max_retries=0) as api:
            assert [model.id async for model in api.models.list()] == ["assistant"]
            answer = asyncio.create_task(api.chat.completions.create(model="assistant", messages=MESSAGES))
            async with asyncio.timeout(5):
                while not (demands := reports(plane, namespace)[0]["spec"].get("deployments")):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            (demand,) = demands
            assert demand["waiting"] == 1
            application = Application(model_id=engine_model_id(namespace, "assistant", demand["uid"]))
            engines.applications[route_prefix(namespace, "assistant")] = application
            assert (await answer).choices[0].message.content == "Hello world"

            status = {"status": {"conditions": [condition("ScaledToZero", "False", "Draining")], "drainEpoch": 4}}
            plane.kubectl(
                "patch", "gptoss", "assistant", "-n", namespace, "--subresource=status", "--type=merge",
                "-p", json.dumps(status),
            )  # fmt: skip
            async with asyncio.timeout(5):
                while reports(plane, namespace)[0]["spec"]["deployments"][0]["drainEpochSeen"] != 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

            plane.kubectl("delete", "gptoss", "assistant", "-n", namespace)
            async with asyncio.timeout(5):
                while [model.id async for model in api.models.list()]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        process.program.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.program.wait(), 10) == 0
    assert reports(plane, namespace) == []


async def test_a_killed_process_leaves_its_report_behind_and_the_next_has_its_own(rights, engines, namespace, tmp_path):
    async with gateway_process(rights, tmp_path, engines, namespace) as process:
        process.program.kill()
        await process.program.wait()
    async with gateway_process(rights, tmp_path, engines, namespace):
        names = {report["metadata"]["name"] for report in reports(rights, namespace)}
        assert len(names) == 2


class Fleet:
    """What a Service does: new requests go to gateways that are ready."""

    def __init__(self) -> None:
        self.gateways: list[Process] = []
        self.ready: list[Process] = []
        self._next = 0

    async def follow(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                self.ready = [each for each in self.gateways if await self._is_ready(session, each)]
                await asyncio.sleep(0.05)

    def pick(self) -> Process:
        self._next += 1
        return self.ready[self._next % len(self.ready)]

    @staticmethod
    async def _is_ready(session: aiohttp.ClientSession, gateway: Process) -> bool:
        try:
            async with session.get(gateway.admin + "/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


async def test_a_rolling_restart_under_load_loses_nothing(rights, engines, namespace, tmp_path):
    plane = rights
    applications = {}
    for name in ("busy", "long"):
        plane.kubectl("create", "-f", "-", stdin=json.dumps(without_uid(deployment_object(name, namespace))))
        status = {"status": {"conditions": [condition("EngineReady", "True", "Answering")]}}
        plane.kubectl(
            "patch", "gptoss", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(status)
        )
        uid = plane.kubectl("get", "gptoss", name, "-n", namespace, "-o", "jsonpath={.metadata.uid}").strip()
        applications[name] = Application(model_id=engine_model_id(namespace, name, uid))
        engines.applications[route_prefix(namespace, name)] = applications[name]
    applications["long"].paused.clear()
    fleet, stop = Fleet(), asyncio.Event()
    answered: list[str] = []

    async def work(number: int, session: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            gateway = fleet.pick()
            body = {"model": "busy", "messages": MESSAGES, "stream": number % 2 == 0}
            async with session.post(gateway.url + "/v1/chat/completions", json=body, headers=KEYED) as answer:
                text = await answer.text()
            assert answer.status == 200, text
            assert text.endswith("data: [DONE]\n\n" if body["stream"] else "}"), text
            answered.append(gateway.url)
            await asyncio.sleep(0.02)

    def start(name: str):
        (tmp_path / name).mkdir()
        shutdown = {"delaySeconds": 1, "graceSeconds": 30}
        return gateway_process(plane, tmp_path / name, engines, namespace, shutdown=shutdown)

    async with (
        contextlib.AsyncExitStack() as stack,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        old = [await stack.enter_async_context(start(name)) for name in ("one", "two")]
        fleet.gateways += old
        following = asyncio.create_task(fleet.follow())
        async with asyncio.timeout(5):
            while len(fleet.ready) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        body = {"model": "long", "messages": MESSAGES, "stream": True}
        streams = [
            await session.post(gateway.url + "/v1/chat/completions", json=body, headers=KEYED) for gateway in old
        ]
        workers = [asyncio.create_task(work(number, session)) for number in range(8)]
        new = []
        for gateway in old:
            new.append(await stack.enter_async_context(start(f"after-{len(new)}")))
            fleet.gateways.append(new[-1])
            gateway.program.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                while gateway in fleet.ready or new[-1] not in fleet.ready:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert [gateway.program.returncode for gateway in old] == [None, None]
        applications["long"].paused.set()
        for stream in streams:
            assert (await stream.text()).endswith("data: [DONE]\n\n")
        assert [await asyncio.wait_for(gateway.program.wait(), 10) for gateway in old] == [0, 0]
        stop.set()
        await asyncio.gather(*workers)
        following.cancel()
        await asyncio.wait({following})
        assert {gateway.url for gateway in (*old, *new)} <= set(answered)
        assert len(answered) > 100


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"keysFile": None}, r"keysFile is missing"),
        ({"listen": {"port": "x"}}, r"listen\.port"),
        ({"surprise": 1}, r"surprise: Extra inputs"),
        ({"defaultRayCluster": "b"}, r"defaultRayCluster is 'b'"),
    ],
)
async def test_it_does_not_start_with_wrong_settings_and_names_the_field(tmp_path, change, says):
    settings = {
        "systemNamespace": "gptoss-system",
        "listen": {"port": 0},
        "admin": {"port": 0},
        "keysFile": str(tmp_path / "keys.yaml"),
        "rayClusters": [],
    } | change
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(settings))
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gptoss_gateway", "--settings", str(tmp_path / "gateway.yaml"),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await asyncio.wait_for(program.communicate(), 20)
    assert program.returncode == 1
    assert re.search(says, errors.decode())


def without_uid(raw: dict) -> dict:
    raw["metadata"] = {"name": raw["metadata"]["name"], "namespace": raw["metadata"]["namespace"]}
    return raw
