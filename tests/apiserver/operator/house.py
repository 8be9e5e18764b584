"""The operator as a process, between a real API server and a fake Ray cluster, with really signed weights."""

import asyncio
import json
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable, Mapping
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
class Stack:
    """Everything that one test stands on."""

    plane: ControlPlane
    namespace: str
    folder: Path
    ray: FakeRay
    key: Path
    installation: str
    process: asyncio.subprocess.Process | None = None
    metrics_port: int = 0
    beats: dict[str, int] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        return self.folder / "weights" / "gpt-oss-20b"

    def app(self, name: str) -> str:
        return f"gptoss-{self.installation}-{self.namespace}-{name}"

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
                "spec": {"model": {"name": "gpt-oss-20b", "uri": f"file://{self.weights}"}, **spec},
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
                    "sources": [{"prefix": f"file://{self.folder / 'weights'}"}],
                    "authorities": [{"name": "release", "models": ["gpt-oss-*"], "key": key}],
                    **changes,
                },
            }
        )

    async def deployment(self, name: str = "assistant") -> dict[str, Any]:
        return json.loads(await self.kubectl("get", "gptoss", name, "-n", self.namespace, "-o", "json"))

    async def wait_for(self, kind: str, status: str, reason: str, name: str = "assistant", seconds: float = 45) -> Any:
        """Wait until a condition has a status and reason, and return the object."""
        found: Any = None

        async def wait() -> Any:
            nonlocal found
            while True:
                found = await self.deployment(name)
                for condition in (found.get("status") or {}).get("conditions", ()):
                    if (condition["type"], condition["status"], condition["reason"]) == (kind, status, reason):
                        return found
                await asyncio.sleep(0.1)

        try:
            return await asyncio.wait_for(wait(), seconds)
        except TimeoutError:
            log = (self.folder / "operator.log").read_text()[-6000:]
            raise AssertionError(
                f"{kind} never became {status} {reason}: {json.dumps(found.get('status'), indent=1)}\n{log}"
            ) from None

    async def wait_for_weights(self, name: str = "assistant", seconds: float = 45, **expected: str) -> Any:
        """Wait until status.weights holds the expected values, and return them."""
        weights: Any = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    weights = ((await self.deployment(name)).get("status") or {}).get("weights") or {}
                    if expected.items() <= weights.items():
                        return weights
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"status.weights never became {expected}: {weights}") from None

    async def until(self, what: Callable[[], object], seconds: float = 30.0) -> None:
        await self.ray.until(what, seconds)

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
        return await asyncio.wait_for(self.process.wait(), 20)

    async def kill_operator(self) -> None:
        await self.stop_operator(signal.SIGKILL)

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.metrics_port}{path}") as answer,
        ):
            return answer.status, await answer.text()


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
    built = Stack(plane, namespace, folder, ray, key, f"i{namespace}", metrics_port=port)
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
