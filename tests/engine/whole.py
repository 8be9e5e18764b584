"""The whole product for tests: real API server, real Ray, operator and gateways as processes of their own.

Only the engine is a stand-in. Everything is asked from outside: kubectl, HTTP, signals.
"""

import contextlib
import hashlib
import http.client
import json
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptoss_api.names import API_VERSION
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_cli.local.health import is_well
from gptoss_cli.local.ports import free_ports
from gptoss_cli.local.programs import Program, Programs
from gptoss_cli.local.ray_head import RayHead
from tests.controlplane import GATEWAY_USER, OPERATOR_USER, REPOSITORY
from tests.engine.ray import GATEWAY_TOKEN, SECONDS, STANDIN

SYSTEM = "gptoss-system"
ANSWER_SECONDS = 420.0
"""Longer than any request of these tests is held."""
_NO_ANSWER = (OSError, http.client.HTTPException, StepError, subprocess.TimeoutExpired)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of a gateway; status 0 is a connection that broke."""

    status: int
    text: str
    seconds: float

    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def content(self) -> str:
        return str(self.json()["choices"][0]["message"]["content"])


class Whole:
    """One installation on the session's Ray and control plane, in a namespace of its own."""

    def __init__(self, plane: ControlPlane, head: RayHead, folder: Path, namespace: str) -> None:
        self.plane, self.head, self.namespace = plane, head, namespace
        self.key = f"gptoss-{secrets.token_urlsafe(32)}"
        self.gateways: list[str] = []
        self._folder = folder
        self._restarts: dict[str, int] = {}
        self._programs = Programs(folder / "run", attached=True)
        self._ports = dict(
            zip(("operator", "gateway-0", "gateway-1", "admin-0", "admin-1"), free_ports(5), strict=True)
        )
        (folder / "gateway.token").write_text(GATEWAY_TOKEN)
        digest = hashlib.sha256(self.key.encode()).hexdigest()
        tenant = {"name": "test", "keys": [f"sha256:{digest}"], "namespaces": [namespace]}
        (folder / "keys.yaml").write_text(yaml.safe_dump({"tenants": [tenant]}))
        plane.kubectl("apply", "-f", str(REPOSITORY / "examples" / "local" / "rbac.yaml"))

    # ── processes ──

    def start_operator(self) -> None:
        settings = {
            **self._common(),
            "installation": self.namespace,
            "gatewayURL": f"{self.url()}/v1",
            "servingImportPath": STANDIN,
            "namespaces": [self.namespace],
            "weightSources": {"fileRoots": [str(root) for root in self.head.file_roots]},
            "metrics": {"host": "127.0.0.1", "port": self._ports["operator"]},
        }
        kubeconfig = self.plane.kubeconfig_for(OPERATOR_USER)
        self._start("operator", "gptoss_operator", kubeconfig, settings, self._ports["operator"])

    def start_gateway(self, number: int = 0, *, kubeconfig: Path | None = None) -> None:
        """Start a gateway, with a kubeconfig of its own where one is given."""
        settings = {
            **self._common(),
            "listen": {"host": "127.0.0.1", "port": self._ports[f"gateway-{number}"]},
            "admin": {"host": "127.0.0.1", "port": self._ports[f"admin-{number}"]},
            "keysFile": str(self._folder / "keys.yaml"),
            "namespaces": [self.namespace],
        }
        name = f"gateway-{number}"
        self.gateways.append(name)
        kubeconfig = kubeconfig or self.plane.kubeconfig_for(GATEWAY_USER)
        self._start(name, "gptoss_gateway", kubeconfig, settings, self._ports[f"admin-{number}"])

    def kill(self, name: str) -> None:
        """SIGKILL one of our processes and return when it is gone; its supervisor starts it again."""
        record = self._programs.record(name)
        assert record is not None
        assert record.program is not None
        self._restarts[name] = record.restarts
        self._programs.kill(name)

    def until_restarted(self, name: str) -> None:
        """Wait until a killed process runs anew and is ready."""

        def restarted() -> bool:
            record = self._programs.record(name)
            anew = record is not None and record.restarts > self._restarts[name] and record.program is not None
            return anew and _is_ready(self._admin_port(name))

        self.until(restarted, what=f"{name} is back")

    def stop(self) -> None:
        self._programs.stop_all()

    def log(self, name: str, lines: int = 40) -> str:
        return self._programs.last_lines(name, lines)

    # ── Kubernetes ──

    def trust(self, *folders: Path, public_key: str) -> None:
        """Trust a key for everything below some folders, in this namespace."""
        self._apply(
            "WeightTrustPolicy",
            f"policy-{self.namespace}",
            {
                "default": True,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
                "sources": [{"prefix": folder.as_uri()} for folder in folders],
                "authorities": [{"name": "test", "models": ["*"], "key": {"publicKeyPEM": public_key}}],
            },
            namespaced=False,
        )

    def apply(self, name: str, uri: str, *, subject: str = "gpt-oss-tiny", model: Any = None, **spec: Any) -> None:
        body = {"model": {"name": "custom", "uri": uri, **(model or {})}, "verification": {"subject": subject}, **spec}
        self._apply("GptOssDeployment", name, body)

    def delete(self, name: str) -> None:
        self.plane.kubectl("delete", "gptoss", name, "-n", self.namespace)

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a condition; nothing as long as the operator has not seen the present spec."""
        found = self._object(name)
        status = found.get("status") or {}
        if status.get("observedGeneration") == found["metadata"]["generation"]:
            for each in status.get("conditions", []):
                if each["type"] == kind:
                    return each["status"], each["reason"], each["message"]
        return "", "", ""

    def status(self, name: str) -> dict[str, Any]:
        return dict(self._object(name).get("status") or {})

    def wait(self, name: str, kind: str, status: str, reason: str, *, seconds: float = SECONDS) -> None:
        self.until(
            lambda: self.condition(name, kind)[:2] == (status, reason),
            seconds=seconds,
            what=f"{name} {kind}={status} {reason}",
        )

    def _object(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.plane.kubectl("get", "gptoss", name, "-n", self.namespace, "-o", "json")))

    # ── HTTP ──

    def url(self, gateway: int = 0) -> str:
        return f"http://127.0.0.1:{self._ports[f'gateway-{gateway}']}"

    def chat(self, model: str, *, gateway: int = 0, key: str | None = None, **more: Any) -> Reply:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        return self.ask("/v1/chat/completions", body, gateway=gateway, key=key)

    def ask(self, path: str, body: Any = None, *, gateway: int = 0, key: str | None = None) -> Reply:
        key = self.key if key is None else key
        request = urllib.request.Request(
            self.url(gateway) + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        )
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:
                return Reply(status=reply.status, text=reply.read().decode(), seconds=time.monotonic() - began)
        except urllib.error.HTTPError as error:
            with error:
                return Reply(status=error.code, text=error.read().decode(), seconds=time.monotonic() - began)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return Reply(status=0, text=repr(error), seconds=time.monotonic() - began)

    @contextlib.contextmanager
    def stream(self, model: str, *, gateway: int = 0, **more: Any) -> Iterator[Iterator[str]]:
        """Open a stream and yield its lines; whatever ends it ends the lines."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": True, **more}
        request = urllib.request.Request(
            self.url(gateway) + "/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:
            yield _lines(reply)

    def metrics(self, name: str = "operator") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin_port(name)}/metrics", timeout=30) as reply:
            return str(reply.read().decode())

    # ── waiting, and what is told when it was in vain ──

    def until(self, reached: Callable[[], object], *, what: str, seconds: float = SECONDS) -> None:
        """Wait for what can only be asked for; somebody who does not answer has not said yes."""
        deadline = time.monotonic() + seconds
        trouble: Exception | None = None
        while True:
            try:
                if reached():
                    return
                trouble = None
            except _NO_ANSWER as error:
                trouble = error
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {what} (last trouble: {trouble!r})\n{self.seen()}")
            time.sleep(0.2)

    def events(self) -> list[str]:
        """The reasons of all events that were told in this namespace."""
        return [event["reason"] for event in self._events()]

    def seen(self) -> str:
        """All that can be seen from outside, for people who read of a failure."""
        found: dict[str, Callable[[], str]] = {
            "deployments": lambda: json.dumps(self._statuses(), indent=1),
            "events": lambda: "\n".join(f"{each['reason']}: {each.get('message')}" for each in self._events()),
            "Ray": lambda: json.dumps(self.head.request("GET").get("applications"), indent=1)[:6000],
            "operator's metrics": lambda: _ours(self.metrics()),
            **{f"{name}'s metrics": lambda name=name: _ours(self.metrics(name)) for name in self.gateways},
            "operator's log": lambda: self.log("operator"),
            **{f"{name}'s log": lambda name=name: self.log(name, 20) for name in self.gateways},
        }
        return "\n".join(f"── {name}\n{_told(tell)}" for name, tell in found.items())

    def _statuses(self) -> dict[str, Any]:
        listed = json.loads(self.plane.kubectl("get", "gptoss", "-n", self.namespace, "-o", "json"))
        return {each["metadata"]["name"]: each.get("status") for each in listed["items"]}

    def _events(self) -> list[dict[str, Any]]:
        listed = json.loads(self.plane.kubectl("get", "events", "-n", self.namespace, "-o", "json"))
        return list(listed["items"])

    def _admin_port(self, name: str) -> int:
        return self._ports[name if name == "operator" else name.replace("gateway", "admin")]

    def _common(self) -> dict[str, Any]:
        ray = {
            "name": "shared",
            "dashboardURL": self.head.dashboard_url,
            "serveURL": self.head.serve_url,
            "tokenFile": str(self.head.token_file),
            "gatewayTokenFile": str(self._folder / "gateway.token"),
        }
        return {"systemNamespace": SYSTEM, "defaultRayCluster": "shared", "rayClusters": [ray]}

    def _start(self, name: str, module: str, kubeconfig: Path, settings: dict[str, Any], health: int) -> None:
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-P", "-m", module, "--settings", str(path)]
        command += ["--kubeconfig", str(kubeconfig)]
        self._programs.start(Program(name=name, command=command, environment={}, restart=True))
        self._programs.wait(name, lambda: _is_ready(health), seconds=SECONDS)

    def _apply(self, kind: str, name: str, spec: dict[str, Any], *, namespaced: bool = True) -> None:
        metadata = {"name": name} | ({"namespace": self.namespace} if namespaced else {})
        raw = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        self.plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(raw))


def _is_ready(port: int) -> bool:
    return is_well(f"http://127.0.0.1:{port}/readyz")


def _lines(reply: http.client.HTTPResponse) -> Iterator[str]:
    with contextlib.suppress(OSError, http.client.HTTPException):
        for line in reply:
            yield line.decode().rstrip("\n")


def _ours(metrics: str) -> str:
    """Our own series, without histograms' buckets."""
    return "\n".join(line for line in metrics.splitlines() if line.startswith("gptoss_") and "_bucket{" not in line)


def _told(tell: Callable[[], str]) -> str:
    try:
        return tell()
    except Exception as error:  # noqa: BLE001 - it must not hide the failure that it explains
        return repr(error)
