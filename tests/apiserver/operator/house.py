"""The operator as a process at a real API server, with really signed weights; and a fake Ray cluster beside it."""

import asyncio
import json
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from gptoss_api.names import API_VERSION
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_weights.sign import generate_key, sign_folder
from tests.contract.operator.fake_ray import GATEWAY_TOKEN, TOKEN, FakeRay
from tests.controlplane import OPERATOR_USER, REPOSITORY

SYSTEM = "gptoss-system"
PATIENCE = 150.0
"""Seconds that a busy machine may take for what takes one or two: a deadline costs nothing where all is well."""


def signed_weights(folder: Path, key: Path, *, model: str = "gpt-oss-20b", content: bytes = b"\x00" * 8) -> Path:
    """The smallest folder that nodes would accept, signed."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]}))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content)
    (folder / "model.sig").unlink(missing_ok=True)
    sign_folder(folder, model=model, key=key)
    return folder


@dataclass
class House:
    """The operator's process and what it sees, whatever runs the engines."""

    plane: ControlPlane
    namespace: str
    folder: Path
    key: Path
    installation: str
    process: asyncio.subprocess.Process | None = None
    metrics_port: int = 0
    beats: dict[str, int] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        return self.folder / "weights" / "gpt-oss-20b"

    @property
    def uri(self) -> str:
        """Where a deployment's weights are."""
        return f"file://{self.weights}"

    @property
    def source(self) -> str:
        """Where the policy lets weights come from."""
        return f"file://{self.folder / 'weights'}"

    @property
    def settings(self) -> dict[str, Any]:
        """The operator's settings."""
        raise NotImplementedError

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.plane.kubectl, *arguments, stdin=stdin)

    async def apply_object(self, raw: Mapping[str, Any]) -> None:
        await self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(raw))

    async def apply(self, name: str = "assistant", annotations: Mapping[str, str] | None = None, **spec: Any) -> None:
        await self.apply_object(
            {
                "apiVersion": API_VERSION,
                "kind": "GptOssDeployment",
                "metadata": {"name": name, "namespace": self.namespace, "annotations": dict(annotations or {})},
                "spec": {"model": {"name": "gpt-oss-20b", "uri": self.uri}, **spec},
            }
        )

    def public_pem(self, key: Path | None = None) -> str:
        key = key or self.key
        return key.with_name(key.name + ".pub").read_text()

    async def policy(self, **changes: Any) -> None:
        """Apply the namespace's policy; keyword arguments replace fields of its spec."""
        key = {"publicKeyPEM": self.public_pem()}
        await self.apply_object(
            {
                "apiVersion": API_VERSION,
                "kind": "WeightTrustPolicy",
                "metadata": {"name": f"policy-{self.namespace}"},
                "spec": {
                    "default": True,
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
                    "sources": [{"prefix": self.source}],
                    "authorities": [{"name": "release", "models": ["gpt-oss-*"], "key": key}],
                    **changes,
                },
            }
        )

    async def deployment(self, name: str = "assistant") -> dict[str, Any]:
        return json.loads(await self.kubectl("get", "gptoss", name, "-n", self.namespace, "-o", "json"))

    async def wait_for(self, kind: str, status: str, reason: str, name: str = "assistant") -> Any:
        """Wait until a condition has a status and reason, and return the object."""
        found: Any = None

        async def has_it() -> bool:
            nonlocal found
            found = await self.deployment(name)
            return any(
                (each["type"], each["status"], each["reason"]) == (kind, status, reason)
                for each in (found.get("status") or {}).get("conditions", ())
            )

        await self.eventually(has_it, f"{name}: {kind} is {status} {reason}")
        return found

    async def wait_for_weights(self, name: str = "assistant", **expected: str) -> None:
        """Wait until status.weights holds the expected values."""

        async def holds() -> bool:
            weights = ((await self.deployment(name)).get("status") or {}).get("weights") or {}
            return expected.items() <= weights.items()

        await self.eventually(holds, f"status.weights of {name} is {expected}")

    async def wait_for_metric(self, line: str) -> None:
        """Wait until the operator counts it: it tells its metrics after the status."""

        async def counted() -> bool:
            return line in await self.metrics()

        await self.eventually(counted, f"metric {line}")

    async def wait_for_events(self, *reasons: str) -> None:
        """Wait until the operator has told of all of it: events come after the status."""

        async def told() -> bool:
            return set(reasons) <= set(await self._event_reasons())

        await self.eventually(told, f"events {reasons}")

    async def wait_until_ready(self) -> None:
        """Wait until the operator has listed everything and watches."""

        async def ready() -> bool:
            try:
                return (await self.get("/readyz"))[0] == 200
            except (aiohttp.ClientError, OSError):
                return False

        await self.eventually(ready, "the operator is ready")

    async def eventually(self, reached: Callable[[], Awaitable[object]], what: str) -> None:
        """Wait until something holds; when it was in vain, all that can be seen is told."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not await reached():  # noqa: ASYNC110 - it happens in another process
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE:.0f} s: {what}\n{await self.seen()}") from None

    async def seen(self) -> str:
        """All that can be seen from outside, for people who read of a failure."""
        listed = json.loads(await self.kubectl("get", "gptoss", "-n", self.namespace, "-o", "json"))["items"]
        ours = [
            line for line in (await self.metrics()).splitlines() if not line.startswith("#") and "_bucket{" not in line
        ]
        logs = [f"{path.name}\n{path.read_text()[-6000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n── ".join(
            [
                json.dumps({each["metadata"]["name"]: each.get("status") for each in listed}, indent=1),
                f"events: {await self._event_reasons()}",
                await self.around(),
                "\n".join(ours),
                *logs,
            ]
        )

    async def around(self) -> str:
        """What can be seen of whatever runs the engines."""
        return ""

    async def _event_reasons(self) -> list[str]:
        return (await self.kubectl("get", "events", "-n", self.namespace, "-o", "jsonpath={.items[*].reason}")).split()

    async def report(self, gateway: str = "gateway-0", **deployments: Mapping[str, Any]) -> None:
        """A gateway's heartbeat, with what it says about deployments by name."""
        self.beats[gateway] = self.beats.get(gateway, 0) + 1
        entries = []
        for name, content in deployments.items():
            uid = (await self.deployment(name))["metadata"]["uid"]
            entries.append({"uid": uid, "namespace": self.namespace, "name": name, **content})
        await self.apply_object(
            {
                "apiVersion": API_VERSION,
                "kind": "GatewayReport",
                "metadata": {"name": gateway, "namespace": SYSTEM},
                "spec": {
                    "gateway": gateway,
                    "heartbeat": self.beats[gateway],
                    "renewedAt": "2026-01-01T00:00:00.000000Z",
                    "deployments": entries,
                },
            }
        )

    async def start_operator(self) -> None:
        self.process = await self.spawn("operator", self.settings)

    async def spawn(
        self, name: str, settings: Mapping[str, Any], *arguments: str, kubeconfig: Path | None = None
    ) -> asyncio.subprocess.Process:
        """Start an operator with a settings file and a log of its own name."""
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(settings)))
        with (self.folder / f"{name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gptoss_operator",
                *arguments,
                "--settings",
                str(self.folder / f"{name}.yaml"),
                "--kubeconfig",
                str(kubeconfig or self.plane.kubeconfig_for(OPERATOR_USER)),
                cwd=REPOSITORY,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
                stdout=log,
                stderr=log,
            )

    async def stop_operator(self, number: int = signal.SIGTERM) -> int:
        if self.process is None or self.process.returncode is not None:
            return self.process.returncode if self.process is not None else 0
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PATIENCE)

    async def kill_operator(self) -> None:
        await self.stop_operator(signal.SIGKILL)

    async def metrics(self) -> str:
        """What the operator counts; why it can't be read, if it can't."""
        try:
            return (await self.get("/metrics"))[1]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return repr(error)

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
            session.get(f"http://127.0.0.1:{self.metrics_port}{path}") as answer,
        ):
            return answer.status, await answer.text()


@dataclass
class Stack(House):
    """Engines on a fake Ray cluster."""

    ray: FakeRay = field(kw_only=True)

    def app(self, name: str) -> str:
        return f"gptoss-{self.installation}-{self.namespace}-{name}"

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "installation": self.installation,
            "systemNamespace": SYSTEM,
            "defaultRayCluster": "local",
            "gatewayURL": "http://127.0.0.1:8080/v1",
            "rayClusters": [
                {
                    "name": "local",
                    "dashboardURL": self.ray.url,
                    "serveURL": self.ray.url,
                    "tokenFile": str(self.folder / "ray-token"),
                    "gatewayTokenFile": str(self.folder / "gateway-token"),
                }
            ],
            "weightSources": {"fileRoots": [str(self.folder / "weights")]},
            "resyncSeconds": 5,
            "metrics": {"host": "127.0.0.1", "port": self.metrics_port},
        }

    async def until(self, what: Callable[[], object]) -> None:
        """Wait until something about the fake Ray cluster holds."""

        async def holds() -> object:
            return what()

        await self.eventually(holds, "the Ray cluster is as it should be")

    async def around(self) -> str:
        ray = {name: application["status"] for name, application in self.ray.applications.items()}
        return f"Ray: {ray}, {len(self.ray.puts)} writes, starts {self.ray.starts}"


@asynccontextmanager
async def stack(
    plane: ControlPlane, namespace: str, folder: Path, port: int, *, start: bool = True
) -> AsyncIterator[Stack]:
    ray = FakeRay()
    await ray.start()
    (folder / "ray-token").write_text(TOKEN)
    (folder / "gateway-token").write_text(GATEWAY_TOKEN)
    key = folder / "key"
    generate_key(key)
    built = Stack(plane, namespace, folder, key, f"i{namespace}", metrics_port=port, ray=ray)
    await built.kubectl("apply", "-f", str(REPOSITORY / "examples" / "local" / "rbac.yaml"))
    signed_weights(built.weights, key)
    await built.policy()
    if start:
        await built.start_operator()
    try:
        yield built
    finally:
        await built.stop_operator()
        await built.kubectl("delete", "weighttrustpolicy", f"policy-{namespace}", "--ignore-not-found")
        await built.kubectl("delete", "gatewayreports", "--all", "-n", SYSTEM)
        await ray.stop()
