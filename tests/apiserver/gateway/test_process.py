"""`python -m gptoss_gateway` against a real API server, with the rights that it asks for and no more."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
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
PATIENCE = 150.0
KEYED = {"Authorization": f"Bearer {KEY}"}
RIGHTS = [
    {"apiGroups": ["serving.gptoss.dev"], "resources": ["gptossdeployments"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["serving.gptoss.dev"],
        "resources": ["gatewayreports"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    },
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

    def __init__(self, program: asyncio.subprocess.Process, log: Path) -> None:
        self.program, self.log = program, log
        self.url = self.admin = ""

    async def ready(self) -> None:
        async def listens() -> bool:
            for line in self.log.read_text().splitlines():
                if '"message": "listening"' in line and line.endswith("}"):
                    told = json.loads(line)
                    self.url, self.admin = told["url"], told["admin"]
                    return True
            assert self.program.returncode is None, self.log.read_text()
            return False

        async def is_ready() -> bool:
            async with aiohttp.ClientSession() as session, session.get(self.admin + "/readyz") as answer:
                return answer.status == 200

        await until(listens, self.log)
        await until(is_ready, self.log)

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.program.wait()


async def until(holds: Callable[[], Awaitable[object]], log: Path | None = None) -> None:
    """Wait until something is so; when it was in vain, a gateway's log is told."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not await holds():  # noqa: ASYNC110 - it happens in other processes
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE:.0f} s: {holds.__qualname__}\n{last_words(log)}") from None


def last_words(log: Path | None) -> str:
    return f"── {log}\n{log.read_text()[-6000:]}" if log is not None else ""


@contextlib.asynccontextmanager
async def gateway_process(
    plane, folder: Path, engines: Engines, namespace: str, *, kubeconfig: Path | None = None, **more: Any
) -> AsyncIterator[Process]:
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
    log = folder / "gateway.log"
    with log.open("wb") as output:  # a pipe that nobody reads would stop the gateway once it is full
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gptoss_gateway", "--settings", str(folder / "gateway.yaml"),
            "--kubeconfig", str(kubeconfig or plane.kubeconfig_for(GATEWAY_USER)),
            stderr=output, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
    try:
        process = Process(program, log)
        await process.ready()
        yield process
    finally:
        if program.returncode is None:
            program.kill()
        await program.wait()
        print(last_words(log))


async def reports(plane, namespace: str) -> list[dict]:
    listed = await asyncio.to_thread(plane.kubectl, "get", "gatewayreports", "-n", namespace, "-o", "json")
    return json.loads(listed)["items"]


async def test_a_sleeping_model_is_reported_woken_and_answered_and_the_report_leaves_with_the_process(
    rights, engines, namespace, tmp_path
):
    plane = rights
    plane.kubectl("create", "-f", "-", stdin=json.dumps(without_uid(deployment_object("assistant", namespace))))
    async with gateway_process(plane, tmp_path, engines, namespace) as process:
        async with openai.AsyncOpenAI(base_url=process.url + "/v1", api_key=KEY, max_retries=0) as api:
            assert [model.id async for model in api.models.list()] == ["assistant"]
            answer = asyncio.create_task(api.chat.completions.create(model="assistant", messages=MESSAGES))

            async def demands() -> list[dict]:
                (report,) = await reports(plane, namespace)
                return report["spec"].get("deployments") or []

            await until(demands, process.log)
            (demand,) = await demands()
            assert demand["waiting"] == 1
            application = Application(model_id=engine_model_id(namespace, "assistant", demand["uid"]))
            engines.applications[route_prefix(namespace, "assistant")] = application
            assert (await answer).choices[0].message.content == "Hello world"

            status = {"status": {"conditions": [condition("ScaledToZero", "False", "Draining")], "drainEpoch": 4}}
            plane.kubectl(
                "patch", "gptoss", "assistant", "-n", namespace, "--subresource=status", "--type=merge",
                "-p", json.dumps(status),
            )  # fmt: skip

            async def acknowledged() -> bool:
                return [each.get("drainEpochSeen") for each in await demands()] == [4]

            async def forgotten() -> bool:
                return [model.id async for model in api.models.list()] == []

            await until(acknowledged, process.log)
            plane.kubectl("delete", "gptoss", "assistant", "-n", namespace)
            await until(forgotten, process.log)
        process.program.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
    assert await reports(plane, namespace) == []


async def test_a_killed_process_leaves_its_report_behind_and_the_next_has_its_own(rights, engines, namespace, tmp_path):
    async with gateway_process(rights, tmp_path, engines, namespace) as process:
        process.program.kill()
        await process.program.wait()
    async with gateway_process(rights, tmp_path, engines, namespace):
        names = {report["metadata"]["name"] for report in await reports(rights, namespace)}
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
                found = [(each, await self._is_ready(session, each)) for each in self.gateways]
                self.ready = [each for each, is_ready in found if is_ready]
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
    applications = {name: awake(plane, engines, namespace, name) for name in ("busy", "long")}
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
        # Whoever follows /readyz on a busy machine learns of it late.
        shutdown = {"delaySeconds": 5, "graceSeconds": 300}
        return gateway_process(plane, tmp_path / name, engines, namespace, shutdown=shutdown)

    async with (
        contextlib.AsyncExitStack() as stack,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        old = [await stack.enter_async_context(start(name)) for name in ("one", "two")]
        fleet.gateways += old
        following = asyncio.create_task(fleet.follow())

        async def both_ready() -> bool:
            return len(fleet.ready) == 2

        await until(both_ready)
        body = {"model": "long", "messages": MESSAGES, "stream": True}
        streams = [
            await session.post(gateway.url + "/v1/chat/completions", json=body, headers=KEYED) for gateway in old
        ]
        workers = [asyncio.create_task(work(number, session)) for number in range(8)]
        new = []
        for gateway in old:
            new.append(await stack.enter_async_context(start(f"after-{len(new)}")))
            fleet.gateways.append(new[-1])

            async def followed(newest: Process = new[-1]) -> bool:
                return newest in fleet.ready

            async def left(leaving: Process = gateway) -> bool:
                return leaving not in fleet.ready

            await until(followed, new[-1].log)
            gateway.program.send_signal(signal.SIGTERM)
            await until(left, gateway.log)
        assert [gateway.program.returncode for gateway in old] == [None, None]
        applications["long"].paused.set()
        for stream in streams:
            assert (await stream.text()).endswith("data: [DONE]\n\n")
        assert [await gateway.ended() for gateway in old] == [0, 0]

        async def all_answered() -> bool:
            for worker in workers:
                if worker.done():
                    worker.result()  # what went wrong, if anything did
            return {gateway.url for gateway in (*old, *new)} <= set(answered) and len(answered) > 100

        await until(all_answered)
        stop.set()
        await asyncio.gather(*workers)
        following.cancel()
        await asyncio.wait({following})


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
    _, errors = await asyncio.wait_for(program.communicate(), PATIENCE)
    assert program.returncode == 1
    assert re.search(says, errors.decode())


def awake(plane, engines: Engines, namespace: str, name: str, **spec: Any) -> Application:
    """Make a deployment that is ready by its status, and its engine."""
    plane.kubectl("create", "-f", "-", stdin=json.dumps(without_uid(deployment_object(name, namespace, **spec))))
    status = {"status": {"conditions": [condition("EngineReady", "True", "Answering")]}}
    plane.kubectl(
        "patch", "gptoss", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(status)
    )
    uid = plane.kubectl("get", "gptoss", name, "-n", namespace, "-o", "jsonpath={.metadata.uid}").strip()
    application = Application(model_id=engine_model_id(namespace, name, uid))
    engines.applications[route_prefix(namespace, name)] = application
    return application


def without_uid(raw: dict) -> dict:
    raw["metadata"] = {"name": raw["metadata"]["name"], "namespace": raw["metadata"]["namespace"]}
    return raw
