"""A whole gateway in this process: real sockets, the fake engines, and a Kubernetes that is a dictionary."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openai
import yaml

from gptoss_api.names import engine_model_id, route_prefix
from gptoss_gateway.app import Gateway
from gptoss_gateway.census import Census, pulse
from gptoss_gateway.keys import KeyFile
from gptoss_gateway.server import Server, Sockets
from gptoss_gateway.settings import GatewaySettings
from tests.builders import deployment_object
from tests.contract.gateway.engine import TOKEN, Application, Engines

KEY = "gptoss-" + "a" * 43
OTHER_KEY = "gptoss-" + "b" * 43
UID = "11111111-2222-3333-4444-555555555555"


class Reports:
    """Where gateways write; tests wait for what they want to see."""

    def __init__(self) -> None:
        self.specs: dict[str, Mapping[str, Any]] = {}
        self.writes = 0
        self.refuse = False
        self.watchers: list[Census] = []
        self._changed = asyncio.Condition()

    async def apply(self, name: str, spec: Mapping[str, Any], *, deadline: float) -> None:
        if self.refuse:
            raise ConnectionError("no API server")
        self.specs[name] = spec
        self.writes += 1
        for watcher in self.watchers:
            watcher.on_change(pulse({"metadata": {"name": name}, "spec": spec}))
        async with self._changed:
            self._changed.notify_all()

    async def delete(self, name: str, *, deadline: float) -> None:
        self.specs.pop(name, None)
        for watcher in self.watchers:
            watcher.on_delete({"metadata": {"name": name}})

    def watched_by(self, census: Census) -> None:
        """Show every report to a census, now and when it changes."""
        for name, spec in self.specs.items():
            census.on_change(pulse({"metadata": {"name": name}, "spec": spec}))
        self.watchers.append(census)

    def demand(self, gateway: str, uid: str = UID) -> Mapping[str, Any]:
        for demand in self.specs.get(gateway, {}).get("deployments", ()):
            if demand["uid"] == uid:
                return demand
        return {}

    async def until(self, gateway: str, *, within: float = 60.0, uid: str = UID, **wanted: Any) -> Mapping[str, Any]:
        """Wait until a gateway's report says all of ``wanted`` about a deployment; a range means any in it."""
        async with asyncio.timeout(within), self._changed:
            while True:
                demand = self.demand(gateway, uid)
                if demand and all(
                    demand[key] in value if isinstance(value, range) else demand[key] == value
                    for key, value in wanted.items()
                ):
                    return demand
                await self._changed.wait()


class House:
    """One or more gateways in front of the same engines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines = Engines()
        self.reports = Reports()
        self.servers: list[Server] = []
        self.keys_file = folder / "keys.yaml"
        self.write_keys(
            [
                {"name": "ml", "keys": [hashed(KEY)], "namespaces": ["ml", "lab"]},
                {"name": "other", "keys": [hashed(OTHER_KEY)], "namespaces": ["other"]},
            ]
        )
        (folder / "token").write_text(TOKEN + "\n")
        self.objects: dict[str, dict[str, Any]] = {}

    def write_keys(self, tenants: list[dict[str, Any]]) -> None:
        self.keys_file.write_text(yaml.safe_dump({"tenants": tenants}))

    async def start(self) -> None:
        await self.engines.start()

    async def stop(self) -> None:
        for application in self.engines.applications.values():
            application.paused.set()
        for server in self.servers:
            await server.stop()
        await self.engines.stop()

    async def open_gateway(self, identity: str = "gateway-0", *, sockets: Sockets | None = None, **more: Any) -> Server:
        """Start a gateway that knows every object there is."""
        settings = GatewaySettings.model_validate(
            {
                "systemNamespace": "gptoss-system",
                "listen": {"port": 0},
                "admin": {"port": 0},
                "keysFile": self.keys_file,
                "rayClusters": [
                    {
                        "name": "local",
                        "dashboardURL": "http://127.0.0.1:1",
                        "serveURL": self.engines.url,
                        "gatewayTokenFile": self.folder / "token",
                    }
                ],
                "defaultRayCluster": "local",
                "shutdown": {"graceSeconds": 0.2},
                **more,
            }
        )
        gateway = Gateway(settings, identity=identity, keys=KeyFile(self.keys_file), store=self.reports)
        server = Server(gateway, sockets=sockets)
        self.reports.watched_by(gateway.census)
        await server.start()
        self.servers.append(server)
        for raw in self.objects.values():
            gateway.catalogue.on_change(raw)
        gateway.catalogue.on_synced()
        await eventually(lambda: gateway.reporter.may_report)
        return server

    def apply(self, raw: dict[str, Any]) -> None:
        """Store an object and show it to every gateway."""
        self.objects[raw["metadata"]["uid"]] = raw
        for server in self.servers:
            server.gateway.catalogue.on_change(raw)

    def delete(self, uid: str = UID) -> None:
        raw = self.objects.pop(uid)
        for server in self.servers:
            server.gateway.catalogue.on_delete(raw)

    def deploy(self, name: str = "assistant", namespace: str = "ml", uid: str = UID) -> Application:
        """Put an application on the Ray cluster."""
        application = Application(model_id=engine_model_id(namespace, name, uid))
        self.engines.applications[route_prefix(namespace, name)] = application
        return application

    def remove(self, name: str = "assistant", namespace: str = "ml") -> None:
        del self.engines.applications[route_prefix(namespace, name)]


async def eventually(holds: Callable[[], bool], *, within: float = 60.0) -> None:
    """Wait until something that tells nobody when it changes is so."""
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def client(server: Server, *, key: str = KEY, retries: int = 0, timeout: float = 60.0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=key, max_retries=retries, timeout=timeout)


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-11-01T00:00:00Z",
    }


def model_object(
    state: str, *, name: str = "assistant", namespace: str = "ml", uid: str = UID, epoch: int = 1, **more: Any
) -> dict[str, Any]:
    """Return a deployment in a state: serving, idle, draining, waking, suspended or stalled."""
    spec = {"scaling": {"wakeTimeoutSeconds": 60}}
    spec |= {key: value for key, value in more.items() if key not in ("wake", "pull")}
    raw = deployment_object(name, namespace, uid=uid, **spec)
    raw["metadata"]["creationTimestamp"] = "2026-11-01T00:00:00Z"
    reason = state.capitalize()
    up = state in ("serving", "draining")
    conditions = [
        condition("EngineReady", "True" if up else "False", "Answering" if up else "Stopped"),
        condition("ScaledToZero", "True" if state in ("idle", "suspended") else "False", reason),
    ]
    if state == "stalled":
        conditions = [
            condition("Ready", "False", "UntrustedSigner", "the key abc is not among the policy's authorities"),
            condition("Stalled", "True", "UntrustedWeights", "the key abc is not among the policy's authorities"),
            condition("EngineReady", "False", "Stopped"),
        ]
    raw["status"] = {"conditions": conditions, "drainEpoch": epoch, "wake": more.get("wake") or {"lastSeconds": 42.2}}
    if "pull" in more:
        raw["status"]["pull"] = more["pull"]
    if state == "suspended":
        raw["spec"]["suspend"] = True
    return raw
